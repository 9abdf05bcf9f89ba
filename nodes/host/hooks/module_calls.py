"""The arguments of one call of a module that takes rows of a batch, for some of the rows or with other streams."""

from __future__ import annotations

from collections.abc import Callable

from ....pag_core.blocks import Streams
from ..models.families import STACKED, Group, result_axis
from .rows import holds_rows, map_tensors, options_of_rows, pick, pick_stacked


class ModuleCall:
    """One call.

    Args:
        group: the data of the module's group.
        axes: as in `Family.axes`.
        args, kwargs: what it is given.
    """

    def __init__(self, group: Group, axes, args: tuple, kwargs: dict) -> None:
        self.group = group
        self.axes = axes
        self.args = args
        self.kwargs = kwargs

    @property
    def _first(self):
        return self.args[0] if self.args else next(iter(self.kwargs.values()))

    @property
    def is_tuple(self) -> bool:
        """Whether the block returns several things."""
        return bool(self.group.streams) or isinstance(self._first, tuple)

    @property
    def streams(self) -> Streams:
        if self.group.streams:
            return tuple(self.kwargs[one.name] if one.name in self.kwargs else self.args[one.position]
                         for one in self.group.streams)
        return self._first if isinstance(self._first, tuple) else (self._first,)

    def with_streams(self, streams: Streams) -> ModuleCall:
        """The same call with other streams."""
        args, kwargs = list(self.args), dict(self.kwargs)
        if self.group.streams:
            for one, x in zip(self.group.streams, streams, strict=True):
                if one.name in kwargs:
                    kwargs[one.name] = x
                else:
                    args[one.position] = x
        else:
            first = streams if isinstance(self._first, tuple) else streams[0]
            if args:
                args[0] = first
            else:
                kwargs[next(iter(kwargs))] = first
        return ModuleCall(self.group, self.axes, tuple(args), kwargs)

    def of_rows(self, rows: list[int], of: int) -> ModuleCall:
        """The call for these rows alone."""
        if of == 1:
            return self
        size = self.streams[0].shape[result_axis(self.axes)]

        def cut(value, place: str | int):
            axis = self.axes.get(place, 0)
            if isinstance(value, dict) and "uuids" in value:
                return options_of_rows(value, rows, of)
            if axis == STACKED:
                return map_tensors(value, lambda t: pick_stacked(t, rows, of, size))
            if place in self.axes:
                return map_tensors(value, lambda t: pick(t, rows, of, axis)
                                   if axis is not None and t.ndim > axis and t.shape[axis] % of == 0 else t)
            return map_tensors(value, lambda t: pick(t, rows, of) if holds_rows(t, size) else t)

        return ModuleCall(self.group, self.axes, tuple(cut(value, place) for place, value in enumerate(self.args)),
                     {name: cut(value, name) for name, value in self.kwargs.items()})

    def run(self, forward: Callable, call: ModuleCall) -> tuple[tuple, tuple]:
        """(streams, what else there is) that the block returns for a call."""
        out = forward(*call.args, **call.kwargs)
        out = tuple(out) if isinstance(out, (tuple, list)) else (out,)
        count = len(self.streams)
        return out[:count], out[count:]
