"""The rows of a batch, in whatever a network's modules take and return.

The host stacks rows (one for each conditioning) of equally many samples along the batch axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any
from uuid import UUID

import torch


@dataclass(frozen=True)
class RowPlan:
    """Which rows of one forward are left out at first, and from which rows they come back.

    Attributes:
        plain: the rows that run from the start, by their place in the host's batch.
        places: for every row of the host's batch, its place in `plain`, or that of the row it copies.
    """

    plain: tuple[int, ...]
    places: tuple[int, ...]

    @classmethod
    def of(cls, uuids: Sequence[UUID], conds: Sequence[int], sources: Mapping[UUID, UUID]) -> RowPlan | None:
        """The plan for the rows of a call, or None where a weak row's conditional row is in another call.

        Args:
            uuids, conds: the host's "uuids" and "cond_or_uncond". The conditional rows have the index 0; of a region
                the host makes an unconditional row with the same uuid.
            sources: {uuid of a weak row: uuid of the conditional row that it copies}.
        """
        plain = [i for i, row in enumerate(uuids) if row not in sources]
        place_of = {uuids[i]: place for place, i in enumerate(plain) if conds[i] == 0}
        if any(row in sources and sources[row] not in place_of for row in uuids):
            return None
        return cls(tuple(plain), tuple(place_of[sources[row]] if row in sources else plain.index(i)
                                       for i, row in enumerate(uuids)))

    def leave_out(self, batch: torch.Tensor, axis: int = 0) -> torch.Tensor:
        """The plain rows of a batch of all rows."""
        return pick(batch, self.plain, len(self.places), axis)

    def put_back(self, batch: torch.Tensor, axis: int = 0) -> torch.Tensor:
        """All rows, from a batch of the plain ones."""
        return pick(batch, self.places, len(self.plain), axis)


@contextmanager
def running(uuids: list, rows: Sequence[int]) -> Iterator[None]:
    """While only these rows of a forward are in the batch: its list of uuids, which all patches of it hold, says so."""
    every = list(uuids)
    uuids[:] = [every[row] for row in rows]
    try:
        yield
    finally:
        uuids[:] = every


def pick(batch: torch.Tensor, rows: Sequence[int], of: int, axis: int = 0) -> torch.Tensor:
    """These rows of a batch of `of` rows; a view where they lie side by side."""
    if list(rows) == list(range(rows[0], rows[0] + len(rows))):
        size = batch.shape[axis] // of
        return batch.narrow(axis, rows[0] * size, len(rows) * size)
    parts = batch.chunk(of, dim=axis)
    return torch.cat([parts[row] for row in rows], dim=axis)


def options_of_rows(options: dict, rows: Sequence[int], of: int) -> dict:
    """The host's transformer_options for these rows; U-Nets tell a block in them how large its batch is."""
    options = {**options, **{key: [options[key][row] for row in rows] for key in ("uuids", "cond_or_uncond")}}
    if "activations_shape" in options:
        batch, *shape = options["activations_shape"]
        options["activations_shape"] = [batch // of * len(rows), *shape]
    return options


def pick_stacked(t: torch.Tensor, rows: Sequence[int], of: int, batch: int) -> torch.Tensor:
    """The same of a tensor that holds the batch once or several times, one after the other; others as they are."""
    return t if t.shape[0] % batch else pick(t.unflatten(0, (-1, batch)), rows, of, axis=1).flatten(0, 1)


def map_tensors(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """`value` with every tensor in it changed, however deep in tuples, lists, dicts and dataclasses."""
    if isinstance(value, torch.Tensor):
        return change(value) if value.ndim else value
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        return type(value)(map_tensors(item, change) for item in value)
    if isinstance(value, dict):
        return {key: map_tensors(item, change) for key, item in value.items()}
    if isinstance(getattr(value, "data", None), torch.Tensor) and hasattr(value, "batch_size"):  # LTX-Video's timesteps
        changed: Any = copy(value)
        changed.data = change(changed.data)
        changed.batch_size = changed.data.shape[0]
        return changed
    if is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value)]
        return replace(value, **{name: map_tensors(getattr(value, name), change) for name in names})
    return value


UNCLEAR = "a block takes a tensor whose batch dimension is unknown"


class UnclearError(ValueError):
    """A tensor may or may not hold the rows."""


def holds_rows(t: torch.Tensor, batch: int) -> bool:
    """Whether the first axis of a unit's argument is the batch.

    Raises:
        UnclearError: where it is a multiple of it: two vectors a row, say, in an order that is the network's own.
    """
    if t.shape[0] != batch and batch > 1 and t.shape[0] % batch == 0:
        raise UnclearError(UNCLEAR)
    return t.shape[0] == batch


def tensors_in(value) -> list[torch.Tensor]:
    """Every tensor that `map_tensors` finds."""
    found: list[torch.Tensor] = []

    def note(t: torch.Tensor) -> torch.Tensor:
        found.append(t)
        return t

    map_tensors(value, note)
    return found


def merged(values: Sequence, kinds: tuple[type, ...], join: Callable[[list], torch.Tensor]):
    """One value from several of the same form, each part of these kinds in them joined with its counterparts."""
    first = values[0]
    if isinstance(first, (tuple, list)):
        return type(first)(merged(items, kinds, join) for items in zip(*values, strict=True))
    if isinstance(first, dict):
        return {key: merged([value[key] for value in values], kinds, join) for key in first}
    return join(list(values)) if isinstance(first, kinds) else first
