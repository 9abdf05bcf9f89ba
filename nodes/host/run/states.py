"""What other nodes' wrappers and patches remember from call to call, kept apart for the weak rows' calls.

Caches and step counters know calls for a conditional and an unconditional row. A third call in a step would count as a
step for them, or overwrite what they keep of the conditional row. So whatever such a call changes in their
variables, in its attributes or in what it has put on the network is put back after it, and is there again for the next
weak call. The first one finds the counts that the conditional rows found, and nothing that is kept of them. Where it is
answered without the network, or fails, it is made again with what they left, and with what was remembered before the
run.
"""

from __future__ import annotations

from collections.abc import Callable

import comfy.model_management
import torch
from torch import nn

from ....pag_core.attention import PerturbationError
from ..hooks.chance import draw_again, numbers
from ..hooks.remembered import ABSENT, Own, Snapshot, again, apart, compared, is_plain, is_same, snapshot
from ..hooks.replay import PrefixLostError
from .neighbours import name_of

# (whether a function wrapper runs the network by itself) -> (the prediction, whether anything altered ran for it)
Predict = Callable[[bool], "tuple[torch.Tensor, bool]"]


class NeighbourError(RuntimeError):
    """The perturbed rows cannot run beside another node."""


class Memory:
    """What others remember in the weak rows' calls of one run."""

    def __init__(self) -> None:
        self.wrappers: list[Callable] = []
        self.networks: list[nn.Module] = []
        self.start: Snapshot = {}  # before the first call of the run
        self.step: Snapshot = {}  # before the step of the first weak call
        self.own: Own = {}
        self.is_tried = False
        self.is_past = False  # whether a function wrapper runs the network by itself

    def begin(self, wrappers: list[Callable], networks: list[nn.Module]) -> None:
        """Before a run beside these wrappers, and before a step, for more may have come."""
        more = [wrapper for wrapper in wrappers if all(wrapper is not known for known in self.wrappers)]
        networks = [network for network in networks if network not in self.networks]
        if networks and not self.networks:  # only now the host has put on their modules what belongs to this run
            self.start |= again({place: found for place, found in self.start.items()
                                 if isinstance(found[0], nn.Module)})
        if more or networks:
            self.start = {**snapshot(more, networks), **self.start}
            self.wrappers += more
            self.networks += networks
        if not self.is_tried:
            self.step = again(self.start)

    def call(self, predict: Predict) -> torch.Tensor:
        """The prediction of one call.

        Raises:
            NeighbourError: where the run's first call fails beside others.
        """
        if not self.networks:  # nothing of another node is there
            return predict(False)[0]
        if self.is_tried:
            return self._apart(predict)[0]
        self.is_tried = True
        start, chance = self._at_first(), numbers()
        failed, prediction = None, None
        # As the conditional rows found it, as they left it, and as it was before the run.
        for own in ({**start, **self._before_step(start)}, {}, start):
            for self.is_past in (False, True):
                self.own = dict(own)
                draw_again(chance)
                try:
                    prediction, has_run = self._tried(predict)
                except _Failed as error:
                    failed = error
                    break
                if has_run:
                    return prediction
        self.is_past = False
        if prediction is None:
            assert failed, "a call gives a prediction or fails"
            cause = failed.__cause__
            raise NeighbourError(
                f"PAG's perturbed rows cannot run together with another node on this model ({self._names()}). The "
                f"model call succeeds without them and fails with them: {cause}. Such nodes count calls, reuse results "
                f"of one call in the next, or handle pairs of rows only. Remove that node, or PAG.") from cause
        return prediction

    def are_apart(self, before: Snapshot) -> bool:
        """Whether a call finds something from an earlier one of its own that is another than these containers held, or
        another count. What was made anew for it from the same is none other."""
        made_anew = []
        for value in compared(before):
            if (value.place, value.key) in self.own and (
                    is_plain(value.now) or is_same(self.own[value.place, value.key][1], value.now)):
                if not _may_be_equal(value.then, value.now):
                    return True
                made_anew.append(value)
        differ = [(value.then != value.now).any() for value in made_anew]
        # A GPU is waited for once, not for each of them.
        return bool(differ) and bool(torch.stack([one.to(differ[0].device) for one in differ]).any())

    def _at_first(self) -> Own:
        """Whatever has changed since, as it was before the run; but what is empty now was an earlier run's."""
        there = snapshot(self.wrappers, self.networks)
        return {(value.place, value.key): (value.container, value.then) for value in compared(self.start)
                if value.place in there and not _is_empty(value.now)}

    def _before_step(self, changed: Own) -> Own:
        """The numbers and words among these as they were before the host's call of this step."""
        found = {}
        for (place, key), (container, _) in changed.items():
            value = self.step.get(place, (None, {}))[1].get(key, ABSENT)
            if value is not ABSENT and is_plain(value):
                found[place, key] = container, value
        return found

    def _names(self) -> str:
        names = {name_of(wrapper) for wrapper in self.wrappers if callable(wrapper)}
        return ", ".join(sorted(names)) or "one that changed the network"

    def _tried(self, predict: Predict) -> tuple[torch.Tensor, bool]:
        try:
            return self._apart(predict)
        except (comfy.model_management.InterruptProcessingException, comfy.model_management.OOM_EXCEPTION,
                PerturbationError):
            raise
        except PrefixLostError:
            self.is_tried = False
            raise
        except Exception as error:
            raise _Failed from error

    def _apart(self, predict: Predict) -> tuple[torch.Tensor, bool]:
        """One call with the weak rows' own memory, after which others remember what they did before it. That of a call
        which is to be made again is forgotten."""
        own, chance = dict(self.own), numbers()
        try:
            with apart(self.wrappers, self.own, self.networks):
                return predict(self.is_past)
        except PrefixLostError:
            self.own = own
            draw_again(chance)
            raise


def _may_be_equal(one, other) -> bool:
    return (isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor) and one.dtype == other.dtype
            and one.device == other.device and one.shape == other.shape)


def _is_empty(value) -> bool:
    return value is None or (isinstance(value, (list, tuple, dict, set)) and not value)


class _Failed(Exception):
    """A call did, for the reason that is its cause."""
