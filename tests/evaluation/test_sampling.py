"""Samples depend on their id and their configuration alone."""

from itertools import product

import evaluation.sampling as sampling
import pytest
import torch
from evaluation.config import Config, pag
from evaluation.plan import HEADS
from evaluation.sampling import Sampler, batches
from pag_pack.nodes.sampling import PAGKSampler

import nodes

pytestmark = pytest.mark.usefixtures("inference_mode")


@pytest.fixture(scope="module")
def sampler(small_model):
    """Four steps, for what is tested does not depend on how many there are."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sampling, "STEPS", 4)
        yield Sampler(small_model)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Another batch size may round differently, by one of 255 here and there."""
    return (a.int() - b.int()).abs().max() <= 1


def test_the_nodes_accept_every_configuration_of_the_plan(sampler, every_config):
    """The layers and heads are those of the shipped model."""
    shipped = Sampler()
    for each in (shipped, sampler):
        assert {layer.name: layer.heads for layer in each.found.layers} == HEADS
    for config in every_config:
        shipped.check(config)
        sampler.check(config)
        assert sampler.cost(config) >= 1


@pytest.mark.parametrize("config", [Config(), pag(1, "all"), Config(sag=0.5, sag_sigma=2)], ids=str)
def test_batches_make_no_difference(sampler, config):
    together = sampler.sample(config, [0, 1, 2, 7])
    assert close(together, torch.cat([sampler.sample(config, [0, 1]), sampler.sample(config, [2, 7])]))
    assert together.float().std() > 10
    assert not close(together[:1], together[1:2])


def test_labels_are_followed_and_do_not_mix(sampler):
    with pytest.raises(ValueError, match="several labels"):
        sampler.sample(Config(True), [0, 1])
    guided = Config(True, cfg=3.0)
    assert not close(sampler.sample(guided, [3]), sampler.sample(Config(), [3]))


def test_they_are_what_the_pag_ksampler_makes_of_the_same_noise(sampler, monkeypatch):
    """The loop adds nothing of its own."""
    config = pag(2, "all", True, strength=0.5).but(cfg=2.0)
    monkeypatch.setattr("comfy.sample.prepare_noise", lambda latent, seed, batch_index=None:
                        sampling.SampleNoise([3, 5]).generate_noise({"samples": latent}))
    positive, negative = (sampling.PAGADMClassLabel.execute(sampler.model, label).result[0] for label in (1, -1))
    latent = nodes.EmptyLatentImage().generate(16, 16, 2)[0]
    options = sampling.PAGOptionsNode.execute(strength=0.5).result[0]
    made = PAGKSampler.execute(sampler.model, 0, 4, 2.0, 2.0, "all", "ddim", "ddim_uniform", positive, negative,
                               latent, options=options).result[0]["samples"]
    assert torch.equal(made.add(1).mul(127.5).round().clamp(0, 255).byte(), sampler.sample(config, [3, 5]))


def test_random_perturbations_are_the_same_after_an_interruption(sampler, monkeypatch):
    """They look at the place in the batch, so that the whole beginning of a batch is computed again."""
    monkeypatch.setattr(sampling, "BATCH", 3)
    config = pag(2, "all", perturbation="random_mask")
    whole = {i: sample for ids in batches(config, range(5), set(), 2) for i, sample in zip(
        ids, sampler.sample(config, ids), strict=True)}
    left = batches(config, range(5), {0, 1, 3}, 2, size=100)
    assert left == [[0, 1, 2], [3, 4]]
    assert close(sampler.sample(config, left[0])[2:], whole[2][None])


@pytest.mark.parametrize(("conditional", "size"), product((False, True), (1, 7, 25)))
def test_every_sample_is_made_once_and_batches_have_one_label(conditional, size):
    config = Config(conditional)
    made = batches(config, range(40, 140), set(range(50, 60)), 4, size)
    flat = [i for ids in made for i in ids]
    assert sorted(flat) == [*range(40, 50), *range(60, 140)]
    assert all(len(ids) <= size and len({config.label(i, 4) for i in ids}) == 1 for ids in made)
