"""Each deterministic kind of perturbation against its definition, a map [N, N] written out in fp64."""

import math

import pytest
import torch
import torch.nn.functional as F
from support.attention_maps import (
    ATTENTION,
    BATCH,
    CHANNELS,
    GRID,
    HEADS,
    IMAGE,
    SCALE,
    assert_same,
    layouts,
    logits_of,
    map_of,
    perturb,
    tensors,
    two_layouts,
)
from torch import Tensor

from pag_core.perturbation import Perturbation, PerturbationError

# What each kind makes of the map, from its definition. Each gets the logits (mask included) and their softmax
# [B, H, N, N], q and k of every head [B, H, N, D], and the image tokens; rows of text are put back by the caller.

def identity(logits, attention_map, q, k, image):
    tokens = logits.shape[-1]
    if image == slice(0, tokens):  # a pure self-attention: V itself, whatever the mask (PAG Eq. 13)
        return torch.eye(tokens, dtype=logits.dtype).expand_as(logits)
    keep = torch.ones(tokens, tokens, dtype=torch.bool)
    keep[image, image] = torch.eye(IMAGE, dtype=torch.bool)
    return torch.softmax(logits.masked_fill(~keep, -math.inf), dim=-1)


def map_blur(logits, attention_map, q, k, image):
    taps = torch.exp(-0.5 * (torch.arange(-2, 3, dtype=torch.float64) / SIGMA) ** 2)
    kernel = torch.outer(taps, taps) / taps.sum() ** 2
    block = attention_map[..., image, image].flatten(0, 1)[:, None]
    attention_map = attention_map.clone()
    attention_map[..., image, image] = F.conv2d(F.pad(block, (2, 2, 2, 2), mode="reflect"),
                                                kernel[None, None]).view(BATCH, HEADS, IMAGE, IMAGE)
    return attention_map


def uniform(logits, attention_map, q, k, image):
    visible = (logits[..., image] > -math.inf).to(logits)
    attention_map = attention_map.clone()
    attention_map[..., image] = (attention_map[..., image].sum(-1, keepdim=True) * visible
                                 / visible.sum(-1, keepdim=True))
    return attention_map


def with_other_image_logits(logits, q, k, image, queries):
    """The image keys meet other queries; the text keys and the mask stay."""
    logits = logits.clone()
    extra = logits - q @ k.transpose(-1, -2) * SCALE  # the mask
    logits[..., image, image] = (queries @ k[:, :, image].transpose(-1, -2) * SCALE) + extra[..., image, image]
    return torch.softmax(logits, dim=-1)


