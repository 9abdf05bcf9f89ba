"""The shared prefix keeps its promise in FLOPs, which are exact, at the full size of well-known models, and what the
nodes say that it costs is what was counted."""

import functools
from dataclasses import replace

import pytest
import torch
from benchmark import beside, gradient, networks
from benchmark.bench import count
from benchmark.counting import LiveBytes
from pag_pack.nodes.host.models.layers import network_layers
from pag_pack.pag_core.selection import select
from pag_pack.pag_core.settings import PAGOptions

SD15, SDXL, SD3, FLUX, ADM = networks.FULL
SD15_ALL = replace(SD15, name="SD 1.5, all layers", layers="all")
names = functools.partial(pytest.mark.parametrize, ids=lambda value: getattr(value, "name", None))


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@functools.cache
def counted(name: str) -> dict:
    """What `count` says of the shape."""
    (shape,) = (shape for shape in (*networks.FULL, SD15_ALL) if shape.name == name)
    return count(shape)


def flops(name: str) -> dict[str, int]:
    return counted(name)["flops"]


@names(("shape", "guided", "alone"), [
    # The ratio to a CFG step, and without CFG to one forward. A transformer perturbed at layer d of N: 1 + (N - d)/2N.
    (SD15, 1.35, 1.72),
    slow(SDXL, 1.35, 1.72),
    slow(SD3, 1.02 * (1 + (24 - 9) / 48), 1.02 * (1 + (24 - 9) / 24)),
    slow(FLUX, 1.02 * (1 + (57 - 28) / 114), 1.02 * (1 + (57 - 28) / 57)),
])
def test_a_guided_step_costs_no_more_than_its_floor(shape, guided, alone):
    cost = flops(shape.name)
    assert cost["CFG + PAG, shared prefix"] / cost["CFG"] <= guided
    assert cost["PAG without CFG"] / cost["no guidance"] <= alone
    assert cost["CFG + PAG, shared prefix"] < cost["CFG + PAG, full batch"] <= 1.5 * cost["CFG"]


@names("shape", [SD15, slow(SDXL), slow(SD3), slow(FLUX), ADM])
def test_memory_is_at_most_a_row_more(shape):
    """A row: what CFG takes more than no guidance."""
    memory = counted(shape.name)["bytes"]
    row = memory["CFG"] - memory["no guidance"]
    assert memory["CFG + PAG, full batch"] <= memory["CFG"] + row
    # What the prefix's hooks hold is the inputs of one unit, once more.
    assert memory["CFG + PAG, shared prefix"] <= 1.01 * memory["CFG + PAG, full batch"]
    assert memory["PAG without CFG"] <= 1.01 * memory["CFG"]


@names(("shape", "error"), [
    (SD15, 1e-5), slow(SD15_ALL, 1e-5), slow(SDXL, 1e-5), (ADM, 1e-4),
    slow(SD3, 1e-3), slow(FLUX, 1e-3),  # transformers are not counted, only their blocks are
])
def test_what_the_extra_pass_is_said_to_cost_is_what_was_counted(shape, error):
    found = network_layers(shape.build("meta", torch.float32))
    chosen = select(shape.layers, tuple(found.layers), found.auto)
    cost = flops(shape.name)
    extra = cost["PAG without CFG"] - cost["no guidance"]
    assert found.share(chosen) == pytest.approx(extra / cost["no guidance"], abs=error)
    extra = cost["CFG + PAG, full batch"] - cost["CFG"]
    assert found.share(chosen, shares_prefix=False) == pytest.approx(extra / cost["no guidance"], abs=error)


# Of transformers only the blocks are counted.
SKIPPED = [slow(SD15, 1e-5), (ADM, 1e-4), slow(SD3, 0.02), slow(FLUX, 0.02)]


@names(("shape", "error"), SKIPPED)
def test_what_a_skipped_block_is_said_to_save_is_what_was_counted(shape, error):
    found = network_layers(shape.build("meta", torch.float32))
    chosen = select(shape.layers, tuple(found.layers), found.auto)
    counts = count(shape, "skip_block", memory=False)
    cost = counts["flops"]
    for rows, before, shares in (("PAG without CFG", "no guidance", True), ("CFG + PAG, full batch", "CFG", False)):
        extra = (cost[rows] - cost[before]) / cost["no guidance"]
        assert found.share(chosen, skips_blocks=True, shares_prefix=shares) == pytest.approx(extra, abs=error)
    saved = cost["CFG"] - counts["negative"]
    assert 1 - found.share(chosen, skips_blocks=True, shares_prefix=False) == pytest.approx(
        saved / cost["no guidance"], abs=error)


@names("shape", [SD15, slow(SDXL), slow(SD3), slow(FLUX)])
def test_a_weak_negative_costs_no_more_than_cfg(shape):
    assert counted(shape.name)["negative"] <= 1.005 * flops(shape.name)["CFG"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["identity", "skip_block"])
@pytest.mark.parametrize(("family", "layer", "set_up"), [
    pytest.param(family, layer, set_up, id=f"{what}, {family}")
    for what, families, layer, set_up in beside.SET_UPS for family in families])
def test_a_weak_negative_costs_no_more_than_cfg_beside_other_nodes(family, layer, set_up, kind):
    """Where the two prompts run in calls of their own, too."""
    assert beside.ratio(family, set_up, layer, PAGOptions(kind, row="negative")) <= 1.005


def test_memory_is_that_of_the_tensors_that_live_at_once():
    def chain(keep: bool) -> int:
        x, kept = torch.zeros(1000, device="meta"), []
        with LiveBytes() as live:
            for _ in range(4):
                x = x + 1
                kept.append(x if keep else None)
        return live.peak

    assert chain(keep=True) == 4 * 4000
    assert chain(keep=False) == 2 * 4000


@pytest.mark.parametrize("problem", gradient.COUNTED[:2], ids=lambda problem: problem.name)
def test_checkpointing_keeps_its_promise_at_full_size(problem):
    plain, saving = gradient.peak_bytes(problem).values()
    assert saving < 0.7 * plain


@functools.cache
def undisturbed(family: str, layer: str | None) -> float:
    return beside.ratio(family, lambda scene: None, layer)


DECLINED = ("NAG", "token merging")  # what they keep of one row for another is not the same from the middle on


@pytest.mark.slow
@pytest.mark.parametrize(("what", "family", "layer", "set_up"), [
    pytest.param(what, family, layer, set_up, id=f"{what}, {family}")
    for what, families, layer, set_up in beside.SET_UPS for family in families
    if what not in {*DECLINED, beside.UNDISTURBED}])
def test_the_prefix_is_shared_beside_other_nodes(what, family, layer, set_up):
    assert beside.ratio(family, set_up, layer) <= undisturbed(family, layer) + 0.03


@pytest.mark.slow
@pytest.mark.parametrize("what", DECLINED)
def test_where_it_is_not_shared_pag_costs_a_pass(what):
    set_up = next(set_up for name, *_, set_up in beside.SET_UPS if name == what)
    assert beside.ratio("SD 1.5", set_up) <= 1.52
