"""What PAG Options asks for reaches the sampling, in the steps and rows that it should; what cannot be is refused."""

import pytest
import torch
from pag_pack.nodes.guidance import PAGModelPatch
from pag_pack.pag_core.guidance import RESCALE_MODES
from pag_pack.pag_core.perturbation import KINDS
from pag_pack.pag_core.settings import PAGOptions

from . import models
from .runs import WAYS, Run, counted, relative_error

SCALE = 3.0
ATTENTION = sorted(kind for kind in KINDS if not KINDS[kind].acts_on_block)
ways = pytest.mark.parametrize("sample", WAYS.values(), ids=WAYS)
NARROW = Run(steps=3, cfg=1.0, latent=models.empty_latent(2, 8, 8))


@pytest.mark.parametrize("kind", ATTENTION)
def test_every_perturbation_has_an_effect_of_its_own_and_repeats(kind):
    run, model = NARROW, models.sd15()
    identity = run.model_patch(model, SCALE)
    plain = run.ksampler(model)
    result = run.model_patch(model, SCALE, "m0", PAGOptions(perturbation=kind))
    assert relative_error(result, plain) > 1e-3
    assert kind == "identity" or relative_error(result, identity) > 1e-3
    assert torch.equal(result, run.model_patch(model, SCALE, "m0", PAGOptions(perturbation=kind)))


@pytest.mark.parametrize("kind", [kind for kind in ATTENTION if KINDS[kind].is_random])
def test_randomness_depends_on_the_seed_and_not_on_how_the_batch_is_split(kind, monkeypatch):
    run, model = Run(steps=2, cfg=5.0, latent=models.empty_latent(2, 8, 8)), models.sd15()
    options = PAGOptions(perturbation=kind, perturbation_seed=1)
    together = run.model_patch(model, SCALE, "m0", options)
    other_seed = run.model_patch(model, SCALE, "m0", PAGOptions(perturbation=kind, perturbation_seed=2))
    assert relative_error(other_seed, together) > 1e-3
    monkeypatch.setattr(model.model, "memory_required", lambda *_, **__: 1e30)  # the host then runs row by row
    assert relative_error(run.model_patch(model, SCALE, "m0", options), together) < 1e-4


@pytest.mark.in_turn("sample")
@pytest.mark.parametrize("mode", sorted(RESCALE_MODES))
@ways
def test_every_rescale_mode_acts_and_is_neutral_at_zero(sample, mode):
    run, model = Run(cfg=7.0, latent=models.empty_latent(1, 8, 8)), models.sd15()
    plain_pag = sample(run, model, SCALE)
    assert torch.equal(sample(run, model, SCALE, "m0", PAGOptions(rescale=0.0, rescale_mode=mode)), plain_pag)
    assert relative_error(sample(run, model, SCALE, "m0", PAGOptions(rescale=0.7, rescale_mode=mode)), plain_pag) > 1e-4


@pytest.mark.parametrize("model", [models.sd15, models.sd2], ids=["eps", "v"])
def test_full_rescale_in_diffusers_mode_gives_the_conditional_output_spread(model):
    """The network's guided output then has the standard deviation of its conditional one, whatever it predicts."""
    seen = {}

    def watch(args):
        seen.update(args)
        return args["denoised"]

    patched = PAGModelPatch.execute(model(), SCALE, "m0", PAGOptions(rescale=1.0, rescale_mode="diffusers")).result[0]
    patched.set_model_sampler_post_cfg_function(watch)
    Run(steps=1, cfg=1.0, latent=models.empty_latent(2, 8, 8)).ksampler(patched)
    origin = seen["model"].model_sampling.calculate_denoised(seen["sigma"], torch.zeros_like(seen["input"]),
                                                             seen["input"])
    guided, plain = ((seen[name] - origin).std(dim=(1, 2, 3)) for name in ("denoised", "cond_denoised"))
    torch.testing.assert_close(guided, plain, rtol=1e-4, atol=0)


