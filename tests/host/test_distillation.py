"""Score distillation through the host's models: against written-out loops, under any guider, and what is refused."""

from __future__ import annotations

import types

import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy.samplers import calc_cond_batch
from comfy_extras.nodes_custom_sampler import BasicGuider
from pag_pack.nodes.guidance import PAGGuider
from pag_pack.nodes.options import PAGOptionsNode
from pag_pack.nodes.research.adm import SHIPPED, PAGADMClassLabel, PAGADMLoader
from pag_pack.nodes.research.distillation import PAGSDSGradient, PAGSDSImageGradient, PAGSDSOptimizer
from pag_pack.pag_core.distillation import noise_levels

from . import models
from .runs import counted, identity, patched, relative_error, snapshot
from .test_preview import shown  # noqa: F401 (a fixture)
from .test_psld import vae

SEED, CFG, SCALE = 5, 7.0, 3.0
FAMILIES = {"noise prediction": (models.sd15, 4), "velocity": (models.sd2, 4), "flow": (models.flux, 16)}
families = pytest.mark.parametrize(("family", "channels"), FAMILIES.values(), ids=FAMILIES)


def guider(model, cfg: float = CFG, scale: float = SCALE, options=None):
    return PAGGuider.execute(model, models.conditioning(1, tokens=14), models.conditioning(2), cfg, scale, "auto",
                             0.0, 1.0, options).result[0]


def gradient(given, latent, seed: int = SEED, **settings) -> torch.Tensor:
    return PAGSDSGradient.execute(given, latent, seed, **settings).result[0]["samples"]


def optimized(given, latent, seed: int = SEED, steps: int = 3, rate: float = 0.1, order: str = "annealed",
              **settings) -> torch.Tensor:
    return PAGSDSOptimizer.execute(given, latent, seed, steps, rate, order, **settings).result[0]["samples"]


class Reference(comfy.samplers.Sampler):
    """What PAG is compared with: each prediction in a call of its own, noise guesses in the place of pictures, and
    Adam's formulas (Kingma & Ba 2015, Algorithm 1)."""

    def __init__(self, rate: float, is_flow: bool, perturbs: bool) -> None:
        self.rate, self.is_flow, self.perturbs = rate, is_flow, perturbs
        self.first = None

    def sample(self, guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask=None, disable_pbar=False):
        model, x = guider.inner_model, latent_image
        options = extra_args["model_options"]
        blind = comfy.model_patcher.set_model_options_patch_replace(options.copy(), identity, "attn1", "middle", 0)
        generator = torch.Generator().manual_seed(SEED + 1)  # as the host's samplers seed their noise on a CPU
        m = v = torch.zeros_like(x)
        for step, sigma in enumerate(sigmas, start=1):
            a, b = (1 - sigma, sigma) if self.is_flow else (1.0, sigma)
            noisy = a * x + b * noise

            def guess(cond, options=options, noisy=noisy, sigma=sigma, a=a, b=b):
                (x0,) = calc_cond_batch(model, [cond], noisy, sigma.expand(len(noisy)), options)
                return (noisy - a * x0) / b

            plain, empty = guess(guider.conds["positive"]), guess(guider.conds["negative"])
            guided = empty + CFG * (plain - empty)
            if self.perturbs:
                guided = guided + SCALE * (plain - guess(guider.conds["positive"], blind))
            g = b * b / (a * a + b * b) * (guided - noise)
            self.first = g if self.first is None else self.first
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            x = x - self.rate * m / (1 - 0.9 ** step) / ((v / (1 - 0.999 ** step)).sqrt() + 1e-8)
            noise = torch.randn(x.shape, generator=generator)
        return x


