"""What one run of a guider remembers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

import torch

from ....pag_core.delta import History
from ....pag_core.schedule import ScaleSchedule
from ....pag_core.stages import LayerPlan
from ..hooks.forms import Forms
from ..hooks.kept import PrefixStore
from ..hooks.proof import Proof
from ..hooks.uncopied import Uncopied
from ..models.layers import ModelLayers
from .following import Following
from .latents import Shapes, Weights
from .networks import Networks
from .predictions import Predictions, Reused
from .report import Report
from .states import Memory


class Run(Uncopied):
    """Made anew for every run, so that nothing is kept between runs.

    Args:
        found: the layers of the model that samples.
        schedule: when and how strongly PAG acts in this run.
        plan: in which layers.
        sigmas: the sampler's noise levels; None where nobody asks for steps.
        is_watched: whether somebody looks at the predictions of every step; see `observation`.
        proof: one for all PAGs of a chain; None for one of its own.
        latent_shapes: of the latents that are packed into one.
        weights: what PAG's delta is multiplied by.

    Attributes:
        predictions: the latest, where the run is watched.
        is_asked: whether the guider asks PAG at the moment.
        store: what the conditional rows of the step that runs left behind.
        apart: why all further weak rows run in calls of their own; None where they need not.
        is_moved: whether a wrapper moves rows, and samples are told by what enters; None where it is not known yet.
        conditional_samples: {a forward of the host's call in which a wrapper moves rows: the places of what became the
            conditional rows' samples, in the order of the weak rows'}.
        cond_index: of the conditional rows in the host's calls.
    """

    def __init__(self, found: ModelLayers, schedule: ScaleSchedule, plan: LayerPlan, sigmas: list[float] | None = None,
                 is_watched: bool = False, proof: Proof | None = None, latent_shapes: Shapes = (),
                 weights: Weights | None = None) -> None:
        self.found = found
        self.schedule = schedule
        self.plan = plan
        self.is_watched = is_watched
        self.proof = proof or Proof()
        self.latent_shapes = latent_shapes
        self.weights = weights or Weights()
        self.history: dict[int, History] = defaultdict(History)  # of each latent
        self.networks = Networks(found)
        self.forms = Forms()
        self.report = Report()
        self.reused = Reused(sigmas or ())
        self.memory = Memory()
        self.predictions: Predictions | None = None
        self.is_asked = False
        self.store: PrefixStore | None = None
        self.apart: str | None = None
        self.is_moved: bool | None = None
        self.conditional_samples: dict[int, tuple[int, ...]] = {}
        self.cond_index = 0
        self._fits: bool | None = None

    @property
    def is_followed(self) -> bool:
        """Whether the result of this evaluation, in which PAG acts, is to be followed: until others leave PAG's part in
        one, and then ever more rarely, for they may drop it in a part of the run only."""
        return not self.report.kept or self.report.wanted.bit_count() == 1

    def judge(self, following: Following, result: torch.Tensor) -> None:
        """Note whether this result of a step still has PAG's part."""
        if not following.has_begun:
            return
        if following.has(result):
            self.report.kept += 1
        else:
            self.report.dropped += 1
            self.report.dropper = following.dropper

    @contextmanager
    def asked(self) -> Iterator[None]:
        """One evaluation by the guider; what it calls in there is its own affair."""
        before, self.is_asked = self.is_asked, True
        try:
            yield
        finally:
            self.is_asked = before

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

    def say(self, guider: str, has_steps: bool = True) -> None:
        """Say what a user would otherwise have to guess, after a run under this guider."""
        self.report.tell(guider, self.schedule.schedule, has_steps, self.weights.are_zero)
