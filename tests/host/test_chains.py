"""Two PAGs one after the other, in the same layers or in others: in one step their deltas add up, in either order."""

from __future__ import annotations

import pytest
import torch
from pag_pack.nodes.host.models.layers import model_layers
from pag_pack.pag_core.settings import PAGOptions

from .runs import patched
from .sampled_families import SAMPLED
from .test_family_sampling import errors, sampled

SCALE = 2.0
WEAK = {"identity": PAGOptions(), "skipped": PAGOptions("skip_block"), "half skipped": PAGOptions("skip_block", 0.5),
        "shuffled": PAGOptions("shuffle"), "negative skipped": PAGOptions("skip_block", row="negative"),
        "negative": PAGOptions(row="negative")}
PAIRS = [("identity", "identity"), ("identity", "skipped"), ("half skipped", "skipped"), ("shuffled", "identity"),
         ("skipped", "negative skipped"), ("negative", "skipped"), ("identity", "negative skipped")]
# One of every way into a network: U-Nets, joint attention, attention that says no rows, one row at a time, text kept.
FAMILIES = ["SDXL", "SD3.5 medium", "PixArt", "Wan, text to video", "LTX-Video with sound", "HiDream-O1"]


@pytest.mark.parametrize("name", FAMILIES)
def test_their_deltas_add_up(name):
    how = next(how for how in SAMPLED if how.name == name)
    model = how.build()
    layers = [layer.name for layer in model_layers(model).layers]
    run = sampled(how, 4.0, 4, steps=1)  # as many samples as rows, so that these cannot be mistaken for each other
    plain = run.ksampler(model)
    single = {(weak, layer): run.model_patch(model, SCALE, layer, WEAK[weak])
              for weak in WEAK for layer in (layers[0], layers[-1])}
    for one, other in PAIRS:
        for first, second in ((layers[0], layers[-1]), (layers[-1], layers[0]), (layers[-1], layers[-1])):
            both = run.ksampler(patched(patched(model, SCALE, first, WEAK[one]), SCALE, second, WEAK[other]))
            expected = added(single[one, first], single[other, second], plain)
            assert max(errors(both, expected)) <= 1e-4, (one, first, other, second)


def added(one: torch.Tensor, other: torch.Tensor, plain: torch.Tensor) -> torch.Tensor:
    if not plain.is_nested:
        return one + other - plain
    return type(plain)([added(*parts) for parts in zip(one.unbind(), other.unbind(), plain.unbind(), strict=True)])
