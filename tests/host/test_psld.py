"""PSLD: through a VAE of the host's class, against its formulas."""

from __future__ import annotations

import comfy.samplers
import comfy.sd
import pytest
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from comfy_extras.nodes_custom_sampler import BasicGuider, Noise_RandomNoise, SamplerCustomAdvanced
from pag_pack.nodes.research.restoration import PAGMeasurement, PAGPSLDSampler

from . import models
from .runs import patched, relative_error, snapshot

SIZE = 8  # of the latent
OPERATOR = dict(task="super_resolution", factor=4, downscale="average")


def vae(channels: int = 4) -> comfy.sd.VAE:
    """SD's class, of three levels; its weights are inference tensors, as those are that a node loads."""
    config = {"embed_dim": channels, "ddconfig": {
        "double_z": True, "z_channels": channels, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32,
        "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}}
    network = AutoencoderKL(**config)
    models.fill_with_noise(network)
    made = comfy.sd.VAE(sd=network.state_dict(), config={"params": config}, dtype=torch.float32)
    made.latent_channels = channels
    return made


def measurement(batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 2 * SIZE, 2 * SIZE, 3, generator=torch.Generator().manual_seed(1))


def run(sampler, model=None, steps: int = 3, channels: int = 4) -> torch.Tensor:
    model = model or models.sd15()
    guider = BasicGuider.execute(model, models.empty_conditioning()).result[0]
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)
    latent = {"samples": torch.zeros(1, channels, SIZE, SIZE)}
    return SamplerCustomAdvanced.execute(Noise_RandomNoise(5), guider, sampler, sigmas, latent).result[0]["samples"]


def sampler(first_stage, step_size=0.5, gluing=0.05, checkpointing=False):
    operator = PAGMeasurement.execute(**OPERATOR).result[0]
    return PAGPSLDSampler.execute(measurement(), operator, first_stage, step_size, gluing, 0.0, checkpointing).result[0]


def reference(first_stage, step_size: float, gluing: float, steps: int = 3) -> torch.Tensor:
    """Rout et al. 2023, Algorithm 2, with DDIM, on variance-preserving latents; A averages squares of 4 x 4, so that
    k²·Aᵀ·A is the projection of the algorithm, and Aᵀ·y an enlargement."""
    patcher = models.sd15()
    model = patcher.model
    sigmas = comfy.samplers.calculate_sigmas(model.model_sampling, "normal", steps)
    noise = Noise_RandomNoise(5).generate_noise({"samples": torch.zeros(1, 4, SIZE, SIZE)})
    with torch.inference_mode(False), torch.enable_grad():
        stage = AutoencoderKL(embed_dim=4, ddconfig={
            "double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32,
            "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0})
        models.fill_with_noise(stage)
        text = torch.zeros(1, 7, models.CONTEXT)
        y = measurement().clone().movedim(-1, 1) * 2 - 1
        z = noise.clone()  # the host starts from √(1 + σ²) times this, in its own scaling

        def shrink(picture):
            return torch.nn.functional.avg_pool2d(picture, 4)

        def enlarge(small):
            return torch.nn.functional.interpolate(small, scale_factor=4, mode="nearest")

        for sigma, following in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
            z.requires_grad_()
            alpha, previous = 1 / (1 + sigma ** 2), 1 / (1 + following ** 2)
            timestep = model.model_sampling.timestep(torch.tensor([sigma])).float()
            epsilon = model.diffusion_model(z, timestep, context=text)
            z0 = (z - (1 - alpha) ** 0.5 * epsilon) / alpha ** 0.5
            picture = stage.decode(z0 / 0.18215)
            projected = enlarge(y) + picture - enlarge(shrink(picture))
            error = step_size * torch.linalg.norm(y - shrink(picture))
            error = error + gluing * torch.linalg.norm(z0 - 0.18215 * stage.encode(projected))
            (gradient,) = torch.autograd.grad(error, z)
            z = (previous ** 0.5 * z0 + (1 - previous) ** 0.5 * epsilon - gradient).detach()
        return z / 0.18215


@pytest.mark.parametrize("checkpointing", [False, True])
def test_psld_is_its_formulas(checkpointing):
    first_stage = vae()
    assert all(weight.is_inference() for weight in first_stage.first_stage_model.parameters())
    result = run(sampler(first_stage, checkpointing=checkpointing))
    expected = reference(first_stage, 0.5, 0.05)
    assert relative_error(result, expected) < 1e-4
    assert relative_error(run(sampler(first_stage, gluing=0.0)), expected) > 1e-3
    assert relative_error(run(sampler(first_stage, step_size=0.0)), expected) > 1e-3


def test_pag_drives_it_and_nothing_is_changed():
    model, first_stage = models.sd15(), vae()
    before = snapshot(model), [weight.data_ptr() for weight in first_stage.first_stage_model.parameters()]
    plain = run(sampler(first_stage))
    assert relative_error(run(sampler(first_stage), patched(model, 3.0)), plain) > 1e-3
    assert (snapshot(model), [weight.data_ptr() for weight in first_stage.first_stage_model.parameters()]) == before
    assert all(weight.is_inference() for weight in first_stage.first_stage_model.parameters())


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="latents with 16 channels, but this model's latents have 4"):
        run(sampler(vae(16)))
    odd = vae()
    odd.process_input = lambda image: image
    with pytest.raises(ValueError, match="decodes something else"):
        sampler(odd)
    operator = PAGMeasurement.execute("gaussian_blur").result[0]
    other = PAGPSLDSampler.execute(measurement(), operator, vae(), 0.1, 0.01).result[0]
    with pytest.raises(ValueError, match="of 64 x 64 pixels, but the measurement belongs to an image of 16 x 16"):
        run(other)
