"""Attaching PAG to a clone of a model.

A PREDICT_NOISE wrapper fires once for each evaluation, whatever the sampler node and the guider. Inside it the weak
rows get into the host's call, or run in one of their own (see `calls`), and a post-CFG function adds the delta. Rows
are told apart by the uuids that the host gives every conditioning: the weak rows carry fresh ones, so that no cache
keyed by uuid mixes them with the plain rows, and no index has to be guessed when the host splits or reorders a batch.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable
from contextlib import nullcontext

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers.torch_compile import TORCH_COMPILE_KWARGS

from ....pag_core.checks import SettingError
from ....pag_core.selection import SelectionError, heads_text
from ....pag_core.settings import PAGSettings
from ....pag_core.stages import Chosen, LayerPlan, Stage, check_draws, select_stages
from ..hooks.attention import LayerPerturbation
from ..hooks.compiled import CompiledUnits
from ..hooks.kept import PrefixStore
from ..hooks.rows import UnclearError
from ..hooks.uncopied import Uncopied
from ..hooks.ways import Patch, way_in
from ..models.layers import ModelLayers, model_layers
from ..models.levels import percent_to_sigma
from ..models.units import LayerKey
from ..sockets import check_model, check_samples
from .calls import JointCall, WeakPass
from .failures import explain
from .following import begun
from .guiders import asked
from .latents import Shapes, Weights, check_mask
from .negative import check_negative, with_weak_negative
from .neighbours import (
    CALC_COND_BATCH,
    KEY,
    POST_CFG,
    PRE_CFG,
    attachments,
    looks_between_units,
    others_in_options,
    wrappers_around_calls,
)
from .observation import Observer, observed_callback, watched_step
from .plain_forwards import PlainForwards
from .preview import delta_preview
from .run import Proof, Run
from .uuids import make_distinct

_STORE = f"{KEY}_store"
_PROOF = "proof"


def attach(model: ModelPatcher, settings: PAGSettings, observer: Observer | None = None, *,
           found: ModelLayers | None = None, scales: tuple[float, ...] | None = None) -> ModelPatcher:
    """A clone of `model` that samples with PAG under any sampler node and guider; `model` itself is left alone.

    Args:
        observer: is shown the predictions of every step. Inside PAG's range the perturbed one is among them even where
            the scale is 0; there it is computed apart, so that the result stays what it is without an observer.
        found: what can be selected; None for the model's layers.
        scales: of each of several latents in one, such as video and sound, besides the settings' scale.

    Raises:
        UnsupportedModelError, SelectionError, SettingError: before anything runs.
    """
    check_model(model)
    found = found or model_layers(model)
    stages = select_stages(settings.layers, tuple(found.layers), found.auto)
    weak = {key: layer for stage in stages for key, layer in _weak_layers(found, settings, stage.chosen).items()}
    way_in(found, weak)  # refuses what this model does not allow
    stages = found.drawn_from(stages, settings.options)
    check_draws(stages, settings.options.random_share)
    model = model.clone()
    if settings.is_off and observer is None:
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, _checked_sample)
        return model
    guidance = Guidance(settings, found, stages, observer, scales)
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, guidance.outer_sample)
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, guidance.predict_noise)
    return model


def _weak_layers(found: ModelLayers, settings: PAGSettings, chosen: Chosen) -> dict[LayerKey, LayerPerturbation]:
    """{a layer's key: what is done there}."""
    if settings.options.kind.acts_on_block:
        for layer, heads in chosen.items():
            if heads is not None:
                raise SelectionError(f"layers: {settings.options.perturbation} acts on the whole block of "
                                     f"{layer.name}, not on heads ({heads_text(heads)}). Remove the heads.")
    return {found.layers[layer]: LayerPerturbation(layer.name, settings.options, heads)
            for layer, heads in chosen.items()}


def _checked_sample(executor, noise, latent_image, *args, **kwargs):
    """OUTER_SAMPLE wrapper of a PAG that is off: the host's own run, but the same errors as where it is on."""
    check_samples(executor.class_obj.model_patcher, noise, latent_image, kwargs.get("latent_shapes"))
    return executor(noise, latent_image, *args, **kwargs)


def _explain(error: Exception, guider, latents: Shapes) -> None:
    """See `failures.explain`."""
    latent_format = guider.model_patcher.get_model_object("latent_format")
    explain(error, getattr(guider, "conds", {}), latents, getattr(latent_format, "latent_dimensions", None))


def changed(options: dict, model_options: dict) -> set[str]:
    """The keys under which a copy of the model_options has something else."""
    return {key for key, value in options.items() if model_options.get(key) is not value}


def carry_over(options: dict, model_options: dict, ours: set[str]) -> None:
    """What other nodes have put into a step's copy of the model_options, for they may look for it in the next step.

    Args:
        ours: keys under which the copy has something of ours.
    """
    model_options.update((key, value) for key, value in options.items() if key not in ours)
    before = model_options.get("transformer_options", {})
    before.update((key, value) for key, value in options.get("transformer_options", {}).items() if key != "wrappers")


class Guidance(Uncopied):
    """One PAG on one model. Holds what was asked for and nothing of any run."""

    def __init__(self, settings: PAGSettings, found: ModelLayers, stages: tuple[Stage, ...],
                 observer: Observer | None = None, scales: tuple[float, ...] | None = None) -> None:
        self.settings = settings
        self.scales = scales
        self.found = found
        self.stages = stages
        self.observer = observer
        self.has_delta_preview = settings.options.preview == "delta"
        self.namespace = uuid.uuid4()  # keeps the rows of two PAG nodes in a chain apart

    def outer_sample(self, executor, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None, *args,
                     **kwargs):
        """OUTER_SAMPLE wrapper: one per run of a guider, whose model_options are that run's own copy."""
        guider = executor.class_obj
        check_samples(guider.model_patcher, noise, latent_image, kwargs.get("latent_shapes"))
        options = self.settings.options
        if options.row == "negative":
            function = getattr(sampler, "sampler_function", None)
            check_negative(guider, getattr(function, "__name__", ""))
        if self.found.family and self.found.family.one_sample and noise.shape[0] > 1:
            raise SettingError(f"{self.found.name} mixes the samples of a batch in the calls that PAG needs. Set the "
                               f"batch size to 1; it is {noise.shape[0]}.")
        check_mask(options.scale_mask, kwargs.get("latent_shapes") or [noise.shape])
        if self.settings.options.reuse_every > 1 and getattr(sampler, "draws_new_noise", False):
            raise ValueError(f"reuse_every is {self.settings.options.reuse_every}, but score distillation draws new "
                             f"noise at every step, so an earlier step's push cannot be reused. Set it to 1.")
        runs = guider.model_options.setdefault(KEY, {})
        run = runs[self.namespace] = self._new_run(guider.model_patcher, sigmas, runs.setdefault(_PROOF, Proof()),
                                                    kwargs.get("latent_shapes"))
        others = attachments(guider.model_options)
        if others:
            run.memory.begin(others, [])
        if self.has_delta_preview:
            callback = delta_preview(callback, run, kwargs.get("latent_shapes"))
        if self.observer:
            callback = observed_callback(callback, run, self.observer)
        with asked(guider, self, run):
            try:
                output = executor(noise, latent_image, sampler, sigmas, denoise_mask, callback, *args, **kwargs)
            except Exception as error:
                if run.report.calls == 0:  # some models encode the prompts before the first call
                    _explain(error, guider, run.latent_shapes or [noise.shape])
                raise
        if not self.settings.is_off:
            run.say(type(guider).__name__, sigmas is None or len(sigmas) > 1)
        return output

    def _new_run(self, model: ModelPatcher, sigmas: torch.Tensor | None, proof: Proof | None = None,
                 latent_shapes: list | None = None) -> Run:
        # The range is that of the model which samples: nodes after PAG may have given it other noise levels.
        to_sigma = percent_to_sigma(model)
        schedule = self.settings.schedule(to_sigma)
        levels = None if self.settings.options.reuse_every == 1 or sigmas is None else sigmas.cpu().tolist()
        plan = LayerPlan(self.stages, to_sigma, self.settings.options.random_share,
                         self.settings.options.perturbation_seed)
        shapes = latent_shapes or ()
        return Run(self.found, schedule, plan, levels, self.observer is not None or self.has_delta_preview, proof,
                   shapes, Weights(self.settings.options.scale_mask, self.scales, shapes))

    def predict_noise(self, executor, x: torch.Tensor, timestep: torch.Tensor, model_options: dict | None = None,
                      seed: int | None = None):
        """PREDICT_NOISE wrapper: one per evaluation. Where the scale is 0 it is the host's own, untouched."""
        model_options = {} if model_options is None else model_options
        run = model_options.get(KEY, {}).get(self.namespace) or self._new_run(executor.class_obj.model_patcher, None)
        run.report.calls += 1
        if run.report.calls == 1:
            make_distinct(getattr(executor.class_obj, "conds", {}))
        if run.report.calls == 1 and (others := attachments(model_options)):
            # Only now the host has taken from the network what an earlier run's nodes had put there.
            run.memory.begin(others, [executor.class_obj.model_patcher.model.diffusion_model])
        with run.asked():
            try:
                return self._predict_noise(executor, x, timestep, model_options, seed, run)
            except Exception as error:
                if run.report.calls == 1:
                    _explain(error, executor.class_obj, run.latent_shapes or [x.shape])
                raise

    def _predict_noise(self, executor, x: torch.Tensor, timestep: torch.Tensor, model_options: dict, seed: int | None,
                       run: Run) -> torch.Tensor:
        # Reading sigma waits for the GPU, so it is read only where something depends on it.
        settings = self.settings.options
        reads_sigma = (not run.schedule.is_constant or not run.plan.is_constant or settings.kind.is_random
                       or settings.reuse_every > 1 or settings.momentum > 0.0 or run.is_watched)
        sigma = float(timestep.max()) if reads_sigma else None
        scale = self.settings.scale if sigma is None else run.schedule.scale_at(sigma)
        run.report.is_faded |= scale == 0.0 and sigma is not None and sigma in run.schedule.window
        if scale == 0.0 and not run.is_watched:
            return executor(x, timestep, model_options, seed)
        patch = way_in(self.found, _weak_layers(self.found, self.settings, run.plan.at(sigma)), run.forms)

        def predict(options: dict, step: WeakPass | None = None, has_weak_negative: bool = False) -> torch.Tensor:
            ours = changed(options, model_options)
            try:
                if run.is_watched:
                    return watched_step(executor, x, timestep, options, seed, run, step, has_weak_negative)
                return executor(x, timestep, options, seed)
            finally:
                carry_over(options, model_options, ours)

        if settings.row == "negative":
            return self._with_weak_negative(predict, model_options, executor.class_obj, patch, run, sigma, scale != 0.0)
        options, step, following = model_options.copy(), None, None
        run.report.wanted += scale != 0.0
        if scale != 0.0 or self._is_shown(run, sigma):
            every = settings.reuse_every
            earlier = run.reused.at(x, sigma, every) if sigma is not None and every > 1 and scale != 0.0 else None
            step = WeakPass(self.settings, self.found, patch, self.namespace, run, scale, sigma, x, earlier)
            if step.pair is None:
                options = self._with_calls(options, executor.class_obj, run, step, is_joined=scale != 0.0)
            options[PRE_CFG] = [step.pre_cfg, *options.get(PRE_CFG, [])]
            # Before others': the delta belongs to the prediction. Those of a chain come in the order of their nodes.
            after = options.get(POST_CFG, [])
            place = sum(1 for _ in itertools.takewhile(WeakPass.is_of_one, after))
            following = begun(scale != 0.0 and run.is_followed)
            others = following.watched(after[place:]) if following else after[place:]
            options[POST_CFG] = [*after[:place], step.post_cfg, *others]
        try:
            with following.running() if following else nullcontext():
                result = predict(options, step)
            if following:
                run.judge(following, result)
            return result
        finally:
            run.store = None  # it holds tensors of this step

    def _with_weak_negative(self, predict: Callable[..., torch.Tensor], model_options: dict, guider, patch: Patch,
                            run: Run, sigma: float | None, acts: bool) -> torch.Tensor:
        """The step whose negative rows are weak, where PAG acts."""
        run.report.is_negative |= acts
        noise_key = (sigma,) if self.settings.options.kind.is_random else ()

        def once() -> torch.Tensor:
            options = with_weak_negative(model_options, guider, patch, noise_key, run) if acts else model_options
            return predict(options, has_weak_negative=acts)

        try:
            return once()
        except UnclearError as error:
            if run.apart:
                raise
            run.must_split(str(error))
            return once()

    def _with_calls(self, options: dict, guider, run: Run, step: WeakPass, is_joined: bool) -> dict:
        """The model_options under which the step's weak rows run in the host's call, or after it from what it left."""
        models = [guider.model_patcher.model, *(clone.model for clone in options.get("multigpu_clones", {}).values())]
        for model in models:
            run.networks.know(model.diffusion_model)
        if run.networks.compiled_units is None and options.get(TORCH_COMPILE_KWARGS) is not None:
            run.networks.compiled_units = CompiledUnits(options[TORCH_COMPILE_KWARGS])
        chained = options.get(CALC_COND_BATCH)
        is_free = chained is None or isinstance(chained, JointCall)
        reason = others_in_options(options) or run.networks.others() or (
            None if is_free else "another node makes the calls for CFG")
        store = options.get(_STORE)
        if store is None:
            run.proof.begin()
            keeps_all = looks_between_units(options) or run.networks.are_mixed()
            store = PrefixStore(keeps_all, comfy.model_management.get_free_memory,
                                bool(wrappers_around_calls(options)) or not is_free)
            options = PlainForwards(step, store).added_to(options)
            options[_STORE] = store
        if reason:
            run.memory.begin(attachments(options), [model.diffusion_model for model in models])
        store.add(step.first_unit, run.cond_index)
        run.store = store
        if reason:
            run.report.declined_joint.add(reason)
        elif is_joined:
            options[CALC_COND_BATCH] = JointCall((*(chained.passes if chained else ()), step))
        return options

    def _is_shown(self, run: Run, sigma: float | None) -> bool:
        """Whether an observer sees the perturbed prediction although nothing of it is added."""
        return (self.observer is not None and sigma is not None and sigma in run.schedule.window
                and not self.settings.options.is_off)