def seg(logits, attention_map, q, k, image):
    """The authors' blur: kernel of ceil(6σ) taps made odd, as wide as the picture at most, reflecting borders."""
    size = min(math.ceil(6 * SIGMA) + 1 - math.ceil(6 * SIGMA) % 2, GRID[1] - (GRID[1] % 2 - 1))
    taps = torch.exp(-0.5 * (torch.linspace(-(size - 1) / 2, (size - 1) / 2, size, dtype=torch.float64) / SIGMA) ** 2)
    kernel = (torch.outer(taps, taps) / taps.sum() ** 2).expand(CHANNELS, 1, size, size)
    picture = q[:, :, image].transpose(-1, -2).reshape(-1, CHANNELS, *GRID)
    blurred = F.conv2d(F.pad(picture, [size // 2] * 4, mode="reflect"), kernel, groups=CHANNELS)
    return with_other_image_logits(logits, q, k, image, blurred.view(BATCH, HEADS, CHANNELS, IMAGE).transpose(-1, -2))


def seg_mean(logits, attention_map, q, k, image):
    mean = q[:, :, image].mean(dim=2, keepdim=True)
    return with_other_image_logits(logits, q, k, image, mean.expand(-1, -1, IMAGE, -1))


def temperature(logits, attention_map, q, k, image):
    return with_other_image_logits(logits, q, k, image, q[:, :, image] / TEMPERATURE)


def skip_attention(logits, attention_map, q, k, image):
    attention_map = attention_map.clone()
    attention_map[..., image, :] = 0.0
    return attention_map


def sinkhorn(logits, attention_map, q, k, image):
    """exp(−logits), its rows and columns normalised in turn, twice, and the rows once more (ASAG)."""
    plan = torch.exp(-logits[..., image, image])
    for _ in range(2):
        plan = plan / plan.sum(-1, keepdim=True)
        plan = plan / plan.sum(-2, keepdim=True)
    plan = plan / plan.sum(-1, keepdim=True)
    attention_map = attention_map.clone()
    attention_map[..., image, image] = attention_map[..., image, image].sum(-1, keepdim=True) * plan
    return attention_map


SIGMA, TEMPERATURE = 1.3, 2.5
DEFINITIONS = {
    "identity": (identity, Perturbation()),
    "identity by masking": (identity, Perturbation("random_off_diagonal_mask", perturbation_rate=1.0)),
    "map_blur": (map_blur, Perturbation("map_blur", perturbation_sigma=SIGMA)),
    "uniform": (uniform, Perturbation("uniform")),
    "seg": (seg, Perturbation("seg", perturbation_sigma=SIGMA)),
    "seg_mean": (seg_mean, Perturbation("seg_mean")),
    "temperature": (temperature, Perturbation("temperature", perturbation_temperature=TEMPERATURE)),
    "skip_attention": (skip_attention, Perturbation("skip_attention")),
    "sinkhorn": (sinkhorn, Perturbation("sinkhorn")),
}
defined = pytest.mark.parametrize(("definition", "perturbation"), DEFINITIONS.values(), ids=DEFINITIONS)


def expected_map(definition, q, k, mask=None, *, image=None, heads=None, strength=1.0) -> Tensor:
    """A' = (1 − u)·A + u·(the defined map) in the image rows of the chosen heads, A elsewhere."""
    image = image or slice(0, q.shape[2])
    logits = logits_of(q, k, mask)
    attention_map = torch.softmax(logits, dim=-1)
    changed = definition(logits, attention_map, q, k.repeat_interleave(q.shape[1] // k.shape[1], dim=1), image)
    result = attention_map.clone()
    for head in range(HEADS) if heads is None else heads:
        result[:, head, image] = torch.lerp(attention_map[:, head, image], changed[:, head, image], strength)
    return result


@defined
@layouts
@pytest.mark.parametrize("kv_heads", [HEADS, 2], ids="{} key heads".format)
@pytest.mark.parametrize(("heads", "strength"), [(None, 1.0), (None, 0.3), ({1, 3}, 1.0), ([2], 0.6)], ids=str)
def test_kind_follows_its_definition(definition, perturbation, image, kv_heads, heads, strength):
    q, k, v = tensors(image, kv_heads)
    perturbation = Perturbation(**{**vars(perturbation), "strength": strength})
    expected = expected_map(definition, q, k, image=image, heads=heads, strength=strength)
    result = perturb(q, k, v, perturbation, image=image, heads=heads)
    assert_same(result, expected @ v.repeat_interleave(HEADS // kv_heads, dim=1))


def padding_mask(tokens: int) -> Tensor:
    """[2, 1, 1, N] of booleans; another few keys padded in each sample, both text and image."""
    visible = torch.ones(BATCH, 1, 1, tokens, dtype=torch.bool)
    visible[0, ..., -3:] = False
    visible[1, ..., :1] = False
    return visible


def bias(tokens: int) -> Tensor:
    """[1, 4, N, N] of numbers to add, one in ten of them −∞."""
    generator = torch.Generator().manual_seed(7)
    numbers = torch.randn(1, HEADS, tokens, tokens, generator=generator, dtype=torch.float64)
    hidden = torch.rand(numbers.shape, generator=generator) < 0.1
    hidden.diagonal(dim1=-2, dim2=-1).fill_(False)
    return numbers.masked_fill(hidden, -math.inf)


MASKS = {
    "boolean": padding_mask,
    "added": lambda tokens: torch.zeros(BATCH, 1, 1, tokens).masked_fill(~padding_mask(tokens), -math.inf),
    "bias": bias,
    "two axes": lambda tokens: bias(tokens)[0, 0] > -math.inf,
}


@defined
@two_layouts
@pytest.mark.parametrize("make_mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("heads", [None, {0, 3}], ids=str)
def test_masks_are_respected(definition, perturbation, image, make_mask, heads):
    q, k, v = tensors(image, 2)
    mask = make_mask(q.shape[2])
    if perturbation.perturbation == "sinkhorn" or (perturbation.perturbation == "uniform" and mask.shape[-2] > 1):
        with pytest.raises(PerturbationError, match=r"^\w+ (needs an|does not support) attention mask"):
            perturb(q, k, v, perturbation, mask, image=image, heads=heads)
        return
    expected = expected_map(definition, q, k, mask, image=image, heads=heads)
    result = perturb(q, k, v, perturbation, mask, image=image, heads=heads)
    # A padding token that may not even see itself has no answer in the masked map.
    answered = logits_of(q, k, mask).diagonal(dim1=-2, dim2=-1) > -math.inf
    assert_same(result[answered], (expected @ v.repeat_interleave(2, dim=1))[answered])


def test_the_sinkhorn_map_is_nearly_doubly_stochastic_and_looks_where_tokens_are_least_alike():
    q, k, _ = tensors(None)
    result = map_of(q, k, Perturbation("sinkhorn"))
    assert_same(result.sum(-1), torch.ones_like(result.sum(-1)))
    torch.testing.assert_close(result.sum(-2), torch.ones_like(result.sum(-2)), rtol=0, atol=0.2)
    assert (result * logits_of(q, k, None)).sum() < 0


@two_layouts
@pytest.mark.parametrize("kind", sorted({*ATTENTION} - {"uniform", "sinkhorn"}))  # these refuse a mask of this form
def test_tokens_that_see_nothing_stay_finite(kind, image):
    """An image token whose own key and whole text are hidden: nothing remains for the identity."""
    q, k, v = tensors(image)
    mask = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool)
    mask[6, :] = False
    mask[6, 20:22] = True
    result = perturb(q, k, v, Perturbation(kind, strength=0.5), mask, image=image)
    assert result.isfinite().all()
