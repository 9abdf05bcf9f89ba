"""Operations on whole blocks: what they compute, with which tokens, and what they do not compute."""

import pytest
import torch

from pag_core.perturbation import Perturbation, PerturbationError, perturb_block

BATCH, TEXT, IMAGE, CHANNELS = 3, 4, 24, 5
GRID = (4, 6)


def streams(*shapes: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(BATCH, *shape, CHANNELS, generator=generator, dtype=torch.float64) for shape in shapes)


def block(given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Tokens see their neighbours of lower number, so that their order matters; it changes what it is given."""
    return tuple(x.add_(x.flatten(1, -2).cumsum(1).view_as(x)) for x in given)


def not_expected(given):
    raise AssertionError("the block must not be computed")


def test_a_skipped_block_returns_its_input_and_is_not_computed():
    given = streams((IMAGE,), (TEXT,))
    assert perturb_block(given, not_expected, Perturbation("skip_block")) is given


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_strength_blends_every_stream_of_a_block_with_its_input(strength):
    given = streams((IMAGE,), (TEXT,))
    before = tuple(x.clone() for x in given)
    plain = block(streams((IMAGE,), (TEXT,)))
    result = perturb_block(given, block, Perturbation("skip_block", strength=strength))
    for one, own, full in zip(result, before, plain, strict=True):
        torch.testing.assert_close(one, (1 - strength) * full + strength * own)


@pytest.mark.parametrize(("shape", "image"), [
    ((IMAGE,), slice(None)), (GRID, slice(None)), ((TEXT + IMAGE,), slice(TEXT, TEXT + IMAGE))],
    ids=["all", "grid", "joint"])
def test_shuffle_runs_the_block_on_image_tokens_in_another_order(shape, image):
    (x,) = streams(shape)
    seen = []

    def watched(given):
        seen.append(given[0].flatten(1, -2).clone())
        return block(given)

    (result,) = perturb_block((x,), watched, Perturbation("shuffle"), image=(0, image))
    (given,) = seen
    tokens = x.flatten(1, -2)
    text = [n for n in range(tokens.shape[1]) if n not in range(*image.indices(tokens.shape[1]))]
    assert torch.equal(given[:, text], tokens[:, text])
    orders = [(given[n, image][:, None] == tokens[n, image][None]).all(-1).int().argmax(1) for n in range(BATCH)]
    for n, order in enumerate(orders):
        assert order.unique().numel() == IMAGE
        assert torch.equal(given[n, image], tokens[n, image][order])
    assert len({tuple(order.tolist()) for order in orders}) == BATCH
    torch.testing.assert_close(result, block((given.view_as(x),))[0])


def test_a_samples_order_depends_on_seed_and_key_and_not_on_the_batch():
    (x,) = streams((IMAGE,))

    def order(x, seed=1, key=("3", 0.5)):
        return perturb_block((x,), lambda given: given, Perturbation("shuffle", perturbation_seed=seed),
                             image=(0, slice(None)), noise_key=key)[0]

    assert torch.equal(order(x)[:1], order(x[:1]))
    assert torch.equal(order(x), order(x))
    assert not torch.equal(order(x), order(x, seed=2))
    assert not torch.equal(order(x), order(x, key=("4", 0.5)))
    assert not torch.equal(order(x), order(x, key=("3", 0.4)))


def test_shuffle_is_refused_where_the_image_tokens_are_not_known():
    with pytest.raises(PerturbationError, match="Use skip_block"):
        perturb_block(streams((IMAGE,)), not_expected, Perturbation("shuffle"))


@pytest.mark.parametrize(("kind", "strength"), [("shuffle", 1.0), ("shuffle", 0.5), ("skip_block", 0.5)])
def test_a_block_that_changes_size_is_refused_with_both_sizes(kind, strength):
    given = streams((IMAGE,))
    with pytest.raises(PerturbationError, match=r"3×24×5 into 3×12×5\. Select other layers"):
        perturb_block(given, lambda x: (x[0][:, ::2],), Perturbation(kind, strength=strength), image=(0, slice(None)))
