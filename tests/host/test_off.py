"""Where PAG is off it costs and changes nothing; where it is on, it costs one row in the one call of the step."""

import comfy.samplers
import pytest
import torch
from pag_pack.nodes.sampling import PAGKSampler
from pag_pack.pag_core.settings import PAGOptions

from . import models
from .runs import WAYS, Run, counted, patched, relative_error

SCALE = 3.0
ways = pytest.mark.parametrize("sample", WAYS.values(), ids=WAYS)
# The "normal" schedule puts four steps at these shares of the process: 0, 1/3, 2/3, 1.
FOUR_STEPS = Run(steps=4)


@pytest.mark.in_turn("sample")
@ways
@pytest.mark.parametrize("cfg", [1.0, 7.0])
@pytest.mark.parametrize(("scale", "options"), [
    (0.0, None),
    (SCALE, PAGOptions(strength=0.0)),
    (SCALE, PAGOptions(start_percent=0.6, end_percent=0.7)),  # three steps: 0, 1/2, 1
], ids=["scale 0", "strength 0", "window without a step"])
def test_off_is_the_plain_sampler_bit_for_bit_without_an_extra_call(sample, cfg, scale, options):
    run = Run(cfg=cfg, latent=models.empty_latent(2))
    model, rows = counted(models.sd15(), batch=2)
    plain = run.ksampler(model)
    assert rows == [1 if cfg == 1.0 else 2] * 3
    rows.clear()
    assert torch.equal(sample(run, model, scale, "m0", options), plain)
    assert rows == [1 if cfg == 1.0 else 2] * 3


@pytest.mark.in_turn("sample")
@ways
@pytest.mark.parametrize("run", [
    Run(latent=models.picture_latent(), denoise=0.5),
    Run(latent=models.picture_latent(noise_mask=models.half_mask()), sampler="ddim"),
    Run(latent={**models.empty_latent(2), "batch_index": [4, 1]}),
    Run(sampler="euler_ancestral", scheduler="karras"),
    Run(sampler="dpm_2"),
    Run(latent={"samples": torch.zeros(1, 16, 4, 6), "downscale_ratio_spacial": 16}),
], ids=["denoise", "mask", "batch index", "ancestral", "penultimate sigma dropped", "latent of another scale"])
def test_off_is_the_plain_sampler_for_every_kind_of_run(sample, run):
    model = models.sd15()
    assert torch.equal(sample(run, model, 0.0), run.ksampler(model))


def test_pag_ksampler_hands_on_what_else_is_in_the_latent():
    run = Run()
    latent = {**models.picture_latent(), "batch_index": [3], "noise_mask": models.half_mask(), "of another node": 1}
    before = {key: value.clone() if torch.is_tensor(value) else value for key, value in latent.items()}
    out = PAGKSampler.execute(models.sd15(), run.seed, run.steps, run.cfg, SCALE, "m0", run.sampler, run.scheduler,
                              run.positive, run.negative, latent).result[0]
    assert out.keys() == latent.keys()
    assert out["of another node"] == 1
    assert torch.equal(latent["samples"], before["samples"])


@ways
@pytest.mark.parametrize(("cfg", "expected"), [(7.0, 3), (1.0, 2)])
def test_on_makes_one_call_a_step_with_one_row_more(sample, cfg, expected):
    model, rows = counted(models.sd15(), batch=2)
    sample(Run(cfg=cfg, latent=models.empty_latent(2)), model, SCALE)
    assert rows == [expected] * 3


@pytest.mark.in_turn("sample")
@ways
@pytest.mark.parametrize(("window", "expected"), [
    ((0.0, 1.0), [3, 3, 3, 3]),
    ((0.0, 0.5), [3, 3, 2, 2]),
    ((0.5, 1.0), [2, 2, 3, 3]),
    ((0.3, 0.7), [2, 3, 3, 2]),
    ((0.0, 0.001), [3, 2, 2, 2]),
    ((0.999, 1.0), [2, 2, 2, 3]),
    ((0.001, 0.999), [2, 3, 3, 2]),
], ids=str)
def test_pag_window_touches_exactly_its_steps(sample, window, expected):
    model, rows = counted(models.sd15())
    sample(FOUR_STEPS, model, SCALE, "m0", PAGOptions(start_percent=window[0], end_percent=window[1]))
    assert rows == expected


@pytest.mark.in_turn("sample")
@ways
@pytest.mark.parametrize("scheduler", ["normal", "karras", "exponential", "sgm_uniform", "simple", "ddim_uniform",
                                       "beta", "linear_quadratic", "kl_optimal"])
