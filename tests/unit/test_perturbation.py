"""Perturbed self-attention against attention maps written out in double precision."""

import pytest
import torch

from pag_core.perturbation import perturbed_self_attention

BATCH, TOKENS, HEADS, CHANNELS = 2, 9, 4, 5


@pytest.fixture
def qkv() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k, v: [2, 9, 4·5] in fp64."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(BATCH, TOKENS, HEADS * CHANNELS, generator=generator, dtype=torch.float64) for _ in range(3))
    return q, k, v


def through_the_map(q, k, v, change_map=lambda attention_map, head: attention_map) -> torch.Tensor:
    """PAG Eq. 12 head by head, with the map A [B, N, N] of every head handed to `change_map` before it meets V."""
    out = torch.empty_like(v)
    for head in range(HEADS):
        own = slice(head * CHANNELS, (head + 1) * CHANNELS)
        logits = q[..., own] @ k[..., own].transpose(1, 2) / CHANNELS ** 0.5
        out[..., own] = change_map(torch.softmax(logits, dim=-1), head) @ v[..., own]
    return out


def towards_identity(strength: float, heads):
    """SoftPAG's A' = (1 − u)·A + u·I in the given heads."""
    identity = torch.eye(TOKENS, dtype=torch.float64)

    def change(attention_map, head):
        return (1.0 - strength) * attention_map + strength * identity if head in heads else attention_map

    return change


def attend_not_expected(q, k, v):
    raise AssertionError("the attention must not be computed")


def test_identity_returns_v_itself_without_computing_the_attention(qkv):
    q, k, v = qkv
    assert perturbed_self_attention(q, k, v, attend_not_expected, num_heads=HEADS) is v


def test_identity_equals_the_identity_map(qkv):
    expected = through_the_map(*qkv, towards_identity(1.0, range(HEADS)))
    torch.testing.assert_close(perturbed_self_attention(*qkv, through_the_map, num_heads=HEADS), expected,
                               rtol=0, atol=1e-10)


@pytest.mark.parametrize("strength", [0.0, 0.2, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("heads", [None, {0}, {3}, {1, 2}, {0, 1, 3}, set(range(HEADS))], ids=str)
def test_strength_and_heads_equal_the_changed_map(qkv, strength, heads):
    expected = through_the_map(*qkv, towards_identity(strength, range(HEADS) if heads is None else heads))
    result = perturbed_self_attention(*qkv, through_the_map, num_heads=HEADS, heads=heads, strength=strength)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-10)


def test_strength_0_is_the_models_own_attention_bit_for_bit(qkv):
    plain = through_the_map(*qkv)
    for heads in (None, {1}):
        assert torch.equal(perturbed_self_attention(*qkv, through_the_map, num_heads=HEADS, heads=heads, strength=0.0),
                           plain)


def test_other_heads_stay_bit_for_bit(qkv):
    plain = through_the_map(*qkv)
    result = perturbed_self_attention(*qkv, through_the_map, num_heads=HEADS, heads={2})
    touched = slice(2 * CHANNELS, 3 * CHANNELS)
    assert torch.equal(result[..., touched], qkv[2][..., touched])
    assert torch.equal(result[..., :touched.start], plain[..., :touched.start])
    assert torch.equal(result[..., touched.stop:], plain[..., touched.stop:])


@pytest.mark.parametrize("collection", [frozenset({1, 3}), [3, 1], (1, 3)], ids=["set", "list", "tuple"])
def test_any_collection_of_heads_in_any_order_will_do(qkv, collection):
    expected = through_the_map(*qkv, towards_identity(0.5, {1, 3}))
    result = perturbed_self_attention(*qkv, through_the_map, num_heads=HEADS, heads=collection, strength=0.5)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-10)


def test_attention_gets_the_very_tensors_once(qkv):
    calls = []

    def attend(*tensors):
        calls.append(tensors)
        return through_the_map(*tensors)

    perturbed_self_attention(*qkv, attend, num_heads=HEADS, heads={0})
    assert len(calls) == 1
    assert all(given is own for given, own in zip(calls[0], qkv, strict=True))


@pytest.mark.parametrize(("heads", "strength"), [(None, 0.5), ({0, 2}, 1.0), ({1}, 0.3)])
def test_neither_inputs_nor_the_attentions_result_are_written_to(qkv, heads, strength):
    before = [tensor.clone() for tensor in qkv]
    kept = through_the_map(*qkv)
    shown = kept.clone()
    perturbed_self_attention(*qkv, lambda *_: shown, num_heads=HEADS, heads=heads, strength=strength)
    assert torch.equal(shown, kept)
    assert all(torch.equal(tensor, old) for tensor, old in zip(qkv, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("heads", "strength"), [(None, 1.0), (None, 0.5), ({1}, 1.0)])
def test_dtype_is_kept(qkv, dtype, heads, strength):
    low = [tensor.to(dtype) for tensor in qkv]
    result = perturbed_self_attention(*low, through_the_map, num_heads=HEADS, heads=heads, strength=strength)
    assert result.dtype == dtype
    assert result.shape == low[2].shape


def test_tokens_with_identical_values_feel_nothing(qkv):
    """Every row of A sums to 1, so where all tokens agree, A·V and I·V are the same."""
    q, k, v = qkv
    same = v[:, :1].expand_as(v)
    result = perturbed_self_attention(q, k, same, through_the_map, num_heads=HEADS, heads={0, 1}, strength=0.7)
    torch.testing.assert_close(result, through_the_map(q, k, same), rtol=0, atol=1e-10)
