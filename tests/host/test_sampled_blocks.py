"""Blocks skipped in the families whose attention cannot be perturbed, sampled through the nodes: the same as calls of
their own in which the block's code is another."""

from __future__ import annotations

import pytest
from comfy.model_patcher import ModelPatcher
from pag_pack.nodes.host.models.families import BLOCKS_ONLY
from pag_pack.nodes.host.models.layers import model_layers
from pag_pack.pag_core.attention import PerturbationError
from pag_pack.pag_core.settings import PAGOptions

from .older import newest_only
from .sampled_blocks import SAMPLED_BLOCKS, SampledBlocks
from .test_family_sampling import errors, sampled
from .test_weak_rows import NEGATIVE, SCALE, SKIP, in_another_call

LAYER = "1"
pytestmark = newest_only  # older hosts have few of these families


@pytest.fixture(scope="module", params=SAMPLED_BLOCKS, ids=lambda family: family.name)
def family(request) -> tuple[SampledBlocks, ModelPatcher]:
    return request.param, request.param.build()


def test_a_skipped_block_equals_a_call_of_its_own(family):
    how, model = family
    for batch in how.batches:
        for cfg in (1.0, 4.0):
            run = sampled(how, cfg, batch)
            ours, plain = run.model_patch(model, SCALE, LAYER, SKIP), run.ksampler(model)
            expected = run.ksampler(in_another_call(model, how, LAYER, negative=False))
            assert max(errors(ours, expected)) <= 1e-4, (batch, cfg)
            assert max(errors(ours, plain)) > 1e-3


def test_a_weak_negative_equals_calls_of_their_own(family):
    how, model = family
    run = sampled(how, 4.0, how.batches[-1])
    ours = run.model_patch(model, SCALE, LAYER, NEGATIVE)
    assert max(errors(ours, run.ksampler(in_another_call(model, how, LAYER, negative=True)))) <= 1e-4
    assert max(errors(ours, run.ksampler(model))) > 1e-3


def test_attention_is_refused_with_the_reason_before_sampling(family):
    how, model = family
    with pytest.raises(PerturbationError, match="Whole blocks can be skipped instead") as refusal:
        sampled(how, 1.0, 1).model_patch(model, SCALE, LAYER, PAGOptions())
    assert model_layers(model).family.blocks_only in str(refusal.value)
    with pytest.raises(PerturbationError, match=r"shuffle needs to know.*Use skip_block"):
        sampled(how, 1.0, 1).model_patch(model, SCALE, LAYER, PAGOptions("shuffle"))


def test_strength_lies_between(family):
    how, model = family
    run = sampled(how, 1.0, 1)
    plain, some, whole = (run.model_patch(model, SCALE, LAYER, PAGOptions("skip_block", strength))
                          for strength in (0.0, 0.5, 1.0))
    assert max(errors(some, plain)) > 1e-4
    assert max(errors(some, whole)) > 1e-4


def test_every_such_family_is_sampled():
    sampled_here = {model_layers(how.build()).name for how in SAMPLED_BLOCKS}
    assert sampled_here | {"Causal Wan"} == {family.name for family in BLOCKS_ONLY}  # that one in test_causal
