"""The forwards of the host's own call: they run as without PAG, and leave what the weak rows may start from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

from torch import nn

from ..hooks.blocks import BlockPatch
from ..hooks.entry import inside, noting
from ..hooks.kept import PrefixStore
from ..hooks.proof import Trials
from .control import Conds, with_told_controls
from .control_networks import noting_networks
from .forwards import ENTRY, MOVED, Forwards, names_rows
from .neighbours import KEY, OtherHook, in_reach, in_units, other_hooks, sees_samples, with_tried, wraps_network

PACKED = "the network uses a batch layout of its own"
UNKNOWN_NETWORK = "the network that runs is not the one that was loaded"


@dataclass(frozen=True)
class Acting:
    """What of other nodes acts inside the units of one forward.

    Attributes:
        patches: what they have attached, and what it may keep.
        replaced: modules with another forward than the host's.
        hooks: theirs.
    """

    patches: list
    replaced: list[nn.Module]
    hooks: list[OtherHook]

    def __bool__(self) -> bool:
        return bool(self.patches or self.replaced or self.hooks)

    @property
    def may_remember(self) -> list:
        """All of it; forwards and hooks may remember something, as patches do, also on their modules."""
        return [*self.patches, *self.replaced, *(module.forward for module in self.replaced),
                *(part for module, hooks, key in self.hooks for part in (module, hooks[key]))]


class PlainForwards(Forwards):
    """Of the host's own call, whose conditional rows leave their state in `store`."""

    def __init__(self, step, store: PrefixStore) -> None:
        super().__init__((step,))
        self.store = store
        self.moved = 0  # forwards in which a wrapper has moved rows

    def changed(self, conds: Conds, x) -> Conds:
        self.store.note_input(conds, x)
        return with_told_controls(conds, x.shape[0], self.store)

    def around_controls(self, conds: Conds) -> AbstractContextManager:
        return noting_networks(conds, self.store)

    @contextmanager
    def around(self, network, units, options, x, control, entry) -> Iterator[dict]:
        run, store = self.run, self.store
        with ExitStack() as stack:
            for step in self.passes if units else ():
                if isinstance(step.patch, BlockPatch):
                    stack.enter_context(step.patch.learning(network))
            if units and run.found.is_by_shape and max(store.firsts):
                stack.enter_context(run.forms.watching([("", unit) for unit in units.modules[:max(store.firsts)]]))
            stack.enter_context(store.watching(units))
            is_told = names_rows(options, x)
            is_moved = entry is not None and run.is_moved is not False and (
                run.is_moved or not is_told or self.is_moved(options, x))
            packed = run.found.is_apart and (is_moved or (is_told and len(options["uuids"]) > 1))
            if units is None or packed or not (is_told or is_moved):
                store.lost.add(PACKED if packed else MOVED if not is_told else UNKNOWN_NETWORK)
            elif is_moved:
                options = self._record_samples(stack, network, units, options, x, control, entry)
            else:
                options = self._record_rows(stack, network, units, options, x, entry)
            yield options

    def _record_rows(self, stack: ExitStack, network, units, options, x, entry) -> dict:
        """Hooks for a forward whose options say which rows its batch has."""
        store, acting = self.store, self._acting(network, units, options)
        if self.run.networks.others_act_outside(network):
            store.acts_outside = store.keeps_all = True
        rows = self._conditional(options)
        trials: Trials | None = None
        if rows and (acting or wraps_network(options)):
            trials = self._trials(units, options, x, acting, rows)
        given, others = options, acting.may_remember
        if trials:
            def tried(options: dict) -> dict:
                brought = in_units(options)  # by wrappers around the network
                trials.others += brought
                watch(brought)
                return with_tried(options, trials)

            given = inside(with_tried(options, trials), f"{KEY}_trials", tried)
            stack.enter_context(trials.around(acting.replaced, acting.hooks))
        watch: Callable = stack.enter_context(store.recording(units, options, x.shape[0], entry, others))
        return noting(given, KEY, entry.note) if entry else given

    def _record_samples(self, stack: ExitStack, network, units, options, x, control, entry) -> dict:
        """Hooks for a forward of which nothing says what row a sample is of. Which of them are the conditional rows'
        shows in the weak rows' call; if others act in the units, these are tried from the next evaluation on."""
        store, acting = self.store, self._acting(network, units, options)
        if sees_samples(options, units.modules[:max(store.firsts)]) or (acting and not names_rows(options, x)):
            store.lost.add(ENTRY)
            return options
        entry.by_sample(control)
        number, self.moved = self.moved, self.moved + 1
        samples = self.run.conditional_samples.get(number, ())
        rows, given = self._conditional(options) if acting else [], options
        if rows and len(samples) * len(options["uuids"]) == x.shape[0] * len(rows):
            trials = self._trials(units, options, x, acting, rows, samples)
            if trials:
                given = with_tried(options, trials)
                stack.enter_context(trials.around(acting.replaced, acting.hooks))
        else:
            samples = ()
        stack.enter_context(store.recording_samples(units, x.shape[0], entry, acting.may_remember, number,
                                                    samples if acting else None))
        return given

    def _conditional(self, options: dict) -> list[int]:
        """The places of the conditional rows."""
        return [row for row, index in enumerate(options["cond_or_uncond"]) if index == self.store.index]

    def _acting(self, network, units, options: dict) -> Acting:
        first = max(self.store.firsts)
        return Acting(in_units(options), self.run.networks.other_forwards(network, units, first),
                      list(other_hooks(units.modules[:first])))

    def _trials(self, units, options, x, acting: Acting, rows: list[int],
                samples: tuple[int, ...] = ()) -> Trials | None:
        """Trials of what others do; None where there is nothing to find out."""
        proof, store = self.run.proof, self.store
        first = max(store.firsts)
        if not first or proof.is_given is False:
            return None
        store.has_to_prove |= proof.is_given is None and bool(acting.replaced)
        store.keeps_all |= bool(acting.hooks)
        return Trials(units, first, rows, options, x.shape[0], acting.may_remember, in_reach(options), proof,
                      store.answers.add, samples)
