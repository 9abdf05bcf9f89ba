"""The tasks of PAG Table 8 as data: what is measured, with which settings it is restored, and what the paper found."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

KEY = "table8"  # what --only calls it
STEPS = 30  # the paper takes 1,000
NOISE_SIGMA = 0.05
SHARE = 0.2  # of the sample count: 1,000 pictures of 5,000, as in the paper
GUIDANCE = ((0.5, "u5"), (1.0, "u5"))  # scales and layers
METRICS = ("fd", "lpips", "psnr")


@dataclass(frozen=True)
class Task:
    """What happened to the pictures.

    Attributes:
        measurement: inputs of PAG Measurement; sizes are for pictures of 32 × 32.
        step_sizes: of DPS, for the search.
        step_size: the one that an earlier search found best, for the shipped model.
        paper: (FID, LPIPS) of DPS and of DPS + PAG on FFHQ 256 × 256; None where the paper has no such task.
    """

    name: str
    measurement: dict[str, str | int | float]
    step_sizes: tuple[float, ...]
    step_size: float
    paper: tuple[tuple[float, float], tuple[float, float]] | None = None


TASKS = {
    "box": Task("box inpainting", {"task": "box_inpainting"}, (1.0, 3.0, 10.0), 1.0,
                ((33.12, 0.168), (26.74, 0.212))),
    "sr4": Task("SR ×4", {"task": "super_resolution", "factor": 4}, (1.0, 3.0, 10.0), 3.0),
    "sr8": Task("SR ×8", {"task": "super_resolution", "factor": 8}, (1.0, 3.0, 10.0), 3.0,
                ((34.00, 0.320), (34.05, 0.327))),
    "gaussian": Task("Gaussian deblur", {"task": "gaussian_blur", "blur_sigma": 1.5}, (3.0, 10.0, 30.0), 10.0,
                     ((44.05, 0.257), (29.42, 0.259))),
    "motion": Task("motion deblur", {"task": "motion_blur", "kernel_size": 9}, (3.0, 10.0, 30.0), 10.0,
                   ((39.92, 0.242), (30.57, 0.283))),
}


@dataclass(frozen=True)
class Restoration:
    """One way to restore the pictures of one task.

    Attributes:
        task: of TASKS.
        step_size: of PAG DPS Sampler.
        scale, layers: PAG's.
    """

    task: str
    step_size: float
    scale: float = 0.0
    layers: str = ""

    @property
    def key(self) -> str:
        """A short name for this configuration, the same on every machine."""
        about = {**asdict(self), "steps": STEPS, "noise": NOISE_SIGMA, **TASKS[self.task].measurement}
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def settings(self) -> str:
        return f"step size {self.step_size:g}" + (f", s {self.scale:g}, {self.layers}" if self.scale else "")


@dataclass(frozen=True)
class Pair:
    """DPS and DPS + PAG for one task."""

    task: str
    plain: Restoration
    guided: Restoration


def pair(task: str, step_size: float, scale: float, layers: str) -> Pair:
    return Pair(task, Restoration(task, step_size), Restoration(task, step_size, scale, layers))


SCALE, LAYERS = 0.5, "u5"  # PAG's, for all tasks, found on held-out pictures of the shipped model


def found_before() -> list[Pair]:
    """The settings that an earlier search found."""
    return [pair(name, task.step_size, SCALE, LAYERS) for name, task in TASKS.items()]


def step_size_search() -> list[Restoration]:
    return [Restoration(name, size) for name, task in TASKS.items() for size in task.step_sizes]


def guidance_search(step_sizes: dict[str, float]) -> list[Restoration]:
    return [Restoration(task, size, *guidance) for task, size in step_sizes.items() for guidance in GUIDANCE]
