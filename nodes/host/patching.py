"""Attaching PAG to a clone of a model.

A PREDICT_NOISE wrapper fires once per step, whatever the sampler node and the guider. Inside it the host's one call for
[cond, uncond] becomes one call for [cond, uncond, perturbed] (PAG App. A.2.4: "simultaneously"), and a post-CFG
function adds the delta. Rows are told apart by the uuids that the host gives every conditioning: the perturbed rows
carry fresh ones, so that no cache keyed by uuid mixes them with the plain rows, and no index has to be guessed when the
host splits or reorders a batch.
"""

from __future__ import annotations

import logging
import uuid
from contextlib import ExitStack
from dataclasses import dataclass, field

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ...pag_core.guidance import guide, perturbed_attention_delta
from ...pag_core.perturbation import Perturbation
from ...pag_core.schedule import Window, window_from_percent
from ...pag_core.selection import select
from ...pag_core.settings import PAGSettings
from .attention import LayerPerturbation
from .layers import model_layers
from .transformers import TransformerWatch
from .u_nets import UNetWatch

KEY = "perturbed_attention_guidance"
_CALC_COND_BATCH = "sampler_calc_cond_batch_function"
_POST_CFG = "sampler_post_cfg_function"
_log = logging.getLogger(__name__)


def attach(model: ModelPatcher, settings: PAGSettings) -> ModelPatcher:
    """A clone of `model` that samples with PAG under any sampler node and guider; `model` itself is left alone.

    Raises:
        UnsupportedModelError, SelectionError: before anything runs.
    """
    found = model_layers(model)
    chosen = select(settings.layers, tuple(found.layers), found.auto)
    model = model.clone()
    if settings.is_off:
        return model
    window = window_from_percent(settings.options.start_percent, settings.options.end_percent,
                                 model.get_model_object("model_sampling").percent_to_sigma)
    layers = {found.layers[layer]: LayerPerturbation(layer.name, Perturbation(strength=settings.options.strength),
              heads) for layer, heads in chosen.items()}
    guidance = Guidance(settings, TransformerWatch(found.family, layers) if found.family else UNetWatch(layers), window)
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


@dataclass
class _Run:
    """What one run leaves behind for its report."""

    steps: int = 0
    largest_delta: torch.Tensor | None = None  # [] on the sampling device, so that no step waits for the GPU
    skipped: set[str] = field(default_factory=set)  # layers whose attention was left alone
    declined: set[str] = field(default_factory=set)  # why the prefix could not be shared

    def record(self, delta: torch.Tensor) -> None:
        self.steps += 1
        largest = delta.abs().amax()
        self.largest_delta = largest if self.largest_delta is None else torch.maximum(self.largest_delta, largest)

    def report(self) -> None:
        """Say in the log what a user would otherwise have to guess: that PAG did nothing, and why."""
        if self.skipped:
            _log.warning("PAG: left the self-attention of %s alone, because something (HyperTile, token merging, an "
                         "attention mask over parts of the image) changes its tokens there. Select other layers or "
                         "remove that patch.", ", ".join(sorted(self.skipped)))
        for reason in sorted(self.declined):
            _log.info("PAG: ran the perturbed pass from the first block (same result, slower): %s.", reason)
        if self.steps == 0:
            _log.warning("PAG: no sampled step lies between start_percent and end_percent, so it had no effect.")
        elif self.largest_delta == 0:
            _log.warning("PAG: the perturbed prediction equals the plain one in all %d steps, so it had no effect.",
                         self.steps)


class Guidance:
    """One PAG on one model. Holds what was asked for and nothing of any run."""

    def __init__(self, settings: PAGSettings, watch: UNetWatch | TransformerWatch, window: Window) -> None:
        self.settings = settings
        self.watch = watch
        self.window = window
        self.namespace = uuid.uuid4()  # keeps the rows of two PAG nodes in a chain apart

    def outer_sample(self, executor, *args, **kwargs):
        """OUTER_SAMPLE wrapper: one per run of a guider, whose model_options are that run's own copy."""
        guider = executor.class_obj
        check_latent_channels(guider.model_patcher, args[0] if args else kwargs["noise"])
        run = _Run()
        guider.model_options.setdefault(KEY, {})[self.namespace] = run
        output = executor(*args, **kwargs)
        run.report()
        return output

    def predict_noise(self, executor, x: torch.Tensor, timestep: torch.Tensor, model_options: dict | None = None,
                      seed: int | None = None):
        """PREDICT_NOISE wrapper: one per step. Outside the window the step is the host's own, untouched."""
        model_options = model_options or {}
        # Reading sigma waits for the GPU, so it is read only where the answer depends on it.
        if not self.window.is_full and float(timestep.max()) not in self.window:
            return executor(x, timestep, model_options, seed)
        run = model_options.get(KEY, {}).get(self.namespace) or _Run()
        step = PerturbedPass(self, run)
        options = model_options.copy()
        chained = options.get(_CALC_COND_BATCH)
        if chained is None or isinstance(chained, JointCall):
            options[_CALC_COND_BATCH] = JointCall((*(chained.passes if chained else ()), step))
        # First in the list: the delta belongs to the prediction, before others post-process it.
        options[_POST_CFG] = [step.post_cfg, *options.get(_POST_CFG, [])]
        return executor(x, timestep, options, seed)


