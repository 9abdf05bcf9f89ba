"""The calls of one step: the host's own, and the weak rows of every PAG in it or beside it.

Where nothing of another node has a part, one call of the host runs the conditional, the unconditional and the weak rows
together (PAG App. A.2.4: "simultaneously"). Everywhere else the host's call runs as it would without PAG, and a second
one runs the weak rows alone, under the index 0 that the host's own PAG node shows to others. In both the weak rows
start at the first altered unit.
"""

from __future__ import annotations

import collections
import uuid
from collections.abc import Callable

import comfy.model_management
import comfy.samplers
import torch

from ....pag_core.delta import shaped
from ....pag_core.guidance import guide, perturbed_attention_delta
from ....pag_core.settings import PAGSettings
from ..hooks.kept import PrefixStore
from ..hooks.replay import PrefixLostError
from ..hooks.rows import UnclearError
from ..hooks.uncopied import Uncopied
from .following import follow, unfollowed
from .forwards import JointForwards
from .latents import latent_by_latent
from .neighbours import PRE_CFG, others_in_conds
from .predictions import Pair
from .run import Run
from .weak_forwards import WeakForwards

LOW_MEMORY = "there is not enough free memory for all rows in one call"


class JointCall(Uncopied):
    """Replaces the host's calc_cond_batch for one step: the same call, with every PAG's weak rows where they fit in."""

    def __init__(self, passes: tuple[WeakPass, ...]) -> None:
        self.passes = passes

    def __call__(self, args: dict) -> list[torch.Tensor]:
        conds, run = args["conds"], self.passes[0].run
        reason = "there is no conditioning" if conds[0] is None else run.apart or self._why_apart(args)
        if reason:
            run.report.declined_joint.add(reason)
            return self._host(args)
        weak = [step.weak_conds(conds[0]) for step in self.passes]
        forwards = JointForwards(self.passes, on_split=run.must_split)
        try:
            outputs = comfy.samplers.calc_cond_batch(args["model"], [*conds, *weak], args["input"], args["sigma"],
                                                     forwards.added_to(args["model_options"]))
        except UnclearError as error:
            run.must_split(str(error))
            run.report.declined_joint.add(str(error))
            return self._host(args)
        for step, prediction in zip(self.passes, outputs[len(conds):], strict=True):
            step.pair = Pair(outputs[0], prediction, step.sigma)
        # Others' pre-CFG functions expect exactly the conds they asked for.
        return outputs[:len(conds)]

    @staticmethod
    def _host(args: dict) -> list[torch.Tensor]:
        """The host's own call, without ours."""
        return comfy.samplers.calc_cond_batch(args["model"], args["conds"], args["input"], args["sigma"],
                                              args["model_options"])

    def _why_apart(self, args: dict) -> str | None:
        """Why the weak rows cannot be in the host's call, or None; that of others' options is told before."""
        conds = args["conds"]
        for step in self.passes:
            for cond in conds[0]:
                if any(name in cond["model_conds"] for name in step.found.one_row):
                    return "the model supports only one row at a time with this conditioning"
            if step.found.is_apart or step.patch.is_apart:
                return "the model uses a batch layout of its own"
        reason = others_in_conds([cond for rows in conds if rows for cond in rows])
        if reason is None and not self.passes[0].run.fits_one_call(lambda: _fits(args, len(self.passes))):
            reason = LOW_MEMORY
        return reason


def _fits(args: dict, passes: int) -> bool:
    """Whether the host has room for all rows at once, by its own rule (calc_cond_batch)."""
    model, x = args["model"], args["input"]
    first, *others = ([comfy.samplers.get_area_and_mult(cond, x, args["sigma"]) for cond in conds or ()]
                      for conds in args["conds"])
    rows = [row for rows in (first * (1 + passes), *others) for row in rows if row is not None]
    shapes = collections.defaultdict(list)
    for row in rows:
        for name, value in row.conditioning.items():
            shapes[name].append(value.size())
    if not rows:
        return True
    shape = [len(rows) * x.shape[0], *max((row.input_x.shape for row in rows), key=lambda size: size.numel())[1:]]
    # Older hosts have no figure of the patcher's.
    free = getattr(model.current_patcher, "get_free_memory", comfy.model_management.get_free_memory)
    return model.memory_required(shape, cond_shapes=shapes) * 1.5 < free(x.device)


