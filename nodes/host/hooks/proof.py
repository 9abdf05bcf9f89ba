"""Whether a row that is left out of a unit would have been given the same there.

Other nodes' code inside a unit may treat a row by what else is in the batch (NAG looks for the unconditional row) or by
chance (token merging), and may begin to in the middle of a run. Then a weak row in a call of its own would not have got
what its conditional row got, and may not start from it. Nothing tells such code from other code but what it does. So in
every step it is called for the conditional rows alone as well, and has to give the same. That costs what it computes,
not a unit.
"""

from __future__ import annotations

import sys
import types
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial

import comfy.model_management
import torch
from torch import nn

from ..models.families import result_axis
from ..models.units import Units, transformer_blocks
from .chance import other_numbers
from .compiled import other_forward
from .entry import agree
from .joint import plain_rows
from .remembered import Own, apart
from .rows import RowPlan, UnclearError, map_tensors, options_of_rows, pick, running, tensors_in
from .uncopied import Uncopied

_STOPS = (comfy.model_management.InterruptProcessingException, comfy.model_management.OOM_EXCEPTION)


class Proof(Uncopied):
    """Whether, beside other nodes' code in the units, a weak row may start from what its conditional row left. One for
    a run of a whole chain of PAGs.

    Attributes:
        is_given: whether that code treats both alike; None until it was tried.
        has_differed: whether it has once treated them apart in this run.
        turn: how many forwards it was tried in.
        unclear: indices of the units in which it lays the rows out anew.
    """

    def __init__(self) -> None:
        self.is_given: bool | None = None
        self.has_differed = False
        self.turn = 0
        self.unclear: set[int] = set()
        self.pause = self.rest = 1  # evaluations between two attempts, and until the next

    def add(self, is_same: bool) -> None:
        """What came of trying."""
        self.is_given = is_same and self.is_given is not False
        self.has_differed |= not is_same

    def begin(self) -> None:
        """Before an evaluation. Code that treats rows apart may do so in a part of the run only (a range of noise
        levels), so it is tried again, ever more rarely as long as it still does. Not where the rows cannot be told, for
        there only one unit is tried in a forward."""
        if self.is_given is not False or self.unclear:
            return
        self.rest -= 1
        if self.rest < 0:
            self.is_given, self.turn = None, 0
            self.pause = self.rest = 2 * self.pause


@dataclass(frozen=True)
class Kind:
    """How functions of others are tried.

    Attributes:
        calls: in so many of their calls in a forward, and in one unit; None: in all.
        is_in_turn: whether they are not tried everywhere in every forward.
        is_told: whether the unit has to be tried where they are given rows that cannot be told.
        lays_out: whether it is such functions that lay the rows out anew.
        calls_others: whether they may call any other function of others.
    """

    calls: int | None = None
    is_in_turn: bool = False
    is_told: bool = True
    lays_out: bool = False
    calls_others: bool = False


PATCH, HOOK = Kind(lays_out=True), Kind()
ATTENTION, TEXT_ATTENTION = Kind(calls=1, is_in_turn=True), Kind()
OVERRIDE = Kind(calls=2, is_in_turn=True, is_told=False)  # those to the image and to the text show in two calls
FORWARD = Kind(is_in_turn=True, calls_others=True)