class JointCall:
    """Replaces the host's calc_cond_batch for one step: the same call with the perturbed rows of every PAG added."""

    def __init__(self, passes: tuple[PerturbedPass, ...]) -> None:
        self.passes = passes

    def __call__(self, args: dict) -> list[torch.Tensor]:
        conds, model_options = args["conds"], args["model_options"]
        if conds[0] is None:
            return comfy.samplers.calc_cond_batch(args["model"], conds, args["input"], args["sigma"], model_options)
        perturbed = [step.perturbed_conds(conds[0]) for step in self.passes]
        share = all(step.guidance.settings.options.share_prefix for step in self.passes)
        outputs = _calc_cond_batch(self.passes, args, [*conds, *perturbed], share)
        for step, prediction in zip(self.passes, outputs[len(conds):], strict=True):
            step.cond, step.perturbed = outputs[0], prediction
        # Others' pre-CFG functions expect exactly the conds they asked for.
        return outputs[:len(conds)]


def _calc_cond_batch(passes: tuple[PerturbedPass, ...], args: dict, conds: list, share_prefix: bool):
    """The host's calc_cond_batch with the layers of every pass perturbed in the rows of that pass."""
    options = args["model_options"].copy()
    transformer_options = options["transformer_options"] = options.get("transformer_options", {}).copy()
    models = [args["model"], *(clone.model for clone in options.get("multigpu_clones", {}).values())]
    networks = list({id(model): model.diffusion_model for model in models}.values())
    sources = {perturbed: plain for step in passes for perturbed, plain in step.sources.items()}
    layers = {key for step in passes for key in step.guidance.watch.layers}
    with ExitStack() as stack:
        stack.enter_context(passes[0].guidance.watch.sharing(
            networks, transformer_options, layers if share_prefix else None, sources, passes[0].run.declined.add))
        for step in passes:
            step.guidance.watch.install(transformer_options, step.sources.__contains__, step.run.skipped.add)
            stack.enter_context(step.guidance.watch.watching(networks))
        return comfy.samplers.calc_cond_batch(args["model"], conds, args["input"], args["sigma"], options)


class PerturbedPass:
    """The perturbed prediction of one step, and where it enters the result."""

    def __init__(self, guidance: Guidance, run: _Run) -> None:
        self.guidance = guidance
        self.run = run
        self.sources: dict[uuid.UUID, uuid.UUID] = {}  # {our row: the conditional row it mirrors}
        self.cond: torch.Tensor | None = None
        self.perturbed: torch.Tensor | None = None

    def perturbed_conds(self, conds: list[dict]) -> list[dict]:
        """The same conditionings under uuids of our own, the same in every step for the caches' sake."""
        ours = [uuid.uuid5(self.guidance.namespace, str(cond["uuid"])) for cond in conds]
        self.sources.update((mine, cond["uuid"]) for mine, cond in zip(ours, conds, strict=True))
        return [dict(cond, uuid=mine) for mine, cond in zip(ours, conds, strict=True)]

    def post_cfg(self, args: dict) -> torch.Tensor:
        """Post-CFG function: add s·(cond − perturbed) (PAG Eq. 14)."""
        if self.perturbed is None:
            # Some guiders (PerpNeg, dual CFG) and packs make the host's call themselves; then ours is a second one.
            # Dual CFG with both scales 1 hands over no conditioning at all.
            (self.perturbed,) = _calc_cond_batch((self,), args, [self.perturbed_conds(args["cond"] or [])], False)
            self.cond = args["cond_denoised"]
        settings = self.guidance.settings
        delta = perturbed_attention_delta(self.cond, self.perturbed, settings.scale)
        self.run.record(delta)
        return guide(args["denoised"], self.cond, delta, settings.options.rescale, settings.options.rescale_mode)
