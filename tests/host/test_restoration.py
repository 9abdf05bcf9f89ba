"""DPS and PSLD: gradients through the host's models, the samplers against references, and what is refused."""

from __future__ import annotations

import gc

import comfy.model_management
import comfy.patcher_extension
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import BasicGuider, Noise_RandomNoise, SamplerCustomAdvanced
from comfy_extras.nodes_freelunch import Fourier_filter, FreeU_V2
from pag_pack.nodes.guidance import PAGGuider
from pag_pack.nodes.host.models.adm_files import load_adm
from pag_pack.nodes.research.adm import SHIPPED, PAGADMClassLabel, PAGADMLoader
from pag_pack.nodes.research.restoration import PAGDPSSampler, PAGMeasure, PAGMeasurement, PAGPSLDSampler
from pag_pack.pag_core.adm import ADMConfig, ADMHooks, ADMUNet
from pag_pack.pag_core.inverse import SuperResolution
from safetensors.torch import save_file

from . import models
from .runs import patched, relative_error, snapshot
from .test_psld import vae

SIZE, STEPS, SEED = 16, 5, 7
CONFIG = ADMConfig(32, (1, 2), num_res_blocks=1, attention_levels=(1,), head_channels=32)


@pytest.fixture(scope="module")
def weights():
    """Small enough in its last layer that predictions look like noise and x0 stays near the range of pictures."""
    with torch.inference_mode(False), torch.no_grad():
        network = ADMUNet(CONFIG)
        models.fill_with_noise(network)
        network.out[2].weight *= 0.5
        return network.state_dict()


@pytest.fixture(scope="module")
def path(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("adm") / "small.safetensors"
    save_file(weights, path, {"head_channels": "32"})
    return str(path)


def picture(batch: int = 1, size: int = SIZE) -> torch.Tensor:
    """An IMAGE."""
    return torch.rand(batch, size, size, 3, generator=torch.Generator().manual_seed(1))


def label(model) -> list:
    return PAGADMClassLabel.execute(model, -1).result[0]


def operator(task: str = "super_resolution", **settings):
    return PAGMeasurement.execute(task, **settings).result[0]


def measured(op, batch: int = 1, size: int = SIZE) -> torch.Tensor:
    return PAGMeasure.execute(picture(batch, size), op, 0.05, 3).result[0]


def last_sigmas(model, steps: int = STEPS) -> torch.Tensor:
    """Some of the model's own noise levels, so that they belong to whole timesteps, and 0."""
    own = model.model.model_sampling.sigmas
    return torch.cat([own[torch.linspace(999, 60, steps).round().long()], own.new_zeros(1)])


def restore(guider, sampler, sigmas, batch: int = 1, size: int = SIZE, channels: int = 3) -> torch.Tensor:
    latent = {"samples": torch.zeros(batch, channels, size, size)}
    return SamplerCustomAdvanced.execute(Noise_RandomNoise(SEED), guider, sampler, sigmas, latent).result[0]["samples"]


def guided(model, scale: float = 0.0):
    return PAGGuider.execute(model, label(model), label(model), 1.0, scale, "m0").result[0]


class Perturbed(ADMHooks):
    """PAG Eq. 13 in the middle block."""

    def attention(self, q, k, v, heads, block):
        return v if block == ("middle", 0) else super().attention(q, k, v, heads, block)


def reference_dps(weights, x, alphas, y, forward, step_size: float, scale: float, noise, clip: bool) -> torch.Tensor:
    """DPS with guided-diffusion's formulas (q_posterior_mean_variance, p_sample), in its own variance-preserving space.

    Args:
        alphas: [(timestep, ᾱ)] from noise to picture.
        forward: A.
    """
    with torch.inference_mode(False), torch.enable_grad():
        network = ADMUNet(CONFIG)
        network.load_state_dict(weights)
        network.requires_grad_(False)

        def x0_of(x, t, alpha, hooks=None):
            epsilon = network(x, torch.tensor([float(t)]), hooks=hooks)[:, :3]
            return (1 / alpha) ** 0.5 * x - (1 / alpha - 1) ** 0.5 * epsilon

        x, y = x.clone(), y.clone()
        for index, (t, alpha) in enumerate(alphas):
            previous = alphas[index + 1][1] if index + 1 < len(alphas) else 1.0
            beta = 1 - alpha / previous
            x.requires_grad_()
            plain = x0_of(x, t, alpha)
            norm = torch.linalg.norm(y - forward(plain.clamp(-1, 1) if clip else plain))
            (gradient,) = torch.autograd.grad(norm, x)
            with torch.no_grad():
                x0 = plain + scale * (plain - x0_of(x, t, alpha, Perturbed()))
                x0 = x0.clamp(-1, 1) if clip else x0
                mean = beta * previous ** 0.5 / (1 - alpha) * x0
                mean = mean + (1 - previous) * (1 - beta) ** 0.5 / (1 - alpha) * x
                variance = beta * (1 - previous) / (1 - alpha)
                sample = mean + variance ** 0.5 * noise()
            x = (sample - step_size * gradient).detach()
        return x


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("scale", [0.0, 2.0])
def test_dps_is_the_variance_preserving_reference(weights, path, scale, clip):
    model = load_adm(path, clip_denoised=clip)
    sigmas = last_sigmas(model)
    op = SuperResolution(4)
    y = measured(op)
    result = restore(guided(model, scale), PAGDPSSampler.execute(y, op, 3.0).result[0], sigmas)

    timesteps = torch.linspace(999, 60, STEPS).round().int().tolist()
    alphas = [(t, 1 / (1 + float(sigma) ** 2)) for t, sigma in zip(timesteps, sigmas, strict=False)]
    generator = torch.Generator().manual_seed(SEED + 1)  # as the host's samplers seed their noise on a CPU
    start = Noise_RandomNoise(SEED).generate_noise({"samples": torch.zeros(1, 3, SIZE, SIZE)})
    expected = reference_dps(weights, start, alphas, y.movedim(-1, 1) * 2 - 1, op.forward, 3.0, scale,
                             lambda: torch.randn(1, 3, SIZE, SIZE, generator=generator), clip)
    assert relative_error(result, expected) < 1e-4
    without = restore(guided(model, scale), PAGDPSSampler.execute(y, op, 0.0).result[0], sigmas)
    assert relative_error(without, expected) > 1e-2


@pytest.mark.slow
def test_dps_fits_the_measurement_on_the_shipped_model():
    """With and without PAG, and the measurement's own model unchanged."""
    model = PAGADMLoader.execute(SHIPPED).result[0]
    op = operator("box_inpainting")
    truth = PAGMeasure.execute(picture(size=32), op, 0.0, 0).result[0].movedim(-1, 1) * 2 - 1
    y = (truth + 1).movedim(1, -1) / 2
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "ddim_uniform", 15)
    before = snapshot(model)

    def error(sampler, scale: float) -> float:
        guider = PAGGuider.execute(model, label(model), label(model), 1.0, scale, "auto").result[0]
        restored = restore(guider, sampler, sigmas, size=32)
        return float((op.forward(restored) - truth).norm())

    free = error(PAGDPSSampler.execute(y, op, 0.0).result[0], 0.0)
    for scale in (0.0, 2.0):
        assert error(PAGDPSSampler.execute(y, op, 10.0).result[0], scale) < 0.7 * free
    assert snapshot(model) == before


