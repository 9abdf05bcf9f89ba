"""Families of which only whole blocks can be altered, and networks that no table knows."""

from __future__ import annotations

import importlib

import pytest
import torch
from pag_pack.nodes.host.hooks.attention import LayerPerturbation
from pag_pack.nodes.host.hooks.ways import way_in
from pag_pack.nodes.host.models.families import BLOCKS_ONLY, family_of
from pag_pack.nodes.host.models.layers import model_layers, network_layers
from pag_pack.pag_core.attention import PerturbationError
from pag_pack.pag_core.perturbation import Perturbation

from .family_models import OPTIONS, fill, forward
from .older import what_older_hosts_lack
from .test_families import PERTURBED, PLAIN, Patcher, relative


class Block(torch.nn.Module):
    """A residual block; `shrinks` makes one that changes its size."""

    def __init__(self, shrinks: bool = False) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)
        self.shrinks = shrinks

    def forward(self, hidden, text):
        hidden = hidden + torch.tanh(self.linear(hidden)) + text.mean(1, keepdim=True)
        return (hidden[:, ::2] if self.shrinks else hidden), text * 0.9


class Unknown(torch.nn.Module):
    """Of a host newer than the pack."""

    def __init__(self, shrinks: bool = False) -> None:
        super().__init__()
        self.pieces = torch.nn.ModuleList(Block(shrinks and index == 1) for index in range(4))
        self.out = torch.nn.Linear(8, 8)

    def forward(self, x, timestep, context, transformer_options=None, **kwargs):
        text = context
        for block in self.pieces:
            x, text = block(x, text)
        return self.out(x)


def unknown(shrinks: bool = False) -> torch.nn.Module:
    torch.manual_seed(0)
    return Unknown(shrinks)


def ernie() -> torch.nn.Module:
    from comfy.ldm.ernie.model import ErnieImageModel

    with torch.inference_mode(False), what_older_hosts_lack(TypeError):
        network = ErnieImageModel(hidden_size=64, num_attention_heads=4, num_layers=3, ffn_hidden_size=96,
                                  in_channels=16, out_channels=16, text_in_dim=24, rope_axes_dim=(4, 6, 6),
                                  **OPTIONS).eval()
        fill(network)
    return network


def run(network: torch.nn.Module, inputs: dict, rows: list[str], kind: str = "skip_block", layer: str = "1",
        strength: float = 1.0) -> torch.Tensor:
    found = network_layers(network)
    key = next(key for one, key in found.layers.items() if one.name == layer)
    patch = way_in(found, {key: LayerPerturbation(layer, Perturbation(kind, strength), None)})
    options = {"uuids": rows, "cond_or_uncond": [0] * len(rows)}
    with torch.inference_mode(), patch.around(network, options, PERTURBED.__eq__, lambda name: None, ()) as options:
        return forward(network, inputs, options)


@pytest.mark.parametrize("family", BLOCKS_ONLY, ids=lambda family: family.name)
def test_every_family_is_the_hosts_and_says_why_its_attention_cannot_be_perturbed(family):
    module, _, cls = family.network.rpartition(".")
    network = object.__new__(getattr(importlib.import_module(module), cls))
    assert family_of(network) is family
    assert family.blocks_only


def test_ernie_skips_blocks_beside_plain_rows():
    network = ernie()
    generator = torch.Generator().manual_seed(1)
    inputs = {"x": torch.randn(2, 16, 4, 6, generator=generator), "timesteps": torch.full((2,), 0.5),
              "context": torch.randn(2, 7, 24, generator=generator)}
    row = {name: value[1:] for name, value in inputs.items()}
    plain = forward(network, inputs, {})
    found = model_layers(Patcher(network))
    assert [layer.name for layer in found.layers] == ["0", "1", "2"]
    unchanged, weak = run(network, inputs, [PLAIN, PERTURBED]).chunk(2)
    own = network.layers[1].forward
    network.layers[1].forward = lambda x, *args, **kwargs: x
    expected = forward(network, row, {})
    network.layers[1].forward = own
    assert relative(unchanged, plain[:1]) <= 1e-5
    assert relative(weak, expected) <= 1e-4
    assert relative(weak, plain[1:]) > 1e-3
    with pytest.raises(PerturbationError, match=r"joins text and image in one attention.*skip_block"):
        run(network, inputs, [PLAIN, PERTURBED], "identity")


@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_the_blocks_of_an_unknown_network_are_found_by_their_structure(strength):
    network = unknown()
    found = network_layers(network)
    assert [layer.name for layer in found.layers] == ["0", "1", "2", "3"]
    assert found.is_apart
    assert "found by their structure" in found.family.blocks_only
    inputs = {"x": torch.randn(2, 6, 8), "timesteps": torch.full((2,), 0.5), "context": torch.randn(2, 3, 8)}
    x, text = inputs["x"], inputs["context"]
    with torch.inference_mode():
        for index, block in enumerate(network.pieces):
            after, text_after = block(x, text)
            share = strength if index == 1 else 0.0
            x, text = torch.lerp(after, x, share), torch.lerp(text_after, text, share)
        expected = network.out(x)
    torch.testing.assert_close(run(network, inputs, [PERTURBED], strength=strength), expected)


def test_a_block_that_changes_size_is_refused_by_name():
    inputs = {"x": torch.randn(1, 6, 8), "timesteps": torch.full((1,), 0.5), "context": torch.randn(1, 5, 8)}
    with pytest.raises(PerturbationError, match=r"layers: 1 cannot be skipped: its output is 1×3×8"):
        run(unknown(shrinks=True), inputs, [PERTURBED])


def test_attention_of_an_unknown_network_is_refused_with_what_works():
    with pytest.raises(PerturbationError, match=r"Unknown is not known.*skip_block"):
        run(unknown(), {}, [PERTURBED], "identity")
