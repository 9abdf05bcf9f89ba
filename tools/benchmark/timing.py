"""Times one run."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def duration(run: Callable[[], object], device: str) -> float:
    """Seconds that a run takes; on a GPU by its own clock."""
    if device == "cpu":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    gpu = torch.get_device_module(device)
    gpu.synchronize()
    start, end = (gpu.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    gpu.synchronize()
    return start.elapsed_time(end) / 1000
