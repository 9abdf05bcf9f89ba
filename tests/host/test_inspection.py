"""PAG Inspect: samples exactly as PAG KSampler, and shows what the model really predicted."""

import re

import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import comfy.sd
import latent_preview
import pytest
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from comfy.patcher_extension import WrappersMP
from pag_pack.nodes.host.run.patching import attach
from pag_pack.nodes.host.sampling.decoding import Decoder
from pag_pack.nodes.host.sampling.guider import CFGWindowGuider
from pag_pack.nodes.inspection import PAGInspect, Record, spread
from pag_pack.pag_core.drawing import to_images
from pag_pack.pag_core.settings import PAGOptions, PAGSettings

from . import models
from .runs import Run, counted, latent_run, relative_error, snapshot
from .test_leaves_no_trace import at_call

SCALE = 3.0


def inspect(run: Run, model, scale: float = SCALE, layers: str = "m0", options: PAGOptions | None = None, **extra):
    """(latent, grids [B, H, W, 3], plot [1, H, W, 3])."""
    latent, grids, plot = PAGInspect.execute(
        model, run.seed, run.steps, run.cfg, scale, layers, run.sampler, run.scheduler, run.positive, run.negative,
        run.latent, run.denoise, *run.cfg_window, options, **{"cell_size": 64, **extra}).result
    return latent["samples"], grids, plot


def observed(run: Run, model, scale: float = SCALE, options: PAGOptions | None = None) -> list:
    """The predictions of every step."""
    seen = []
    guided = attach(model, PAGSettings(scale, "m0", options or PAGOptions()),
                    observer=lambda step, total, predictions: seen.append(predictions))
    run.advanced(CFGWindowGuider(guided, run.positive, run.negative, run.cfg, *run.cfg_window))
    return seen


