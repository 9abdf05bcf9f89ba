"""What "auto" means on the models for which somebody has published something, at their true sizes."""

from __future__ import annotations

import copy
import importlib
import re
from pathlib import Path

import pytest
import torch
from pag_pack.nodes.host.editor.known_models import of_family
from pag_pack.nodes.host.models.defaults import _DEFAULTS, published_for
from pag_pack.nodes.host.models.layers import network_layers
from pag_pack.pag_core.perturbation import Perturbation
from pag_pack.pag_core.schedule import window_from_percent
from pag_pack.pag_core.selection import select

from . import models
from .family_models import CASES, OPTIONS
from .older import newest_only

ROOT = Path(__file__).parents[2]

# {model: (the test's case of the same class, arguments for its true size, the layers of "auto", what belongs to them)}
SIZES = {
    "SD3.5 medium": ("SD3.5", {"depth": 24, "num_blocks": 24}, "7 8 9", "skip_block, scale 2.5, from 1% to 20%"),
    "SD3 medium": ("SD3.5", {"depth": 24, "num_blocks": 24, "x_block_self_attn_layers": []}, "9",
                   "identity, scale 3, strength 0.5"),
    "LTX-2.3 and later": ("LTX-Video with sound", {"num_layers": 48, "cross_attention_adaln": True}, "28 audio.28",
                          "identity, scale 1, rescale 0.7"),
    "LTX-2.0": ("LTX-Video with sound", {"num_layers": 48}, "29 audio.29", "identity, scale 1, rescale 0.7"),
    "LTX-Video 2B": ("LTX-Video", {"num_layers": 28}, "19", "identity, scale 1, rescale 0.7"),
    "LTX-Video 13B": ("LTX-Video", {"num_layers": 48}, "28", "identity, scale 1, rescale 0.7"),
    "Wan 2.1 and 2.2, 14B": ("Wan, text", {"num_layers": 40, "dim": 5120, "num_heads": 40}, "2", "skip_block, scale 2"),
    "Wan 2.1 1.3B": ("Wan, text", {"num_layers": 30, "dim": 1536, "num_heads": 12}, "2", "skip_block, scale 2"),
    "HunyuanVideo": ("HunyuanVideo", {"depth": 20, "depth_single_blocks": 40, "hidden_size": 3072, "num_heads": 24,
                                      "axes_dim": [16, 56, 56]}, "double.2", "skip_block, scale 1"),
    "Mochi": ("Mochi", {"depth": 48}, "34", "skip_block, scale 1"),
    "CogVideoX-5B": ("CogVideoX", {"num_layers": 42}, "11", "skip_block, scale 1"),
}


def built(case_name: str, arguments: dict) -> torch.nn.Module:
    case = next(case for case in CASES if case.name.startswith(case_name))
    module, _, cls = case.network.rpartition(".")
    return getattr(importlib.import_module(f"comfy.ldm.{module}"), cls)(
        **case.arguments | arguments, **OPTIONS | {"device": "meta"})


@newest_only
@pytest.mark.parametrize("model", SIZES)
def test_auto_takes_the_published_layers_and_says_who_published_them(model):
    case, arguments, layers, details = SIZES[model]
    network = built(case, arguments)
    published, found = published_for(network), network_layers(network)
    assert published.model == model
    assert [layer.name for layer in select("auto", tuple(found.layers), found.auto)] == layers.split()
    assert found.source == f"{details}: {published.source}"


@pytest.mark.parametrize(("family", "layers"), [
    ("ADM 256", "d3 d4 d5 m0"), ("Z-Image", "10 15 20"), ("HunyuanVideo", "double.2"), ("Anima", "18")])
def test_published_shapes_of_the_chooser_have_theirs(family, layers):
    found = of_family(family).layers
    assert sorted(layer.name for layer in select("auto", tuple(found.layers), found.auto)) == layers.split()


def test_image_models_of_a_video_models_shape_keep_their_familys_default():
    """HunyuanImage 2.1 has HunyuanVideo's blocks, wider; SDXL inpainting has SD inpainting's channels."""
    assert of_family("HunyuanImage 2.1").layers.source.endswith("by analogy with PAG Table 10; not tuned")
    assert published_for(models.sd15_inpainting().model.diffusion_model).layers == "u0"
    sdxl = copy.copy(models.sdxl().model.diffusion_model)
    sdxl.in_channels = 9
    assert published_for(sdxl) is None


def test_a_network_of_another_size_keeps_the_familys_default():
    for case in CASES:
        if case.network.split(".")[-1] not in ("UNetModel", "OpenAISignatureMMDITWrapper"):
            assert published_for(case.build()) is None, case.name


def test_every_entry_makes_sense():
    assert {*SIZES} < {published.model for _, published in _DEFAULTS}
    for _, published in _DEFAULTS:
        Perturbation(published.perturbation, published.strength)
        window_from_percent(published.start_percent, published.end_percent, lambda percent: 1 - percent)
        assert published.source and (published.scale is None or published.scale > 0)


@pytest.mark.parametrize("language", ["en", "zh", "ko"])
def test_the_help_page_lists_what_is_published(language):
    page = (ROOT / "web" / "docs" / "PAGLayers" / f"{language}.md").read_text(encoding="utf-8")
    rows = re.findall(r"^- (.+?): (`[^`]+`) · (.+?) · (.+)$", page, re.MULTILINE)
    assert len(rows) == len(_DEFAULTS)
    for (_, published), (model, layers, how, source) in zip(_DEFAULTS, rows, strict=True):
        settings = str(published).partition(": ")[0]
        assert layers.strip() == f"`{published.layers}`"
        assert re.findall(r"[\d.]+", how) == re.findall(r"[\d.]+", settings)
        assert how.strip().startswith(published.perturbation)
        if language == "en":
            assert (model.strip(), how.strip(), source.strip()) == (published.model, settings, published.source)
