"""Whether a weak row enters the network with what its conditional row entered it with.

A wrapper of another node may draw random numbers, change what it hands on from call to call, or lay the batch out anew.
Then a weak row in a call of its own would not have got what its conditional row got, and may not start from it. So what
enters is compared in every forward: at the host's call of the model, and inside the last wrapper around the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from comfy.patcher_extension import WrappersMP

from .rows import pick, tensors_in

_EXCERPT = 2048  # numbers


class Entry:
    """What enters the network in one forward, each time that something does.

    Args:
        rows: how many rows the batch has.
        batch: its size.
    """

    def __init__(self, rows: int, batch: int) -> None:
        self.rows, self.batch = rows, batch
        self.seen: list[list[torch.Tensor]] = []
        self.is_moved = False  # whether the latent had another batch somewhere

    def note(self, latent, *values) -> None:
        """The tensors among these enter now. Copies are kept, for a network may change what it is given."""
        tensors = tensors_in([value for value in (latent, *values) if not isinstance(value, dict)])
        self.is_moved |= bool(tensors) and tensors[0].shape[:1] != (self.batch,)
        self.seen.append([t.clone() for t in tensors if t.ndim])

    def by_sample(self, control: dict | None) -> None:
        """Each sample is a row of its own from here on, and this is what its ControlNet gave it."""
        self.rows = self.batch
        self.seen.append([hint for hints in (control or {}).values() for hint in hints if hint is not None])

    def is_alike(self, kept: Sequence, place: int) -> bool:
        """Whether the rows entered at this place as others did before, `kept` of each row."""
        if self.is_moved or any(row.entered is None or place >= len(row.entered) for row in kept):
            return False
        return all_agree([answer for index, row in enumerate(kept)
                          for answer in _entered_alike(self.of_row(index)[place], row.entered[place])])

    def of_row(self, row: int) -> list[list[torch.Tensor]]:
        """The row's part of each; all of it where a tensor does not hold the batch."""
        return [[pick(t, [row], self.rows) if t.shape[0] == self.batch else t for t in tensors]
                for tensors in self.seen]


def noting(options: dict, key: str, enter: Callable[..., None]) -> dict:
    """The transformer_options of a forward in which `enter` gets the network's arguments after all other wrappers."""
    def wrapper(executor, *args, **kwargs):
        enter(*args, *kwargs.values())
        return executor(*args, **kwargs)

    return _innermost(options, key, wrapper)


def inside(options: dict, key: str, change: Callable[[dict], dict]) -> dict:
    """The transformer_options of a forward in which the network gets what `change` makes of them after all other
    wrappers."""
    def changed(value):
        return change(value) if isinstance(value, dict) and "uuids" in value else value

    def wrapper(executor, *args, **kwargs):
        return executor(*map(changed, args), **{name: changed(value) for name, value in kwargs.items()})

    return _innermost(options, key, wrapper)


def _innermost(options: dict, key: str, wrapper: Callable) -> dict:
    """The transformer_options of a forward with this wrapper around the network, inside all others."""
    wrappers = options.get("wrappers", {})
    others = {name: found for name, found in wrappers.get(WrappersMP.DIFFUSION_MODEL, {}).items() if name != key}
    return {**options, "wrappers": {**wrappers, WrappersMP.DIFFUSION_MODEL: {**others, key: [wrapper]}}}


def is_same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Up to the rounding of their precision."""
    return bool(agree(a, b))


def agree(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """[] whether two tensors are the same, on their device: asking would wait for it."""
    if a.shape != b.shape:
        return torch.tensor(False, device=a.device)
    if not a.is_floating_point():
        return (a == b).all()
    error = (a.float() - b.float()).abs().amax() / b.float().abs().amax().clamp_min(1e-12)
    return error <= max(1e-4, 20 * torch.finfo(a.dtype).eps)


def _entered_alike(one: list[torch.Tensor], other: list[torch.Tensor]) -> list[torch.Tensor]:
    """Each [] whether two rows entered with the same. The host repeats a text that shares a call with a longer one."""
    if len(one) != len(other):
        return [torch.tensor(False)]
    pairs = [repeated(a, b.to(a)) for a, b in zip(one, other, strict=True) if a.numel() or b.numel()]
    return [agree(a, b) for a, b in pairs]


def all_agree(answers: list[torch.Tensor]) -> bool:
    """Whether all of `agree`'s answers are yes; the CPU waits once for each device. A text may lie on the CPU still."""
    devices = {answer.device for answer in answers}
    return all(bool(torch.stack([answer for answer in answers if answer.device == device]).all())
               for device in devices)


class Answers:
    """Answers of `agree`, asked together, for asking waits for the device.

    Attributes:
        is_late: whether only one that was due by turn was a no, so that it may have been one for some time.
    """

    def __init__(self) -> None:
        self.always: list[torch.Tensor] = []
        self.by_turn: list[torch.Tensor] = []
        self.is_late = False

    def add(self, answer: torch.Tensor, by_turn: bool = False) -> None:
        (self.by_turn if by_turn else self.always).append(answer)

    def ask(self) -> bool:
        """Whether all of them are yes; they are forgotten."""
        agreed = all_agree([*self.always, *self.by_turn])
        self.is_late |= not agreed and all_agree(self.always)
        self.always.clear()
        self.by_turn.clear()
        return agreed


def repeated(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two texts [B, N, C] at the length of the longer one, where that is a multiple of the other's."""
    if a.ndim == b.ndim == 3 and a.shape[1] and b.shape[1]:
        longest = max(a.shape[1], b.shape[1])
        a, b = (t if longest % t.shape[1] else t.repeat(1, longest // t.shape[1], 1) for t in (a, b))
    return a, b


class Excerpt(NamedTuple):
    """Some numbers [n] of a tensor, and how many it has."""

    numbers: torch.Tensor
    of: int


def excerpts(args: tuple, kwargs: dict, rows: Sequence[int], of: int,
             axes: Mapping[str | int, int | None]) -> list[list[Excerpt | None]]:
    """Of each of these rows, out of `of` rows, an excerpt of every tensor that a unit is given; None where the rows are
    not known. The first of them is what the units hand on. `axes` as in `Family`."""
    found, batch = [], None
    for place, t in (*enumerate(args), *kwargs.items()):
        axis = axes.get(place, 0)
        if not isinstance(t, torch.Tensor) or not t.ndim:
            continue
        if axis is None or not 0 <= axis < t.ndim or t.shape[axis] % of or batch not in (None, t.shape[axis]):
            found.append([None] * len(rows))
            continue
        batch = t.shape[axis]
        given = pick(t, rows, of, axis).movedim(axis, 0).reshape(len(rows), -1)
        size = given.shape[1]
        found.append([Excerpt(numbers, size) for numbers in given[:, ::max(1, size // _EXCERPT)].clone()])
    return [list(row) for row in zip(*found, strict=True)]
