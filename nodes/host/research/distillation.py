"""Score distillation under any guider, in the place where the host runs a sampler: one batched call a step, with every
option that the guider has."""

from __future__ import annotations

from collections.abc import Callable

import comfy.model_management
import comfy.samplers
import torch
from comfy.k_diffusion.sampling import default_noise_sampler
from comfy.model_base import BaseModel
from comfy.sd import VAE
from comfy.utils import model_trange as trange
from torch import Tensor

from ....pag_core.distillation import distillation_gradient
from ..models.levels import mixing, percent_to_sigma
from ..sampling.sampling import intermediate, run_sampler
from ..sockets import check_guider, check_pixels, check_vae, shape_text
from .gradients import differentiable, gradient, loaded_for_gradients, ordinary


def sds_gradient(guider: comfy.samplers.CFGGuider, latent: dict, seed: int, level: float, weighting: str) -> Tensor:
    """The gradient by the LATENT [B, C, ...], which is left alone, in its own scaling.

    Args:
        level: of the noise, as `noise_levels` of pag_core has it.
    """
    sampler = ScoreDistillation(weighting)
    run_sampler(guider, latent, seed, sampler, sigmas(guider, [level]))
    return intermediate(sampler.gradient)


def optimized(guider: comfy.samplers.CFGGuider, latent: dict, seed: int, levels: list[float], weighting: str,
              learning_rate: float) -> dict:
    """The LATENT after a step of Adam at each of these noise levels, with progress bar and previews."""
    return run_sampler(guider, latent, seed, Optimization(weighting, learning_rate), sigmas(guider, levels))


def sigmas(guider: comfy.samplers.CFGGuider, levels: list[float]) -> Tensor:
    """The model's own noise levels [steps]."""
    check_guider(guider)
    sigma = percent_to_sigma(guider.model_patcher)
    return torch.tensor([float(sigma(1.0 - level)) for level in levels])


def image_gradient(vae: VAE, image: Tensor, gradient_of_latent: Tensor) -> Tensor:
    """∇ by an IMAGE [B, H, W, 3] from ∇ by the LATENT that the VAE encodes it to: the chain rule.

    Raises:
        ValueError: where the VAE is not one of pictures, or the gradient not of that latent's shape.
        GradientError: where the VAE gives no gradient.
    """
    check_pixels("IMAGE", "image", image)
    check_vae(vae)
    if vae.latent_dim != 2 or vae.output_channels != 3:
        raise ValueError("This VAE does not encode images, unlike those of SD 1.5, SDXL and PAG ADM Loader. Connect "
                         "the VAE that belongs to the model.")
    memory = vae.memory_used_encode(image.movedim(-1, 1).shape, vae.vae_dtype)
    comfy.model_management.load_models_gpu([vae.patcher], memory_required=memory)
    with loaded_for_gradients(vae.patcher) as stage, differentiable([stage], vae.device):
        known = ordinary(gradient_of_latent.to(vae.device))

        def of_image(image: Tensor) -> Tensor:
            pixels = vae.process_input(vae.vae_encode_crop_pixels(image).movedim(-1, 1))
            latent = stage.encode(pixels.to(vae.vae_dtype)).to(known)
            if latent.shape != known.shape:
                raise ValueError(f"The gradient has the shape {shape_text(known)}, but this image encodes to "
                                 f"{shape_text(latent)}. Connect the image and the VAE that made PAG SDS Gradient's "
                                 f"latent.")
            return (latent * known).flatten(1).sum(1)

        return intermediate(gradient(of_image, ordinary(image.to(vae.device)), type(stage).__name__))


class ScoreDistillation(comfy.samplers.Sampler):
    """Leaves the latent alone and keeps the gradient at the first noise level."""

    draws_new_noise = True

    def __init__(self, weighting: str) -> None:
        self.weighting = weighting
        self.gradient: Tensor | None = None  # [B, C, ...], by what the host makes a latent of when it is sampled

    def sample(self, guider: comfy.samplers.CFGGuider, sigmas: Tensor, extra_args: dict, callback: Callable | None,
               noise: Tensor, latent_image: Tensor, denoise_mask: Tensor | None = None,
               disable_pbar: bool = False) -> Tensor:
        found = self.gradient_at(guider, latent_image, sigmas[0], noise, extra_args, denoise_mask)
        self.gradient = _through_scaling(guider.inner_model, latent_image, found)
        return latent_image

    @torch.inference_mode()  # as the host runs nodes; a renderer's loop runs outside of it
    def gradient_at(self, guider: comfy.samplers.CFGGuider, x: Tensor, sigma: Tensor, noise: Tensor, extra_args: dict,
                    mask: Tensor | None) -> Tensor:
        """By x [B, C, ...], in the model's own scaling; 0 where the mask [B, 1, ...] keeps the latent.

        Raises:
            ValueError: where the model returned NaN or infinite values.
        """
        a, b = mixing(guider.inner_model, sigma)
        x0 = guider(a * x + b * noise, sigma.expand(len(x)), **extra_args)
        found = distillation_gradient(x, x0, a, b, self.weighting)
        if not bool(torch.isfinite(found).all()):
            raise ValueError("The model's predictions contain NaN or infinity. Lower the learning rate or the scales. "
                             "If the model runs in half precision, start ComfyUI with --force-fp32.")
        return found if mask is None else found * mask


class Optimization(ScoreDistillation):
    """Takes a step of Adam at each noise level.

    Args:
        learning_rate: about how far a step moves each value of the latent in the model's own scaling, where latents
            have a standard deviation near 1.
    """

    def __init__(self, weighting: str, learning_rate: float) -> None:
        super().__init__(weighting)
        self.learning_rate = learning_rate

    @torch.no_grad()
    def sample(self, guider: comfy.samplers.CFGGuider, sigmas: Tensor, extra_args: dict, callback: Callable | None,
               noise: Tensor, latent_image: Tensor, denoise_mask: Tensor | None = None,
               disable_pbar: bool = False) -> Tensor:
        x = latent_image.clone()
        adam = torch.optim.Adam([x], lr=self.learning_rate)
        noise_sampler = default_noise_sampler(x, seed=extra_args.get("seed"))
        for i in trange(len(sigmas), disable=disable_pbar):
            comfy.model_management.throw_exception_if_processing_interrupted()
            x.grad = self.gradient_at(guider, x, sigmas[i], noise, extra_args, denoise_mask)
            adam.step()
            if callback is not None:
                callback(i, x, x, len(sigmas))
            noise = noise_sampler(sigmas[i], sigmas[i])
        return x


def _through_scaling(model: BaseModel, x: Tensor, known: Tensor) -> Tensor:
    """∇ by a LATENT from ∇ by x, which the host makes of it when it samples: the chain rule."""
    with torch.inference_mode(False), torch.enable_grad():
        latent = model.process_latent_out(x).clone().requires_grad_()
        (result,) = torch.autograd.grad(model.process_latent_in(latent), latent, known.clone())
    return result
