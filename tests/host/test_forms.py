"""Blocks that no table knows: what they pass on is told from their calls, and a skipped one is not run."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import NamedTuple

import pytest
import torch
from pag_pack.nodes.host.hooks.attention import LayerPerturbation
from pag_pack.nodes.host.hooks.forms import Forms
from pag_pack.nodes.host.hooks.ways import way_in
from pag_pack.nodes.host.models import layers
from pag_pack.nodes.host.models.layers import network_layers
from pag_pack.pag_core.attention import PerturbationError
from pag_pack.pag_core.perturbation import Perturbation
from pag_pack.pag_core.settings import PAGOptions

from .family_models import forward
from .sampled_families import SAMPLED
from .test_families import PERTURBED, PLAIN
from .test_family_sampling import SCALE, errors, sampled


@dataclass
class State:
    hidden: torch.Tensor
    text: torch.Tensor


class Pair(NamedTuple):
    hidden: torch.Tensor
    text: torch.Tensor


class Piece(torch.nn.Module):
    """A residual block that takes and returns its streams in one of several forms."""

    def __init__(self, form: str, log: list) -> None:
        super().__init__()
        self.image, self.words = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
        self.form, self.log = form, log

    def forward(self, hidden, text, place, **kwargs):
        if self.form == "changes its input":
            hidden += torch.tanh(self.image(hidden))
            return hidden, text
        after = hidden + torch.tanh(self.image(hidden)) + 0.1 * place
        words = text + torch.tanh(self.words(text)) + 0.1 * after.mean(1, keepdim=True)
        if self.form == "changes what it does not return":
            text += 1.0
            return after
        if self.form == "notes something":
            self.log.append(float(after.mean()))
        if self.form == "mixes its inputs":
            return hidden + text, text
        return {"dict": {"hidden": after, "text": words}, "dataclass": State(after, words),
                "text first": (words, after), "list": [after, words, None], "named tuple": Pair(after, words),
                "with a number": (after, words, 7)}.get(self.form, (after, words))


class Network(torch.nn.Module):
    """Of a host newer than the pack."""

    def __init__(self, form: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.log: list[float] = []
        self.pieces = torch.nn.ModuleList(Piece(form, self.log) for _ in range(4))
        self.skips: int | None = None  # the reference: a block whose streams stay as they are

    def forward(self, x, timestep, context, transformer_options=None, **kwargs):
        text, place = context, torch.linspace(-1, 1, x.shape[1] * 8).view(1, -1, 8).expand_as(x)
        for index, piece in enumerate(self.pieces):
            before = x.clone(), text.clone()
            out = piece(x, text, place, transformer_options={"uuids": [], "sigmas": timestep})
            if isinstance(out, torch.Tensor):
                x = out
            elif piece.form == "text first":
                text, x = out
            elif isinstance(out, (dict, State)):
                x, text = (out if isinstance(out, dict) else vars(out)).values()
            else:
                x, text, *_ = out
            if index == self.skips:
                x, text = before
        return x + sum(self.log)


FORMS = ["tuple", "dict", "dataclass", "list", "text first", "with a number", "changes its input"]


def inputs(rows: int, words: int = 24) -> dict:
    generator = torch.Generator().manual_seed(1)
    return {"x": torch.randn(1, 24, 8, generator=generator).repeat(rows, 1, 1),
            "timesteps": torch.full((rows,), 0.5),
            "context": torch.randn(1, words, 8, generator=generator).repeat(rows, 1, 1)}


def weak(network: Network, forms: Forms, given: dict, strength: float = 1.0, plain: dict | None = None
        ) -> tuple[torch.Tensor, int]:
    """The weak row with block 1 skipped, perhaps after a call of plain rows, and how often the block has run in it."""
    found = network_layers(network)
    key = next(key for layer, key in found.layers.items() if layer.name == "1")
    patch = way_in(found, {key: LayerPerturbation("1", Perturbation("skip_block", strength), None)}, forms)
    with torch.inference_mode():
        if plain is not None:
            with patch.learning(network):
                forward(network, plain, {"uuids": [PLAIN] * len(plain["x"])})
        runs: deque[None] = deque()  # a list that hooks fill would count as something that the block does
        handle = network.pieces[1].image.register_forward_pre_hook(lambda *_: runs.append(None))
        options = {"uuids": [PERTURBED], "cond_or_uncond": [0]}
        with patch.around(network, options, PERTURBED.__eq__, lambda name: None, ()) as options:
            result = forward(network, given, options)
        handle.remove()
        return result, len(runs)


@torch.inference_mode()
def skipped(form: str) -> torch.Tensor:
    network = Network(form)
    network.skips = 1
    return forward(network, inputs(1), {})


@pytest.mark.parametrize("plain", [1, 2], ids="of {} rows".format)
@pytest.mark.parametrize("form", FORMS)
def test_a_skipped_block_is_not_run_where_a_plain_call_has_shown_its_form(form, plain):
    """Text and image have as many tokens here, and so has an argument that is not passed on."""
    result, runs = weak(Network(form), Forms(), inputs(1), plain=inputs(plain))
    torch.testing.assert_close(result, skipped(form))
    assert runs == (form == "with a number"), "the number could be another one"


@pytest.mark.parametrize("form", FORMS)
def test_without_a_plain_call_the_first_call_shows_it(form):
    network, forms = Network(form), Forms()
    (first, _), (second, runs) = (weak(network, forms, inputs(1)) for _ in range(2))
    torch.testing.assert_close(first, skipped(form))
    torch.testing.assert_close(second, first)
    assert runs == (form == "with a number")


def test_a_plain_call_with_another_length_of_text_shows_nothing():
    """Text of another length could be told from the image there, and not here."""
    result, runs = weak(Network("text first"), Forms(), inputs(1), plain=inputs(1, words=7))
    torch.testing.assert_close(result, skipped("text first"))
    assert runs == 1


@pytest.mark.parametrize("form", ["changes what it does not return", "notes something"])
def test_a_block_that_does_more_than_return_is_run(form):
    network, forms = Network(form), Forms()
    for plain in (inputs(1), None):
        assert weak(network, forms, inputs(1), plain=plain)[1] == 1


@pytest.mark.parametrize("form", FORMS)
def test_part_of_a_block_is_blended_alike_before_and_after_its_form_is_known(form):
    one, other = (weak(Network(form), Forms(), inputs(1), 0.4, plain)[0] for plain in (inputs(2), None))
    torch.testing.assert_close(one, other)
    assert (one - skipped(form)).abs().max() > 1e-3


@pytest.mark.parametrize(("form", "message"), [
    ("mixes its inputs", r"1 cannot be skipped: 3 of its inputs have the shape of its output \(1×24×8\), and it is "
                         r"unclear which of them it passes on\. Select other layers\."),
    ("named tuple", r"1 cannot be skipped: it returns Pair, in which no tensor was found\.")])
def test_what_is_unclear_is_refused(form, message):
    for plain in (inputs(1), None):
        with pytest.raises(PerturbationError, match=message):
            weak(Network(form), Forms(), inputs(1), plain=plain)


@pytest.mark.parametrize(("row", "cfg", "rows"), [("extra", 1.0, 1), ("extra", 4.0, 2), ("negative", 4.0, 1)])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", ["Wan, text to video", "Qwen-Image"])
def test_a_sampled_network_that_no_table_knows_runs_its_skipped_block_for_plain_rows_alone(name, batch, row, cfg, rows,
                                                                                          monkeypatch):
    how = next(how for how in SAMPLED if how.name == name)
    how = replace(how, arguments={"num_layers": 3})
    model, runs, steps = how.build(), deque(), 4
    network = model.model.diffusion_model
    block = (network.blocks if name.startswith("Wan") else network.transformer_blocks)[1]
    linear = next(module for module in block.modules() if isinstance(module, torch.nn.Linear))
    run, options = sampled(how, cfg, batch, steps=steps), PAGOptions("skip_block", row=row)
    known = run.model_patch(model, SCALE, "1", options)
    monkeypatch.setattr(layers, "family_of", lambda network: None)
    linear.register_forward_pre_hook(lambda _, args: runs.append(len(args[0])))
    assert max(errors(run.model_patch(model, SCALE, "1", options), known)) <= 1e-4
    assert sum(runs) == rows * batch * steps + batch * (row == "negative"), \
        "the negative's call comes before the plain one, so in the first step it has to show the form itself"


@pytest.mark.parametrize(("name", "arguments", "layer", "same"), [
    ("Kandinsky 5", {"num_text_blocks": 3, "num_visual_blocks": 3}, "1", "visual_transformer_blocks.1"),
    ("PixelDiT", {"patch_depth": 3, "pixel_depth": 3}, "pixel.1", "pixel_blocks.1"),
    ("Flux", {"depth": 3, "depth_single_blocks": 3}, "single.1", "single_blocks.1")])
def test_what_one_list_of_blocks_returns_stays_for_another_that_reads_it(name, arguments, layer, same, monkeypatch):
    """At cfg 1 the weak row starts from what the blocks before it returned; Flux's also change what they are given."""
    how = next(how for how in SAMPLED if how.name == name)
    how = replace(how, arguments=how.arguments | arguments)
    model, run = how.build(), sampled(how, 1.0, 1)
    known = run.model_patch(model, SCALE, layer, PAGOptions("skip_block"))
    monkeypatch.setattr(layers, "family_of", lambda network: None)
    assert max(errors(run.model_patch(model, SCALE, same, PAGOptions("skip_block")), known)) <= 1e-4
    assert max(errors(run.ksampler(model), known)) > 1e-3
