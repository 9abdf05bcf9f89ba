"""Attaching PAG to a clone of a model.

A PREDICT_NOISE wrapper fires once per step, whatever the sampler node and the guider. Inside it the host's one call for
[cond, uncond] becomes one call for [cond, uncond, perturbed] (PAG App. A.2.4: "simultaneously"), and a post-CFG
function adds the delta. Rows are told apart by the uuids that the host gives every conditioning: the perturbed rows
carry fresh ones, so that no cache keyed by uuid mixes them with the plain rows, and no index has to be guessed when the
host splits or reorders a batch.
"""

from __future__ import annotations

import uuid

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ...pag_core.perturbation import KINDS
from ...pag_core.schedule import ScaleSchedule
from ...pag_core.selection import select
from ...pag_core.settings import PAGSettings
from .attention import LayerPerturbation
from .calls import JointCall, PerturbedPass, add_delta, is_compiled
from .layers import model_layers
from .run import Run
from .transformers import TransformerWatch
from .u_nets import UNetWatch

KEY = "perturbed_attention_guidance"
_CALC_COND_BATCH = "sampler_calc_cond_batch_function"
_POST_CFG = "sampler_post_cfg_function"


def attach(model: ModelPatcher, settings: PAGSettings) -> ModelPatcher:
    """A clone of `model` that samples with PAG under any sampler node and guider; `model` itself is left alone.

    Raises:
        UnsupportedModelError, SelectionError, SettingError: before anything runs.
    """
    found = model_layers(model)
    chosen = select(settings.layers, tuple(found.layers), found.auto)
    model = model.clone()
    if settings.is_off:
        return model
    perturbation = settings.options.attention_perturbation
    layers = {found.layers[layer]: LayerPerturbation(layer.name, perturbation, heads)
              for layer, heads in chosen.items()}
    watch = TransformerWatch(found.family, layers) if found.family else UNetWatch(layers)
    schedule = settings.schedule(model.get_model_object("model_sampling").percent_to_sigma)
    guidance = Guidance(settings, watch, schedule)
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, guidance.outer_sample)
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, guidance.predict_noise)
    return model


def check_latent_channels(model: ModelPatcher, latent: torch.Tensor) -> None:
    """Raise ValueError where a latent [B, C, ...] has not the channels that the model denoises."""
    if latent.is_nested or latent.ndim < 3:  # several latents in one, for example video with sound
        return
    expected = model.get_model_object("latent_format").latent_channels
    if latent.shape[1] != expected:
        raise ValueError(f"The latent has {latent.shape[1]} channels, but this model works on {expected}. Encode the "
                         f"image with the VAE that belongs to this model, or start from an empty latent.")


class Guidance:
    """One PAG on one model. Holds what was asked for and nothing of any run."""

    def __init__(self, settings: PAGSettings, watch: UNetWatch | TransformerWatch, schedule: ScaleSchedule) -> None:
        self.settings = settings
        self.watch = watch
        self.schedule = schedule
        self.namespace = uuid.uuid4()  # keeps the rows of two PAG nodes in a chain apart
        self.is_random = KINDS[settings.options.perturbation].is_random
        # Reading sigma waits for the GPU, so it is read only where something depends on it.
        self.reads_sigma = not schedule.is_constant or self.is_random or settings.options.reuse_every > 1

    def outer_sample(self, executor, *args, **kwargs):
        """OUTER_SAMPLE wrapper: one per run of a guider, whose model_options are that run's own copy."""
        guider = executor.class_obj
        check_latent_channels(guider.model_patcher, args[0] if args else kwargs["noise"])
        run = Run()
        guider.model_options.setdefault(KEY, {})[self.namespace] = run
        output = executor(*args, **kwargs)
        run.report()
        return output

    def predict_noise(self, executor, x: torch.Tensor, timestep: torch.Tensor, model_options: dict | None = None,
                      seed: int | None = None):
        """PREDICT_NOISE wrapper: one per step. Where the scale is 0 the step is the host's own, untouched."""
        model_options = model_options or {}
        sigma = float(timestep.max()) if self.reads_sigma else None
        scale = self.settings.scale if sigma is None else self.schedule.scale_at(sigma)
        if scale == 0.0:
            return executor(x, timestep, model_options, seed)
        run = model_options.get(KEY, {}).get(self.namespace) or Run()
        every = self.settings.options.reuse_every
        earlier = run.reusable(x, sigma, every) if every > 1 else None
        options = model_options.copy()
        if earlier is not None:
            def post_cfg(args):
                return add_delta(args, *earlier, self.settings, scale, run)
        else:
            step = PerturbedPass(self.settings, self.watch, self.namespace, run, scale,
                                 sigma if self.is_random else None)
            post_cfg = step.post_cfg
            chained = options.get(_CALC_COND_BATCH)
            if is_compiled(options):
                # The plain rows keep their fast graph, and the perturbed ones run apart from them; see `calls`.
                run.declined.add("the model is compiled")
            elif chained is None or isinstance(chained, JointCall):
                options[_CALC_COND_BATCH] = JointCall((*(chained.passes if chained else ()), step))
        # First in the list: the delta belongs to the prediction, before others post-process it.
        options[_POST_CFG] = [post_cfg, *options.get(_POST_CFG, [])]
        return executor(x, timestep, options, seed)
