"""What happens around each forward of the network in a step, in an APPLY_MODEL wrapper.

It is the innermost one, so that other nodes' wrappers see options and rows as the host made them, and so that modules
which a node swaps for the length of a call (compiled ones) are there already.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

import torch
from comfy.patcher_extension import WrappersMP

from ..hooks.compiled import uncompiled
from ..hooks.entry import Entry, entered_alike, noting
from ..hooks.joint import JointPrefix
from ..hooks.kept import PrefixStore, replaying
from ..hooks.proof import trying
from ..models.units import Units
from .neighbours import FUNCTION_WRAPPER, KEY, acts_in_units, is_compiled, theirs

CHANCE = "another node's patch treats a row by what else is in the batch, or by chance"
ENTRY = "another node gives the network other input for the perturbed rows than for the conditional ones"
STATEFUL = "the network keeps tensors from call to call"
PACKED = "the network lays out the rows of a batch in a way of its own"
MOVED = "another node lays the batch out anew"
UNKNOWN_NETWORK = "the network that runs is not the one that was loaded"


@dataclass(frozen=True)
class _NotingWhatIsSent:
    """Another node's model function wrapper, and what the host gives it to send."""

    theirs: Callable
    forwards: Forwards

    def __call__(self, apply_model, args: dict):
        return self.forwards.send(self.theirs, apply_model, args)


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
        self.is_compiled = False
        self.is_past = False
        self.thread = threading.local()  # MultiGPU runs one forward in each of several threads

    def joint(self, on_split: Callable[[str], None]) -> Forwards:
        """For a call that holds plain and weak rows; `on_split` is called where the host takes it apart."""
        self.around = lambda *forward: self._joint(on_split, *forward)
        return self

    def alone(self, store: PrefixStore | None, is_past: bool = False) -> Forwards:
        """For a call of the weak rows alone, which start from what `store` kept (None: from the beginning). `is_past`:
        another node's function wrapper runs the network by itself, past the model's own call of it."""
        self.is_past = is_past
        self.around = lambda *forward: self._alone(store, *forward)
        self.altered = self.passes[0].altered_units
        return self

    def plain(self, store: PrefixStore) -> Forwards:
        """For the host's own calls, whose conditional rows leave their state in `store`."""
        self.around = lambda *forward: self._plain(store, *forward)
        return self

    def added_to(self, model_options: dict) -> dict:
        """A copy of the model_options with this in it."""
        self.is_compiled = is_compiled(model_options)
        options = model_options.copy()
        transformer_options = options["transformer_options"] = options.get("transformer_options", {}).copy()
        wrappers = transformer_options["wrappers"] = transformer_options.get("wrappers", {}).copy()
        apply_model = wrappers[WrappersMP.APPLY_MODEL] = wrappers.get(WrappersMP.APPLY_MODEL, {}).copy()
        apply_model.pop(KEY, None)
        apply_model[KEY] = [self._apply_model]  # last, that is innermost
        if FUNCTION_WRAPPER in options:
            # Ours may be around it already, from the call of another PAG.
            options[FUNCTION_WRAPPER] = _NotingWhatIsSent(theirs(options[FUNCTION_WRAPPER]), self)
        return options

    def send(self, wrapper: Callable, apply_model: Callable, args: dict) -> torch.Tensor:
        """What another node's function wrapper makes of the host's call."""
        self.thread.sent = args["input"]
        if not self.is_past:
            return wrapper(apply_model, args)
        with ExitStack() as stack:
            network, units = self.passes[0].run.network()
            self._watch_altered(stack, units)
            options = self._perturbed(stack, network, args["c"]["transformer_options"])
            return wrapper(apply_model, {**args, "c": {**args["c"], "transformer_options": options}})

    def _apply_model(self, executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None,
                     **kwargs):
        if self.is_past:
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        options = transformer_options or {}
        sent = getattr(self.thread, "sent", None)
        is_moved = sent is not None and (x.shape != sent.shape or x.data_ptr() != sent.data_ptr())
        entry = self._entry(len(options.get("uuids", ())), x.shape[0])
        if entry:
            entry.note(x, t, c_concat, c_crossattn, *kwargs.values())
        with self._compiled(executor.class_obj) as (network, units), \
                self.around(network, units, options, x, control, is_moved, entry) as options:
            return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

    @contextmanager
    def _compiled(self, model) -> Iterator[tuple[torch.nn.Module, Units | None]]:
        """The network of a forward, and its units; see `hooks.compiled`."""
        run, altered = self.passes[0].run, self.altered
        network = getattr(model.diffusion_model, "_orig_mod", model.diffusion_model)
        units = run.units(network)
        if units is None or not self.is_compiled:
            yield network, units
        elif network is model.diffusion_model:
            units = run.swapped_in(network)
            with uncompiled(units, altered):
                yield network, units
        elif run.compiled_units is None:
            yield network, None  # compiled whole by a node that does not say how
        else:
            with run.compiled_units.around(model, network, units, altered):
                yield network, units

    @contextmanager
    def _joint(self, on_split: Callable[[str], None], network, units, options: dict, x: torch.Tensor, control,
               is_moved: bool, entry: Entry | None) -> Iterator[dict]:
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
            yield self._perturbed(stack, network, options)

    @contextmanager
    def _alone(self, store: PrefixStore | None, network, units, options: dict, x: torch.Tensor, control,
               is_moved: bool, entry: Entry | None) -> Iterator[dict]:
        (step,) = self.passes
        with ExitStack() as stack:
            self._watch_altered(stack, units)
            options = self._perturbed(stack, network, options)
            kept = store and store.take(options["uuids"], step.sources)
            if store is not None and step.first_unit and units is not None:
                if is_moved:
                    self.decline(MOVED)
                elif not units.is_stateless:
                    self.decline(STATEFUL)
                elif step.run.proof.is_given is False:
                    self.decline(CHANCE)
                elif step.run.proof.enters_alike is False:
                    self.decline(ENTRY)
                elif kept is None:
                    for reason in store.lost or {"the conditional rows did not run the network in this step"}:
                        self.decline(reason)
                elif entry and not self._is_alike(entry, kept, 0):
                    self._declines_entry()
                else:
                    proof = (step.first_unit - 1, step.run.proof.add) if store.has_to_prove else None
                    run_all = stack.enter_context(replaying(units, step.first_unit, kept, x.device, proof))
                    if entry:
                        options = noting(options, KEY, self._checking(entry, kept, run_all))
            yield options
            if step.run.proof.enters_alike is None:
                step.run.proof.enters_alike = True  # once in a run is enough

    def _watch_altered(self, stack: ExitStack, units: Units | None) -> None:
        def note(*_) -> None:
            self.has_run_altered = True

        if units is None:
            self.has_run_altered = True
            return
        for index in self.altered:
            stack.callback(units.modules[index].register_forward_pre_hook(note).remove)

    def _entry(self, rows: int, batch: int) -> Entry | None:
        """Notes what enters a forward, where it has to be known whether that is the same for the weak rows."""
        run = self.passes[0].run
        wanted = run.store is not None and run.store.has_others and run.proof.enters_alike is None
        return Entry(rows, batch) if wanted and rows else None

    def _is_alike(self, entry: Entry, kept: list, place: int) -> bool:
        """Whether the weak rows entered at this place as their conditional rows did."""
        return all(row.entered is None or (place < len(row.entered) and entered_alike(
            entry.of_row(index)[place], row.entered[place])) for index, row in enumerate(kept))

    def _checking(self, entry: Entry, kept: list, run_all: Callable[[], None]) -> Callable[..., None]:
        def enter(*values) -> None:
            entry.note(*values)
            if not self._is_alike(entry, kept, len(entry.seen) - 1):
                run_all()
                self._declines_entry()
        return enter

    def _declines_entry(self) -> None:
        self.passes[0].run.proof.enters_alike = False
        self.decline(ENTRY)

    @contextmanager
    def _plain(self, store: PrefixStore, network, units, options: dict, x: torch.Tensor, control,
               is_moved: bool, entry: Entry | None) -> Iterator[dict]:
        packed = self.passes[0].run.found.is_apart and len(options["uuids"]) > 1
        if is_moved or units is None or packed:
            store.lost.add(MOVED if is_moved else PACKED if packed else UNKNOWN_NETWORK)
            yield options
            return
        with ExitStack() as stack:
            run, first = self.passes[0].run, max(store.firsts)
            if first and run.proof.is_given is None and acts_in_units(options):
                rows = [row for row, index in enumerate(options["cond_or_uncond"]) if index == store.index]
                if rows:
                    stack.enter_context(trying(units, first, rows, options, x.shape[0], run.proof.add))
            if run.proof.is_given is None:
                store.has_to_prove = run.has_other_forwards(network, units, first)
            stack.enter_context(store.recording(units, options, x.shape[0], control, entry))
            yield noting(options, KEY, entry.note) if entry else options

    def _perturbed(self, stack: ExitStack, network, options: dict) -> dict:
        for step in self.passes:
            options = stack.enter_context(step.patch.around(network, options, step.sources.__contains__,
                                                            step.run.skipped.add, step.noise_key))
        return options
