"""DPS and PSLD as samplers of the host: they run under SamplerCustomAdvanced with any guider."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import comfy.model_management
import comfy.samplers
import torch
from comfy.k_diffusion.sampling import default_noise_sampler
from comfy.model_base import BaseModel
from comfy.sd import VAE
from comfy.utils import model_trange as trange
from torch import Tensor, nn

from ....pag_core.inverse import Operator, squared_norm
from ....pag_core.posterior import denoising_step, gluing_error, measurement_error
from ..models.adm_model import clips_denoised
from ..models.levels import mixing
from ..sockets import check_vae, check_vae_fits
from .gradients import OverwritingError, differentiable, gradient, loaded_for_gradients, ordinary

Energy = Callable[[Tensor], Tensor]
"""x̂0 [B, C, H, W] in the model's own scaling -> [B], whose gradient is the step that a restoration takes."""


class DPS:
    """What DPS asks of x̂0, for models of pixels.

    Args:
        y: the measurement [B, 3, H, W], in [-1, 1].
        step_size: ζ.
    """

    def __init__(self, operator: Operator, y: Tensor, step_size: float) -> None:
        self.operator, self.y, self.step_size = operator, y, step_size
        self.is_off = step_size == 0.0
        self.networks: list[nn.Module] = []

    @contextmanager
    def energy(self, guider: comfy.samplers.CFGGuider, x: Tensor) -> Iterator[Energy]:
        form = guider.model_patcher.get_model_object("latent_format")
        if form.latent_channels != 3 or getattr(form, "spacial_downscale_ratio", 1) != 1:
            raise ValueError(f"DPS needs a pixel-space model, such as one from PAG ADM Loader, but "
                             f"{type(guider.inner_model).__name__} works on latents. Use PAG PSLD Sampler.")
        check_size(self.operator, self.y, x, tuple(x.shape[-2:]))
        y = self.y.to(x)
        yield lambda x0: self.step_size * measurement_error(
            self.operator, y, guider.inner_model.process_latent_out(x0))


class PSLD:
    """What PSLD asks of ẑ0, for models of latents.

    Args:
        y: the measurement [B, 3, H, W], in [-1, 1].
        step_size, gluing: what the measurement's and the gluing term count.
    """

    def __init__(self, operator: Operator, y: Tensor, vae: VAE, step_size: float, gluing: float) -> None:
        self.operator, self.y, self.vae, self.step_size, self.gluing = operator, y, vae, step_size, gluing
        self.is_off = step_size == gluing == 0.0
        check_vae(vae)
        low, high = vae.process_input(torch.tensor([0.0, 1.0])).tolist()
        if vae.latent_dim != 2 or vae.output_channels != 3 or (low, high) != (-1.0, 1.0):
            raise ValueError("PSLD needs an image VAE, such as those of SD 1.5 and SDXL; this one decodes something "
                             "else. Connect the VAE that belongs to the model.")
        self.networks: list[nn.Module] = [vae.first_stage_model]

    @contextmanager
    def energy(self, guider: comfy.samplers.CFGGuider, x: Tensor) -> Iterator[Energy]:
        model, vae = guider.inner_model, self.vae
        check_vae_fits(vae, guider.model_patcher)
        size = tuple(n * vae.spacial_compression_decode() for n in x.shape[-2:])
        check_size(self.operator, self.y, x, size)
        y, norm = self.y.to(x), squared_norm(self.operator, size)
        # Together, so that neither makes the other leave.
        comfy.model_management.load_models_gpu([guider.model_patcher, vae.patcher],
                                               memory_required=vae.memory_used_decode(x.shape, vae.vae_dtype))
        with loaded_for_gradients(vae.patcher) as stage:
            self.networks = [stage]

            def encode(picture: Tensor) -> Tensor:
                return model.process_latent_in(stage.encode(picture.to(vae.vae_dtype)).to(x))

            def energy(z0: Tensor) -> Tensor:
                picture = stage.decode(model.process_latent_out(z0).to(vae.vae_dtype)).to(x)
                error = self.step_size * measurement_error(self.operator, y, picture)
                if self.gluing == 0.0:
                    return error
                return error + self.gluing * gluing_error(self.operator, norm, y, z0, picture, encode)

            yield energy


