"""What one run of a guider remembers, and what it has to say at the end."""

from __future__ import annotations

import itertools
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID

import torch

from ....pag_core.delta import History
from ....pag_core.schedule import ROUNDING, ScaleSchedule
from ....pag_core.stages import LayerPlan
from ..hooks.compiled import CompiledUnits, swapped_in
from ..hooks.kept import PrefixStore
from ..hooks.proof import Proof
from ..messages import begin, tell
from ..models.layers import ModelLayers
from ..models.structure import unwrapped
from ..models.units import LayerKey, Units
from .latents import Shapes
from .neighbours import other_forwards, others_in_network
from .predictions import Pair, Predictions
from .states import Memory

_log = logging.getLogger(__name__)


@dataclass
class _Network:
    """What a run knows of a network.

    Attributes:
        units: as it was loaded.
        replaced: of each unit the modules in which another node's forward runs.
        others: which code of another pack runs in it; None for none.
        swapped: its units as a node has them compiled for the length of a call, once looked up.
    """

    units: Units
    replaced: list[list[torch.nn.Module]]
    others: str | None
    swapped: Units | None = None


class Run:
    """Made anew for every run, so that nothing is kept between runs.

    Args:
        found: the layers of the model that samples.
        schedule: when and how strongly PAG acts in this run.
        plan: in which layers.
        sigmas: the sampler's noise levels; None where nobody asks for steps.
        is_watched: whether somebody looks at the predictions of every step; see `observation`.
        latent_shapes: of the latents that are packed into one.
        weigh: what PAG's delta of this shape is multiplied by; None for nothing.
    """

    def __init__(self, found: ModelLayers, schedule: ScaleSchedule, plan: LayerPlan, sigmas: list[float] | None = None,
                 is_watched: bool = False, proof: Proof | None = None, latent_shapes: Shapes = (),
                 weigh: Callable[[torch.Size], torch.Tensor] | None = None) -> None:
        self.found = found
        self.schedule = schedule
        self.plan = plan
        self.latent_shapes = latent_shapes
        self.history: dict[int, History] = defaultdict(History)  # of each latent
        self.is_negative = False  # whether the negative's own row is to be weak
        self.weak_negatives = 0  # forwards in which the negative's own row was weak
        self.is_negative_asked = False  # whether other nodes' calls were to compute the negative
        self.sigmas = sigmas
        self.is_watched = is_watched
        self.memory = Memory()
        self.proof = proof or Proof()
        self.predictions: Predictions | None = None  # the latest, where the run is watched
        self.calls = 0  # of PAG, by the guider
        self.is_asked = False  # whether it is in one of these
        self.wanted = 0  # evaluations in which it was to add something
        self.steps = 0  # in which it added something
        self.is_faded = False  # whether the schedule had a scale of 0 in an evaluation within the range
        self.largest_delta: torch.Tensor | None = None  # [] on the sampling device, so that no step waits for the GPU
        self.skipped: set[str] = set()  # layers whose attention was left alone
        self.declined: set[str] = set()  # why the prefix could not be shared
        self.declined_joint: set[str] = set()  # why the weak rows ran in a call of their own
        self.is_late = False  # whether others' code mixed rows, and that was seen only when a block's turn had come
        self.apart: str | None = None  # why all further ones will
        self.store: PrefixStore | None = None  # of the step that runs
        self.selected: set[str] = set()  # names of the layers that some step was to perturb
        self._networks: dict[torch.nn.Module, _Network] = {}
        self.compiled_units: CompiledUnits | None = None  # where the network was compiled whole
        self._fits: bool | None = None
        self.is_moved: bool | None = None  # whether a wrapper moves rows, and samples are told by what enters
        self.cond_index = 0  # of the conditional rows in the host's calls
        self._weigh = weigh
        self._weights: torch.Tensor | None = None
        self._weighed: tuple | None = None  # (shape, device) of the deltas that these are for
        self._pair: Pair | None = None
        self._sigma = 0.0
        self._base = 0

    @contextmanager
    def asked(self) -> Iterator[None]:
        """One evaluation by the guider; what it calls in there is its own affair."""
        before, self.is_asked = self.is_asked, True
        try:
            yield
        finally:
            self.is_asked = before

    def know(self, loaded: torch.nn.Module) -> None:
        """Look at a network, perhaps compiled, before a step, when no node has swapped its modules yet."""
        network = unwrapped(loaded)
        if network not in self._networks:
            units = self.found.units(network)
            replaced = [other_forwards(unit) for unit in units.modules]
            self._networks[network] = _Network(units, replaced, others_in_network(loaded))

    def network(self) -> tuple[torch.nn.Module, Units]:
        """The network that was loaded, and its units."""
        network, known = next(iter(self._networks.items()))
        return network, known.units

    def other_forwards(self, network: torch.nn.Module, units: Units, first: int) -> list[torch.nn.Module]:
        """The modules in the units before the `first` in which another node's forward runs. Where the units are
        compiled for this forward, their forwards are ours, and what was seen before the step counts."""
        found = (self._networks[network].replaced if self.compiled_units is not None
                 else map(other_forwards, units.modules[:first]))
        return list(itertools.chain(*itertools.islice(found, first)))

    def units(self, network: torch.nn.Module) -> Units | None:
        """The units of a network that runs; None where it is not one that `know` has seen."""
        return self._networks[network].units if network in self._networks else None

    def places(self, layers: Iterable[LayerKey]) -> set[int]:
        """The indices of the units that hold these layers, by their keys."""
        places = self.network()[1].places
        return {places[layer] for layer in layers}

    def swapped_in(self, network: torch.nn.Module) -> Units:
        """The units as a node has them compiled in the network for the length of a call; looked up once a run."""
        known = self._networks[network]
        known.swapped = known.swapped or swapped_in(network, known.units)
        return known.swapped

    def others_in_networks(self) -> str | None:
        """Which code of another pack runs in the networks, or None."""
        return next(filter(None, (known.others for known in self._networks.values())), None)

    def must_split(self, reason: str) -> None:
        """From now on the weak rows run in calls of their own."""
        self.apart = reason

    def fits_one_call(self, ask: Callable[[], bool]) -> bool:
        """Whether all rows fit one call; asked once a run, and then told by what the host does."""
        if self._fits is None:
            self._fits = ask()
        return self._fits

    def learn(self, store: PrefixStore, uuids: set[UUID]) -> None:
        """These rows are the conditional ones: under their index further steps keep what they leave."""
        indices = [index for index, seen in sorted(store.seen.items()) if uuids and uuids <= seen]
        if indices:
            self.cond_index = indices[0]

    def reusable(self, x: torch.Tensor, sigma: float, every: int) -> Pair | None:
        """The predictions of an earlier step, where they may stand for this one's.

        None where they have to be computed: in every n-th step of the sampler, and after a jump, when noise was added
        again (a restart, a second sampler) or the latent has another shape.
        """
        step = self._step_at(sigma)
        # Between two steps, ancestral samplers may stop where the next one begins but for rounding.
        jump = self._pair is None or self._pair.cond.shape != x.shape or sigma * (1 - ROUNDING) > self._sigma
        if jump:
            self._base = step
        self._sigma = sigma
        return None if (step - self._base) % every == 0 else self._pair

    def _step_at(self, sigma: float) -> int:
        """The sampler's step that an evaluation at this noise level belongs to, the last that begins at or above it."""
        return max((i for i, level in enumerate(self.sigmas or ()) if level >= sigma * (1 - ROUNDING)), default=0)

    def weighed(self, delta: torch.Tensor) -> torch.Tensor:
        """The delta times the user's mask, or each latent's own scale."""
        if self._weigh is None:
            return delta
        weighed = delta.shape, delta.device  # a sampler may enlarge the latent on its way
        if self._weighed != weighed:
            self._weights, self._weighed = self._weigh(delta.shape).to(delta), weighed
        return delta * self._weights

    def keep(self, pair: Pair) -> None:
        """Keep these predictions for `reusable`."""
        self._pair = pair

    def record(self, delta: torch.Tensor) -> None:
        """Note what PAG added in one step."""
        self.steps += 1
        largest = delta.abs().amax()
        self.largest_delta = largest if self.largest_delta is None else torch.maximum(self.largest_delta, largest)

    def report(self, guider: str, has_steps: bool = True) -> None:
        """Say what a user would otherwise have to guess: that PAG did nothing, and why."""
        begin()
        if self.skipped:
            _tell(f"PAG: left the self-attention of {', '.join(sorted(self.skipped))} unperturbed, because another "
                  f"patch (HyperTile, token merging, an attention mask over parts of the image) changes its tokens. "
                  f"Select other layers or remove that patch.")
        for reason in sorted(self.declined_joint):
            _log.info("PAG: computed the perturbed prediction in a separate call (same result): %s.", reason)
        for reason in sorted(self.declined):
            _log.info("PAG: ran the perturbed pass from the first block (same result, slower): %s.", reason)
        if self.is_late:
            _tell("PAG: in the middle of this run another node began to mix the rows of a batch in one block, which is "
                  "checked in one block per step. Some steps before may be inexact. For an exact result set "
                  "share_prefix to false in PAG Options.")
        if not has_steps and self.calls == 0:
            _tell("PAG had no effect: this run has no steps, since it was given fewer than two sigmas. Check the node "
                  "that makes or splits the sigmas.")
        elif self.calls == 0:
            _tell(f"PAG had no effect: the guider of this run ({guider}) bypasses ComfyUI's PREDICT_NOISE wrappers, "
                  f"which PAG needs. Use another guider or sampler node, for example PAG Guider.")
        elif self.is_negative and self.weak_negatives == 0 and self.is_negative_asked:
            _tell("PAG had no effect: row is negative, but another node calls the model itself without saying which "
                  "rows are the negative's. Remove that node, or set row to extra in PAG Options.")
        elif self.is_negative and self.weak_negatives == 0:
            _tell("PAG had no effect: row is negative, but no step of this run computed the negative prediction (CFG "
                  "was off). Raise cfg, or set row to extra in PAG Options.")
        elif self.is_negative:
            return
        elif self.wanted and self.steps == 0:
            _tell(f"PAG had no effect: the guider of this run ({guider}) runs no post-CFG functions, which PAG needs. "
                  f"Raise its cfg above 1, or use another guider, for example PAG Guider.")
        elif self.steps == 0 and self.is_faded:
            _tell(f"PAG had no effect: schedule is {self.schedule.schedule}, and the scale is 0 in every sampled step "
                  f"within its range. Use more steps, or set schedule to constant.")
        elif self.steps == 0:
            _tell("PAG: no sampled step lies between start_percent and end_percent (or start_sigma and end_sigma), "
                  "so it had no effect. Widen the range.")
        elif not torch.isfinite(self.largest_delta):
            _tell("PAG: the model returned NaN or infinite values, so the image is unusable. If the model runs in half "
                  "precision, start ComfyUI with --force-fp32; otherwise lower the scales.")
        elif self._weights is not None and not self._weights.any():
            _tell("PAG had no effect: scale_mask is black everywhere.")
        elif self.largest_delta == 0 or self.skipped >= self.selected:
            _tell(f"PAG: the perturbed prediction equals the plain one in all {self.steps} steps, so it had no effect.")


def _tell(warning: str) -> None:
    """Warn in the log, and on the node where an editor watches."""
    _log.warning("%s", warning)
    tell(warning)