def reference(family, latent, levels: list[float], rate: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    """(the optimised latent, the first gradient by the latent)"""
    model, is_flow = family(), family is models.flux
    host = comfy.samplers.CFGGuider(model)
    host.set_conds(models.conditioning(1, tokens=14), models.conditioning(2))
    sampler = Reference(rate, is_flow, perturbs=not is_flow)
    sigma = model.get_model_object("model_sampling").percent_to_sigma
    noise = comfy.sample.prepare_noise(latent["samples"], SEED)
    result = host.sample(noise, latent["samples"], sampler, torch.tensor([sigma(1 - level) for level in levels]),
                         seed=SEED)
    return result, sampler.first * model.model.latent_format.scale_factor


@families
def test_gradient_is_the_written_out_formula(family, channels):
    latent = models.picture_latent(2, channels=channels)
    scale = 0.0 if family is models.flux else SCALE  # Flux has no middle block; the test of options has it
    result = gradient(guider(family(), scale=scale), latent)
    (level,) = noise_levels(1, 0.02, 0.98, "random", SEED)
    _, expected = reference(family, latent, [level])
    assert relative_error(result, expected) < 1e-4
    assert relative_error(gradient(guider(family(), scale=scale + 1), latent), expected) > 1e-2


@families
@pytest.mark.parametrize("order", ["annealed", "random"])
def test_optimizer_is_the_written_out_loop(family, channels, order):
    latent = models.picture_latent(2, channels=channels)
    result = optimized(guider(family(), scale=0.0 if family is models.flux else SCALE), latent, order=order)
    expected, _ = reference(family, latent, noise_levels(3, 0.02, 0.98, order, SEED))
    assert relative_error(result, expected) < 1e-3  # Adam divides small gradients by their own size
    assert relative_error(latent["samples"], expected) > 1e-2


def test_guidance_is_the_guiders_own():
    """With every option that it has: the gradient is w·(a / b)·(x − x̂0), x̂0 being its prediction."""
    options = PAGOptionsNode.execute(perturbation="seg_mean", strength=0.5, rescale=0.5, schedule="linear").result[0]
    latent, model, seen = models.picture_latent(channels=16), models.flux(), {}
    level, noise = 0.6, comfy.sample.prepare_noise(torch.zeros(1, 16, 8, 12), SEED)

    class Look(comfy.samplers.Sampler):
        def sample(self, given, sigmas, extra_args, callback, noise, latent_image, *args):
            sigma = sigmas[0]
            x0 = given((1 - sigma) * latent_image + sigma * noise, sigma.reshape(1), **extra_args)
            weight = sigma ** 2 / (sigma ** 2 + (1 - sigma) ** 2)
            seen["gradient"] = weight * (1 - sigma) / sigma * (latent_image - x0)
            return latent_image

    given = guider(model, options=options)
    sigma = model.get_model_object("model_sampling").percent_to_sigma(1 - level)
    given.sample(noise, latent["samples"], Look(), torch.tensor([sigma]), seed=SEED)
    expected = seen["gradient"] * model.model.latent_format.scale_factor
    result = gradient(given, latent, min_step_percent=level, max_step_percent=level)
    assert relative_error(result, expected) < 1e-5
    plain = gradient(guider(model), latent, min_step_percent=level, max_step_percent=level)
    assert relative_error(plain, expected) > 1e-3


def test_weighting():
    latent = models.picture_latent()
    both = [gradient(guider(models.sd15()), latent, min_step_percent=0.3, max_step_percent=0.3, weighting=weighting)
            for weighting in ("uniform", "sigma_squared")]
    sigma = models.sd15().get_model_object("model_sampling").percent_to_sigma(0.7)
    torch.testing.assert_close(both[1], both[0] * sigma ** 2 / (1 + sigma ** 2))


@pytest.mark.parametrize("run", [gradient, optimized])
def test_scale_0_is_plain_sds_and_scales_count(run):
    model, latent = models.sd15(), models.picture_latent()
    host = comfy.samplers.CFGGuider(model)
    host.set_conds(models.conditioning(1, tokens=14), models.conditioning(2))
    host.set_cfg(CFG)
    plain = run(host, latent)
    assert torch.equal(run(guider(model, scale=0.0), latent), plain)
    assert relative_error(run(guider(model), latent), plain) > 1e-3
    paper = run(guider(model, cfg=100.0, scale=100.0), latent)
    assert paper.isfinite().all()
    assert relative_error(paper, run(guider(model), latent)) > 1e-3


def test_any_guider_and_the_model_patch_drive_it():
    model, latent, prompt = models.sd15(), models.picture_latent(), models.conditioning(1, tokens=14)
    basic = BasicGuider.execute(patched(model, SCALE), prompt).result[0]
    assert torch.equal(gradient(basic, latent), gradient(guider(model, cfg=1.0), latent))


def test_one_call_of_the_model_a_step():
    model, rows = counted(models.sd15())
    optimized(guider(model), models.picture_latent())
    gradient(guider(model), models.picture_latent())
    assert rows == [3] * 4


@pytest.mark.parametrize("run", [gradient, optimized])
def test_the_seed_decides_and_nothing_is_changed(run):
    model, latent = models.sd15(), models.picture_latent()
    before, samples = snapshot(model), latent["samples"].clone()
    given = guider(model)
    first = run(given, latent)
    assert torch.equal(run(given, latent), first)
    assert not torch.equal(run(given, latent, seed=6), first)
    assert snapshot(model) == before
    assert torch.equal(latent["samples"], samples)


@pytest.mark.parametrize("run", [gradient, optimized])
def test_pictures_of_a_batch_do_not_mix(run):
    """Their noise aside: an index of the batch says which noise it was."""
    latent = models.picture_latent(2)
    alone = {"samples": latent["samples"][1:], "batch_index": [1]}
    settings = {"steps": 1} if run is optimized else {}
    torch.testing.assert_close(run(guider(models.sd15()), latent, **settings)[1:],
                               run(guider(models.sd15()), alone, **settings), atol=1e-4, rtol=1e-3)


def test_only_what_a_mask_marks_changes():
    latent = models.picture_latent(noise_mask=models.half_mask())
    result = gradient(guider(models.sd15()), latent)
    assert (result[..., 6:] == 0).all() and (result[..., :6] != 0).all()
    result = optimized(guider(models.sd15()), latent)
    torch.testing.assert_close(result[..., 6:], latent["samples"][..., 6:])
    assert ((result - latent["samples"])[..., :6].abs() > 1e-3).any()


def test_the_norm_is_the_gradients_length():
    result, norm = PAGSDSGradient.execute(guider(models.sd15()), models.picture_latent(3), SEED).result
    assert norm == pytest.approx(sum(float(one.norm()) for one in result["samples"]) / 3)


@pytest.mark.parametrize("size", [(64, 64), (67, 72)], ids=["whole", "cropped by the VAE"])
def test_image_gradient_is_the_chain_rule(size):
    """Along any direction, it is what the latent's gradient says of the latent's change."""
    made = vae()
    image, direction = (torch.rand(2, *size, 3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    known = {"samples": torch.randn(made.encode(image).shape, generator=torch.Generator().manual_seed(2))}
    weights = [weight.data_ptr() for weight in made.first_stage_model.parameters()]
    result = PAGSDSImageGradient.execute(image, made, known).result[0]
    assert result.shape == image.shape
    step = 1e-3
    change = made.encode(image + step * direction) - made.encode(image - step * direction)
    for one in range(2):
        expected = float((known["samples"][one] * change[one]).sum()) / (2 * step)
        assert float((result[one] * direction[one]).sum()) == pytest.approx(expected, rel=0.02)
    assert [weight.data_ptr() for weight in made.first_stage_model.parameters()] == weights


def test_image_gradient_of_a_pixel_model_is_the_latents():
    """Its latent is 2·image − 1."""
    known = {"samples": torch.randn(1, 3, 32, 32)}
    made = PAGADMLoader.execute(SHIPPED).result[1]
    result = PAGSDSImageGradient.execute(torch.rand(1, 32, 32, 3), made, known).result[0]
    torch.testing.assert_close(result, 2 * known["samples"].movedim(1, -1))


def test_a_renderers_loop():
    """As the help page has it: a scene of few parameters, rendered with gradients, learns by itself."""
    model, made = PAGADMLoader.execute(SHIPPED).result
    label, none = (PAGADMClassLabel.execute(model, label).result[0] for label in (0, -1))
    given = PAGGuider.execute(model, label, none, 2.0, 2.0, "auto").result[0]
    with torch.inference_mode(False), torch.enable_grad():
        scene = torch.full((1, 3, 8, 8), 0.5, requires_grad=True)
        for step in range(2):
            image = torch.nn.functional.interpolate(scene, scale_factor=4, mode="bilinear").movedim(1, -1)
            latent = {"samples": made.encode(image.detach())}
            of_latent, norm = PAGSDSGradient.execute(given, latent, step).result
            (of_image,) = PAGSDSImageGradient.execute(image.detach(), made, of_latent).result
            image.backward(of_image)
            assert norm > 0
    assert scene.grad.isfinite().all()
    assert (scene.grad != 0).all()


@pytest.mark.parametrize(("values", "message"), [
    ({"gradient": None}, "gradient is None, expected the LATENT output"),
    ({"vae": None}, "vae is None, expected the VAE output"),
    ({"vae": types.SimpleNamespace(latent_channels=16, latent_dim=3, output_channels=3)}, "does not encode images"),
    ({"image": None}, "image is None, expected the IMAGE output"),
    ({"gradient": {"samples": torch.zeros(1, 4, 4, 4)}},
     "the shape 1 × 4 × 4 × 4, but this image encodes to 1 × 4 × 8 × 8. Connect the image"),
], ids=str)
def test_image_gradient_of_what_does_not_belong_together(values, message):
    made = vae()
    good = {"image": torch.rand(1, 64, 64, 3), "vae": made, "gradient": {"samples": torch.zeros(1, 4, 8, 8)}}
    with pytest.raises(ValueError, match=message):
        PAGSDSImageGradient.execute(**{**good, **values})


def test_progress_and_previews_show_what_is_optimised(shown):  # noqa: F811
    optimized(guider(models.sd15()), models.picture_latent())
    assert [report[:2] for report in shown] == [(1, 3), (2, 3), (3, 3)]
    assert all(report[2] is not None for report in shown)


def test_an_interruption_leaves_the_model_in_order(monkeypatch):
    model, rows = counted(models.sd15())
    before, given = snapshot(model), guider(model)

    def look(progress, step, *args):
        if step == 1:
            comfy.model_management.interrupt_current_processing()

    monkeypatch.setattr("pag_pack.nodes.host.run.preview.Progress.__call__", look)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        optimized(given, models.picture_latent(), steps=50)
    assert len(rows) == 2
    assert snapshot(model) == before


@pytest.mark.slow
def test_on_the_shipped_model_a_picture_comes_out_of_grey():
    """A face: yellow in the middle, on white."""
    model = PAGADMLoader.execute(SHIPPED).result[0]
    label, none = (PAGADMClassLabel.execute(model, label).result[0] for label in (0, -1))
    given = PAGGuider.execute(model, label, none, 2.0, 2.0, "auto").result[0]
    result = optimized(given, {"samples": torch.zeros(1, 3, 32, 32)}, steps=40, rate=0.05)
    red, _, blue = result[0, :, 8:24, 8:24].mean((1, 2))
    assert red > blue + 0.5
    assert result[..., :3, :3].mean() > 0.7


SETTINGS = dict(steps=3, learning_rate=0.1, order="annealed")


@pytest.mark.parametrize(("values", "message"), [
    ({"steps": 0}, "steps must be a whole number from 1"),
    ({"learning_rate": float("nan")}, "learning_rate must be a number"),
    ({"learning_rate": 0.0}, "learning_rate must be a number"),
    ({"order": "upwards"}, "order must be one of annealed, random"),
    ({"weighting": "cosine"}, "weighting must be one of sigma_squared, uniform"),
    ({"min_step_percent": 0.9, "max_step_percent": 0.1}, "min_step_percent .* must not exceed"),
    ({"guider": None}, "guider is None, expected the GUIDER output of a node such as PAG Guider"),
    ({"latent_image": None}, "latent_image is None, expected the LATENT output"),
    ({"latent_image": models.picture_latent(channels=5)}, "The latent has 5 channels, but this model expects 4"),
    ({"latent_image": {"samples": torch.full((1, 4, 8, 8), float("nan"))}}, "contains NaN or infinity"),
], ids=lambda value: str(value)[:40])
def test_bad_input_is_named_before_the_model_is_called(values, message):
    model, rows = counted(models.sd15())
    nodes = [PAGSDSOptimizer] if values.keys() & SETTINGS.keys() else [PAGSDSOptimizer, PAGSDSGradient]
    for node in nodes:
        settings = {"guider": guider(model), "latent_image": models.picture_latent(), "seed": 0,
                    **(SETTINGS if node is PAGSDSOptimizer else {}), **values}
        with pytest.raises(ValueError, match=message):
            node.execute(**settings)
    assert rows == []


@pytest.mark.parametrize("run", [gradient, optimized])
def test_pushes_of_earlier_steps_are_refused(run):
    options = PAGOptionsNode.execute(reuse_every=2).result[0]
    with pytest.raises(ValueError, match=r"reuse_every is 2, but score distillation draws new noise at every step"):
        run(guider(models.sd15(), options=options), models.picture_latent())


def test_predictions_of_no_numbers_end_it_at_once():
    model, rows = counted(models.sd15())
    model.set_model_patch(lambda h, skip, _: (h * float("nan"), skip), "output_block_patch")
    with pytest.raises(ValueError, match=r"predictions contain NaN or infinity"):
        optimized(guider(model), models.picture_latent())
    assert rows == [2, 1], "one step: the host's call, and one of the weak row"
