"""Operations on whole blocks, on every family: against the network run for the weak row alone with other blocks.

The reference finds what a block hands on by the shapes of what goes in and comes out (text and image differ in number),
not by what the pack knows of the family.
"""

from __future__ import annotations

import pytest
import torch
from pag_pack.nodes.host.hooks.attention import LayerPerturbation
from pag_pack.nodes.host.hooks.blocks import BlockPatch, blocks_of
from pag_pack.nodes.host.models.layers import model_layers
from pag_pack.nodes.host.models.structure import family_of
from pag_pack.pag_core.perturbation import Perturbation
from torch.utils.flop_counter import FlopCounterMode

from .family_models import CASES, Case, forward
from .older import what_older_hosts_lack
from .test_families import PERTURBED, PLAIN, Patcher, hooks, relative

SKIP = Perturbation("skip_block")


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def case(request) -> Case:
    return request.param


@pytest.fixture(scope="module")
def network(case) -> torch.nn.Module:
    return case.build().requires_grad_(False)  # the counter of FLOPs takes no other


@pytest.fixture(scope="module")
def plain(case, network) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode(), what_older_hosts_lack(RuntimeError):
        return forward(network, case.batch(), {}).chunk(2)


def blocks(network: torch.nn.Module) -> dict[str, tuple]:
    """{a layer's name: (its key, its block's module)}."""
    found = blocks_of(network, family_of(network))
    return {layer.name: (key, found[key].module) for layer, key in model_layers(Patcher(network)).layers.items()}


def run(network: torch.nn.Module, inputs: dict, rows: list[str], name: str,
        perturbation: Perturbation) -> tuple[torch.Tensor, int]:
    """What comes out for these rows with one block altered in the weak ones, and the FLOPs of that."""
    patch = BlockPatch(family_of(network), {blocks(network)[name][0]: LayerPerturbation(name, perturbation, None)})
    options = {"uuids": rows, "cond_or_uncond": [int(row == PLAIN) for row in rows]}
    skipped = set()
    with patch.around(network, options, PERTURBED.__eq__, skipped.add, (0.5,)) as options, \
            FlopCounterMode(display=False) as counter:
        out = forward(network, inputs, options)
    assert not skipped
    return out, counter.get_total_flops()


def blended(case: Case, module: torch.nn.Module, strength: float):
    """The forward of a block that returns (1 − strength)·its result + strength·its input. Where the network keeps the
    text from call to call, and so the block returns more: of the image, and of the token before it, which is not kept.
    """
    own = module.forward

    def call(*args, **kwargs):
        values = [*args, *kwargs.values()]
        values = [item for value in values for item in (value if isinstance(value, tuple) else [value])]
        given = [value.clone() for value in values if isinstance(value, torch.Tensor)]
        out = own(*args, **kwargs)
        mixed = [torch.lerp(x, next(value for value in given if value.shape == x.shape), strength)
                 if isinstance(x, torch.Tensor) and x.is_floating_point() else x
                 for x in (out if isinstance(out, tuple) else (out,))]
        if not isinstance(mixed[-1], (torch.Tensor, type(None))):
            kept = out[0].shape[1] - case.image - 1
            mixed[0] = torch.cat([out[0][:, :kept], mixed[0][:, kept:]], dim=1)
        return tuple(mixed) if isinstance(out, tuple) else mixed[0]

    return call


def expected(case: Case, network: torch.nn.Module, name: str, strength: float,
             monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """The weak row, run alone."""
    module = blocks(network)[name][1]
    with monkeypatch.context() as patch:
        patch.setattr(module, "forward", blended(case, module, strength))
        return forward(network, case.row(1), {"uuids": [PERTURBED], "cond_or_uncond": [0]})


@torch.inference_mode()
def test_every_block_can_be_skipped_and_is_not_computed(case, network, plain, monkeypatch):
    with FlopCounterMode(display=False) as counter:
        forward(network, case.batch(), {})
    both = counter.get_total_flops()
    for name in case.layers:
        out, flops = run(network, case.batch(), [PLAIN, PERTURBED], name, SKIP)
        unchanged, weak = out.chunk(2)
        assert relative(unchanged, plain[0]) <= 1e-5, f"{name} changed the plain row"
        assert relative(weak, plain[1]) > 1e-3, name
        assert relative(weak, expected(case, network, name, 1.0, monkeypatch)) <= 1e-4, name
        alone, flops_alone = run(network, case.row(1), [PERTURBED], name, SKIP)
        assert relative(alone, weak) <= 1e-4, name
        # HiDream-O1's blocks run in a first call, in which the network keeps the text's keys and values.
        is_computed = case.name == "HiDream-O1"
        assert flops < both or is_computed
        assert flops_alone < both / 2 or is_computed


@torch.inference_mode()
def test_strength_blends_a_block_with_its_input(case, network, plain, monkeypatch):
    name = case.layers[-1]
    unchanged, weak = run(network, case.batch(), [PLAIN, PERTURBED], name,
                          Perturbation("skip_block", strength=0.4))[0].chunk(2)
    assert relative(unchanged, plain[0]) <= 1e-5
    assert relative(weak, expected(case, network, name, 0.4, monkeypatch)) <= 1e-4


@torch.inference_mode()
@pytest.mark.usefixtures("plain")
def test_nothing_stays_behind(case, network):
    before = hooks(network)
    run(network, case.batch(), [PLAIN, PERTURBED], case.layers[0], SKIP)
    assert hooks(network) == before
    assert not any("forward" in vars(module) for module in network.modules())


@torch.inference_mode()
def test_shuffled_tokens_spoil_the_weak_row_alone_and_repeat(case, network, plain):
    name = case.layers[-1]
    one, again, other = (run(network, case.batch(), [PLAIN, PERTURBED], name, Perturbation("shuffle", **seed))[0]
                         for seed in ({}, {}, {"perturbation_seed": 1}))
    assert torch.equal(one, again)
    assert relative(one.chunk(2)[0], plain[0]) <= 1e-5
    assert relative(one.chunk(2)[1], plain[1]) > 1e-3
    assert relative(other, one) > 1e-3


@torch.inference_mode()
def test_tokens_are_shuffled_alike_with_and_without_other_rows(case, network, plain):
    """Also in a first block, before which nothing has told how many tokens the image has."""
    name, kind = case.layers[0], Perturbation("shuffle")
    together, _ = run(network, case.batch(), [PLAIN, PERTURBED], name, kind)
    alone, _ = run(network, case.row(1), [PERTURBED], name, kind)
    assert relative(alone, together.chunk(2)[1]) <= 1e-4
