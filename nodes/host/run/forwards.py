"""What happens around each forward of the network in a step, in an APPLY_MODEL wrapper.

It is the innermost one, so that other nodes' wrappers see options and rows as the host made them, and so that modules
which a node swaps for the length of a call (compiled ones) are there already.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace

import torch
from comfy.patcher_extension import WrappersMP

from ..hooks.compiled import as_written, uncompiled
from ..hooks.entry import Entry
from ..hooks.joint import JointPrefix
from ..hooks.uncopied import Uncopied
from ..models.structure import unwrapped
from ..models.units import Units
from .control import Conds
from .following import unfollowed
from .neighbours import KEY

ENTRY = ("another node rearranges the batch, or gives the network different inputs for the perturbed rows than for the "
         "conditional ones")
MOVED = "another node calls the model without telling which rows the batch contains"


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

    def around_controls(self, conds: Conds) -> AbstractContextManager:
        """The hooks of the call's ControlNets, beside those that `changed` gives it."""
        return nullcontext()

    def around_calls(self, wrappers: dict) -> dict:
        """Those of others' CALC_COND_BATCH wrappers, among all kinds, that this call runs under."""
        return wrappers.get(WrappersMP.CALC_COND_BATCH, {})

    def added_to(self, model_options: dict) -> dict:
        """A copy of the model_options with this in it."""
        options = model_options.copy()
        transformer_options = options["transformer_options"] = options.get("transformer_options", {}).copy()
        wrappers = transformer_options["wrappers"] = transformer_options.get("wrappers", {}).copy()
        apply_model = wrappers[WrappersMP.APPLY_MODEL] = wrappers.get(WrappersMP.APPLY_MODEL, {}).copy()
        apply_model.pop(KEY, None)
        apply_model[KEY] = [self.apply_model]  # last, that is innermost
        around = self.around_calls(wrappers)
        wrappers[WrappersMP.CALC_COND_BATCH] = {**around, KEY: [self._calc]}
        return options

    def _calc(self, executor, model, conds, x_in: torch.Tensor, *args):
        self.samples = x_in.shape[0]
        with unfollowed(), self.around_controls(conds):
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
            left: set[str] = set()  # names of layers in which nothing is done
            stack.callback(step.note_left, left)
            options = stack.enter_context(step.patch.around(network, options, step.sources.__contains__, left.add,
                                                            step.noise_key))
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


def names_rows(options: dict, x: torch.Tensor) -> bool:
    """Whether the transformer_options of a forward say which rows its batch has."""
    rows = len(options.get("uuids") or ())
    return rows > 0 and rows == len(options.get("cond_or_uncond") or ()) and x.shape[0] % rows == 0
