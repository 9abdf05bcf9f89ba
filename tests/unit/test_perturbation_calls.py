"""What every kind of perturbation owes the attention call it stands in for."""

import pytest
import torch
from support.attention_maps import (
    ATTENTION,
    GRID,
    HEADS,
    IMAGE,
    LAYOUTS,
    RANDOM,
    SCALE,
    TEXT,
    assert_same,
    attend_not_expected,
    layouts,
    model_attention,
    perturb,
    tensors,
    two_layouts,
)

from pag_core import attention
from pag_core.perturbation import KINDS, Perturbation, PerturbationError, perturb_attention


@two_layouts
@pytest.mark.parametrize("kind", [kind for kind in ATTENTION if kind not in RANDOM])
def test_piece_by_piece_is_the_same(kind, image, monkeypatch):
    q, k, v = tensors(image)
    whole = perturb(q, k, v, Perturbation(kind), image=image)
    monkeypatch.setattr(attention, "CHUNK", 500)
    assert_same(perturb(q, k, v, Perturbation(kind), image=image), whole)


def test_identity_returns_v_itself_without_computing_anything():
    q, k, v = tensors(None)
    assert perturb_attention(q, k, v, attend_not_expected, Perturbation()) is v
    everything = {"heads": range(HEADS), "image": slice(0, IMAGE)}
    assert perturb_attention(q, k, v, attend_not_expected, Perturbation(), **everything) is v


def test_identity_with_grouped_heads_repeats_v():
    q, k, v = tensors(None, 2)
    assert torch.equal(perturb_attention(q, k, v, attend_not_expected, Perturbation()), v.repeat_interleave(2, dim=1))


@pytest.mark.parametrize("kind", ATTENTION)
def test_a_wholly_perturbed_self_attention_is_not_computed_plainly_too(kind):
    perturb_attention(*tensors(None), attend_not_expected, Perturbation(kind), grid=GRID)


@layouts
@pytest.mark.parametrize("kind", ATTENTION)
@pytest.mark.parametrize(("heads", "strength"), [(None, 1.0), (None, 0.5), ({1}, 1.0)], ids=str)
def test_the_models_attention_runs_once_at_most_and_on_its_own_tensors(kind, image, heads, strength):
    q, k, v = tensors(image)
    calls = []

    def attend(*given):
        calls.append(given)
        return model_attention()(*given)

    perturb_attention(q, k, v, attend, Perturbation(kind, strength=strength), heads=heads, image=image, grid=GRID)
    for own_q, own_k, own_v in calls:
        assert own_k is k
        assert own_v is v
        assert own_q is q or own_q.shape[2] == TEXT
    assert len(calls) == (0 if image is None and heads is None and strength == 1.0 else 1)


@two_layouts
@pytest.mark.parametrize("kind", ATTENTION)
def test_text_and_other_heads_stay_bit_for_bit(kind, image):
    q, k, v = tensors(image, dtype=torch.float32)
    plain = model_attention()(q, k, v)
    result = perturb(q, k, v, Perturbation(kind), image=image, heads={1})
    assert torch.equal(result[:, [0, 2, 3]], plain[:, [0, 2, 3]])
    text = torch.ones(q.shape[2], dtype=torch.bool)
    text[image or slice(None)] = False
    assert torch.equal(result[:, :, text], plain[:, :, text])
    assert not torch.allclose(result[:, 1], plain[:, 1])


NEUTRAL = [Perturbation(kind, strength=0.0) for kind in ATTENTION] + [
    Perturbation(kind, **{field: value}) for kind, (field, value) in
    ((name, kind.neutral) for name, kind in KINDS.items() if kind.neutral)]


@pytest.mark.parametrize("perturbation", NEUTRAL, ids=str)
def test_neutral_settings_are_the_models_attention_bit_for_bit(perturbation):
    q, k, v = tensors(None)
    assert perturbation.is_off
    assert torch.equal(perturb(q, k, v, perturbation), model_attention()(q, k, v))


@pytest.mark.parametrize("kind", ATTENTION)
def test_defaults_perturb(kind):
    assert not Perturbation(kind).is_off


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@two_layouts
@pytest.mark.parametrize("kind", ATTENTION)
def test_half_precision_keeps_its_dtype_and_is_accurate(kind, image, dtype):
    q, k, v = tensors(image, 2, dtype)
    expected = perturb(q.double(), k.double(), v.double(), Perturbation(kind, strength=0.9), image=image)
    result = perturb(q, k, v, Perturbation(kind, strength=0.9), image=image)
    assert result.dtype == dtype
    assert result.isfinite().all()
    relative = (result.double() - expected).abs().max() / expected.abs().max()
    assert relative < 10 * torch.finfo(dtype).eps


