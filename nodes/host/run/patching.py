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

from ....pag_core.perturbation import KINDS
from ....pag_core.schedule import ScaleSchedule
from ....pag_core.selection import select
from ....pag_core.settings import PAGSettings
from ..hooks.attention import LayerPerturbation
from ..hooks.transformers import TransformerWatch
from ..hooks.u_nets import UNetWatch
from ..models.layers import model_layers
from ..models.levels import percent_to_sigma
from ..sockets import check_model, check_samples
from .calls import JointCall, PerturbedPass, is_compiled
from .observation import Observer, observed_callback, watched_step
from .preview import delta_preview
from .run import Run

KEY = "perturbed_attention_guidance"
_CALC_COND_BATCH = "sampler_calc_cond_batch_function"
_POST_CFG = "sampler_post_cfg_function"


def attach(model: ModelPatcher, settings: PAGSettings, observer: Observer | None = None) -> ModelPatcher:
    """A clone of `model` that samples with PAG under any sampler node and guider; `model` itself is left alone.

    Args:
        observer: is shown the predictions of every step. Inside PAG's range the perturbed one is among them even where
            the scale is 0; there it is computed apart, so that the result stays what it is without an observer.

    Raises:
        UnsupportedModelError, SelectionError, SettingError: before anything runs.
    """
    check_model(model)
    found = model_layers(model)
    chosen = select(settings.layers, tuple(found.layers), found.auto)
    model = model.clone()
    if settings.is_off and observer is None:
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, _checked_sample)
        return model
    perturbation = settings.options.attention_perturbation
    layers = {found.layers[layer]: LayerPerturbation(layer.name, perturbation, heads)
              for layer, heads in chosen.items()}
    watch = TransformerWatch(found.family, layers) if found.family else UNetWatch(layers)
    schedule = settings.schedule(percent_to_sigma(model))
    guidance = Guidance(settings, watch, schedule, observer)
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, guidance.outer_sample)
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, guidance.predict_noise)
    return model


def _checked_sample(executor, noise, latent_image, *args, **kwargs):
    """OUTER_SAMPLE wrapper of a PAG that is off: the host's own run, but the same errors as where it is on."""
    check_samples(executor.class_obj.model_patcher, noise, latent_image)
    return executor(noise, latent_image, *args, **kwargs)


class Guidance:
    """One PAG on one model. Holds what was asked for and nothing of any run."""

    def __init__(self, settings: PAGSettings, watch: UNetWatch | TransformerWatch, schedule: ScaleSchedule,
                 observer: Observer | None = None) -> None:
        self.settings = settings
        self.watch = watch
        self.schedule = schedule
        self.observer = observer
        self.has_delta_preview = settings.options.preview == "delta"
        self.namespace = uuid.uuid4()  # keeps the rows of two PAG nodes in a chain apart
        # Reading sigma waits for the GPU, so it is read only where something depends on it.
        self.reads_sigma = (not schedule.is_constant or KINDS[settings.options.perturbation].is_random
                            or settings.options.reuse_every > 1)

    def outer_sample(self, executor, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None, *args,
                     **kwargs):
        """OUTER_SAMPLE wrapper: one per run of a guider, whose model_options are that run's own copy."""
        guider = executor.class_obj
        check_samples(guider.model_patcher, noise, latent_image)
        if self.settings.options.reuse_every > 1 and getattr(sampler, "draws_new_noise", False):
            raise ValueError(f"reuse_every is {self.settings.options.reuse_every}, but score distillation takes new "
                             f"noise at every step, to which an earlier step's push does not belong. Set it to 1.")
        run = Run(is_watched=self.observer is not None or self.has_delta_preview)
        guider.model_options.setdefault(KEY, {})[self.namespace] = run
        if self.has_delta_preview:
            callback = delta_preview(callback, run, kwargs.get("latent_shapes"))
        if self.observer:
            callback = observed_callback(callback, run, self.observer)
        output = executor(noise, latent_image, sampler, sigmas, denoise_mask, callback, *args, **kwargs)
        if not self.settings.is_off:
            run.report()
        return output

    def predict_noise(self, executor, x: torch.Tensor, timestep: torch.Tensor, model_options: dict | None = None,
                      seed: int | None = None):
        """PREDICT_NOISE wrapper: one per step. Where the scale is 0 the step is the host's own, untouched."""
        model_options = model_options or {}
        run = model_options.get(KEY, {}).get(self.namespace) or Run()
        sigma = float(timestep.max()) if self.reads_sigma or run.is_watched else None
        scale = self.settings.scale if sigma is None else self.schedule.scale_at(sigma)
        if scale == 0.0 and not run.is_watched:
            return executor(x, timestep, model_options, seed)
        options = model_options.copy()
        step = None
        if scale != 0.0 or self._is_shown(sigma):
            every = self.settings.options.reuse_every
            earlier = run.reusable(x, sigma, every) if every > 1 and scale != 0.0 else None
            step = PerturbedPass(self.settings, self.watch, self.namespace, run, scale, sigma, earlier)
            if step.pair is None and scale != 0.0:
                self._join(options, run, step)
            # First in the list: the delta belongs to the prediction, before others post-process it.
            options[_POST_CFG] = [step.post_cfg, *options.get(_POST_CFG, [])]
        if run.is_watched:
            return watched_step(executor, x, timestep, options, seed, run, step)
        return executor(x, timestep, options, seed)

    @staticmethod
    def _join(options: dict, run: Run, step: PerturbedPass) -> None:
        """Let the step's perturbed rows run in the host's one call, where that is free for it."""
        chained = options.get(_CALC_COND_BATCH)
        if is_compiled(options):
            # The plain rows keep their fast graph, and the perturbed ones run apart from them; see `calls`.
            run.declined.add("the model is compiled")
        elif chained is None or isinstance(chained, JointCall):
            options[_CALC_COND_BATCH] = JointCall((*(chained.passes if chained else ()), step))

    def _is_shown(self, sigma: float) -> bool:
        """Whether an observer sees the perturbed prediction although nothing of it is added."""
        return (self.observer is not None and sigma in self.schedule.window
                and not self.settings.options.attention_perturbation.is_off)
