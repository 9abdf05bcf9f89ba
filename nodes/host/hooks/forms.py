"""What the blocks of a network that no table knows pass on, told from calls of them.

A call shows which of its arguments each tensor that the block returns continues. In later calls of the same form a
block that is skipped need not run: its arguments stand in for what it would return.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import nn

from ....pag_core.attention import PerturbationError
from .remembered import changes, snapshot
from .rows import map_tensors, tensors_in

_MARGIN = 0.5  # between shares in the output, of which that of the argument passed on is about 1 and others' about 0


@dataclass(frozen=True)
class Form:
    """What one block returns for arguments of one form.

    Attributes:
        arguments: with tensors of the same shapes, without their numbers.
        places: of each tensor that is returned, its place among the tensors of the arguments.
        output: the same of what is returned; None where a call does more than return tensors.
        is_pure: whether it does not even change the arguments that it passes on.
    """

    arguments: Any
    places: tuple[int, ...]
    output: Any
    is_pure: bool

    def fits(self, arguments: Any) -> bool:
        """Whether a call with such arguments is like this one, but for the number of rows."""
        given, own = tensors_in(arguments), tensors_in(self.arguments)
        ratios = {then.shape[0] / now.shape[0] for then, now in zip(own, given, strict=False)
                  if then.shape != now.shape and now.shape[0]}
        return _is_alike(self.arguments, arguments) and len(ratios) < 2 and _equals(own) == _equals(given)

    def standing_in(self, given: list[torch.Tensor]) -> Any:
        """What the block returns where it is skipped; copies, for the network may add to it in place."""
        places = iter(self.places)
        return map_tensors(self.output, lambda _: given[next(places)].clone())


class Call:
    """One call of a block, as it is before the block runs.

    Args:
        name: of its layer, for messages.
    """

    def __init__(self, name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.name, self.module = name, module
        self.arguments = _arguments(args, kwargs)
        self.tensors = tensors_in(self.arguments)
        self.before = [t.clone() for t in self.tensors]  # the block may change them
        self.remembered = snapshot((*args, *kwargs.values()), [module])

    def form(self, output: Any) -> Form:
        """The form of the call, which has returned this.

        Raises:
            PerturbationError: where that does not show what the block passes on.
        """
        places = tuple(map(self._place, tensors_in(output)))
        if not places:
            raise PerturbationError(f"layers: {self.name} cannot be skipped: it returns {type(output).__name__}, in "
                                    f"which no tensor was found. Select other layers.")
        changed = [not torch.equal(*pair) for pair in zip(self.before, self.tensors, strict=True)]
        does_more = not _is_of_tensors(output) or bool(changes(self.remembered)) or any(
            changed[place] for place in range(len(changed)) if place not in places)
        return Form(_blank(self.arguments), places, None if does_more else _blank(output),
                    not does_more and not any(changed))

    def _place(self, x: torch.Tensor) -> int:
        alike: list[int] = []
        for place, t in enumerate(self.before):
            if t.shape == x.shape and not any(torch.equal(t, self.before[other]) for other in alike):
                alike.append(place)
        shape = "×".join(map(str, x.shape))
        if not alike:
            raise PerturbationError(f"layers: {self.name} cannot be skipped: its output has the shape {shape}, which "
                                    f"differs from its input's. Select other layers.")
        if len(alike) == 1:
            return alike[0]
        inputs = torch.stack([self.before[place].flatten().float() for place in alike])
        shares = torch.linalg.pinv(inputs @ inputs.T) @ (inputs @ x.flatten().float())
        (first, second), order = (part.tolist() for part in shares.topk(2))
        if not first - second > _MARGIN:
            raise PerturbationError(f"layers: {self.name} cannot be skipped: {len(alike)} of its inputs have the shape "
                                    f"of its output ({shape}), and it is unclear which of them it passes on. Select "
                                    f"other layers.")
        return alike[order[0]]


class Forms:
    """The forms of the blocks of one run."""

    def __init__(self) -> None:
        self._known: dict[nn.Module, list[Form]] = defaultdict(list)
        self._unclear: set[nn.Module] = set()  # blocks whose plain calls did not show it

    def of(self, module: nn.Module, args: tuple, kwargs: dict) -> Form | None:
        """That of a call; None where no such call has been seen."""
        arguments = _blank(_arguments(args, kwargs))
        return next((form for form in self._known[module] if form.fits(arguments)), None)

    def are_pure(self, blocks: Iterable[nn.Module]) -> bool:
        """Whether all that these blocks do shows in what they return, as far as their calls were seen."""
        return all(self._known[block] and all(form.is_pure for form in self._known[block]) for block in blocks)

    def learn(self, call: Call, output: Any) -> Form:
        """That of a call, which has returned this; see `Call.form`."""
        form = call.form(output)
        self._known[call.module].append(form)
        return form

    @contextmanager
    def watching(self, blocks: Collection[tuple[str, nn.Module]]) -> Iterator[None]:
        """For one forward of plain rows: learns the forms of these blocks, each with its layer's name."""
        with ExitStack() as stack:
            for name, module in blocks:
                calls: list[Call] = []

                def enter(module, args: tuple, kwargs: dict, name=name, calls=calls) -> None:
                    is_told = module in self._unclear or self.of(module, args, kwargs)
                    calls[:] = [] if is_told else [Call(name, module, args, kwargs)]

                def leave(module, args, output, calls=calls) -> None:
                    for call in calls:
                        try:
                            self.learn(call, output)
                        except PerturbationError:  # a call of weak rows will say so
                            self._unclear.add(module)

                stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(leave).remove)
            yield


def _arguments(args: tuple, kwargs: dict) -> tuple:
    """What a block is given, but for the host's transformer_options, of which it passes nothing on."""
    def is_options(value: Any) -> bool:
        return isinstance(value, dict) and "uuids" in value

    return (tuple(value for value in args if not is_options(value)),
            {name: value for name, value in kwargs.items() if not is_options(value)})


def tensors_of(args: tuple, kwargs: dict) -> list[torch.Tensor]:
    """The tensors among a block's arguments, as `Form.places` counts them."""
    return tensors_in(_arguments(args, kwargs))


def _blank(value: Any) -> Any:
    return map_tensors(value, lambda t: torch.empty(t.shape, device="meta"))


def _parts(value: Any) -> list | None:
    """What a tuple, list, dict or dataclass holds, its keys too."""
    if isinstance(value, (tuple, list)):
        return list(value)
    if isinstance(value, dict):
        return [part for item in value.items() for part in item]
    if is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name) for field in fields(value)]
    return None


def _is_alike(a: Any, b: Any) -> bool:
    """Whether two arguments are of one form, but for the length of the first axis of tensors."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.shape[1:] == b.shape[1:]
    if (parts := _parts(a)) is not None:
        others = _parts(b) or []
        return len(parts) == len(others) and all(map(_is_alike, parts, others))
    return not isinstance(a, (bool, int, float, str)) or a == b


def _equals(tensors: list[torch.Tensor]) -> list[int]:
    """For each of these the first of the same shape."""
    shapes = [t.shape for t in tensors]
    return list(map(shapes.index, shapes))


def _is_of_tensors(value: Any) -> bool:
    """Whether there is nothing else in a block's output that a call would have to bring."""
    if isinstance(value, torch.Tensor):
        return value.ndim > 0
    if hasattr(value, "_fields"):
        return False  # `map_tensors` leaves named tuples as they are
    parts = _parts(value)
    return value is None or isinstance(value, str) if parts is None else all(map(_is_of_tensors, parts))
