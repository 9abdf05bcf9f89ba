"""What happens around each forward of the network in a step, in an APPLY_MODEL wrapper.

It is the innermost one, so that other nodes' wrappers see options and rows as the host made them, and so that modules
which a node swaps for the length of a call (compiled ones) are there already.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace

import torch
from comfy.patcher_extension import WrappersMP

from ..hooks.blocks import BlockPatch
from ..hooks.compiled import as_written, uncompiled
from ..hooks.entry import Entry, inside, noting
from ..hooks.joint import JointPrefix
from ..hooks.kept import PrefixStore
from ..hooks.proof import Trials
from ..hooks.uncopied import Uncopied
from ..models.structure import unwrapped
from ..models.units import Units
from .control import Conds, with_noted_controls
from .neighbours import (
    KEY,
    in_reach,
    in_units,
    other_hooks,
    sees_samples,
    with_tried,
    wraps_network,
)

ENTRY = ("another node rearranges the batch, or gives the network different inputs for the perturbed rows than for the "
         "conditional ones")
PACKED = "the network uses a batch layout of its own"
MOVED = "another node calls the model without telling which rows the batch contains"
UNKNOWN_NETWORK = "the network that runs is not the one that was loaded"


class Forwards(Uncopied, ABC):
    """The forwards of one call of the host: which hooks they run under.

    Args:
        passes: whose weak rows may be in the call.

    Attributes:
        altered: units that hold a selected layer, where the call has weak rows alone.
        samples: of one row, in the host's call.
    """

    def __init__(self, passes: tuple) -> None:
        self.passes = passes
        self.run = passes[0].run
        self.decline = self.run.report.declined.add  # called with a reason where the prefix cannot be shared
        self.altered: set[int] = set()
        self.samples: int | None = None

    @abstractmethod
    def around(self, network, units: Units | None, options: dict, x: torch.Tensor, control,
               entry: Entry | None) -> AbstractContextManager[dict]:
        """The hooks of one forward, and the transformer_options it is to be given."""

    def changed(self, conds: Conds, x: torch.Tensor) -> Conds:
        """The call's conditionings; it runs them on this latent."""
        return conds

    def around_calls(self, wrappers: dict) -> dict:
        """Those of others' CALC_COND_BATCH wrappers that this call runs under."""
        return wrappers

    def added_to(self, model_options: dict) -> dict:
        """A copy of the model_options with this in it."""
        options = model_options.copy()
        transformer_options = options["transformer_options"] = options.get("transformer_options", {}).copy()
        wrappers = transformer_options["wrappers"] = transformer_options.get("wrappers", {}).copy()
        apply_model = wrappers[WrappersMP.APPLY_MODEL] = wrappers.get(WrappersMP.APPLY_MODEL, {}).copy()
        apply_model.pop(KEY, None)
        apply_model[KEY] = [self.apply_model]  # last, that is innermost
        around = self.around_calls(wrappers.get(WrappersMP.CALC_COND_BATCH, {}))
        wrappers[WrappersMP.CALC_COND_BATCH] = {**around, KEY: [self._calc]}
        return options

    def _calc(self, executor, model, conds, x_in: torch.Tensor, *args):
        self.samples = x_in.shape[0]
        return executor(model, self.changed(conds, x_in), x_in, *args)

    def apply_model(self, executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None,
                    **kwargs):
        """APPLY_MODEL wrapper: one per forward."""
        options, store = transformer_options or {}, self.run.store
        entry = None
        if store is not None and store.is_entry_noted:
            entry = Entry(len(options["uuids"]) if names_rows(options, x) else x.shape[0], x.shape[0])
            entry.note(x, t, c_concat, c_crossattn, *kwargs.values())
        with self._compiled(executor.class_obj) as (network, units), \
                self.around(network, units, options, x, control, entry) as options:
            return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

    @contextmanager
    def _compiled(self, model) -> Iterator[tuple[torch.nn.Module, Units | None]]:
        """The network of a forward, and its units; see `hooks.compiled`."""
        run, altered = self.run, self.altered
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

    def perturbed(self, stack: ExitStack, network, options: dict) -> dict:
        """The transformer_options under which the selected layers of weak rows are weak."""
        for step in self.passes:
            options = stack.enter_context(step.patch.around(network, options, step.sources.__contains__,
                                                            step.run.report.skipped.add, step.noise_key))
        return options

    def is_moved(self, options: dict, x: torch.Tensor) -> bool:
        """Whether a forward has another batch than the host's call has sent."""
        return self.samples is not None and x.shape[0] != len(options.get("uuids") or ()) * self.samples


