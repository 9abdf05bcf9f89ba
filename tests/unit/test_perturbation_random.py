"""The random kinds: what they draw, and that it depends on nothing but the seed and the place it is drawn for."""

import math

import pytest
import torch
from support.attention_maps import (
    BATCH,
    HEADS,
    IMAGE,
    RANDOM,
    assert_same,
    logits_of,
    map_of,
    perturb,
    tensors,
    two_layouts,
)

from pag_core.perturbation import Perturbation


@pytest.mark.parametrize("kind", ["random_mask", "random_off_diagonal_mask"])
@two_layouts
def test_random_mask_hides_a_share_of_the_image_keys_and_shares_out_the_rest(kind, image):
    q, k, v = tensors(image)
    own = image or slice(0, IMAGE)
    perturbation = Perturbation(kind, perturbation_rate=0.3, perturbation_seed=5)
    result = map_of(q, k, perturbation, image=image)
    hidden = result == 0
    block = hidden[..., own, own].clone()
    if kind == "random_off_diagonal_mask":
        assert not block.diagonal(dim1=-2, dim2=-1).any()
        block = block[..., ~torch.eye(IMAGE, dtype=torch.bool)]
    assert abs(block.double().mean() - 0.3) < 0.02  # more than four standard deviations
    hidden[..., own, own] = False
    assert not hidden.any(), "only the image-to-image block is masked"
    assert_same(result, torch.softmax(logits_of(q, k, None).masked_fill(result == 0, -math.inf), dim=-1))
    assert_same(perturb(q, k, v, perturbation, image=image), result @ v)


@two_layouts
def test_random_mask_at_rate_1_leaves_the_text_alone(image):
    q, k, _ = tensors(image)
    result = map_of(q, k, Perturbation("random_mask", perturbation_rate=1.0), image=image)
    own = image or slice(0, IMAGE)
    assert not result[..., own, own].any()
    assert_same(result[..., own, :].sum(-1), torch.full((BATCH, HEADS, IMAGE), 0.0 if image is None else 1.0).double())


@two_layouts
def test_noise_is_added_to_the_image_block_and_nothing_is_renormalised(image):
    q, k, v = tensors(image)
    own = image or slice(0, IMAGE)
    perturbation = Perturbation("noise", perturbation_sigma=0.2, perturbation_seed=5)
    result = map_of(q, k, perturbation, image=image)
    noise = (result - torch.softmax(logits_of(q, k, None), dim=-1)) / 0.2
    block = noise[..., own, own].clone()
    assert abs(block.mean()) < 0.04  # more than four standard deviations
    assert abs(block.std() - 1.0) < 0.04
    noise[..., own, own] = 0.0
    assert_same(noise, torch.zeros_like(noise))
    assert_same(perturb(q, k, v, perturbation, image=image), result @ v)


@two_layouts
def test_tpg_shuffles_the_rows_of_the_image_block(image):
    q, k, v = tensors(image)
    own = image or slice(0, IMAGE)
    logits = logits_of(q, k, None)
    result = map_of(q, k, Perturbation("tpg"), image=image)
    orders = []
    for sample in range(BATCH):
        # Which row each row became, told by its ratios among the image keys.
        rows = result[sample, 0, own, own]
        plain = torch.softmax(logits[sample, 0, own, own], dim=-1)
        distance = (rows / rows.sum(-1, keepdim=True))[:, None] - plain[None]
        order = distance.abs().sum(-1).argmin(-1)
        assert sorted(order.tolist()) == list(range(IMAGE))
        orders.append(order)
        expected = logits[sample].clone()
        expected[:, own, own] = logits[sample][:, own, own][:, order]
        assert_same(result[sample], torch.softmax(expected, dim=-1))
    assert not torch.equal(*orders)
    assert_same(perturb(q, k, v, Perturbation("tpg"), image=image), result @ v)


@two_layouts
@pytest.mark.parametrize("kind", RANDOM)
class TestRandomness:
    def test_same_seed_and_key_give_the_same(self, kind, image):
        q, k, v = tensors(image)
        how = Perturbation(kind, perturbation_seed=3)
        one, other = (perturb(q, k, v, how, image=image, noise_key=("m0.0", 1.5)) for _ in "ab")
        assert torch.equal(one, other)

    @pytest.mark.parametrize(("seed", "key"), [(4, ("m0.0", 1.5)), (3, ("m0.1", 1.5)), (3, ("m0.0", 1.25)), (3, ())])
    def test_another_seed_layer_or_step_gives_another(self, kind, image, seed, key):
        q, k, v = tensors(image)
        one = perturb(q, k, v, Perturbation(kind, perturbation_seed=3), image=image, noise_key=("m0.0", 1.5))
        other = perturb(q, k, v, Perturbation(kind, perturbation_seed=seed), image=image, noise_key=key)
        assert not torch.allclose(one, other)

    def test_a_sample_does_not_depend_on_the_rest_of_its_batch(self, kind, image):
        q, k, v = tensors(image)
        together = perturb(q, k, v, Perturbation(kind), image=image)
        alone = perturb(q[:1], k[:1], v[:1], Perturbation(kind), image=image)
        assert_same(together[:1], alone)

    def test_samples_of_a_batch_are_perturbed_differently(self, kind, image):
        q, k, v = (x[:1].expand(2, -1, -1, -1) for x in tensors(image))
        result = perturb(q, k, v, Perturbation(kind), image=image)
        assert not torch.allclose(result[0], result[1])

    def test_a_head_does_not_depend_on_which_others_are_perturbed(self, kind, image):
        q, k, v = tensors(image)
        all_heads, one_head = (perturb(q, k, v, Perturbation(kind), image=image, heads=heads) for heads in (None, [2]))
        assert_same(all_heads[:, 2], one_head[:, 2])

    def test_torchs_own_generator_is_left_alone(self, kind, image):
        before = torch.get_rng_state()
        perturb(*tensors(image), Perturbation(kind), image=image)
        assert torch.equal(torch.get_rng_state(), before)

    def test_dtype_does_not_change_what_is_drawn(self, kind, image):
        double, single = (perturb(*tensors(image, dtype=dtype), Perturbation(kind), image=image)
                          for dtype in (torch.float64, torch.float32))
        torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-4)


def test_the_numbers_drawn_never_change():
    """Written down once: other numbers would mean other pictures for saved workflows."""
    q = k = torch.zeros(1, 1, 16, 1, dtype=torch.float64)
    how = Perturbation("random_mask", perturbation_rate=0.5, perturbation_seed=1)
    hidden = map_of(q, k, how, noise_key=("m0.0", 14.6))[0, 0, 0] == 0
    assert hidden.int().tolist() == [0, 0, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 0, 1, 0, 1]
