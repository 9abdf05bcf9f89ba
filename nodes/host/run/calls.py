"""The calls of one step: the host's own, with the perturbed rows of every PAG added to it."""

from __future__ import annotations

import uuid
from contextlib import ExitStack

import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers.torch_compile import COMPILE_KEY

from ....pag_core.guidance import guide, perturbed_attention_delta
from ....pag_core.perturbation import KINDS
from ....pag_core.settings import PAGSettings
from ..hooks.transformers import TransformerWatch
from ..hooks.u_nets import UNetWatch
from .predictions import Pair
from .run import Run


def is_compiled(model_options: dict) -> bool:
    """Whether the host's TorchCompileModel, or a node built like it, compiles this model's calls."""
    wrappers = model_options.get("transformer_options", {}).get("wrappers", {})
    return COMPILE_KEY in wrappers.get(WrappersMP.APPLY_MODEL, {})


class JointCall:
    """Replaces the host's calc_cond_batch for one step: the same call with the perturbed rows of every PAG added."""

    def __init__(self, passes: tuple[PerturbedPass, ...]) -> None:
        self.passes = passes

    def __call__(self, args: dict) -> list[torch.Tensor]:
        conds, model_options = args["conds"], args["model_options"]
        if conds[0] is None or any(step.must_run_apart(conds[0]) for step in self.passes):
            return comfy.samplers.calc_cond_batch(args["model"], conds, args["input"], args["sigma"], model_options)
        perturbed = [step.perturbed_conds(conds[0]) for step in self.passes]
        share = all(step.settings.options.share_prefix for step in self.passes)
        outputs = _calc_cond_batch(self.passes, args, [*conds, *perturbed], share)
        for step, prediction in zip(self.passes, outputs[len(conds):], strict=True):
            step.pair = Pair(outputs[0], prediction, step.sigma)
        # Others' pre-CFG functions expect exactly the conds they asked for.
        return outputs[:len(conds)]


def _calc_cond_batch(passes: tuple[PerturbedPass, ...], args: dict, conds: list, share_prefix: bool):
    """The host's calc_cond_batch with the layers of every pass perturbed in the rows of that pass."""
    options = args["model_options"].copy()
    transformer_options = options["transformer_options"] = options.get("transformer_options", {}).copy()
    if is_compiled(options):
        # The host compiles without guards on transformer_options: a graph made for other layers or rows would be taken
        # for ours, and ours for others. So our call runs as it is.
        wrappers = transformer_options["wrappers"] = transformer_options["wrappers"].copy()
        wrappers[WrappersMP.APPLY_MODEL] = {key: found for key, found in wrappers[WrappersMP.APPLY_MODEL].items()
                                            if key != COMPILE_KEY}
    models = [args["model"], *(clone.model for clone in options.get("multigpu_clones", {}).values())]
    networks = list({id(model): model.diffusion_model for model in models}.values())
    sources = {perturbed: plain for step in passes for perturbed, plain in step.sources.items()}
    layers = {key for step in passes for key in step.watch.layers}
    with ExitStack() as stack:
        stack.enter_context(passes[0].watch.sharing(
            networks, transformer_options, layers if share_prefix else None, sources, passes[0].run.declined.add))
        for step in passes:
            step.watch.install(transformer_options, step.sources.__contains__, step.run.skipped.add, step.noise_key)
            stack.enter_context(step.watch.watching(networks, step.sources.__contains__))
        return comfy.samplers.calc_cond_batch(args["model"], conds, args["input"], args["sigma"], options)


class PerturbedPass:
    """The perturbed prediction of one step, and where it enters the result.

    Args:
        watch: the way into the model's layers.
        namespace: of the uuids of our rows; one for each PAG node, so that two in a chain do not mix.
        scale: s at this step; 0 for a prediction that is only looked at.
        sigma: the noise level; None where nobody asked for it.
        pair: the predictions of an earlier step, to use in place of new ones.
    """

    def __init__(self, settings: PAGSettings, watch: UNetWatch | TransformerWatch, namespace: uuid.UUID, run: Run,
                 scale: float, sigma: float | None, pair: Pair | None = None) -> None:
        self.settings = settings
        self.watch = watch
        self.namespace = namespace
        self.run = run
        self.scale = scale
        self.sigma = sigma
        self.pair = pair
        self.noise_key = (sigma,) if KINDS[settings.options.perturbation].is_random else ()
        self.sources: dict[uuid.UUID, uuid.UUID] = {}  # {our row: the conditional row it mirrors}

    def perturbed_conds(self, conds: list[dict]) -> list[dict]:
        """The same conditionings under uuids of our own, the same in every step for the caches' sake."""
        ours = [uuid.uuid5(self.namespace, str(cond["uuid"])) for cond in conds]
        self.sources.update((mine, cond["uuid"]) for mine, cond in zip(ours, conds, strict=True))
        return [dict(cond, uuid=mine) for mine, cond in zip(ours, conds, strict=True)]

    def must_run_apart(self, conds: list[dict]) -> bool:
        """Whether the host's code for this model cannot take these conditionings and ours in one batch."""
        return any(name in cond["model_conds"] for cond in conds for name in self.watch.one_row)

    def post_cfg(self, args: dict) -> torch.Tensor:
        """Post-CFG function: add s·(cond − perturbed) (PAG Eq. 14)."""
        if self.pair is None:
            # Some guiders (PerpNeg, dual CFG) and packs make the host's call themselves, and some models take one row
            # only; then ours is a second call.
            # Dual CFG with both scales 1 hands over no conditioning at all.
            (perturbed,) = _calc_cond_batch((self,), args, [self.perturbed_conds(args["cond"] or [])], False)
            self.pair = Pair(args["cond_denoised"], perturbed, self.sigma)
        if self.scale == 0.0:
            return args["denoised"]
        options = self.settings.options
        if options.reuse_every > 1:
            self.run.keep(self.pair)
        delta = perturbed_attention_delta(self.pair.cond, self.pair.perturbed, self.scale)
        self.run.record(delta)
        # What the model makes of a network output of zero; the parts of the prediction are measured from there.
        origin = args["model"].model_sampling.calculate_denoised(args["sigma"], torch.zeros_like(args["input"]),
                                                                 args["input"]) if options.rescale else None
        return guide(args["denoised"], args["cond_denoised"], delta, options.rescale, options.rescale_mode,
                     origin=origin, uncond=args["uncond_denoised"] if args["uncond"] is not None else None)