def test_the_gradient_is_that_of_the_positive_conditioning_without_pag(path):
    """One separate call of one row a step, whatever the guider does besides."""
    model = load_adm(path)
    y = measured(SuperResolution(4))
    sampler = PAGDPSSampler.execute(y, SuperResolution(4), 1.0).result[0]
    rows = []

    def note(network, args) -> None:
        rows.append((args[0].shape[0], args[0].requires_grad))

    note.__module__ = "torch"  # another node's hook would be reason enough for a call of its own
    handle = model.model.diffusion_model.register_forward_pre_hook(note)
    try:
        restore(guided(model, 2.0), sampler, last_sigmas(model, 2))
    finally:
        handle.remove()
    assert rows == [(1, True), (2, False)] * 2


def test_any_guider_and_the_model_patch_drive_it(path):
    model = load_adm(path)
    sigmas = last_sigmas(model, 3)
    sampler = PAGDPSSampler.execute(measured(SuperResolution(4)), SuperResolution(4), 1.0, 0.5).result[0]
    ours = restore(guided(model, 2.0), sampler, sigmas)
    basic = BasicGuider.execute(patched(model, 2.0), label(model)).result[0]
    torch.testing.assert_close(restore(basic, sampler, sigmas), ours)


def test_pictures_of_a_batch_are_restored_each_by_itself(path):
    """Their noise aside: DDIM from equal noise, two measurements, and one of them for both."""
    model = load_adm(path)
    op, sigmas = SuperResolution(4), last_sigmas(model, 3)
    y = measured(op, batch=2)

    def run(y, noise):
        guider = guided(model, 1.0)
        sampler = PAGDPSSampler.execute(y, op, 2.0, 0.0).result[0]
        return guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, seed=1)

    noise = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1)
    both, apart = run(y, noise), torch.cat([run(y[i:i + 1], noise[:1]) for i in range(2)])
    torch.testing.assert_close(both, apart, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(run(y[:1], noise)[1], apart[0], atol=1e-3, rtol=1e-3)
    assert (both[0] - both[1]).abs().max() > 1e-2


def freeu_v2(h, skip, options):
    """FreeU_V2 with b 1.4 and s 0.2 for half of 64 channels, without writing into its input as the host's node does."""
    if h.shape[1] != 64:
        return h, skip
    mean = h.mean(1, keepdim=True)
    low, high = mean.amin((2, 3), keepdim=True), mean.amax((2, 3), keepdim=True)
    scaled = h[:, :32] * (0.4 * (mean - low) / (high - low) + 1)
    return torch.cat([scaled, h[:, 32:]], 1), Fourier_filter(skip, threshold=1, scale=0.2)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_patch_that_overwrites_what_autograd_needs(path, checkpointing):
    model = load_adm(path)
    expected = model.clone()
    expected.set_model_output_block_patch(freeu_v2)
    y, sigmas = measured(SuperResolution(4)), last_sigmas(model, 3)

    def run(model):
        sampler = PAGDPSSampler.execute(y, SuperResolution(4), 2.0, 1.0, checkpointing).result[0]
        return restore(guided(model, 1.0), sampler, sigmas)

    result = run(FreeU_V2.execute(model, 1.3, 1.4, 0.9, 0.2).result[0])
    assert relative_error(result, run(expected)) < 1e-4
    assert relative_error(result, run(model)) > 1e-2


def test_previews_show_x0_and_an_interruption_leaves_the_model_in_order(path):
    model = load_adm(path)
    before, sampler = snapshot(model), PAGDPSSampler.execute(measured(SuperResolution(4)), SuperResolution(4),
                                                             1.0, 1.0, True).result[0]
    noise, seen = torch.randn(1, 3, SIZE, SIZE), []

    def look(step, x0, x, total):
        seen.append((step, total, x0.abs().max() <= 1))
        if step == 1:
            comfy.model_management.interrupt_current_processing()

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        guided(model).sample(noise, torch.zeros_like(noise), sampler, last_sigmas(model), callback=look, seed=1)
    assert seen == [(0, STEPS, True), (1, STEPS, True)]
    assert snapshot(model) == before


def test_a_gradient_that_fails_first_leaves_no_tensor_behind(path):
    """FreeU writes into tensors that the gradient needs, which shows only on the way back."""
    def tensors() -> int:
        gc.collect()
        return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())

    model, op = FreeU_V2.execute(load_adm(path), 1.3, 1.4, 0.9, 0.2).result[0], SuperResolution(4)
    counts = []
    for _ in range(3):
        restore(guided(model), PAGDPSSampler.execute(measured(op), op, 1.0).result[0], last_sigmas(model, 2))
        counts.append(tensors())
    assert counts[1] == counts[2]


