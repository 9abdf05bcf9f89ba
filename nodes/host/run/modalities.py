"""Video and sound guided apart, at scales of their own: Lightricks' formula, see `pag_core.modalities`.

CFG, the weak self and the isolated one each add their term to every latent at that latent's scale, and what comes out
is rescaled latent by latent. The two further predictions are PAGs of a chain: all rows run in one call where they can.
"""

from __future__ import annotations

from collections.abc import Callable

import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ....pag_core.checks import SettingError
from ....pag_core.guidance import rescaled
from ....pag_core.modalities import ModalityScales
from ....pag_core.settings import PAGOptions, PAGSettings, check_options
from ..models.layers import exchange_layers
from ..sockets import check_model
from .latents import spread
from .neighbours import KEY, POST_CFG
from .patching import attach

_CFG = "sampler_cfg_function"
_LATENTS = f"{KEY}_latents"  # of a run


def attach_modalities(model: ModelPatcher, scales: tuple[ModalityScales, ...], layers: str,
                      options: PAGOptions) -> ModelPatcher:
    """A clone of `model`, for a guider whose CFG is on where one of the modalities has it on.

    Args:
        scales: of the video and of the sound.
        layers, options: of the weak self.

    Raises:
        UnsupportedModelError, SelectionError, SettingError: before anything runs.
    """
    check_model(model)
    exchange = exchange_layers(model)
    if _CFG in model.model_options:
        raise SettingError("PAG AV Guider computes CFG itself, separately for video and audio, but a node before it "
                           "replaces the CFG formula (RescaleCFG, for example). Remove that node.")
    check_options(options)
    if options.row == "negative":
        raise SettingError("row is negative, but PAG AV Guider needs the perturbed prediction in addition to the "
                           "negative one. Set row to extra in PAG Options.")
    if options.rescale:
        raise SettingError(f"rescale in PAG Options is {options.rescale:g}, but in PAG AV Guider video_rescale and "
                           f"audio_rescale rescale all guidance together. Set it to 0.")
    model = model.clone()
    modalities = Modalities(scales)
    # First, hence outermost: what the PAGs add comes before the rescaling.
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, modalities.outer_sample)
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, modalities.predict_noise)
    pag = tuple(one.pag for one in scales)
    model = attach(model, PAGSettings(float(any(pag)), layers, options), scales=pag)
    apart = tuple(one.modality - 1.0 for one in scales)
    return attach(model, PAGSettings(1.0, "all"), found=exchange, scales=apart) if any(apart) else model


class Modalities:
    """What video and sound do not share, in every run of one model."""

    def __init__(self, scales: tuple[ModalityScales, ...]) -> None:
        self.scales = scales

    def outer_sample(self, executor, noise, latent_image, *args, **kwargs):
        """OUTER_SAMPLE wrapper: one per run of a guider, whose model_options are that run's own copy."""
        shapes = list(kwargs.get("latent_shapes") or [])
        if len(shapes) != len(self.scales):
            raise SettingError(f"PAG AV Guider needs a latent of video and audio, as made by LTXVConcatAVLatent; this "
                               f"one contains {max(len(shapes), 1)} latent(s). For video alone, use PAG Guider.")
        executor.class_obj.model_options[_LATENTS] = _Latents(shapes, [one.cfg - 1.0 for one in self.scales])
        return executor(noise, latent_image, *args, **kwargs)

    def predict_noise(self, executor, x: torch.Tensor, timestep: torch.Tensor, model_options: dict, seed=None):
        """PREDICT_NOISE wrapper: one per evaluation."""
        options, latents = model_options.copy(), model_options[_LATENTS]
        if any(one.cfg != 1.0 for one in self.scales):
            options[_CFG] = latents.cfg
        if any(one.rescale for one in self.scales):
            options[POST_CFG] = [self._rescaling(latents.shapes), *options.get(POST_CFG, [])]
        return executor(x, timestep, options, seed)

    def _rescaling(self, shapes: list) -> Callable[[dict], torch.Tensor]:
        def post_cfg(args: dict) -> torch.Tensor:
            guided, cond = (comfy.utils.unpack_latents(args[name], shapes) for name in ("denoised", "cond_denoised"))
            parts = zip(guided, cond, self.scales, strict=True)
            return comfy.utils.pack_latents([rescaled(total, plain, one.rescale) for total, plain, one in parts])[0]
        return post_cfg


class _Latents:
    """The latents of one run, and CFG at each one's own scale.

    Args:
        shapes: [B, ...] of each.
        scales: cfg - 1 of each.
    """

    def __init__(self, shapes: list, scales: list[float]) -> None:
        self.shapes = shapes
        self.weights = spread(scales, shapes)

    def cfg(self, args: dict) -> torch.Tensor:
        """The host's sampler_cfg_function, whose result is taken from x."""
        cond = args["cond_denoised"]
        if self.weights.device != cond.device:  # once in a run
            self.weights = self.weights.to(cond)
        return args["input"] - (cond + self.weights * (cond - args["uncond_denoised"]))
