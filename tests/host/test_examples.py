"""The examples without a prompt, from loader to picture, with small random models in the place of their checkpoints."""

from __future__ import annotations

from pathlib import Path

import folder_paths
import pytest
import torch
from comfy_extras.nodes_canny import Canny
from comfy_extras.nodes_mask import MaskComposite, SolidMask
from comfy_extras.nodes_sdupscale import SD_4XUpscale_Conditioning
from harness import workflow
from pag_pack.nodes.sampling import PAGKSampler
from PIL import Image

import nodes

from . import models
from .test_psld import vae
from .test_without_prompt import control_net

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
FAMILIES = {"sd15_controlnet_empty_prompt": models.sd15, "sd2_inpainting_empty_prompt": models.sd15_inpainting,
            "sd_x4_upscaler_empty_prompt": models.x4_upscaler}
NEWER = {node.GET_SCHEMA().node_id: node for node in (
    Canny, MaskComposite, SolidMask, SD_4XUpscale_Conditioning, PAGKSampler)}
SMALLER = ("width", "height", "x", "y")  # pixels; an eighth of them


class EmptyPrompts:
    """In the place of a CLIP."""

    def tokenize(self, text: str) -> str:
        assert text == ""
        return text

    def encode_from_tokens_scheduled(self, tokens: str) -> list:
        return models.empty_conditioning()


def definitions() -> dict[str, dict]:
    """What the server says of these nodes."""
    older = {name: {"input": node.INPUT_TYPES()} for name, node in nodes.NODE_CLASS_MAPPINGS.items()}
    return {**older, **{name: node.GET_NODE_INFO_V1() for name, node in NEWER.items()}}


def run(name: str, family) -> dict[str, torch.Tensor]:
    """{the prefix that it is saved under: IMAGE [B, H, W, 3]} of two steps."""
    prompt = workflow.load(WORKFLOWS / f"{name}.json", definitions())
    done: dict[str, tuple] = {}
    saved = {}

    def outputs(node_id: str) -> tuple:
        if node_id not in done:
            kind, inputs = prompt[node_id]["class_type"], dict(prompt[node_id]["inputs"])
            for given, value in inputs.items():
                if isinstance(value, list):
                    inputs[given] = outputs(value[0])[value[1]]
                elif given in SMALLER:
                    inputs[given] = value // 8
            done[node_id] = execute(kind, {**inputs, **({"steps": 2} if "steps" in inputs else {})})
        return done[node_id]

    def execute(kind: str, inputs: dict) -> tuple:
        if kind == "CheckpointLoaderSimple":
            return family(), EmptyPrompts(), vae()
        if kind == "ControlNetLoader":
            return (control_net(),)
        if kind == "SaveImage":
            saved[inputs["filename_prefix"]] = inputs["images"]
            return ()
        if kind == "PreviewImage":
            return ()
        if kind in NEWER:
            return NEWER[kind].execute(**inputs).result
        node = nodes.NODE_CLASS_MAPPINGS[kind]
        return getattr(node(), node.FUNCTION)(**inputs)

    for node_id in prompt:
        outputs(node_id)
    return saved


@pytest.mark.parametrize("name", FAMILIES)
def test_runs_and_pag_changes_its_picture(name):
    folder = Path(folder_paths.get_input_directory())
    folder.mkdir(exist_ok=True)
    Image.linear_gradient("L").convert("RGB").save(folder / "example.png")
    pictures = run(name, FAMILIES[name])
    plain, guided = pictures[f"pag/{name}"], pictures[f"pag/{name}_pag"]
    assert plain.shape == guided.shape
    assert plain.isfinite().all()
    assert (plain - guided).abs().max() > 1e-2
