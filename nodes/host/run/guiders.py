"""Guiders of other packs that call the model past the host's PREDICT_NOISE wrappers.

Such a guider has a `__call__` of its own and goes from there straight to its `predict_noise`. For the length of a run
that method of this one guider is ours, around its own; where the wrappers have been asked already it is only its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from comfy.samplers import CFGGuider

from .run import Run


class _Asking:
    """In the place of a guider's predict_noise: asks every PAG of a chain, the first node first.

    Args:
        own: the guider's.
    """

    def __init__(self, guider, own: Callable) -> None:
        self.guider = guider
        self.own = own
        self.chain: list[tuple] = []  # (guidance, its run)

    def __call__(self, x, timestep, model_options=None, seed=None):
        is_asked = any(run.is_asked for _, run in self.chain)
        return _Link(self, len(self.chain) if is_asked else 0)(x, timestep, model_options, seed)


class _Link:
    """As a PREDICT_NOISE wrapper is given what is inside it."""

    def __init__(self, asking: _Asking, place: int) -> None:
        self.asking = asking
        self.place = place
        self.class_obj = asking.guider

    def __call__(self, x, timestep, model_options=None, seed=None):
        if self.place == len(self.asking.chain):
            return self.asking.own(x, timestep, model_options=model_options, seed=seed)
        guidance, _ = self.asking.chain[self.place]
        return guidance.predict_noise(_Link(self.asking, self.place + 1), x, timestep, model_options, seed)


@contextmanager
def asked(guider, guidance, run: Run) -> Iterator[None]:
    """For one run of a guider: `guidance.predict_noise` is asked in every evaluation, by the host or by us."""
    kind = type(guider)
    by_host = (kind.__call__ is CFGGuider.__call__ and kind.outer_predict_noise is CFGGuider.outer_predict_noise
               if isinstance(guider, CFGGuider) else not hasattr(guider, "predict_noise"))
    if by_host:
        yield
        return
    before = vars(guider).get("predict_noise")
    asking = before if isinstance(before, _Asking) else _Asking(guider, guider.predict_noise)
    asking.chain.append((guidance, run))
    guider.predict_noise = asking
    try:
        yield
    finally:
        asking.chain.pop()
        if before is None:
            del guider.predict_noise
        else:
            guider.predict_noise = before