def test_whole_window_covers_first_and_last_step_of_every_scheduler(sample, scheduler):
    for options in (PAGOptions(), PAGOptions(end_percent=0.999), PAGOptions(start_percent=0.001)):
        model, rows = counted(models.sd15())
        sample(Run(steps=3, scheduler=scheduler), model, SCALE, "m0", options)
        assert options.end_percent < 1.0 or rows[-1] == 3
        assert options.start_percent > 0.0 or rows[0] == 3


windowed = pytest.mark.parametrize("sample", [Run.pag_ksampler, Run.pag_guider], ids=["PAGKSampler", "PAGGuider"])


@windowed
@pytest.mark.parametrize(("cfg_window", "scale", "pag_window", "expected"), [
    ((0.0, 1.0), SCALE, (0.0, 1.0), [3, 3, 3, 3]),
    ((0.0, 0.5), SCALE, (0.0, 1.0), [3, 3, 2, 2]),
    ((0.5, 1.0), SCALE, (0.0, 1.0), [2, 2, 3, 3]),
    ((0.0, 0.001), SCALE, (0.0, 1.0), [3, 2, 2, 2]),
    ((0.999, 1.0), SCALE, (0.0, 1.0), [2, 2, 2, 3]),
    ((0.0, 0.5), 0.0, (0.0, 1.0), [2, 2, 1, 1]),
    ((0.3, 1.0), SCALE, (0.0, 0.7), [2, 3, 3, 2]),
    ((0.5, 1.0), SCALE, (0.0, 0.3), [2, 1, 2, 2]),
], ids=str)
def test_cfg_window_leaves_the_unconditional_row_out(sample, cfg_window, scale, pag_window, expected):
    model, rows = counted(models.sd15())
    run = Run(steps=4, cfg_window=cfg_window)
    sample(run, model, scale, "m0", PAGOptions(start_percent=pag_window[0], end_percent=pag_window[1]))
    assert rows == expected


@windowed
@pytest.mark.parametrize("scale", [0.0, SCALE])
def test_outside_its_window_cfg_is_1(sample, scale):
    model = models.sd15()
    never = sample(Run(cfg=7.0, cfg_window=(0.6, 0.7)), model, scale)  # three steps: 0, 1/2, 1
    assert torch.equal(never, sample(Run(cfg=1.0), model, scale))
    assert not torch.equal(never, sample(Run(cfg=7.0), model, scale))


@ways
def test_same_seed_gives_the_same_picture_and_another_seed_another(sample):
    model = models.sd15()
    run = Run(sampler="euler_ancestral")
    first = sample(run, model, SCALE)
    assert torch.equal(sample(run, model, SCALE), first)
    assert relative_error(sample(Run(sampler="euler_ancestral", seed=6), model, SCALE), first) > 1e-2


@ways
def test_without_a_prompt_pag_steers_and_the_unconditional_row_is_not_computed(sample):
    empty = models.empty_conditioning()
    run = Run(cfg=1.0, positive=empty, negative=empty)
    model, rows = counted(models.sd15())
    guided = sample(run, model, SCALE)
    assert rows == [2] * 3
    assert relative_error(guided, run.ksampler(model)) > 1e-2
    assert guided.isfinite().all()


@ways
def test_pictures_of_a_batch_do_not_influence_each_other(sample):
    model = models.sd15()
    together = sample(Run(latent=models.empty_latent(3)), model, SCALE)
    alone = sample(Run(latent={**models.empty_latent(1), "batch_index": [2]}), model, SCALE)
    assert relative_error(together[2:], alone) < 1e-4


@ways
def test_result_is_linear_in_the_scale_for_one_step(sample):
    model = models.sd15()
    run = Run(steps=1)
    plain, once, twice = (sample(run, model, scale) for scale in (0.0, 1.0, 2.0))
    assert relative_error(twice - plain, 2.0 * (once - plain)) < 1e-4
    assert relative_error(once, plain) > 1e-3


def test_a_patched_model_samples_under_other_sampler_nodes_and_guiders():
    model = models.sd15()
    run = Run(cfg=1.0)
    guider = comfy.samplers.CFGGuider(patched(model, SCALE))
    guider.set_conds(run.positive, run.negative)
    guider.set_cfg(run.cfg)
    assert torch.equal(run.advanced(guider), run.model_patch(model, SCALE))
