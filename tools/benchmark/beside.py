"""Counts PAG's cost together with other nodes: FLOPs of a run with CFG and PAG divided by those of the run with CFG.

The models are small versions of SD 1.5 (with all blocks), Flux and Wan. FLOPs are exact, and the ratio hardly depends
on the width.
"""

from __future__ import annotations

from collections.abc import Callable

import comfy.controlnet
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_easycache import EasyCacheNode
from comfy_extras.nodes_freelunch import FreeU_V2
from comfy_extras.nodes_hypertile import HyperTile
from comfy_extras.nodes_nag import NAGuidance
from comfy_extras.nodes_tomesd import TomePatchModel
from neighbours.beside import control_net
from neighbours.measuring import Scene, SetUp, counted_flops
from neighbours.models import FAMILIES
from pag_pack.pag_core.settings import PAGOptions

UNDISTURBED = "no other node"
SHOWN = SD15, FLUX, WAN = "SD 1.5", "Flux", "Wan"


def report(only: str = "") -> list[dict]:
    """[{"set_up", "family", "layers", "ratio"}]."""
    rows = []
    for what, families, layer, set_up in SET_UPS:
        for family in families:
            if only.lower() not in family.lower():
                continue
            rows.append({"set_up": what, "family": family, "layers": layer or FAMILIES[family].layers[0],
                         "ratio": ratio(family, set_up, layer)})
    return rows


def ratio(family: str, set_up: SetUp, layer: str | None = None, options: PAGOptions | None = None) -> float:
    """FLOPs of CFG + PAG over CFG."""
    with torch.inference_mode(False), torch.no_grad():
        plain, guided = (counted_flops(FAMILIES[family], set_up, chain, layer, options=options) for chain in (0, 1))
    return guided / plain


def table(rows: list[dict]) -> str:
    lines = ["", "FLOPs of CFG + PAG divided by CFG, together with other nodes", "",
             "| setup | " + " | ".join(SHOWN) + " |", "|---|" + "---:|" * len(SHOWN)]
    ratios = {(row["set_up"], row["family"]): row["ratio"] for row in rows}
    for what in dict.fromkeys(row["set_up"] for row in rows):
        cells = (ratios.get((what, family)) for family in SHOWN)
        lines.append(f"| {what} | " + " | ".join("" if cell is None else f"{cell:.3f}" for cell in cells) + " |")
    return "\n".join(lines)


def node(execute: Callable, *arguments) -> SetUp:
    """One of the host's nodes."""
    def set_up(scene: Scene) -> None:
        output = execute(scene.model, *arguments)
        scene.model = output[0] if isinstance(output, tuple) else output.result[0]
    return set_up


def with_model(change: Callable) -> SetUp:
    def set_up(scene: Scene) -> None:
        scene.model = scene.model.clone()
        change(scene.model)
    return set_up


def _override(model) -> None:
    model.model_options["transformer_options"]["optimized_attention_override"] = (
        lambda function, *args, **kwargs: function(*args, **kwargs))


def _memory_for(rows: int) -> Callable:
    """As where no more rows fit at once, by the host's own formula."""
    def change(model) -> None:
        model.model.memory_required = lambda shape, *_, **__: 0.0 if shape[0] <= rows else 2.0**60
    return change


def _image_prompt(q, k, v, extra_options):
    index = extra_options["cond_or_uncond"]
    away = torch.cat([rows * (0.3, -0.3)[i] for i, rows in zip(index, q.chunk(len(index)), strict=True)])
    return optimized_attention(q, k, v, extra_options["n_heads"]) + away


def _image_prompts(model) -> None:
    for number in (1, 2, 4, 5, 7, 8):
        model.set_model_attn2_replace(_image_prompt, "input", number)


def _block_patch(kind: str, number: int) -> Callable:
    return lambda model: model.set_model_patch_replace(
        lambda args, extra: extra["original_block"](args), "dit", kind, number)


def _compiled_whole(model) -> None:
    set_torch_compile_wrapper(model, backend="eager")


def _compiled_blocks(model) -> None:
    """As KJNodes' nodes: each block compiled singly, as an object patch."""
    network = model.model.diffusion_model
    for name in ("double_blocks", "single_blocks", "blocks"):
        for i, block in enumerate(getattr(network, name, ())):
            model.add_object_patch(f"diffusion_model.{name}.{i}", torch.compile(block, backend="eager"))


def _control_net(scene: Scene) -> None:
    control_net(scene, SD15)


class _Adapter(comfy.controlnet.ControlBase):
    """A T2I adapter without a network."""

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        return {"input": [0.1 * x_noisy.mean(1, keepdim=True).expand(-1, 32, -1, -1)], "middle": [], "output": []}

    def get_models(self):
        return []

    def pre_run(self, *_):
        pass

    def copy(self):
        return self


def _adapter(scene: Scene) -> None:
    for prompt in (scene.positive, scene.negative):
        prompt[0][1].update(control=_Adapter(), control_apply_to_uncond=False)


ALL, TRANSFORMERS = (SD15, FLUX, WAN), (FLUX, WAN)
# (what is set up, on which families, the layer that is perturbed where it is another one, how)
SET_UPS = (
    (UNDISTURBED, ALL, None, lambda scene: None),
    ("an attention override", ALL, None, with_model(_override)),
    ("one row at a time (low memory)", ALL, None, with_model(_memory_for(1))),
    ("memory for two rows of three", ALL, None, with_model(_memory_for(2))),
    ("torch.compile", ALL, None, with_model(_compiled_whole)),
    ("blocks compiled separately", TRANSFORMERS, None, with_model(_compiled_blocks)),
    ("image prompts in cross-attention", (SD15,), None, with_model(_image_prompts)),
    ("a T2I adapter", (SD15,), None, _adapter),
    ("a ControlNet", (SD15,), None, _control_net),
    ("a ControlNet, PAG in output.5", (SD15,), "output.5", _control_net),
    ("no other node, PAG in output.5", (SD15,), "output.5", lambda scene: None),
    ("HyperTile", (SD15,), None, node(HyperTile.execute, 32, 2, 0, False)),
    ("token merging", (SD15,), None, node(TomePatchModel.execute, 0.5)),
    ("an attn1 patch", (SD15,), None, with_model(lambda model: model.set_model_attn1_patch(
        lambda q, k, v, options: (1.01 * q, k, v)))),
    ("an attn2 patch", (SD15,), None, with_model(lambda model: model.set_model_attn2_patch(
        lambda q, k, v, options: (1.01 * q, k, v)))),
    ("an input-block patch", (SD15,), None, with_model(lambda model: model.set_model_input_block_patch(
        lambda h, options: 1.01 * h))),
    ("NAG", (SD15,), None, node(NAGuidance.execute, 2.0, 0.5, 1.5)),
    ("FreeU", (SD15,), None, node(FreeU_V2.execute, 1.3, 1.4, 0.9, 0.2)),
    ("FreeU, PAG in output.5", (SD15,), "output.5", node(FreeU_V2.execute, 1.3, 1.4, 0.9, 0.2)),
    ("EasyCache", ALL, None, node(EasyCacheNode.execute, 1e-6, 0.0, 1.0, False)),
    ("a block replaced before the layer", (FLUX,), None, with_model(_block_patch("double_block", 0))),
    ("a block replaced behind the layer", (FLUX,), None, with_model(_block_patch("single_block", 3))),
    ("a block replaced before the layer", (WAN,), None, with_model(_block_patch("double_block", 0))),
    ("a block replaced behind the layer", (WAN,), None, with_model(_block_patch("double_block", 5))),
)
