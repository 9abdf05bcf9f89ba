"""The paper's perturbation and SoftPAG in a plain self-attention, against attention maps written out head by head.

Other kinds, joint attention, masks and grouped heads: test_perturbation_kinds.py.
"""

import functools

import pytest
import torch

from pag_core.perturbation import Perturbation, perturb_attention

BATCH, HEADS, TOKENS, CHANNELS = 2, 4, 9, 5


@pytest.fixture
def qkv() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k, v: [2, 4, 9, 5] in fp64."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(BATCH, HEADS, TOKENS, CHANNELS, generator=generator, dtype=torch.float64) for _ in range(3))
    return q, k, v


def through_the_map(q, k, v, change_map=lambda attention_map, head: attention_map) -> torch.Tensor:
    """PAG Eq. 12 head by head, with the map A [B, N, N] of every head handed to `change_map` before it meets V."""
    return torch.stack([
        change_map(torch.softmax(q[:, head] @ k[:, head].transpose(1, 2) / CHANNELS ** 0.5, dim=-1), head) @ v[:, head]
        for head in range(HEADS)], dim=1)


def towards_identity(strength: float, heads):
    """SoftPAG's A' = (1 − u)·A + u·I in the given heads."""
    def change(attention_map, head):
        if head not in heads:
            return attention_map
        return (1.0 - strength) * attention_map + strength * torch.eye(TOKENS, dtype=attention_map.dtype)

    return functools.partial(through_the_map, change_map=change)


def attention_not_expected(q, k, v):
    raise AssertionError("the attention must not be computed")


def test_identity_returns_v_itself_without_computing_the_attention(qkv):
    assert perturb_attention(*qkv, attention_not_expected, Perturbation()) is qkv[2]


@pytest.mark.parametrize("strength", [0.0, 0.2, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("heads", [None, {0}, {3}, {1, 2}, {0, 1, 3}, set(range(HEADS))], ids=str)
def test_strength_and_heads_equal_the_changed_map(qkv, strength, heads):
    expected = towards_identity(strength, range(HEADS) if heads is None else heads)(*qkv)
    result = perturb_attention(*qkv, through_the_map, Perturbation(strength=strength), heads=heads)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("heads", [None, {1}], ids=str)
def test_strength_0_is_the_models_own_attention_bit_for_bit(qkv, heads):
    result = perturb_attention(*qkv, through_the_map, Perturbation(strength=0.0), heads=heads)
    assert torch.equal(result, through_the_map(*qkv))


def test_other_heads_stay_bit_for_bit(qkv):
    result = perturb_attention(*qkv, through_the_map, Perturbation(), heads={2})
    plain = through_the_map(*qkv)
    assert torch.equal(result[:, 2], qkv[2][:, 2])
    assert torch.equal(result[:, [0, 1, 3]], plain[:, [0, 1, 3]])


@pytest.mark.parametrize("collection", [frozenset({1, 3}), [3, 1], (1, 3, 3)], ids=["set", "list", "tuple"])
def test_order_and_repetition_of_heads_do_not_matter(qkv, collection):
    result = perturb_attention(*qkv, through_the_map, Perturbation(strength=0.5), heads=collection)
    torch.testing.assert_close(result, towards_identity(0.5, {1, 3})(*qkv), rtol=0, atol=1e-10)


def test_attention_is_computed_once_on_the_very_tensors(qkv):
    calls = []

    def attend(*tensors):
        calls.append(tensors)
        return through_the_map(*tensors)

    perturb_attention(*qkv, attend, Perturbation(), heads={0})
    assert len(calls) == 1
    assert all(given is own for given, own in zip(calls[0], qkv, strict=True))


@pytest.mark.parametrize(("heads", "strength"), [(None, 0.5), ({0, 2}, 1.0), ({1}, 0.3)])
def test_neither_inputs_nor_the_attentions_result_are_written_to(qkv, heads, strength):
    before = [tensor.clone() for tensor in qkv]
    shown = through_the_map(*qkv)
    kept = shown.clone()
    perturb_attention(*qkv, lambda *_: shown, Perturbation(strength=strength), heads=heads)
    assert torch.equal(shown, kept)
    assert all(torch.equal(tensor, old) for tensor, old in zip(qkv, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("heads", "strength"), [(None, 1.0), (None, 0.5), ({1}, 1.0)])
def test_dtype_and_shape_are_kept(qkv, dtype, heads, strength):
    low = [tensor.to(dtype) for tensor in qkv]
    result = perturb_attention(*low, through_the_map, Perturbation(strength=strength), heads=heads)
    assert result.dtype == dtype
    assert result.shape == low[2].shape


def test_tokens_with_identical_values_feel_nothing(qkv):
    """Every row of A sums to 1, so where all tokens agree, A·V and I·V are the same."""
    q, k, v = qkv
    same = v[:, :, :1].expand_as(v)
    result = perturb_attention(q, k, same, through_the_map, Perturbation(strength=0.7), heads={0, 1})
    torch.testing.assert_close(result, through_the_map(q, k, same), rtol=0, atol=1e-10)