class Trials:
    """In one forward of the host's own: what others have put into the units before `first` is tried.

    Patches of little cost are tried in every unit. What computes a whole attention, or is a module's forward, is tried
    everywhere in the first forward, and in every forward once others' code has treated rows apart in this run; else in
    its first calls and in one unit, another in each forward. Where the rows
    cannot be told, because a patch laid them out anew, a unit as a whole is tried: one that is known, another in each
    forward, and the first that is found.

    Args:
        rows: places of the conditional rows in the batch.
        options: the transformer_options of the forward.
        batch: the first axis of what the network is given.
        others: what other nodes have attached that acts inside the units; it remembers nothing of a trial.
        state: what among these every one may reach: an attention override, and what is no function.
        tell: is told of each trial whether it gave the same, [] on its device (asking would wait for it), and whether
            it was due by turn, so that a difference may have been there in earlier forwards.
        samples: where another node rearranges the batch, the places of the rows' samples in it.
    """

    def __init__(self, units: Units, first: int, rows: list[int], options: dict, batch: int, others: list,
                 state: Sequence, proof: Proof, tell: Callable[[torch.Tensor, bool], None],
                 samples: tuple[int, ...] = ()) -> None:
        self.units, self.first, self.batch, self.tell = units, first, batch, tell
        self.are_all_due = proof.turn == 0 or proof.has_differed
        self.uuids, self.others, self.state, self.proof = options["uuids"], others, state, proof
        self.rows = rows
        self.plan = RowPlan(samples or tuple(rows), tuple(range(batch if samples else len(self.uuids))))
        attentions = [index for index, unit in enumerate(units.modules[:first]) if transformer_blocks(unit)]
        self.turn = _in_turn(attentions or range(first), proof.turn)
        self.whole = _in_turn(sorted(index for index in proof.unclear if index < first), proof.turn)  # to be tried
        self.has_found = False  # a unit in which the rows cannot be told, and which was not known
        self.calls: Counter = Counter()  # of functions of the same code
        self.is_saving = False  # whether a unit may have to be tried as a whole
        self.unit: int | None = None  # which runs
        self.given: tuple | None = None  # the rows' part of what it was given
        self.is_unclear = False
        self.is_beside = False  # whether more acts on rows that cannot be told than the patches that laid them out
        self.own: Own = {}  # what others remember of the trials in this unit
        self.cut_options: dict[int, tuple[dict, dict]] = {}  # {id: (options that others were given, the rows' own)}

    @contextmanager
    def around(self, replaced: Sequence[nn.Module],
               hooks: Sequence[tuple[nn.Module, dict, int]] = ()) -> Iterator[None]:
        """Hooks for the forward.

        Args:
            replaced: modules in the units with another forward than the host's.
            hooks: (a module in the units, its hooks, the key of one of others).
        """
        with ExitStack() as stack:
            for index, unit in enumerate(self.units.modules[:self.first]):
                stack.callback(unit.register_forward_pre_hook(self._enter(index), with_kwargs=True).remove)
                # Others' hooks on a unit itself act between the units.
                stack.callback(unit.register_forward_hook(self._leave, prepend=True).remove)
            for _, of_module, key in hooks:
                stack.callback(of_module.__setitem__, key, of_module[key])
                of_module[key] = self.tried(of_module[key], HOOK)
            for module in replaced if self.are_all_due else replaced and [_in_turn(replaced, self.proof.turn)]:
                stack.enter_context(other_forward(module, partial(self.tried, kind=FORWARD)))
            yield
        self.proof.turn += 1

    def tried(self, function: Callable, kind: Kind) -> Callable:
        """A function of others, tried as its kind is."""
        if isinstance(function, _Tried):
            return function
        self.is_saving |= kind.is_told
        # Where nothing is compiled torch._dynamo need not be there, and its import takes seconds.
        return (_outside_graphs() if "torch._dynamo" in sys.modules else _Tried)(self, function, kind)

    def _enter(self, index: int) -> Callable:
        def hook(unit, args, kwargs) -> None:
            if self.unit is not None:
                return
            self.unit, self.is_unclear, self.is_beside, self.given = index, False, False, None
            if self.is_saving:
                with suppress(UnclearError):
                    # Copies, for the unit may change what it is given.
                    self.given = _mapped(plain_rows(self.plan, self.batch, self.units, args, kwargs, self._as_weak),
                                         torch.clone, lambda options: options)
        return hook

    def _leave(self, unit, args, output) -> None:
        if self.unit is None or unit is not self.units.modules[self.unit]:
            return
        index, self.unit = self.unit, None
        given, self.given = self.given, None
        self.own.clear()
        self.cut_options.clear()
        if not self.is_unclear:
            return
        is_new = index not in self.proof.unclear
        self.proof.unclear.add(index)
        is_due = index == self.whole or (self.is_beside and self.are_all_due) or (is_new and not self.has_found)
        if not is_due:
            return
        self.has_found |= is_new
        alone = None
        if given is not None:
            with running(self.uuids, self.rows):
                alone = self.alone(lambda: unit.forward(*given[0], **given[1]), output, self.others, {})
        axis = result_axis(self.units.axes)
        self.agree(tensors_in(alone), [self.cut(t, axis) for t in tensors_in(output)], not is_new)

    def alone(self, call: Callable, given, others: list, own: Own):
        """What a call gives of which others remember nothing but in `own`, with other random numbers, so that chance
        shows; None where it fails. `given`: something that is on its device."""
        unit, self.unit = self.unit, None  # what others call inside is not tried again
        with other_numbers(_devices(given)), apart(others, own):
            try:
                return call()
            except _STOPS:
                raise
            except Exception:
                return None
            finally:
                self.unit = unit

    def cut(self, t: torch.Tensor, axis: int = 0) -> torch.Tensor:
        """The rows' part of a batch of all."""
        return pick(t, self.plan.plain, len(self.plan.places), axis)

    def options(self, given: dict) -> dict:
        """A forward's options for the rows alone, the same in all trials of a unit: patches hand on things in them."""
        if id(given) not in self.cut_options:
            self.cut_options[id(given)] = given, self._as_weak(given)
        return self.cut_options[id(given)][1]

    def _as_weak(self, options: dict) -> dict:
        """A forward's options as in a call of the rows' weak ones alone, which others see under the index 0; some
        guiders give the conditional rows another one."""
        return {**options_of_rows(options, self.rows, len(self.uuids)), "cond_or_uncond": [0] * len(self.rows)}

    def agree(self, alone: list[torch.Tensor], among_all: list[torch.Tensor], in_turn: bool) -> None:
        by_turn = in_turn and not self.are_all_due
        if not alone or len(alone) != len(among_all):
            self.tell(torch.tensor(not alone and not among_all), by_turn)
        for one, other in zip(alone, among_all, strict=False):
            self.tell(agree(one, other), by_turn)