def vae(channels: int = 4) -> comfy.sd.VAE:
    """The host's class for SD's VAE at a width that a CPU decodes in milliseconds."""
    config = {"embed_dim": channels, "ddconfig": {
        "double_z": True, "z_channels": channels, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32,
        "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}}
    with torch.inference_mode(False):
        network = AutoencoderKL(**config)
        models.fill_with_noise(network)
        made = comfy.sd.VAE(sd=network.state_dict(), config={"params": config})
    made.latent_channels = channels
    return made


# --- the latent ----------------------------------------------------------------------------------------------------

STEPS = Run(steps=4)


@pytest.mark.parametrize(("run", "scale", "options"), [
    (STEPS, SCALE, PAGOptions()),
    (Run(steps=4, cfg=1.0, latent=models.empty_latent(2)), SCALE, PAGOptions()),
    (STEPS, 0.0, PAGOptions(rescale=0.7, rescale_mode="diffusers")),
    (STEPS, SCALE, PAGOptions(strength=0.0)),
    (STEPS, SCALE, PAGOptions(start_percent=0.3, end_percent=0.7)),
    (Run(steps=5), SCALE, PAGOptions(schedule="linear_up", reuse_every=2)),
    (STEPS, SCALE, PAGOptions(perturbation="random_mask", rescale=0.5)),
    (STEPS, SCALE, PAGOptions(preview="delta")),
    (Run(steps=4, cfg_window=(0.3, 0.7)), SCALE, PAGOptions()),
    (Run(steps=4, latent=models.picture_latent(noise_mask=models.half_mask()), denoise=0.6), SCALE, PAGOptions()),
    *(pytest.param(Run(steps=4, sampler=sampler), SCALE, PAGOptions(reuse_every=3), marks=pytest.mark.slow)
      for sampler in ("heun", "dpm_2", "dpmpp_2s_ancestral", "uni_pc", "dpm_fast", "dpm_adaptive", "lms", "ddim")),
], ids=["plain", "cfg 1, batch 2", "scale 0", "strength 0", "range", "schedule and reuse", "random", "delta preview",
        "CFG range", "inpainting", *("heun", "dpm_2", "dpmpp_2s_ancestral", "uni_pc", "dpm_fast", "dpm_adaptive",
                                     "lms", "ddim")])
def test_the_latent_is_pag_ksamplers_bit_for_bit(run, scale, options):
    model = models.sd15()
    before = snapshot(model)
    latent, grids, plot = inspect(run, model, scale, options=options)
    assert torch.equal(latent, run.pag_ksampler(model, scale, "m0", options))
    assert snapshot(model) == before
    assert grids.shape[0] == len(run.latent["samples"])
    assert grids.std() > 0.05
    assert plot.std() > 0.01


def test_transformers_too():
    run = Run(cfg=1.0)
    latent, grids, _ = inspect(run, models.flux(), layers="auto")
    assert torch.equal(latent, run.pag_ksampler(models.flux(), SCALE, "auto"))
    assert grids.shape[0] == 1


def test_of_videos_the_first_frames_are_shown():
    run = latent_run((3, 4, 6), 4.0)
    latent, grids, plot = inspect(run, models.wan(), layers="1")
    assert torch.equal(latent, run.pag_ksampler(models.wan(), SCALE, "1"))
    assert latent.shape == (1, 16, 3, 4, 6)
    assert grids.std() > 0.05
    assert plot.std() > 0.01


# --- the predictions -----------------------------------------------------------------------------------------------


def recomputing(model, into: list):
    """A clone of the model that also makes each step's predictions one by one, as the host's own PAG node would."""
    def separately(executor, x, timestep, model_options, seed=None):
        guider = executor.class_obj
        perturbing = comfy.model_patcher.set_model_options_patch_replace(
            model_options.copy(), lambda q, k, v, extra: v, "attn1", "middle", 0)
        into.append([comfy.samplers.calc_cond_batch(guider.inner_model, [conds], x, timestep, options)[0]
                     for conds, options in ((guider.conds["positive"], model_options),
                                            (guider.conds["negative"], model_options),
                                            (guider.conds["positive"], perturbing))])
        return executor(x, timestep, model_options, seed)

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "recomputing", separately)
    return model


@pytest.mark.parametrize("scale", [0.0, SCALE])
@pytest.mark.parametrize("cfg", [1.0, 7.0])
def test_predictions_are_those_made_one_by_one(cfg, scale):
    expected = []
    seen = observed(Run(cfg=cfg, latent=models.empty_latent(2)), recomputing(models.sd15(), expected), scale)
    assert len(seen) == len(expected) == 3
    for step, (cond, uncond, perturbed) in zip(seen, expected, strict=True):
        assert relative_error(step.cond, cond) < 1e-4
        assert relative_error(step.pair.cond, cond) < 1e-4
        assert relative_error(step.pair.perturbed, perturbed) < 1e-4
        assert relative_error(step.pair.cond - step.pair.perturbed, cond - perturbed) < 3e-2  # of small numbers
        assert step.scale == scale
        guided = cond + scale * (cond - perturbed)
        if cfg == 1.0:
            assert step.uncond is None
        else:
            assert relative_error(step.uncond, uncond) < 1e-4
            guided = guided + (cfg - 1.0) * (cond - uncond)
        assert relative_error(step.guided, guided) < 1e-4


def test_steps_outside_the_ranges_have_neither_perturbed_nor_negative():
    options = PAGOptions(start_percent=0.5)
    seen = observed(Run(steps=4, cfg_window=(0.0, 0.5)), models.sd15(), options=options)  # at 0, 1/3, 2/3, 1
    assert [step.pair is not None for step in seen] == [False, False, True, True]
    assert [step.scale for step in seen] == [0.0, 0.0, SCALE, SCALE]
    assert [step.uncond is not None for step in seen] == [True, True, False, False]


def test_a_reused_prediction_says_where_it_is_from():
    seen = observed(Run(steps=4), models.sd15(), options=PAGOptions(reuse_every=2))
    assert [step.pair.sigma == step.sigma for step in seen] == [True, False, True, False]
    assert seen[1].pair is seen[0].pair


def test_at_scale_0_the_perturbed_prediction_costs_a_call_of_its_own_and_elsewhere_nothing():
    model, rows = counted(models.sd15())
    inspect(Run(steps=3), model, 0.0)
    assert rows == [2, 1] * 3
    rows.clear()
    inspect(Run(steps=3), model)
    assert rows == [3] * 3


def test_the_negatives_row_is_shown_where_it_is_the_weak_one():
    expected, run = [], Run(cfg_window=(0.0, 0.6))

    def separately(executor, x, timestep, model_options, seed=None):
        guider = executor.class_obj
        perturbing = comfy.model_patcher.set_model_options_patch_replace(
            model_options.copy(), lambda q, k, v, extra: v, "attn1", "middle", 0)
        expected.append(comfy.samplers.calc_cond_batch(guider.inner_model, [guider.conds["negative"]], x, timestep,
                                                       perturbing)[0])
        return executor(x, timestep, model_options, seed)

    model = models.sd15().clone()
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "recomputing", separately)
    seen = observed(run, model, options=PAGOptions(row="negative"))
    for step, weak in zip(seen[:2], expected, strict=False):
        assert step.has_weak_negative
        assert step.pair is None
        assert relative_error(step.uncond, weak) < 1e-4
    assert not seen[2].has_weak_negative
    assert seen[2].uncond is None
    assert not any(step.has_weak_negative for step in observed(run, model, 0.0, PAGOptions(row="negative")))


