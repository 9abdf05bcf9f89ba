"""The forwards of the weak rows' own call: they start from what the conditional rows left, where that may be shared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from comfy.patcher_extension import WrappersMP

from ..hooks.entry import Entry, noting
from ..hooks.kept import PrefixStore
from ..hooks.matched import Sampled, matched
from ..hooks.replay import Replay
from ..models.units import Units
from .control import Conds, remembering_nothing, with_told_controls
from .control_networks import keeping_networks
from .forwards import ENTRY, MOVED, Forwards, names_rows
from .neighbours import FUNCTION_WRAPPER, KEY

CHANCE = "another node's patch depends on the other rows of the batch, or on random numbers"
LEARNING = ("another node rearranges the batch, and which of its samples are the conditional rows' shows only from one "
            "step to the next")
DOES_MORE = "the network's blocks may do more than pass on what they return"
NOT_RUN = "the conditional rows did not pass through the network in this step"
APART = "another node's code in the network's blocks remembers something else of the perturbed rows"
STATEFUL = "the network keeps tensors between calls"

class WeakForwards(Forwards):
    """Of a call of the weak rows alone.

    Args:
        step: whose weak rows they are.
        store: what they start from; None: from the beginning.
        is_past: whether another node's function wrapper runs the network by itself, past the model's own call of it.
        is_skipped: whether a cache of whole steps has answered the host's call; this one is to be a part of that step.

    Attributes:
        has_run_altered: whether an altered unit has run; also where it cannot be told.
    """

    def __init__(self, step, store: PrefixStore | None, is_past: bool = False,
                 is_skipped: bool = False) -> None:
        super().__init__((step,))
        self.step, self.store, self.is_past, self.is_skipped = step, store, is_past, is_skipped
        self.altered = step.altered_units
        self.has_run_altered = False

    def changed(self, conds: Conds, x: torch.Tensor) -> Conds:
        return conds if self.store is None else with_told_controls(conds, x.shape[0], None)

    @contextmanager
    def around_controls(self, conds: Conds) -> Iterator[None]:
        with remembering_nothing(conds):
            if self.store is None:
                yield
            else:
                with keeping_networks(conds, self.store, self.step.sources):
                    yield

    def around_calls(self, wrappers: dict) -> dict:
        around = super().around_calls(wrappers)
        if not self.is_skipped:
            return around
        # That of the cache would begin another step; it has a wrapper around the network under the same key.
        inside = {*wrappers.get(WrappersMP.APPLY_MODEL, {}), *wrappers.get(WrappersMP.DIFFUSION_MODEL, {})}
        return {key: found for key, found in around.items() if key not in inside}

    def added_to(self, model_options: dict) -> dict:
        options = super().added_to(model_options)
        if self.is_past and FUNCTION_WRAPPER in options:
            options[FUNCTION_WRAPPER] = partial(self._past, options[FUNCTION_WRAPPER])
        return options

    def apply_model(self, executor, *args, **kwargs):
        return executor(*args, **kwargs) if self.is_past else super().apply_model(executor, *args, **kwargs)

    def _past(self, wrapper: Callable, apply_model: Callable, args: dict) -> torch.Tensor:
        """What another node's function wrapper, which runs the network by itself, makes of the weak rows."""
        with ExitStack() as stack:
            network, units = self.run.networks.first()
            self._watch_altered(stack, units)
            options = self.perturbed(stack, network, args["c"]["transformer_options"])
            return wrapper(apply_model, {**args, "c": {**args["c"], "transformer_options": options}})

    @contextmanager
    def around(self, network, units, options, x, control, entry) -> Iterator[dict]:
        step, store = self.step, self.store
        is_told = names_rows(options, x)
        if not options.get("uuids"):  # another node has dropped them; all rows of this call are weak
            options = {**options, "uuids": [next(iter(step.sources))], "cond_or_uncond": [0]}
        with ExitStack() as stack:
            self._watch_altered(stack, units)
            options = self.perturbed(stack, network, options)
            kept = store and store.take(options["uuids"], step.sources)
            is_tried = False
            by_sample = bool(store and store.samples and entry and (kept is None or self.is_moved(options, x)))
            if store and entry and by_sample:
                entry.by_sample(control)
                found = matched(entry, store.samples)
                kept = None if found is None else [one.kept[place] for one, place in found]
                self.run.is_moved = kept is not None
                is_tried = self._is_tried(found or ())
            if store is not None and step.first_unit and units is not None:
                if store.answers.always and self.run.proof.is_given is None:  # later: on the way; see `Replay`
                    self.run.proof.add(store.answers.ask())
                if not is_told and not by_sample:
                    self.decline(MOVED)
                elif not units.is_stateless:
                    self.decline(STATEFUL)
                elif step.found.is_by_shape and kept and not self.run.forms.are_pure(units.modules[:step.first_unit]):
                    self.decline(DOES_MORE)
                elif self.run.proof.is_given is False:
                    self.decline(CHANCE)
                elif kept is None:
                    for reason in store.lost or {ENTRY if by_sample else NOT_RUN}:
                        self.decline(reason)
                elif any(self.run.memory.are_apart(row.before) for row in kept):
                    self.decline(APART)
                elif by_sample and not is_tried:
                    self.decline(LEARNING)
                elif entry and not entry.is_alike(kept, int(by_sample)):
                    self.run.is_moved = self.run.is_moved is None  # from the next step on they are told by what enters
                    self.decline(ENTRY)
                else:
                    proof = (step.first_unit - 1, self.run.proof.add) if store.has_to_prove else None
                    replay = Replay(units, step.first_unit, kept, x.device, self._differs, store.answers, proof)
                    stack.enter_context(replay.around())
                    if entry and not by_sample:
                        options = noting(options, KEY, self._checking(entry, kept, replay.run_all))
            yield options

    def _is_tried(self, found: Sequence[tuple[Sampled, int]]) -> bool:
        """Whether others' code, where any acts on these samples of the host's call, was tried for just them. If not, it
        will be in the next evaluation."""
        if all(one.tried is None for one, _ in found):
            return True
        places, (first, *others) = tuple(place for _, place in found), dict.fromkeys(one.number for one, _ in found)
        if not others:
            self.run.conditional_samples[first] = places
        return not others and places == found[0][0].tried

    def _differs(self) -> str:
        self.run.proof.add(False)
        self.run.report.is_late |= self.run.store is not None and self.run.store.answers.is_late
        return CHANCE

    def _watch_altered(self, stack: ExitStack, units: Units | None) -> None:
        def note(*_) -> None:
            self.has_run_altered = True

        if units is None:
            self.has_run_altered = True
            return
        for index in self.altered:
            stack.callback(units.modules[index].register_forward_pre_hook(note).remove)

    def _checking(self, entry: Entry, kept: list, run_all: Callable[[], None]) -> Callable[..., None]:
        def enter(*values) -> None:
            entry.note(*values)
            if not entry.is_alike(kept, len(entry.seen) - 1):
                run_all()
                self.decline(ENTRY)
        return enter
