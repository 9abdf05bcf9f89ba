"""What happens around each forward of the network in a step, in an APPLY_MODEL wrapper.

It is the innermost one, so that other nodes' wrappers see options and rows as the host made them, and so that modules
which a node swaps for the length of a call (compiled ones) are there already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import partial

import torch
from comfy.patcher_extension import WrappersMP

from ..hooks.blocks import BlockPatch
from ..hooks.compiled import as_written, uncompiled
from ..hooks.entry import Entry, inside, noting
from ..hooks.joint import JointPrefix
from ..hooks.kept import PrefixStore
from ..hooks.matched import matched
from ..hooks.proof import Trials
from ..hooks.replay import Replay
from ..models.structure import unwrapped
from ..models.units import Units
from .control import Conds, with_kept_controls, with_noted_controls
from .neighbours import (
    FUNCTION_WRAPPER,
    KEY,
    in_units,
    kept_in,
    other_hooks,
    sees_samples,
    with_tried,
    wraps_network,
)

CHANCE = "another node's patch depends on the other rows of the batch, or on random numbers"
ENTRY = ("another node rearranges the batch, or gives the network different inputs for the perturbed rows than for the "
         "conditional ones")
NOT_RUN = "the conditional rows did not pass through the network in this step"
STATEFUL = "the network keeps tensors between calls"
PACKED = "the network uses a batch layout of its own"
MOVED = "another node calls the model without telling which rows the batch contains"
DOES_MORE = "the network's blocks may do more than pass on what they return"
UNKNOWN_NETWORK = "the network that runs is not the one that was loaded"


class Forwards:
    """The forwards of one call of the host: which hooks they run under.

    Args:
        passes: whose weak rows may be in the call.
        decline: called with a reason where the prefix cannot be shared.
    """

    def __init__(self, passes: tuple, decline: Callable[[str], None]) -> None:
        self.passes = passes
        self.decline = decline
        self.around: Callable[..., AbstractContextManager[dict]]  # given by `joint`, `alone` or `plain`
        self.altered: set[int] = set()  # units that hold a selected layer, where the call has weak rows
        self.has_run_altered = False  # whether one of these has run; also where it cannot be told
        self.is_past = self.is_skipped = False
        self.samples: int | None = None  # of one row, in the host's call
        self.change: Callable[[Conds], Conds] = lambda conds: conds  # of the call's conditionings

    def joint(self, on_split: Callable[[str], None]) -> Forwards:
        """For a call that holds plain and weak rows; `on_split` is called where the host takes it apart."""
        self.around = lambda *forward: self._joint(on_split, *forward)
        return self

    def alone(self, store: PrefixStore | None, is_past: bool = False, is_skipped: bool = False) -> Forwards:
        """For a call of the weak rows alone, which start from what `store` kept (None: from the beginning). `is_past`:
        another node's function wrapper runs the network by itself, past the model's own call of it. `is_skipped`: a
        cache of whole steps has answered the host's call, and this one is to be a part of the same step."""
        self.is_past, self.is_skipped = is_past, is_skipped
        if store is not None:
            (step,) = self.passes
            self.change = lambda conds: with_kept_controls(conds, store, step.sources)
        self.around = lambda *forward: self._alone(store, *forward)
        self.altered = self.passes[0].altered_units
        return self

    def plain(self, store: PrefixStore) -> Forwards:
        """For the host's own calls, whose conditional rows leave their state in `store`."""
        self.around = lambda *forward: self._plain(store, *forward)
        self.change = lambda conds: with_noted_controls(conds, store)
        return self

    def added_to(self, model_options: dict) -> dict:
        """A copy of the model_options with this in it."""
        options = model_options.copy()
        transformer_options = options["transformer_options"] = options.get("transformer_options", {}).copy()
        wrappers = transformer_options["wrappers"] = transformer_options.get("wrappers", {}).copy()
        apply_model = wrappers[WrappersMP.APPLY_MODEL] = wrappers.get(WrappersMP.APPLY_MODEL, {}).copy()
        apply_model.pop(KEY, None)
        apply_model[KEY] = [self._apply_model]  # last, that is innermost
        around = {} if self.is_skipped else wrappers.get(WrappersMP.CALC_COND_BATCH, {})
        wrappers[WrappersMP.CALC_COND_BATCH] = {**around, KEY: [self._calc]}
        if self.is_past and FUNCTION_WRAPPER in options:
            options[FUNCTION_WRAPPER] = partial(self._past, options[FUNCTION_WRAPPER])
        return options

    def _past(self, wrapper: Callable, apply_model: Callable, args: dict) -> torch.Tensor:
        """What another node's function wrapper, which runs the network by itself, makes of the weak rows."""
        with ExitStack() as stack:
            network, units = self.passes[0].run.networks.first()
            self._watch_altered(stack, units)
            options = self._perturbed(stack, network, args["c"]["transformer_options"])
            return wrapper(apply_model, {**args, "c": {**args["c"], "transformer_options": options}})

    def _calc(self, executor, model, conds, x_in: torch.Tensor, *args):
        self.samples = x_in.shape[0]
        return executor(model, self.change(conds), x_in, *args)

    def _apply_model(self, executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None,
                     **kwargs):
        if self.is_past:
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        options, store = transformer_options or {}, self.passes[0].run.store
        entry = None
        if store is not None and store.is_entry_noted:
            entry = Entry(len(options["uuids"]) if _names_rows(options, x) else x.shape[0], x.shape[0])
            entry.note(x, t, c_concat, c_crossattn, *kwargs.values())
        with self._compiled(executor.class_obj) as (network, units), \
                self.around(network, units, options, x, control, entry) as options:
            return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

    @contextmanager
    def _compiled(self, model) -> Iterator[tuple[torch.nn.Module, Units | None]]:
        """The network of a forward, and its units; see `hooks.compiled`."""
        run, altered = self.passes[0].run, self.altered
        network = unwrapped(model.diffusion_model)
        units = run.networks.units(network)
        if units is None:
            yield network, None
        elif network is model.diffusion_model:
            units = run.networks.swapped_in(network)
            with uncompiled(units, altered):
                yield network, units
        elif run.networks.compiled_units is not None:
            with run.networks.compiled_units.around(model, units, altered):
                yield network, units
        elif altered:  # compiled whole by a node that does not say how
            with as_written(model):
                yield network, units
        else:
            yield network, None

    @contextmanager
    def _joint(self, on_split: Callable[[str], None], network, units, options: dict, x: torch.Tensor, control,
               entry: Entry | None) -> Iterator[dict]:
        with ExitStack() as stack:
            if units is not None and all(step.settings.options.share_prefix for step in self.passes):
                firsts = [step.first_unit for step in self.passes]
                # Rows join at one unit; of several, at that which saves most. Those altered before it run from the
                # start.
                first = max(firsts, key=lambda unit: unit * sum(other >= unit for other in firsts))
                sources = {weak: plain for step in self.passes if step.first_unit >= first
                           for weak, plain in step.sources.items()}

                def decline(reason: str) -> None:
                    on_split(reason)
                    self.decline(reason)

                prefix = JointPrefix(units, first, sources, decline)
                stack.enter_context(prefix.around(options, x.shape[0]))
                every = {weak: plain for step in self.passes for weak, plain in step.sources.items()}
                beside = JointPrefix(replace(units, modules=units.beside), len(units.beside), every, decline)
                stack.enter_context(beside.around(options, x.shape[0]))
            yield self._perturbed(stack, network, options)

    @contextmanager
    def _alone(self, store: PrefixStore | None, network, units, options: dict, x: torch.Tensor, control,
               entry: Entry | None) -> Iterator[dict]:
        (step,) = self.passes
        is_told = _names_rows(options, x)
        if not options.get("uuids"):  # another node has dropped them; all rows of this call are weak
            options = {**options, "uuids": [next(iter(step.sources))], "cond_or_uncond": [0]}
        with ExitStack() as stack:
            self._watch_altered(stack, units)
            options = self._perturbed(stack, network, options)
            kept = store and store.take(options["uuids"], step.sources)
            by_sample = bool(store and store.samples and entry and (kept is None or self._is_moved(options, x)))
            if store and entry and by_sample:
                entry.by_sample(control)
                kept = matched(entry, store.samples)
                step.run.is_moved = kept is not None
            if store is not None and step.first_unit and units is not None:
                if store.answers.always and step.run.proof.is_given is None:  # later: on the way; see `Replay`
                    step.run.proof.add(store.answers.ask())
                if not is_told and not by_sample:
                    self.decline(MOVED)
                elif not units.is_stateless:
                    self.decline(STATEFUL)
                elif step.found.is_by_shape and kept and not step.run.forms.are_pure(units.modules[:step.first_unit]):
                    self.decline(DOES_MORE)
                elif step.run.proof.is_given is False:
                    self.decline(CHANCE)
                elif kept is None:
                    for reason in store.lost or {ENTRY if by_sample else NOT_RUN}:
                        self.decline(reason)
                elif entry and not entry.is_alike(kept, int(by_sample)):
                    step.run.is_moved = step.run.is_moved is None  # from the next step on they are told by what enters
                    self.decline(ENTRY)
                else:
                    proof = (step.first_unit - 1, step.run.proof.add) if store.has_to_prove else None
                    replay = Replay(units, step.first_unit, kept, x.device, self._differs, store.answers, proof)
                    stack.enter_context(replay.around())
                    if entry and not by_sample:
                        options = noting(options, KEY, self._checking(entry, kept, replay.run_all))
            yield options

    def _differs(self) -> str:
        run = self.passes[0].run
        run.proof.add(False)
        run.report.is_late |= run.store is not None and run.store.answers.is_late
        return CHANCE

    def _is_moved(self, options: dict, x: torch.Tensor) -> bool:
        """Whether a forward has another batch than the host's call has sent."""
        return self.samples is not None and x.shape[0] != len(options.get("uuids") or ()) * self.samples

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

    @contextmanager
    def _plain(self, store: PrefixStore, network, units, *forward) -> Iterator[dict]:
        with ExitStack() as stack:
            for step in self.passes if units else ():
                if isinstance(step.patch, BlockPatch):
                    stack.enter_context(step.patch.learning(network))
            run = self.passes[0].run
            if units and run.found.is_by_shape and max(store.firsts):
                stack.enter_context(run.forms.watching([("", unit) for unit in units.modules[:max(store.firsts)]]))
            stack.enter_context(store.watching(units))
            yield stack.enter_context(self._recorded(store, network, units, *forward))

    @contextmanager
    def _recorded(self, store: PrefixStore, network, units, options: dict, x: torch.Tensor, control,
                  entry: Entry | None) -> Iterator[dict]:
        run, first = self.passes[0].run, max(store.firsts)
        is_told = _names_rows(options, x)
        is_moved = entry is not None and run.is_moved is not False and (
            run.is_moved or not is_told or self._is_moved(options, x))
        packed = run.found.is_apart and (is_moved or (is_told and len(options["uuids"]) > 1))
        if units is None or packed or not (is_told or is_moved):
            store.lost.add(PACKED if packed else MOVED if not is_told else UNKNOWN_NETWORK)
            yield options
            return
        if entry and is_moved:
            if sees_samples(options, units.modules[:first]):
                store.lost.add(ENTRY)
                yield options
                return
            entry.by_sample(control)
            with store.recording_samples(units, x.shape[0], entry):
                yield options
            return
        with ExitStack() as stack:
            others, given = in_units(options), options
            rows = [row for row, index in enumerate(options["cond_or_uncond"]) if index == store.index]
            if first and rows and run.proof.is_given is not False:
                replaced = run.networks.other_forwards(network, units, first)
                hooks = list(other_hooks(units.modules[:first]))
                store.has_to_prove |= run.proof.is_given is None and bool(replaced)
                store.keeps_all |= bool(hooks)
                if others or replaced or hooks or wraps_network(options):
                    trials = Trials(units, first, rows, options, x.shape[0], others, kept_in(options), run.proof,
                                    store.answers.add)
                    # Wrappers around the network may bring more.
                    given = inside(with_tried(options, trials), f"{KEY}_trials", lambda options: with_tried(
                        options, trials))
                    stack.enter_context(trials.around(replaced, hooks))
            stack.enter_context(store.recording(units, options, x.shape[0], entry, others))
            yield noting(given, KEY, entry.note) if entry else given

    def _perturbed(self, stack: ExitStack, network, options: dict) -> dict:
        for step in self.passes:
            options = stack.enter_context(step.patch.around(network, options, step.sources.__contains__,
                                                            step.run.report.skipped.add, step.noise_key))
        return options


def _names_rows(options: dict, x: torch.Tensor) -> bool:
    """Whether the transformer_options of a forward say which rows its batch has."""
    rows = len(options.get("uuids") or ())
    return rows > 0 and rows == len(options.get("cond_or_uncond") or ()) and x.shape[0] % rows == 0