def test_the_negatives_row_is_shown_where_another_node_has_it_computed_at_cfg_1():
    model = models.sd15().clone()
    model.set_model_sampler_cfg_function(lambda args: args["cond"], disable_cfg1_optimization=True)
    run = Run(cfg=1.0)
    latent, grids, _ = inspect(run, model, options=PAGOptions(row="negative"))
    assert torch.equal(latent, run.ksampler(model))  # this node leaves out the negative
    assert grids.shape == inspect(Run(cfg=5.0), model, options=PAGOptions(row="negative"))[1].shape


@pytest.mark.parametrize("options", [
    *(PAGOptions(kind) for kind in ("skip_block", "shuffle", "skip_attention", "sinkhorn")),
    *(PAGOptions(kind, row="negative") for kind in ("identity", "skip_block")),
], ids=lambda options: f"{options.perturbation}, {options.row}")
def test_every_operation_and_row_is_shown(options):
    run = latent_run((8, 8), 4.0)
    latent, grids, plot = inspect(run, models.sd3(), 2.0, "1", options)
    assert torch.equal(latent, run.pag_ksampler(models.sd3(), 2.0, "1", options))
    deltas = inspect(run, models.sd3(), 2.0, "1", options, panels="deltas")[1]
    plain = inspect(run, models.sd3(), 2.0, "1", panels="deltas")[1]
    assert (deltas.shape[1] < plain.shape[1]) == (options.row == "negative")  # there PAG's delta is part of CFG's
    assert grids.std() > 0.05
    assert plot.std() > 0.01


# --- what is kept and shown ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("total", "count", "expected"), [
    (25, 6, [0, 5, 10, 14, 19, 24]), (3, 6, [0, 1, 2]), (25, 2, [0, 24]), (25, 1, [24]), (1, 6, [0])])
def test_shown_steps_are_evenly_spread(total, count, expected):
    assert spread(total, count) == expected


def test_only_the_shown_steps_are_kept():
    record = Record(3)
    run = Run(steps=9, latent=models.empty_latent(2, 8, 8))
    guided = attach(models.sd15(), PAGSettings(SCALE, "m0"), observer=record.observe)
    run.advanced(CFGWindowGuider(guided, run.positive, run.negative, run.cfg))
    assert list(record.shown) == [0, 4, 8]
    assert len(record.norms) == 9
    for step in record.shown.values():
        assert step.plain.shape == step.perturbed.shape == step.guided.shape == (2, 4, 8, 8)
        assert step.pag.shape == step.cfg.shape == (2, 8, 8)
        assert all(value.untyped_storage().nbytes() <= 4 * value.numel() for value in
                   (step.plain, step.perturbed, step.guided, step.pag, step.cfg))


def test_a_sampler_that_takes_fewer_steps_shows_its_last_one():
    _, grids, _ = inspect(Run(steps=9, sampler="dpm_fast"), models.sd15(), shown_steps=1)
    assert grids.std() > 0.05


