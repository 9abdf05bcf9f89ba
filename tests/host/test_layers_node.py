"""PAG Layers: the list of a model's layers, what a selection takes of it, and what the extra pass costs."""

import asyncio

import pytest
import torch
from pag_pack.nodes import comfy_entrypoint
from pag_pack.nodes.host.models.layers import UnsupportedModelError
from pag_pack.nodes.layers import PAGLayers
from pag_pack.pag_core.selection import SelectionError

from . import models
from .family_models import CASES
from .test_block_families import ernie


def lines(model, layers: str) -> list[list[str]]:
    """The node's text, split into lines and columns."""
    output = PAGLayers.execute(model, layers)
    (text,) = output.result
    assert output.ui.as_dict() == {"text": (text,)}
    return [[column.strip() for column in line.split("  ") if column.strip()] for line in text.splitlines()]


def test_u_net():
    head, cost, auto, _, _, *table = lines(models.sd15(), "auto")
    assert head == ["U-Net: 7 self-attention layers, 1 selected."]
    assert cost == ["The extra pass costs 69% of a full one, since everything before the first selected layer is "
                    "shared with the normal pass."]
    assert auto == ["auto: m0 (identity, scale 3: the PAG authors' repository, with CFG 4; it uses 5 with a prompt "
                    "alone and 4 with a ControlNet)"]
    assert table[0] == ["d0", "d0.0 input.1 input.1.0", "4", "image only"]
    assert table[2] == ["m0", "m0.0 middle.0 middle.0.0", "4", "image only", "all heads"]


def test_transformer_with_heads():
    head, cost, auto, _, columns, *table = lines(models.flux(), "double.1:h0+2-3,single.0-2,!single.1")
    assert head == ["Flux, Flux 2, LongCat: 5 self-attention layers, 3 selected."]
    assert cost[0].startswith("The extra pass costs 43% of a full one")
    assert auto == ["auto: single.0 (the middle of the network, by analogy with PAG Table 10; not tuned)"]
    assert columns == ["layer", "also", "heads", "tokens", "selected"]
    assert table == [["double.0", "0", "4", "text, then image"],
                     ["double.1", "1", "4", "text, then image", "h0+2-3"],
                     ["single.0", "2", "4", "text, then image", "all heads"],
                     ["single.1", "3", "4", "text, then image"],
                     ["single.2", "4", "4", "text, then image", "all heads"]]


def test_family_whose_maps_no_one_sees():
    """What the identity saves of each layer is not counted there."""
    assert lines(models.pixart(), "1")[1][0].startswith("The extra pass costs 50% of a full one")


def test_family_whose_blocks_are_not_even():
    cascade = next(case for case in CASES if case.name == "Stable Cascade C")
    model = models.strange().clone()
    model.add_object_patch("diffusion_model", cascade.build())
    (cost,) = lines(model, "up.0")[1]
    assert cost == "The extra pass costs at most 100% of a full one."


def test_of_a_family_whose_blocks_alone_can_be_skipped_the_tokens_are_not_told():
    """Ernie-Image joins text and image."""
    model = models.strange().clone()
    model.add_object_patch("diffusion_model", ernie())
    head, *_, columns, first, _, _ = lines(model, "0")
    assert head == ["Ernie-Image: 3 blocks, 1 selected."]
    assert columns == ["layer", "also", "heads", "tokens", "selected"]
    assert first == ["0", "1", "all heads"]


def test_unknown_layer_lists_what_there_is():
    with pytest.raises(SelectionError, match=r"'m7'.*This model has: d0-1, m0, u0-3"):
        PAGLayers.execute(models.sd15(), "m7")


def test_unknown_model():
    with pytest.raises(UnsupportedModelError, match="does not support the model StrangeNetwork"):
        PAGLayers.execute(models.strange(), "auto")


def test_registered_with_a_schema_that_says_what_everything_is():
    nodes = asyncio.run(asyncio.run(comfy_entrypoint()).get_node_list())
    assert PAGLayers in nodes
    schema = PAGLayers.define_schema()
    schema.validate()
    assert [each.id for each in schema.inputs] == ["model", "layers"]
    assert all(each.tooltip for each in (*schema.inputs, *schema.outputs))
    assert schema.is_output_node


def test_model_is_left_alone():
    model = models.sd15()
    before = torch.cat([weight.flatten() for weight in model.model.state_dict().values()])
    options = dict(model.model_options)
    PAGLayers.execute(model, "all")
    assert torch.equal(before, torch.cat([weight.flatten() for weight in model.model.state_dict().values()]))
    assert model.model_options == options
