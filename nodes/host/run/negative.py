"""The negative's own row as the weak one: CFG then steers away from it, and no row is added.

The host's call stays as it is; in each of its forwards the rows of the negative are perturbed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from uuid import UUID

import comfy.samplers
from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers.torch_compile import COMPILE_KEY

from ....pag_core.settings import check_has_negative
from ..hooks.compiled import as_written, uncompiled
from ..hooks.ways import Patch
from .calls import JointCall
from .neighbours import CALC_COND_BATCH, has_others, is_hosts, wrappers_around_calls
from .run import Run

_KEY = "perturbed_attention_guidance_negative"


def check_negative(guider, sampler: str) -> None:
    """Raise NoNegativeError where a guider computes no negative in any step, before it samples. Of guiders with a
    formula of their own, and of nodes that change cfg during a run, the end of the run will tell.

    Args:
        sampler: its name; those of CFG++ compute the negative at cfg 1 too.
    """
    has_own_scales = getattr(type(guider), "set_cfg", None) is not comfy.samplers.CFGGuider.set_cfg
    if has_own_scales or has_others(guider.model_patcher.wrappers.get(WrappersMP.PREDICT_NOISE, {})):
        return
    if "cfg_pp" in sampler:
        return
    if not guider.model_options.get("disable_cfg1_optimization", False):
        check_has_negative(guider.cfg)


def with_weak_negative(model_options: dict, guider, patch: Patch, noise_key: tuple, run: Run) -> dict:
    """The model_options of a step whose negative rows are weak."""
    negatives = {cond["uuid"] for cond in (getattr(guider, "conds", {}).get("negative") or ())}
    options = model_options.copy()
    transformer_options = options["transformer_options"] = options.get("transformer_options", {}).copy()
    wrappers = transformer_options["wrappers"] = transformer_options.get("wrappers", {}).copy()
    ours = _Forward(negatives, patch, noise_key, run)
    # A graph of the whole network would hold the weak rows, or none: the negative's call runs uncompiled.
    apply_model = {key: found for key, found in wrappers.get(WrappersMP.APPLY_MODEL, {}).items() if key != COMPILE_KEY}
    wrappers[WrappersMP.APPLY_MODEL] = {**apply_model, _KEY: [*apply_model.get(_KEY, []), ours]}
    # Others' wrappers may lay a batch out anew: then nothing but a batch of its own tells the negative's rows. The
    # host's leave it as it is.
    is_apart = run.found.is_apart or patch.is_apart or run.apart or not all(
        map(is_hosts, wrappers_around_calls(model_options)))
    chained = options.get(CALC_COND_BATCH)
    if chained is not None and not isinstance(chained, JointCall):
        options[CALC_COND_BATCH] = ours.noting(chained)
    if is_apart:
        if isinstance(chained, JointCall):  # of another PAG, whose rows then run apart too
            del options[CALC_COND_BATCH]
        # Innermost: what others do around the calls of a step, such as beginning a step of a cache, they do once.
        calls = wrappers.get(WrappersMP.CALC_COND_BATCH, {})
        wrappers[WrappersMP.CALC_COND_BATCH] = {**calls, _KEY: [ours.one_by_one]}
    return options


class _Forward:
    """An APPLY_MODEL wrapper that perturbs the rows of the negative."""

    def __init__(self, negatives: Collection[UUID], patch: Patch, noise_key: tuple, run: Run) -> None:
        self.negatives = negatives
        self.patch = patch
        self.noise_key = noise_key
        self.run = run
        self.running: list[UUID] = []  # a row of the call that is made, where it has one kind only

    def __call__(self, executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None,
                 **kwargs):
        options = transformer_options or {}
        if not options.get("uuids"):  # another node has dropped them
            options = {**options, "uuids": self.running, "cond_or_uncond": [0] * len(self.running)}
        if any(row in self.negatives for row in options.get("uuids", ())):
            self.run.report.weak_negatives += 1
        with as_written(executor.class_obj) as network:
            self.run.networks.know(network)
            with uncompiled(self.run.networks.swapped_in(network), self.run.networks.places(self.patch.layers)), \
                    self.patch.around(network, options, self.negatives.__contains__, self.run.report.skipped.add,
                                      self.noise_key) as options:
                return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

    def noting(self, calls: Callable[[dict], list]) -> Callable[[dict], list]:
        """Another node's calls for CFG, and whether they were asked for the negative."""
        def noted(args: dict) -> list:
            self.run.report.is_negative_asked |= any(rows for rows in args["conds"][1:])
            return calls(args)
        return noted

    def one_by_one(self, executor, model, conds: list, x, timestep, model_options: dict) -> list:
        """A CALC_COND_BATCH wrapper: the host's call, once for each prediction, for batches in which nothing tells the
        rows. The last comes first, as where the host splits a batch."""
        self.run.report.is_negative_asked |= any(rows for rows in conds[1:])
        outputs = []
        for index, rows in reversed(list(enumerate(conds))):
            self.running = [cond["uuid"] for cond in rows or ()][:1]
            alone = [cond if place == index else None for place, cond in enumerate(conds)]
            outputs.insert(0, executor(model, alone, x, timestep, model_options)[index])
        return outputs