@pytest.mark.parametrize(("every", "perturbed_steps"), [(1, 6), (2, 3), (3, 2), (6, 1), (100, 1)])
def test_reuse_every_computes_the_delta_in_every_nth_step(every, perturbed_steps):
    run, model = Run(steps=6, cfg=1.0, latent=models.empty_latent(1, 8, 8)), models.sd15()
    watched, rows = counted(model)
    run.model_patch(watched, SCALE, "m0", PAGOptions(reuse_every=every, share_prefix=False))
    assert sorted(rows).count(2) == perturbed_steps
    assert len(rows) == 6


def test_reuse_every_goes_on_where_a_sampler_stops_between_two_steps():
    """dpmpp_2s_ancestral looks at the next step's noise level early, and again, rounded otherwise, when it is there."""
    watched, rows = counted(models.sd15())
    run = Run(steps=8, cfg=1.0, sampler="dpmpp_2s_ancestral", latent=models.empty_latent(1, 8, 8))
    run.model_patch(watched, SCALE, "m0", PAGOptions(reuse_every=100, share_prefix=False))
    assert rows == [2] + [1] * 14


def test_a_reused_delta_is_that_of_the_step_before():
    """With one step there is nothing to reuse; with two the second step adds the first one's delta."""
    model, options = models.sd15(), PAGOptions(reuse_every=2)
    one = Run(steps=1, cfg=1.0, latent=models.empty_latent(1, 8, 8))
    assert torch.equal(one.model_patch(model, SCALE, "m0", options), one.model_patch(model, SCALE))
    two = Run(steps=2, cfg=1.0, latent=models.empty_latent(1, 8, 8))
    assert relative_error(two.model_patch(model, SCALE, "m0", options), two.model_patch(model, SCALE)) > 1e-3


def test_a_second_run_reuses_nothing_of_the_first():
    run, model = Run(steps=3, cfg=1.0, latent=models.empty_latent(1, 8, 8)), models.sd15()
    patched = PAGModelPatch.execute(model, SCALE, "m0", PAGOptions(reuse_every=2)).result[0]
    first = run.ksampler(patched)
    Run(steps=5, cfg=1.0, seed=9, latent=models.empty_latent(1, 8, 8)).ksampler(patched)
    assert torch.equal(run.ksampler(patched), first)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "linear_up", "cosine_up"])
def test_a_schedule_changes_the_result_and_skips_the_step_where_it_is_zero(schedule):
    run, model = Run(steps=4, cfg=1.0, latent=models.empty_latent(1, 8, 8)), models.sd15()
    watched, rows = counted(model)
    result = run.model_patch(watched, SCALE, "m0", PAGOptions(schedule=schedule, share_prefix=False))
    assert relative_error(result, run.model_patch(model, SCALE)) > 1e-3
    assert sorted(rows) == [1, 2, 2, 2]  # at one end of the run the scale is 0


def test_a_range_in_sigma_touches_only_the_steps_inside():
    run, model = Run(steps=4, cfg=1.0, latent=models.empty_latent(1, 8, 8)), models.sd15()
    watched, rows = counted(model)
    run.model_patch(watched, SCALE, "m0", PAGOptions(start_sigma=3.0, end_sigma=0.5, share_prefix=False))
    assert rows.count(2) >= 1
    assert rows[0] == 1  # the first sigma is above 14


def test_a_blur_over_the_picture_reaches_as_far_as_sigma_on_a_transformer():
    """The network's own patching tells how its tokens lie; a wide blur is nearly the mean of all."""
    run = Run(steps=2, cfg=1.0, scheduler="simple", positive=models.conditioning(1),
              latent={"samples": torch.zeros(1, 16, 8, 12)})

    def sampled(kind: str, sigma: float = 1.0) -> torch.Tensor:
        return run.model_patch(models.flux(), SCALE, "auto", PAGOptions(kind, perturbation_sigma=sigma))

    mean = sampled("seg_mean")
    near, far = (relative_error(sampled("seg", sigma), mean) for sigma in (0.5, 3.0))
    assert far < near
    assert near > 1e-3