class _Tried:
    """A function of others in one forward, given tensors and a forward's options, or what is made of them."""

    def __init__(self, trials: Trials, function: Callable, kind: Kind) -> None:
        self.trials, self.function, self.kind = trials, function, kind

    def __call__(self, *args, **kwargs):
        trials = self.trials
        first = next(iter(tensors_in([value for value in (*args, *kwargs.values()) if not _is_options(value)])), None)
        if trials.unit is None or first is None or not self._is_due():
            return self.function(*args, **kwargs)
        if first.shape[0] != trials.batch:
            trials.is_unclear |= self.kind.is_told
            trials.is_beside |= self.kind.is_told and not self.kind.lays_out
            return self.function(*args, **kwargs)
        cut_args, cut_kwargs = self._cut(args), self._cut(kwargs)
        inside = trials.others if self.kind.calls_others else trials.state
        modules = [value for value in args if isinstance(value, nn.Module)]  # a hook may keep something there
        # Before the call itself, for others may count.
        alone = tensors_in(trials.alone(lambda: self.function(*cut_args, **cut_kwargs), first,
                                        [self.function, *modules, *inside], trials.own))
        out = self.function(*args, **kwargs)
        got = [trials.cut(t) if t.shape[0] == trials.batch else t for t in tensors_in(out)]
        if len(alone) == len(got) and any(a.shape != b.shape for a, b in zip(alone, got, strict=True)):
            trials.is_unclear = True
        else:
            trials.agree(alone, got, self.kind.is_in_turn)
        return out

    def _is_due(self) -> bool:
        if self.kind.calls is None or self.trials.are_all_due or self.trials.unit == self.trials.turn:
            return True
        code = _code(self.function)
        self.trials.calls[code] += 1
        return self.trials.calls[code] <= self.kind.calls

    def _cut(self, value):
        trials = self.trials
        return _mapped(value, lambda t: trials.cut(t).clone() if t.shape[0] == trials.batch else t, trials.options)


@cache
def _outside_graphs() -> type[_Tried]:
    """The same class, with calls that torch.compile leaves out of its graphs: for each forward there is a new one."""
    return type("_TriedOutsideGraphs", (_Tried,), {"__call__": torch.compiler.disable(_Tried.__call__)})


def _is_options(value) -> bool:
    return isinstance(value, dict) and "uuids" in value


def _mapped(value, change: Callable[[torch.Tensor], torch.Tensor], options: Callable[[dict], dict]):
    """What a function is given, with every tensor in it changed but those in a forward's options, for which `options`
    says what stands there."""
    if _is_options(value):
        return options(value)
    if isinstance(value, dict):
        return {name: _mapped(item, change, options) for name, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_mapped(item, change, options) for item in value)
    return map_tensors(value, change)


def _in_turn(values: Sequence, turn: int):
    """One of these, another in each turn; None of none."""
    return values[turn % len(values)] if values else None


def _code(function: Callable):
    """What two functions of the same code share."""
    function = getattr(function, "__func__", function)
    return function.__code__ if isinstance(function, types.FunctionType) else type(function)


def _devices(value) -> list[torch.device]:
    """The accelerators on which random numbers may be drawn."""
    return list({t.device for t in tensors_in(value) if t.device.type == "cuda"})
