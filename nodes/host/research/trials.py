"""The pictures of a search: the same prompts and seeds with one selection of layers after another."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....pag_core.settings import PAGOptions, PAGSettings
from ..run.negative import check_negative
from ..run.patching import attach
from ..run.preview import Progress
from ..sampling.decoding import Decoder
from ..sampling.guider import CFGWindowGuider
from ..sampling.sampling import check_options_fit, sample_latent
from .kept import KeptPictures, eight_bits


@dataclass(frozen=True, eq=False)
class Group:
    """What is sampled in one run: a prompt and a seed; as many pictures as the latent's batch."""

    positive: list
    negative: list
    prompt: int
    seed: int


@dataclass(frozen=True, eq=False)
class Sampling:
    """How it is sampled, as PAG KSampler is told, but for layers, prompts and seed."""

    model: ModelPatcher
    latent: dict
    steps: int
    cfg: float
    scale: float
    options: PAGOptions
    sampler_name: str
    scheduler: str
    denoise: float
    cfg_start_percent: float
    cfg_end_percent: float

    def guider(self, group: Group, layers: str, scale: float) -> CFGWindowGuider:
        return CFGWindowGuider(attach(self.model, PAGSettings(scale, layers, self.options)), group.positive,
                               group.negative, self.cfg, self.cfg_start_percent, self.cfg_end_percent)

    def check(self, group: Group, selections: Iterable[str]) -> None:
        """Raise, before anything is sampled, what sampling these selections would raise."""
        check_options_fit(self.options, self.model, self.latent)
        for layers in selections:
            guider = self.guider(group, layers, self.scale)
            if self.options.row == "negative":
                check_negative(guider, self.sampler_name)

    @property
    def key(self) -> tuple:
        """All that changes what PAG does, so far as the picture without it does not show it."""
        mask = self.options.scale_mask
        mask = None if mask is None else (tuple(mask.shape), mask.cpu().numpy().tobytes())
        return (self.steps, self.cfg, self.scale, self.sampler_name, self.scheduler, self.denoise,
                self.cfg_start_percent, self.cfg_end_percent, replace(self.options, scale_mask=None), mask)


class Trials:
    """Samples each picture once, ever: what the output folder holds from an earlier search is taken from there.

    Args:
        runs: how often it will sample at most, for the progress bar.
    """

    def __init__(self, sampling: Sampling, groups: list[Group], decoder: Decoder, runs: int) -> None:
        self.sampling = sampling
        self.groups = groups
        self.decoder = decoder
        self.progress = Progress(sampling.model, runs, in_panel=True)
        self.plain: list[Tensor] = []  # without PAG, one [B, H, W, 3] for each group
        self.kept: list[KeptPictures] = []

    def sample_plain(self, layers: str) -> None:
        """Sample the pictures without PAG, which tell what else is there. To be called first; `layers` may be any."""
        for group in self.groups:
            images = self._sample(group, layers, 0.0)
            self.plain.append(images)
            self.kept.append(KeptPictures(images, (group.seed, *self.sampling.key)))

    def there(self, selections: Iterable[str]) -> int:
        """How many runs with these layers need not be sampled."""
        return sum(kept.find(layers) is not None for layers in selections for kept in self.kept)

    def pictures(self, layers: str) -> list[Tensor]:
        """One [B, H, W, 3] for each group."""
        made = []
        for group, kept in zip(self.groups, self.kept, strict=True):
            images = kept.find(layers)
            if images is None:
                images = self._sample(group, layers, self.sampling.scale)
                kept.keep(layers, images)
            else:
                self.progress.runs_done += 1
            made.append(images)
        return made

    def _sample(self, group: Group, layers: str, scale: float) -> Tensor:
        it = self.sampling
        latent = sample_latent(it.guider(group, layers, scale), it.latent, group.seed, it.steps, it.sampler_name,
                               it.scheduler, it.denoise, self.progress)
        self.progress.runs_done += 1
        return eight_bits(self.decoder.images(latent["samples"]))