def test_joint_identity_survives_logits_beyond_the_half_precision_range():
    q, k, v = tensors(LAYOUTS["text first"], dtype=torch.float16)
    q, k = q * 200, k * 200  # logits up to 10^5; the largest number of fp16 is 65504
    attend = model_attention()
    result = perturb_attention(q, k, v, lambda q, k, v: attend(q.double(), k.double(), v.double()).half(),
                               Perturbation(), image=LAYOUTS["text first"], scale=SCALE)
    expected = perturb(q.double(), k.double(), v.double(), Perturbation(), image=LAYOUTS["text first"])
    torch.testing.assert_close(result.double(), expected, rtol=1e-2, atol=1e-2)


@two_layouts
@pytest.mark.parametrize("kind", ATTENTION)
def test_nothing_given_is_written_to(kind, image):
    q, k, v = tensors(image)
    kept = [x.clone() for x in (q, k, v)]
    shown = model_attention()(q, k, v)
    before = shown.clone()
    perturb_attention(q, k, v, lambda *_: shown, Perturbation(kind, strength=0.5), image=image, grid=GRID)
    assert torch.equal(shown, before)
    assert all(torch.equal(x, old) for x, old in zip((q, k, v), kept, strict=True))


def test_frames_are_blurred_one_by_one():
    q, k, v = tensors(None)
    frames = (2, 3, 6)
    whole = perturb_attention(q, k, v, model_attention(), Perturbation("seg"), grid=frames[1:])
    halves = [perturb_attention(torch.cat([q[:, :, own]] * 2, dim=2), k, v, model_attention(), Perturbation("seg"),
                                grid=frames[1:])[:, :, own] for own in (slice(0, 18), slice(18, 36))]
    assert_same(whole, torch.cat(halves, dim=2))


def test_seg_with_one_column_or_row_works():
    for grid in ((1, IMAGE), (IMAGE, 1)):
        result = perturb_attention(*tensors(None), model_attention(), Perturbation("seg", perturbation_sigma=50.0),
                                   grid=grid)
        assert result.isfinite().all()


def test_limits_meet_each_other():
    q, k, v = tensors(None)
    assert_same(perturb(q, k, v, Perturbation("uniform")), v.mean(2, keepdim=True).expand_as(v))
    flat = perturb(q * 1e-9, k, v, Perturbation("temperature", perturbation_temperature=100.0))
    assert_same(flat, v.mean(2, keepdim=True).expand_as(v))


@pytest.mark.parametrize("grid", [None, (0, 6), (7, 6)], ids=str)
def test_seg_refuses_tokens_that_form_no_picture(grid):
    with pytest.raises(PerturbationError, match=r"seg.*Use seg_mean"):
        perturb_attention(*tensors(None), model_attention(), Perturbation("seg"), grid=grid)


def test_seg_leaves_tokens_behind_the_frames_alone():
    """Padding, or reference pictures of another size: their queries stay, and they are no part of the blur."""
    q, k, v = tensors(None)
    result = perturb_attention(q, k, v, model_attention(), Perturbation("seg"), grid=(5, 7), scale=SCALE)
    plain = model_attention()(q, k, v)
    assert_same(result[:, :, 35:], plain[:, :, 35:])
    other = torch.cat([q[:, :, :35], q[:, :, 35:] * 2], dim=2)
    again = perturb_attention(other, k, v, model_attention(), Perturbation("seg"), grid=(5, 7), scale=SCALE)
    assert_same(again[:, :, :35], result[:, :, :35])
    assert (result - plain)[:, :, :35].abs().amin(dim=-1).min() > 0


@pytest.mark.parametrize("kind", [name for name in ATTENTION if not KINDS[name].needs_grid])
def test_the_others_need_no_grid(kind):
    perturb_attention(*tensors(None), model_attention(), Perturbation(kind), grid=None)


@pytest.mark.parametrize(("heads", "image", "reason"), [
    ([], None, "heads"), ([4], None, "heads 0 to 3"), ([-1], None, "heads"),
    (None, slice(3, 3), "none of the 36 tokens"), (None, slice(40, 50), "none of"),
    (None, slice(0, 10, 2), "not contiguous"),
])
def test_heads_and_tokens_that_are_not_there_are_refused(heads, image, reason):
    with pytest.raises(PerturbationError, match=reason):
        perturb(*tensors(None), Perturbation(), heads=heads, image=image)


def test_a_cross_attention_is_refused():
    q, k, v = tensors(None)
    for other_k, other_v in ((k[:, :, :-1], v[:, :, :-1]), (k[:, :3], v[:, :3]), (k, v[:, :2])):
        with pytest.raises(PerturbationError, match="not self-attention: 36 queries of 4 heads"):
            perturb(q, other_k, other_v, Perturbation())