class JointForwards(Forwards):
    """Of a call that holds plain and weak rows.

    Args:
        on_split: called with a reason where the host takes the call apart.
    """

    def __init__(self, passes: tuple, on_split: Callable[[str], None]) -> None:
        super().__init__(passes)
        self.on_split = on_split

    @contextmanager
    def around(self, network, units, options, x, control, entry) -> Iterator[dict]:
        with ExitStack() as stack:
            if units is not None and all(step.settings.options.share_prefix for step in self.passes):
                firsts = [step.first_unit for step in self.passes]
                # Rows join at one unit; of several, at that which saves most. Those altered before it run from the
                # start.
                first = max(firsts, key=lambda unit: unit * sum(other >= unit for other in firsts))
                sources = {weak: plain for step in self.passes if step.first_unit >= first
                           for weak, plain in step.sources.items()}

                def decline(reason: str) -> None:
                    self.on_split(reason)
                    self.decline(reason)

                prefix = JointPrefix(units, first, sources, decline)
                stack.enter_context(prefix.around(options, x.shape[0]))
                every = {weak: plain for step in self.passes for weak, plain in step.sources.items()}
                beside = JointPrefix(replace(units, modules=units.beside), len(units.beside), every, decline)
                stack.enter_context(beside.around(options, x.shape[0]))
            yield self.perturbed(stack, network, options)


class PlainForwards(Forwards):
    """Of the host's own call, whose conditional rows leave their state in `store`."""

    def __init__(self, step, store: PrefixStore) -> None:
        super().__init__((step,))
        self.store = store

    def changed(self, conds: Conds, x: torch.Tensor) -> Conds:
        self.store.note_input(conds, x)
        return with_noted_controls(conds, self.store)

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
            yield stack.enter_context(self._recorded(network, units, options, x, control, entry))

    @contextmanager
    def _recorded(self, network, units, options, x, control, entry) -> Iterator[dict]:
        run, store = self.run, self.store
        first = max(store.firsts)
        is_told = names_rows(options, x)
        is_moved = entry is not None and run.is_moved is not False and (
            run.is_moved or not is_told or self.is_moved(options, x))
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
                # They may remember something, as patches do.
                others += [*(module.forward for module in replaced), *(of_module[key] for of_module, key in hooks)]
                store.has_to_prove |= run.proof.is_given is None and bool(replaced)
                store.keeps_all |= bool(hooks)
                if others or wraps_network(options):
                    trials = Trials(units, first, rows, options, x.shape[0], others, in_reach(options), run.proof,
                                    store.answers.add)

                    def tried(options: dict) -> dict:
                        brought = in_units(options)  # by wrappers around the network
                        trials.others += brought
                        watch(brought)
                        return with_tried(options, trials)

                    given = inside(with_tried(options, trials), f"{KEY}_trials", tried)
                    stack.enter_context(trials.around(replaced, hooks))
            watch = stack.enter_context(store.recording(units, options, x.shape[0], entry, others))
            yield noting(given, KEY, entry.note) if entry else given


def names_rows(options: dict, x: torch.Tensor) -> bool:
    """Whether the transformer_options of a forward say which rows its batch has."""
    rows = len(options.get("uuids") or ())
    return rows > 0 and rows == len(options.get("cond_or_uncond") or ()) and x.shape[0] % rows == 0