class WeakPass(Uncopied):
    """The weak prediction of one step, and where it enters the result.

    Args:
        patch: the way into the model's layers.
        namespace: of the uuids of our rows; one for each PAG node, so that two in a chain do not mix.
        scale: s at this step; 0 for a prediction that is only looked at.
        sigma: the noise level; None where nobody asked for it.
        x: the latent of this evaluation.
        pair: the predictions of an earlier step, to use in place of new ones.
    """

    def __init__(self, settings: PAGSettings, found, patch, namespace: uuid.UUID, run: Run, scale: float,
                 sigma: float | None, x: torch.Tensor, pair: Pair | None = None) -> None:
        self.settings = settings
        self.found = found
        self.patch = patch
        self.namespace = namespace
        self.run = run
        self.scale = scale
        self.sigma = sigma
        self.x = x
        self.pair = pair
        self.noise_key = (sigma,) if settings.options.kind.is_random else ()
        run.report.selected |= {layer.name for layer in patch.layers.values()}
        self.sources: dict[uuid.UUID, uuid.UUID] = {}  # {our row: the conditional row it mirrors}
        self.raw_cond: torch.Tensor | None = None  # the conditional prediction, before others process it
        self.acts: list[bool] = []  # of each forward with weak rows, whether it altered any selected layer

    @staticmethod
    def is_of_one(function: Callable) -> bool:
        """Whether a function of the model_options is a step's of ours."""
        return isinstance(getattr(function, "__self__", None), WeakPass)

    @property
    def first_unit(self) -> int:
        """The index of the first altered unit; the same in every network of a model."""
        return min(self.altered_units)

    @property
    def altered_units(self) -> set[int]:
        """The indices of all altered units."""
        return self.run.networks.places(self.patch.layers)

    def note_left(self, left: set[str]) -> None:
        """After a forward with weak rows, in which the attention of these selected layers was left alone."""
        self.run.report.skipped |= left
        self.acts.append(any(layer.name not in left for layer in self.patch.layers.values()))

    def weak_conds(self, conds: list[dict]) -> list[dict]:
        """The same conditionings under uuids of our own, the same in every step for the caches' sake."""
        ours = [uuid.uuid5(self.namespace, str(cond["uuid"])) for cond in conds]
        self.sources.update((mine, cond["uuid"]) for mine, cond in zip(ours, conds, strict=True))
        return [dict(cond, uuid=mine) for mine, cond in zip(ours, conds, strict=True)]

    def pre_cfg(self, args: dict) -> list[torch.Tensor]:
        """Pre-CFG function, the first: the delta is measured from the prediction before others change it."""
        cond = self.raw_cond = args["conds_out"][0]
        if self._is_followed(args["model_options"]):  # by a function that may change it in place
            self.raw_cond = cond.clone()
            if self.pair is not None and self.pair.cond is cond:
                self.pair = self.pair._replace(cond=self.raw_cond)
        return args["conds_out"]

    @classmethod
    def _is_followed(cls, options: dict) -> bool:
        """Whether functions of other nodes are given the predictions before they are added up."""
        return "sampler_cfg_function" in options or not all(map(cls.is_of_one, options.get(PRE_CFG, [])))

    def post_cfg(self, args: dict) -> torch.Tensor:
        """Post-CFG function: add s·(cond − weak) (PAG Eq. 14)."""
        if self.scale == 0.0:
            return self._guided(args)
        with unfollowed():
            result = self._guided(args)
        return follow(result)

    def _guided(self, args: dict) -> torch.Tensor:
        args = {**args, "input": self._input(args)}
        cond = args["cond_denoised"] if self.raw_cond is None else self.raw_cond
        if self.pair is None:
            self.pair = Pair(cond, self._call_of_its_own(args), self.sigma)
        if self.acts and not any(self.acts):  # what differs then is what others make of a call without the negative
            self.pair = self.pair._replace(perturbed=self.pair.cond)
        if self.scale == 0.0:
            return args["denoised"]
        options = self.settings.options
        # What the model makes of a network output of zero; the parts of the prediction are measured from there.
        origin = args["model"].model_sampling.calculate_denoised(
            args["sigma"], torch.zeros_like(args["input"]),
            args["input"]) if options.rescale or options.early_damping else None
        if options.early_damping and self.pair.origin is None:
            self.pair = self.pair._replace(origin=origin)
        if options.reuse_every > 1:
            self.run.reused.keep(self.pair)

        def ruled(number: int, delta, cond, perturbed, x, origin) -> torch.Tensor:
            return shaped(delta, cond, perturbed, x, options, scale=self.scale, sigma=self.sigma or 0.0,
                          history=self.run.history[number], origin=origin)

        def guided(_: int, denoised, cond, delta, origin, uncond) -> torch.Tensor:
            return guide(denoised, cond, delta, options.rescale, options.rescale_mode, origin=origin, uncond=uncond)

        shapes = self.run.latent_shapes
        delta = latent_by_latent(ruled, shapes, perturbed_attention_delta(*self.pair[:2], self.scale), cond,
                                 self.pair.perturbed, args["input"], self.pair.origin)
        delta = self.run.weights.applied_to(delta)
        self.run.report.record(delta)
        # Guiders with a formula of their own may give a number in the place of a prediction that they did not make.
        uncond = args["uncond_denoised"] if isinstance(args["uncond_denoised"], torch.Tensor) else None
        return latent_by_latent(guided, shapes, args["denoised"], args["cond_denoised"], delta, origin,
                                uncond if args["uncond"] is not None else None)

    def _input(self, args: dict) -> torch.Tensor:
        """The latent that the conditional prediction was made of. A guider with a formula of its own may name another
        one here, such as its result."""
        x = args["input"]
        if x is self.x or self.run.store is None:
            return x
        noted = [self.run.store.inputs.get(cond["uuid"]) for cond in args["cond"] or ()]
        # That of a part of the latent, as context windows are, has another shape.
        return next((latent for latent in noted if latent is not None and latent.shape == x.shape), x)

    def _call_of_its_own(self, args: dict) -> torch.Tensor:
        """The weak prediction [B, C, ...] from a call of the weak rows alone.

        Raises:
            NeighbourError: where another node's wrapper cannot have such a call.
        """
        store = self.run.store
        assert store, "a step whose weak rows run apart has begun with one"
        self.run.learn(store, {cond["uuid"] for cond in args["cond"] or ()})
        is_skipped = store.is_skipped
        # Dual CFG with both scales 1 hands over no conditioning at all.
        weak = self.weak_conds(args["cond"] or [])
        try:
            shared = store if self.settings.options.share_prefix else None
            return self.run.memory.call(lambda is_past: self._alone(weak, shared, args, is_past, is_skipped))
        except PrefixLostError as lost:
            self.run.report.declined.add(str(lost))
            return self.run.memory.call(lambda is_past: self._alone(weak, None, args, is_past, is_skipped))

    def _alone(self, weak: list[dict], store: PrefixStore | None, args: dict, is_past: bool,
               is_skipped: bool) -> tuple[torch.Tensor, bool]:
        """The weak prediction, and whether an altered unit ran for it; arguments as for `WeakForwards`."""
        forwards = WeakForwards(self, store, is_past, is_skipped)
        self.acts.clear()  # a call that was given up says nothing
        if store is not None:
            store.start_again()
        (prediction,) = comfy.samplers.calc_cond_batch(args["model"], [weak], args["input"], args["sigma"],
                                                       forwards.added_to(args["model_options"]))
        return prediction, forwards.has_run_altered
