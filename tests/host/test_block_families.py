"""Families of which only whole blocks can be altered, and networks that no table knows."""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest
import torch
from comfy_extras.nodes_easycache import EasyCacheNode
from pag_pack.nodes.host.hooks.attention import LayerPerturbation
from pag_pack.nodes.host.hooks.ways import way_in
from pag_pack.nodes.host.models import layers
from pag_pack.nodes.host.models.families import BLOCKS_ONLY
from pag_pack.nodes.host.models.layers import model_layers, network_layers
from pag_pack.nodes.host.models.structure import family_of
from pag_pack.nodes.layers import PAGLayers
from pag_pack.pag_core.attention import PerturbationError
from pag_pack.pag_core.perturbation import Perturbation
from pag_pack.pag_core.settings import PAGOptions

from .family_models import OPTIONS, fill, forward
from .older import what_older_hosts_lack
from .sampled_families import SAMPLED
from .test_families import PERTURBED, PLAIN, Patcher, relative
from .test_family_sampling import SCALE, errors, sampled


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
    with pytest.raises(PerturbationError, match=r"joint attention of text and image.*skip_block"):
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


class Staged(torch.nn.Module):
    """Its blocks lie in stages, which only hold them; of each it may run the layer alone."""

    def __init__(self, whole: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stages = torch.nn.ModuleList(torch.nn.ModuleDict({"pieces": torch.nn.ModuleList(
            Block() for _ in range(2))}) for _ in range(3))
        self.whole = whole

    def forward(self, x, timestep, context, transformer_options=None, **kwargs):
        for stage in self.stages:
            for block in stage["pieces"]:
                x = block(x, context)[0] if self.whole else x + block.linear(x)
        return x


def test_blocks_in_stages_are_found_and_skipped():
    network, inputs = Staged(), {"x": torch.randn(1, 6, 8), "timesteps": torch.full((1,), 0.5),
                                 "context": torch.randn(1, 3, 8)}
    assert [layer.name for layer in network_layers(network).layers] == list("012345")
    with torch.inference_mode():
        x = inputs["x"]
        for index, block in enumerate(block for stage in network.stages for block in stage["pieces"]):
            x = x if index == 3 else block(x, inputs["context"])[0]
    torch.testing.assert_close(run(network, inputs, [PERTURBED], layer="3"), x)
    with pytest.raises(PerturbationError, match=r"3 of Staged cannot be skipped, because the network does not call"):
        run(Staged(whole=False), inputs, [PERTURBED], layer="3")


def test_a_block_that_changes_size_is_refused_by_name():
    inputs = {"x": torch.randn(1, 6, 8), "timesteps": torch.full((1,), 0.5), "context": torch.randn(1, 5, 8)}
    with pytest.raises(PerturbationError, match=r"layers: 1 cannot be skipped: its output has the shape 1×3×8"):
        run(unknown(shrinks=True), inputs, [PERTURBED])


class Attending(torch.nn.Module):
    """A block with self-attention over the image, or over image and text, and with cross-attention."""

    def __init__(self, joins: bool, tells: bool) -> None:
        super().__init__()
        self.qkv, self.out, self.text = (torch.nn.Linear(8, size) for size in (24, 8, 16))
        self.joins, self.tells = joins, tells

    def forward(self, hidden, text, transformer_options=None):
        from comfy.ldm.modules.attention import optimized_attention

        options = {"transformer_options": transformer_options} if self.tells else {}
        tokens = torch.cat([text, hidden], dim=1) if self.joins else hidden
        q, k, v = self.qkv(tokens).chunk(3, dim=-1)
        attended = optimized_attention(q, k, v, 2, **options)[:, -hidden.shape[1]:]
        hidden = hidden + torch.tanh(self.out(attended))
        k, v = self.text(text).chunk(2, dim=-1)
        return hidden + torch.tanh(optimized_attention(self.out(hidden), k, v, 2, **options))


class Newcomer(torch.nn.Module):
    """Of a host newer than the pack, with attention; its tokens are patches of 2 × 2."""

    def __init__(self, joins: bool = False, tells: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.into, self.out = torch.nn.Linear(16, 8), torch.nn.Linear(8, 16)
        self.pieces = torch.nn.ModuleList(Attending(joins, tells) for _ in range(4))

    def forward(self, x, timestep, context, transformer_options=None, **kwargs):
        b, c, h, w = x.shape
        x = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)
        hidden = self.into(x)
        for piece in self.pieces:
            hidden = piece(hidden, context, transformer_options)
        return self.out(hidden)


def newcomers_inputs(text: int) -> dict:
    generator = torch.Generator().manual_seed(1)
    return {"x": torch.randn(2, 4, 8, 12, generator=generator), "timesteps": torch.full((2,), 0.5),
            "context": torch.randn(2, text, 8, generator=generator)}


@pytest.mark.parametrize("kind", ["identity", "skip_attention"])
def test_image_attention_of_an_unknown_network_shows_by_its_length(kind):
    network, inputs = Newcomer(), newcomers_inputs(7)
    calls = iter(range(8))

    def attention(func, q, k, v, *args, **kwargs):
        weak = v if kind == "identity" else torch.zeros_like(v)
        return weak if next(calls) == 2 else func(q, k, v, *args, **kwargs)

    with torch.inference_mode():
        expected = forward(network, inputs, {"optimized_attention_override": attention})
        plain = forward(network, inputs, {})
    ours = run(network, inputs, [PERTURBED], kind)
    assert relative(ours, expected) <= 1e-5
    assert relative(ours, plain) > 1e-3


@pytest.mark.parametrize(("network", "text"), [
    pytest.param(Newcomer(joins=True), 7, id="text and image in one attention"),
    pytest.param(Newcomer(joins=True), 72, id="as many, text included, as smaller patches would be"),
    pytest.param(Newcomer(), 24, id="as many text tokens as patches"),
    pytest.param(Newcomer(tells=False), 7, id="attention that shows itself to no one"),
    pytest.param(unknown(), 3, id="no attention at all")])
def test_attention_of_an_unknown_network_is_refused_where_it_does_not_show(network, text):
    inputs = newcomers_inputs(text) if isinstance(network, Newcomer) else {
        "x": torch.randn(2, 6, 8), "timesteps": torch.full((2,), 0.5), "context": torch.randn(2, text, 8)}
    with pytest.raises(PerturbationError, match=r"1 of \w+ has no self-attention over image.*skip_block"):
        run(network, inputs, [PERTURBED], "identity")


@pytest.mark.parametrize("row", ["extra", "negative"])
def test_a_network_that_no_table_knows_is_sampled_as_one_that_is_known(row, monkeypatch):
    how = replace(next(how for how in SAMPLED if how.name == "Wan, text to video"), arguments={"num_layers": 3})
    model, run = how.build(), sampled(how, 4.0, 2)
    options = PAGOptions(row=row)
    known = run.model_patch(model, SCALE, "1", options)
    monkeypatch.setattr(layers, "family_of", lambda network: None)
    assert "found by their structure" in PAGLayers.execute(model, "1").result[0]
    assert max(errors(run.model_patch(model, SCALE, "1", options), known)) <= 1e-4
    assert max(errors(run.ksampler(model), known)) > 1e-3


def test_a_step_that_a_cache_skips_is_skipped_where_the_prefix_is_not_shared(monkeypatch):
    """Of a network that no table knows, and of those that lay out their batch in a way of their own."""
    how = replace(next(how for how in SAMPLED if how.name == "Wan, text to video"), arguments={"num_layers": 3})
    model, run = EasyCacheNode.execute(how.build(), 0.5, 0.0, 1.0, False).result[0], sampled(how, 4.0, 1, steps=16)
    blocks, spent = model.model.diffusion_model.blocks, [0, 0, 0]
    for place, block in enumerate(blocks):
        block.register_forward_pre_hook(lambda *_, place=place: spent.__setitem__(place, spent[place] + 1))
    monkeypatch.setattr(layers, "family_of", lambda network: None)
    run.model_patch(model, SCALE, "1", PAGOptions("skip_block"))
    assert spent[0] % 2 == 0
    assert spent[0] < 2 * 16, "the cache must have been used, in both calls of the same steps"


def test_operations_on_the_map_of_an_unknown_network_are_refused_with_what_works():
    with pytest.raises(PerturbationError, match=r"Unknown is not known.*skip_block"):
        run(unknown(), {}, [PERTURBED], "seg")