def test_measuring_shows_what_is_measured():
    op = operator("box_inpainting", box_left=0.5, box_top=0.0, box_width=0.5, box_height=1.0)
    y, shown = PAGMeasure.execute(picture(), op, 0.0, 0).result
    assert torch.equal(y[..., 8:, :], torch.full_like(y[..., 8:, :], 0.5)), "what is missing is grey"
    torch.testing.assert_close(y[..., :8, :], picture()[..., :8, :])
    torch.testing.assert_close(shown, y)
    small, shown = PAGMeasure.execute(picture(), operator("super_resolution", downscale="average"), 0.5, 0).result
    assert small.shape == (1, 4, 4, 3)
    assert small.max() > 1 or small.min() < 0, "noise is not cut off in the measurement"
    assert shown.shape == (1, SIZE, SIZE, 3)
    assert 0 <= shown.min() <= shown.max() <= 1


def test_a_masked_part_may_hold_anything(path):
    """As in a picture from a file: what the mask marks has no influence."""
    model, mask = load_adm(path), torch.zeros(1, SIZE, SIZE)
    mask[:, 4:9, 4:12] = 1
    op = operator("mask_inpainting", mask=mask)
    results = []
    for fill in (0.0, 1.0):
        image = torch.where(mask[..., None] == 1, fill, picture())
        sampler = PAGDPSSampler.execute(image, op, 1.0).result[0]
        results.append(restore(guided(model), sampler, last_sigmas(model, 2)))
    assert torch.equal(*results)


