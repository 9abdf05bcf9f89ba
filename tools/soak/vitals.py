"""Samples a server's memory, handles, threads and processes, and tells whether they grow beyond their noise."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import psutil

WARM_UP = 0.25  # share of the run before which growth is expected: caches fill, pools reach their size
ENOUGH = 8  # samples after it; a line through fewer says nothing
MB = 2**20


@dataclass(frozen=True)
class Sample:
    seconds: float  # since the run began
    memory: float  # resident, MB
    handles: int  # open files, sockets and pipes
    threads: int
    children: int  # processes, theirs included

    @classmethod
    def of(cls, process: psutil.Process, since: float) -> Sample:
        handles = process.num_fds() if hasattr(process, "num_fds") else process.num_handles()
        return cls(time.monotonic() - since, process.memory_info().rss / MB, handles, process.num_threads(),
                   len(process.children(recursive=True)))


# Growth that is no leak, over a whole run: memory as a share of its median, the others in pieces.
LIMITS = {"memory": 0.05, "handles": 2.0, "threads": 2.0, "children": 0.5}


@dataclass(frozen=True)
class Trend:
    """A line fitted to one number after the warm-up.

    Attributes:
        growth: the line's rise from its first sample to its last.
        noise: standard deviation of the samples around it.
        limit: the growth allowed, the larger of LIMITS' and three times the noise.
        median, samples: of what was fitted.
    """

    median: float
    growth: float
    noise: float
    limit: float
    samples: int

    @property
    def leaks(self) -> bool:
        return self.samples >= ENOUGH and self.growth > self.limit


def trend(name: str, samples: list[Sample]) -> Trend | None:
    """The Trend of one field of the samples; None where there are too few for a line."""
    if not samples:
        return None
    start = WARM_UP * samples[-1].seconds
    points = np.array([(sample.seconds, getattr(sample, name)) for sample in samples if sample.seconds >= start])
    if len(points) < 3:
        return None
    seconds, values = points.T
    slope, offset = np.polyfit(seconds, values, 1)
    noise = float(np.std(values - (slope * seconds + offset)))
    median = float(np.median(values))
    limit = LIMITS[name] * (median if name == "memory" else 1.0)
    return Trend(median, float(slope * (seconds[-1] - seconds[0])), noise, max(limit, 3.0 * noise), len(points))