def test_panels_and_steps_decide_the_size_of_the_grid():
    model, run = models.sd15(), Run(steps=4)
    height = {name: inspect(run, model, panels=name)[1].shape[1] for name in ("all", "predictions", "deltas")}
    assert height["all"] > height["predictions"] > height["deltas"]
    assert inspect(Run(steps=4, cfg=1.0), model)[1].shape[1] < height["all"]  # no row for CFG
    widths = [inspect(run, model, shown_steps=count)[1].shape[2] for count in (1, 3, 4, 5)]
    assert widths[0] < widths[1] < widths[2] == widths[3]


def test_pictures_of_a_batch_get_a_grid_each():
    _, grids, plot = inspect(Run(latent=models.empty_latent(3)), models.sd15())
    assert grids.shape[0] == 3
    assert (grids[0] - grids[1]).abs().max() > 0.1
    assert plot.shape[0] == 1


def test_the_vae_decodes_where_there_is_one():
    run = Run(steps=2, latent=models.empty_latent(2))
    preview, decoded = inspect(run, models.sd15()), inspect(run, models.sd15(), vae=vae())
    assert torch.equal(preview[0], decoded[0])
    assert preview[1].shape[0] == decoded[1].shape[0] == 2


def test_pictures_are_the_vaes_or_the_previewers():
    model, decode = models.sd15(), vae()
    latents = models.picture_latent(2)["samples"]
    expected = decode.decode(latents / model.model.latent_format.scale_factor)
    pictures = Decoder(model, decode)(latents)
    assert (to_images(pictures) - expected).abs().max() <= 0.5 / 255 + 1e-6
    form = model.model.latent_format
    previewer = latent_preview.Latent2RGBPreviewer(form.latent_rgb_factors, form.latent_rgb_factors_bias)
    previews = Decoder(model, None)(latents)
    assert [list(picture.getdata()) for picture in previews] == [
        list(previewer.decode_latent_to_preview(latents[index:index + 1]).getdata()) for index in range(2)]


def test_of_a_video_the_first_frame_is_shown():
    video = torch.stack([models.picture_latent()["samples"], torch.zeros(1, 4, 8, 12)], dim=2)
    picture = Decoder(models.sd15(), vae())(video[:, :, 0])
    assert list(Decoder(models.sd15(), vae())(video)[0].getdata()) == list(picture[0].getdata())


# --- bad input, interruption ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("run", "extra", "message"), [
    (Run(), {"vae": {}}, r"^vae is \{\}, expected the VAE output"),
    (Run(), {"vae": vae(channels=16)}, "VAE decodes latents with 16 channels, but this model's latents have 4"),
    (Run(denoise=0.0), {}, "denoise is 0"),
    (Run(latent={"samples": torch.zeros(1, 4, 64)}), {}, "shows images"),
    (Run(), {"shown_steps": 0}, "shown_steps must be"),
    (Run(), {"shown_steps": 1000}, "shown_steps must be"),
    (Run(), {"panels": "none"}, "panels must be one of"),
    (Run(), {"layers": "d9"}, "'d9'"),
], ids=lambda value: re.sub(r"\W+", " ", value) if isinstance(value, str) else "")
def test_refused_before_the_model_is_called(run, extra, message):
    model, rows = counted(models.sd15())
    with pytest.raises(ValueError, match=message):
        inspect(run, model, **extra)
    assert rows == []


def test_a_model_without_any_preview_needs_its_vae():
    model, rows = counted(models.sd15())
    model.model.latent_format, kept = type(model.model.latent_format)(), model.model.latent_format
    model.model.latent_format.latent_rgb_factors = None
    try:
        with pytest.raises(ValueError, match="Connect its VAE"):
            inspect(Run(), model)
        assert rows == []
        assert inspect(Run(), model, vae=vae())[1].shape[0] == 1
    finally:
        model.model.latent_format = kept


def test_interruption_ends_the_run():
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        inspect(Run(), at_call(models.sd15(), 2, comfy.model_management.interrupt_current_processing))
    assert not comfy.model_management.processing_interrupted()
