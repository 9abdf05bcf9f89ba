"""The host's KSampler with a guider of our choice in it."""

from __future__ import annotations

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher

from ....pag_core.checks import check_choice, check_range, check_whole
from ....pag_core.perturbation import MAX_SEED
from ....pag_core.settings import PAGOptions
from ..run.latents import check_mask
from ..run.preview import Progress
from ..sockets import check_latent
from .guider import CFGWindowGuider

SAMPLERS = comfy.samplers.KSampler.SAMPLERS
SCHEDULERS = comfy.samplers.KSampler.SCHEDULERS
MAX_STEPS = 10000


def check_samples_something(denoise: float) -> None:
    """Raise ValueError where the host would hand the latent back without a single step."""
    if check_range("denoise", denoise, 0.0, 1.0) == 0.0:
        raise ValueError(f"denoise is {denoise:g}, so no step is sampled and there is nothing to show. Raise denoise.")


def check_run(seed: int, steps: int, sampler_name: str, scheduler: str, denoise: float) -> tuple[int, int, float]:
    """Seed, steps and denoise as plain numbers; SettingError for values that the host would sample otherwise than they
    say, such as a scheduler that it does not know. The host checks widgets, but no values that come over a link."""
    known = comfy.samplers.KSampler  # asked now: packs that load after this one may put other lists in their place
    check_choice("sampler_name", sampler_name, tuple(known.SAMPLERS))
    check_choice("scheduler", scheduler, tuple(known.SCHEDULERS))
    return (check_whole("seed", seed, 0, MAX_SEED), check_whole("steps", steps, 1, MAX_STEPS),
            check_range("denoise", denoise, 0.0, 1.0))


def sample_latent(guider: CFGWindowGuider, latent: dict, seed: int, steps: int, sampler_name: str, scheduler: str,
                  denoise: float, progress: Progress | None = None) -> dict:
    """Sample as the host's KSampler node does: same noise, same sigmas, progress bar, previews, inpainting mask.

    Args:
        latent: the host's LATENT, {"samples": [B, C, H, W], ...}; returned as a copy with new samples.
        progress: the bar to go on with, where this is one of several runs.
    """
    seed, steps, denoise = check_run(seed, steps, sampler_name, scheduler, denoise)
    comfy.model_management.throw_exception_if_processing_interrupted()  # before the first step, which may be slow
    model = guider.model_patcher
    schedule = comfy.samplers.KSampler(model, steps=steps, device=model.load_device, sampler=sampler_name,
                                       scheduler=scheduler, denoise=denoise, model_options=model.model_options)
    return run_sampler(guider, latent, seed, comfy.samplers.sampler_object(sampler_name), schedule.sigmas, progress)


def run_sampler(guider: comfy.samplers.CFGGuider, latent: dict, seed: int, sampler: comfy.samplers.Sampler,
                sigmas: torch.Tensor, progress: Progress | None = None) -> dict:
    """The same with a sampler and noise levels [steps + 1] of one's own."""
    model = guider.model_patcher
    samples = fitted(model, latent)
    noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))
    samples = guider.sample(
        noise, samples, sampler, sigmas, denoise_mask=latent.get("noise_mask"), callback=progress or Progress(model),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=seed)
    return {**{key: value for key, value in latent.items() if key not in _DOWNSCALE}, "samples": intermediate(samples)}


def fitted(model: ModelPatcher, latent: dict) -> torch.Tensor:
    """The samples of a LATENT as the host's KSampler gives them to this model: an empty one takes its form."""
    check_latent(latent)
    return comfy.sample.fix_empty_latent_channels(
        model, latent["samples"], **{key: latent[key] for key in _DOWNSCALE if key in latent})


def check_options_fit(options: PAGOptions, model: ModelPatcher, latent: dict) -> None:
    """Raise SettingError where a run of this LATENT would refuse its scale_mask."""
    samples = fitted(model, latent)
    check_mask(options.scale_mask, [part.shape for part in (samples.unbind() if samples.is_nested else [samples])])


def intermediate(samples: torch.Tensor) -> torch.Tensor:
    """Where and in what precision the host keeps what goes from node to node."""
    # Older hosts have no intermediate dtype; there, what was sampled stays as it is.
    dtype = getattr(comfy.model_management, "intermediate_dtype", lambda: samples.dtype)
    return samples.to(device=comfy.model_management.intermediate_device(), dtype=dtype())


# What a latent made for another scale factor says of itself; it no longer holds after sampling.
_DOWNSCALE = ("downscale_ratio_spacial", "downscale_ratio_temporal")