def check_size(operator: Operator, y: Tensor, x: Tensor, size: tuple[int, int]) -> None:
    """Raise ValueError where measurements y and latents x, of pictures of this size, do not belong together."""
    expected = operator.picture_size(tuple(y.shape[-2:]))
    if size != expected:
        raise ValueError(f"The latent is for images of {size[1]} x {size[0]} pixels, but the measurement belongs to an "
                         f"image of {expected[1]} x {expected[0]} (width x height). Set that size in Empty Latent "
                         f"Image.")
    if len(y) not in (1, len(x)):
        raise ValueError(f"There are {len(y)} measurements, but {len(x)} latents. Give one measurement, or one for "
                         f"each latent.")


def posterior_sampler(guide: DPS | PSLD, eta: float, checkpointing: bool) -> comfy.samplers.KSAMPLER:
    """A SAMPLER that samples from the model given a measurement."""
    return comfy.samplers.KSAMPLER(_sample, dict(guide=guide, eta=eta, checkpointing=checkpointing))


@torch.no_grad()
def _sample(model, x: Tensor, sigmas: Tensor, extra_args: dict | None = None, callback: Callable | None = None,
            disable: bool | None = None, *, guide: DPS | PSLD, eta: float, checkpointing: bool) -> Tensor:
    """DPS Algorithm 1 and PSLD Algorithm 2, as a function in the style of the host's k-diffusion samplers.

    The host's latents are x = a·x0 + b·n (noise prediction: a = 1, b = σ; flow: a = 1 - σ, b = σ). The papers' are
    variance-preserving: x_vp = x / √(a² + b²), with ᾱ = a² / (a² + b²). Hence ∇ by x_vp is √(a² + b²) · ∇ by x.
    """
    guider = model.inner_model
    extra_args = extra_args or {}
    noise_sampler = default_noise_sampler(x, seed=extra_args.get("seed"))
    ones = x.new_ones([len(x)])
    with guide.energy(guider, x) as energy, loaded_for_gradients(guider.model_patcher) as network:
        slope = _Slope(network, guider, extra_args["model_options"], energy, guide, checkpointing)
        for i in trange(len(sigmas) - 1, disable=disable):
            comfy.model_management.throw_exception_if_processing_interrupted()
            (size, alpha), (next_size, next_alpha) = (_level(guider.inner_model, sigma) for sigma in sigmas[i:i + 2])
            down = 0.0 if guide.is_off else size * slope(x, sigmas[i] * ones)
            x0 = model(x, sigmas[i] * ones, **extra_args)
            if callback is not None:
                callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": x0})
            noise = noise_sampler(sigmas[i], sigmas[i + 1])
            x = next_size * (denoising_step(x / size, x0, alpha, next_alpha, eta, noise) - down)
    return x


def _level(model: BaseModel, sigma: Tensor) -> tuple[float, float]:
    """√(a² + b²) and ᾱ at this noise level."""
    a, b = mixing(model, sigma)
    return (a * a + b * b) ** 0.5, a * a / (a * a + b * b)


def _control_networks(conds: list[dict]) -> list[nn.Module]:
    return [patcher.model for cond in conds if cond.get("control") for patcher in cond["control"].get_models()]


class _Slope:
    """∇ₓ energy(x̂0(x)), with the plain prediction of the positive conditioning, by itself and on one device."""

    def __init__(self, network: BaseModel, guider: comfy.samplers.CFGGuider, options: dict, energy: Energy,
                 guide: DPS | PSLD, checkpointing: bool) -> None:
        self.network, self.guider, self.energy, self.checkpointing = network, guider, energy, checkpointing
        self.options = {name: value for name, value in options.items() if name != "multigpu_clones"}
        self.networks = [network.diffusion_model, *_control_networks(guider.conds["positive"]), *guide.networks]
        self.overwriting = False  # until it shows

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        with differentiable(self.networks, x.device, self.checkpointing):
            positive, sigma = ordinary(self.guider.conds["positive"]), sigma.clone()
            clips = clips_denoised(self.options)

            def of_latent(x: Tensor) -> Tensor:
                (x0,) = comfy.samplers.calc_cond_batch(self.network, [positive], x, sigma, self.options)
                return self.energy(x0.clamp(-1, 1) if clips else x0)

            name = type(self.network).__name__
            try:
                return gradient(of_latent, x, name, self.overwriting)
            except OverwritingError:
                if self.overwriting:
                    raise
                self.overwriting = True
                return gradient(of_latent, x, name, True)
