"""PAG Head Search judged by CLIP from files of random weights, in a size that the host's loaders know."""

from __future__ import annotations

import json
from pathlib import Path

import comfy.clip_model
import comfy.clip_vision
import comfy.ops
import folder_paths
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import nodes

from . import models
from .test_head_search import RUN, by_hand, decode, output, ranked, search  # noqa: F401

CONFIGS = Path(comfy.clip_vision.__file__).parent


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """CLIP ViT-L, as Load CLIP Vision and Load CLIP get it."""
    folder = tmp_path_factory.mktemp("clip")
    with torch.inference_mode(False):
        vision = comfy.clip_vision.ClipVisionModel(str(CONFIGS / "clip_vision_config_vitl.json")).model
        text = comfy.clip_model.CLIPTextModel(json.loads((CONFIGS / "sd1_clip_config.json").read_text()), torch.float32,
                                              "cpu", comfy.ops.disable_weight_init)
        for kind, network in (("clip_vision", vision), ("text_encoders", text)):
            network.to(torch.float16)
            models.fill_with_noise(network)
            save_file({name: value.contiguous() for name, value in network.state_dict().items()
                       if not name.endswith("position_ids")}, folder / f"{kind}.safetensors")
            folder_paths.add_model_folder_path(kind, str(folder))
    yield
    for kind in ("clip_vision", "text_encoders"):
        folder_paths.folder_names_and_paths[kind][0].remove(str(folder))


@pytest.mark.slow
@pytest.mark.usefixtures("files", "output")
def test_heads_are_ranked_by_clip_from_the_hosts_loaders(decode):  # noqa: F811
    model = models.sd15()
    (vision,) = nodes.CLIPVisionLoader().load_clip("clip_vision.safetensors")
    (text,) = nodes.CLIPLoader().load_clip("text_encoders.safetensors", "stable_diffusion", "cpu")
    found, _, layers = search(RUN, model, decode, "m0:h0+2", score="prompt", clip_vision=vision, clip=text,
                              prompt=["a dog"])
    pooled = text.encode_from_tokens(text.tokenize("a dog"), return_pooled=True)[1]
    wanted = text.cond_stage_model.clip_l.transformer.text_projection(pooled).float()
    expected = {}
    for head in ("m0:h0", "m0:h2"):
        seen = vision.encode_image(by_hand(RUN, model, decode, head))["image_embeds"].float()
        expected[head] = F.cosine_similarity(seen, wanted).item()
    assert dict(ranked(found)) == pytest.approx(expected, abs=1e-3)
    assert layers == max(expected, key=expected.get)
