"""The forwards of the weak rows' own call: they start from what the conditional rows left, where that may be shared."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple

import torch
from comfy.patcher_extension import WrappersMP

from ..hooks.entry import Entry, noting
from ..hooks.kept import Kept, PrefixStore
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


class _Start(NamedTuple):
    """What the weak rows may start from.

    Attributes:
        kept: for each row what its conditional row left; None where that is not known.
        by_sample: whether the conditional rows were told by what enters the network.
        is_tried: whether others' code was tried for just these samples.
    """

    kept: list[Kept] | None
    by_sample: bool = False
    is_tried: bool = False


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
        is_told = names_rows(options, x)
        if not options.get("uuids"):  # another node has dropped them; all rows of this call are weak
            options = {**options, "uuids": [next(iter(self.step.sources))], "cond_or_uncond": [0]}
        with ExitStack() as stack:
            self._watch_altered(stack, units)
            options = self.perturbed(stack, network, options)
            if self.store is None:
                yield options
                return
            start = self._start(self.store, options, x, control, entry)
            if self.step.first_unit and units is not None:
                reasons = self._against(start, self.store, units, is_told, entry)
                for reason in reasons:
                    self.decline(reason)
                if not reasons and (kept := start.kept):
                    replay = self._replay(kept, self.store, units, x.device)
                    stack.enter_context(replay.around())
                    if entry and not start.by_sample:
                        options = noting(options, KEY, self._checking(entry, kept, replay.run_all))
            yield options

    def _start(self, store: PrefixStore, options: dict, x: torch.Tensor, control, entry: Entry | None) -> _Start:
        """What is kept for these rows, told by their uuids; or by what enters the network, where another node has moved
        them."""
        kept = store.take(options["uuids"], self.step.sources)
        if not (entry and store.samples) or (kept is not None and not self.is_moved(options, x)):
            return _Start(kept)
        entry.by_sample(control)
        found = matched(entry, store.samples)
        self.run.is_moved = found is not None
        return _Start(None if found is None else [one.kept[place] for one, place in found], True,
                      self._is_tried(found or ()))

    def _against(self, start: _Start, store: PrefixStore, units: Units, is_told: bool, entry: Entry | None
                 ) -> Collection[str]:
        """The reasons why the weak rows have to run from the beginning."""
        proof, is_pure, kept = self.run.proof, self.run.forms.are_pure, start.kept
        if store.answers.always and proof.is_given is None:  # later: on the way; see `Replay`
            proof.add(store.answers.ask())
        if not is_told and not start.by_sample:
            return (MOVED,)
        if not units.is_stateless:
            return (STATEFUL,)
        if self.step.found.is_by_shape and kept and not is_pure(units.modules[:self.step.first_unit]):
            return (DOES_MORE,)
        if proof.is_given is False:
            return (CHANCE,)
        if kept is None:
            return store.lost or (ENTRY if start.by_sample else NOT_RUN,)
        if any(self.run.memory.are_apart(row.before) for row in kept):
            return (APART,)
        if start.by_sample and not start.is_tried:
            return (LEARNING,)
        if entry and not entry.is_alike(kept, int(start.by_sample)):
            self.run.is_moved = self.run.is_moved is None  # from the next step on they are told by what enters
            return (ENTRY,)
        return ()

    def _replay(self, kept: list[Kept], store: PrefixStore, units: Units, device: torch.device) -> Replay:
        first = self.step.first_unit
        proof = (first - 1, self.run.proof.add) if store.has_to_prove else None
        return Replay(units, first, kept, device, self._differs, store.answers, proof)

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

    def _checking(self, entry: Entry, kept: list[Kept], run_all: Callable[[], None]) -> Callable[..., None]:
        def enter(*values) -> None:
            entry.note(*values)
            if not entry.is_alike(kept, len(entry.seen) - 1):
                run_all()
                self.decline(ENTRY)
        return enter
