"""The restorations of PAG Table 8 (DPS) and Table 4 (PSLD) as data: tasks, settings and the paper's results."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

NOISE_SIGMA = 0.05
SHARE = 0.2  # of the sample count: 1,000 pictures of 5,000, as in the paper
METRICS = ("fd", "lpips", "psnr")


@dataclass(frozen=True)
class Task:
    """What happened to the pictures; `measurement` are inputs of PAG Degradation, for pictures of 64 × 64."""

    name: str
    measurement: dict[str, str | int | float]


TASKS = {
    "box": Task("box inpainting", {"task": "box_inpainting"}),
    "sr4": Task("SR ×4", {"task": "super_resolution", "factor": 4}),
    "sr8": Task("SR ×8", {"task": "super_resolution", "factor": 8}),
    "gaussian": Task("Gaussian deblur", {"task": "gaussian_blur", "blur_sigma": 3.0}),
    "motion": Task("motion deblur", {"task": "motion_blur", "kernel_size": 17}),
}


@dataclass(frozen=True)
class Settings:
    """Of one task in one experiment.

    Attributes:
        step_sizes: of the sampler, for the search.
        step_size: the one that an earlier search found best.
        paper: (FID, LPIPS) of the sampler alone and with PAG, on FFHQ; None where the paper has no such task.
    """

    step_sizes: tuple[float, ...]
    step_size: float
    paper: tuple[tuple[float, float], tuple[float, float]] | None = None


@dataclass(frozen=True)
class Experiment:
    """One sampler, with and without PAG.

    Attributes:
        key: what --only calls it.
        steps: the paper takes 1,000.
        tasks: by their name in TASKS.
        guidance: PAG's scales and layers, for the search.
        scale, layers: PAG's, for all tasks, as an earlier search found them.
    """

    key: str
    method: str
    source: str
    steps: int
    tasks: dict[str, Settings]
    guidance: tuple[tuple[float, str], ...]
    scale: float
    layers: str


EXPERIMENTS = {experiment.key: experiment for experiment in (
    Experiment("table8", "DPS", "PAG Table 8", 50, {
        "box": Settings((1.0, 3.0), 3.0, ((33.12, 0.168), (26.74, 0.212))),
        "sr4": Settings((1.0, 3.0), 3.0),
        "sr8": Settings((1.0, 3.0), 3.0, ((34.00, 0.320), (34.05, 0.327))),
        "gaussian": Settings((3.0, 10.0), 3.0, ((44.05, 0.257), (29.42, 0.259))),
        "motion": Settings((3.0, 10.0), 10.0, ((39.92, 0.242), (30.57, 0.283))),
    }, ((0.5, "m0"), (1.0, "m0"), (1.0, "d1")), 1.0, "m0"),
    Experiment("table4", "PSLD", "PAG Table 4", 50, {
        "box": Settings((0.3, 1.0, 3.0), 3.0, ((43.11, 0.167), (21.13, 0.149))),
        "sr4": Settings((0.3, 1.0, 3.0), 1.0),
        "sr8": Settings((0.3, 1.0, 3.0), 3.0, ((42.98, 0.360), (38.57, 0.354))),
        "gaussian": Settings((0.3, 1.0, 3.0), 3.0, ((41.53, 0.221), (37.08, 0.343))),
        "motion": Settings((0.3, 1.0, 3.0), 3.0, ((93.39, 0.450), (40.26, 0.397))),
    }, ((1.0, "d3"), (4.0, "d3"), (1.0, "u5")), 4.0, "d3"),
)}
GLUING = 0.1  # of PSLD's step size, as in the paper


@dataclass(frozen=True)
class Restoration:
    """One way to restore the pictures of one task.

    Attributes:
        experiment: of EXPERIMENTS.
        task: of TASKS.
        step_size: of the experiment's sampler.
        scale, layers: PAG's.
    """

    experiment: str
    task: str
    step_size: float
    scale: float = 0.0
    layers: str = ""

    @property
    def key(self) -> str:
        """A short name for this configuration, the same on every machine."""
        about = {**asdict(self), "steps": EXPERIMENTS[self.experiment].steps, "noise": NOISE_SIGMA, "gluing": GLUING,
                 **TASKS[self.task].measurement}
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def settings(self) -> str:
        return f"step size {self.step_size:g}" + (f", s {self.scale:g}, {self.layers}" if self.scale else "")


@dataclass(frozen=True)
class Pair:
    """One task without and with PAG."""

    task: str
    plain: Restoration
    guided: Restoration


def pair(experiment: Experiment, task: str, step_size: float, scale: float, layers: str) -> Pair:
    return Pair(task, Restoration(experiment.key, task, step_size),
                Restoration(experiment.key, task, step_size, scale, layers))


def found_before(experiment: Experiment) -> list[Pair]:
    """The settings that an earlier search found."""
    return [pair(experiment, task, settings.step_size, experiment.scale, experiment.layers)
            for task, settings in experiment.tasks.items()]


def step_size_search(experiment: Experiment) -> list[Restoration]:
    return [Restoration(experiment.key, task, size) for task, settings in experiment.tasks.items()
            for size in settings.step_sizes]


def guidance_search(experiment: Experiment, step_sizes: dict[str, float]) -> list[Restoration]:
    return [Restoration(experiment.key, task, size, *guidance) for task, size in step_sizes.items()
            for guidance in experiment.guidance]