def test_every_task_builds_its_operator():
    kernel = torch.rand(1, 5, 5, 3)
    for task, settings in (("box_inpainting", {}), ("mask_inpainting", {"mask": torch.eye(SIZE)[None]}),
                           ("super_resolution", {}), ("gaussian_blur", {}), ("motion_blur", {}),
                           ("motion_blur", {"kernel": kernel})):
        assert measured(operator(task, **settings)).isfinite().all()


@pytest.mark.parametrize(("build", "words"), [
    (lambda: operator("mask_inpainting"), "needs a mask"),
    (lambda: operator("gaussian_blur", mask=torch.eye(8)[None]), "A mask is connected, but the task gaussian"),
    (lambda: operator("super_resolution", kernel=torch.ones(1, 3, 3, 3)), "Set the task to motion_blur"),
    (lambda: operator("motion_blur", kernel=torch.ones(2, 3, 3, 3)), "one image, got 2"),
    (lambda: operator("mask_inpainting", mask=torch.zeros(1, 8, 8)), "mask is empty"),
    (lambda: measured(operator("super_resolution", factor=3)), "height 16 is not divisible by the factor 3"),
    (lambda: measured(operator("mask_inpainting", mask=torch.eye(8)[None])), "8 x 8, but the image is 16 x 16"),
    (lambda: PAGMeasure.execute(torch.ones(1, 8, 8, 4), operator(), 0.0, 0), "4 channels, expected 3"),
    (lambda: PAGDPSSampler.execute(picture(), operator(), -1.0), "step_size"),
    (lambda: PAGDPSSampler.execute(picture(), operator(), 1.0, 1.0, "yes"), "checkpointing must be true or false"),
    (lambda: PAGDPSSampler.execute(picture(), operator(), 1.0, 2.0), "eta"),
    (lambda: PAGDPSSampler.execute(picture(), operator("mask_inpainting", mask=torch.eye(8)[None]), 1.0), "8 x 8"),
])
def test_bad_input_is_named(build, words):
    with pytest.raises(ValueError, match=words):
        build()


@pytest.mark.parametrize("value", [None, {}, 7, "a picture"], ids=repr)
def test_values_in_the_place_of_links(value):
    """As only a client of the API can send them."""
    op, image = operator(), picture()
    for node, settings in ((PAGMeasure, (0.0, 0)), (PAGDPSSampler, (1.0,)), (PAGPSLDSampler, (vae(), 0.1, 0.01))):
        with pytest.raises(ValueError, match=r"^operator is .*, expected the output of a PAG Degradation node"):
            node.execute(image, value, *settings)
        with pytest.raises(ValueError, match=r"^(image|measurement) is .*, expected the IMAGE output"):
            node.execute(value, op, *settings)
    with pytest.raises(ValueError, match=r"^vae is .*, expected the VAE output"):
        PAGPSLDSampler.execute(image, op, value, 0.1, 0.01)
    if value is not None:
        with pytest.raises(ValueError, match=r"^mask is .*, expected the MASK output"):
            operator("mask_inpainting", mask=value)
        with pytest.raises(ValueError, match=r"^kernel is .*, expected the IMAGE output"):
            operator("motion_blur", kernel=value)


@pytest.mark.parametrize(("image", "words"), [
    (torch.zeros(1, 0, 8, 3), "^The measurement is empty: its shape is 1 × 0 × 8 × 3"),
    (torch.full((1, 8, 8, 3), float("nan")), "^The measurement contains NaN or infinity"),
    (torch.zeros(8, 8, 3), "^measurement is tensor")])
def test_measurements_of_nothing_or_of_no_numbers(image, words):
    with pytest.raises(ValueError, match=words):
        PAGDPSSampler.execute(image, operator(), 1.0)


def test_what_does_not_fit_the_run_is_refused_before_it_starts(path):
    model, op = load_adm(path), SuperResolution(4)
    sampler = PAGDPSSampler.execute(measured(op), op, 1.0).result[0]
    with pytest.raises(ValueError, match="of 32 x 32 pixels, but the measurement belongs to an image of 16 x 16"):
        restore(guided(model), sampler, last_sigmas(model), size=32)
    with pytest.raises(ValueError, match="2 measurements, but 3 latents"):
        restore(guided(model), PAGDPSSampler.execute(measured(op, 2), op, 1.0).result[0], last_sigmas(model), batch=3)
    latent_model = models.sd15()
    guider = BasicGuider.execute(latent_model, models.conditioning(1)).result[0]
    with pytest.raises(ValueError, match=r"works on latents\. Use PAG PSLD Sampler"):
        restore(guider, sampler, last_sigmas(latent_model), channels=4)
