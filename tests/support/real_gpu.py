"""A real GPU for the tests that otherwise run on the stand-in: PAG_TEST_GPU=cuda.

Its kernels are others than the CPU's, so numbers agree as far as single precision goes. Of what passes between it and
the CPU, torch tells only for what the CPU waits.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch

NAME = os.environ.get("PAG_TEST_GPU", "")
TOLERANCE = 1e-3
WAITED = "waited"


class RealGPU:
    """The device, and how often the CPU has WAITED for it."""

    def __init__(self) -> None:
        self.device = torch.device(NAME, 0)
        self.crossings: Counter[str] = Counter()

    def note(self, message: Warning | str, *_, **__) -> None:
        if "synchronizing" in str(message):
            self.crossings[WAITED] += 1


@contextmanager
def in_use() -> Iterator[RealGPU]:
    """The device, usable inside, in full single precision."""
    found, before = RealGPU(), torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = found.note
            yield found
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.backends.cudnn.allow_tf32 = before
