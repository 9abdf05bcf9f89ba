"""The random numbers that other nodes may draw: torch's, numpy's and Python's own."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def numbers() -> tuple:
    """Where they stand."""
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return torch.get_rng_state(), on_gpus, np.random.get_state(), random.getstate()


def draw_again(chance: tuple) -> None:
    """From here on what was drawn after `numbers` gave this is drawn once more."""
    on_cpu, on_gpus, of_numpy, of_python = chance
    torch.set_rng_state(on_cpu)
    torch.cuda.set_rng_state_all(on_gpus)
    np.random.set_state(of_numpy)
    random.setstate(of_python)


@contextmanager
def other_numbers(devices: list[torch.device]) -> Iterator[None]:
    """Others are drawn inside, on the CPU and on these accelerators; afterwards they stand where they stood."""
    # torch's own function for the seed reaches all devices; without a GPU it keeps each call for later, with its stack.
    generators = [torch.default_generator, *(torch.cuda.default_generators[device.index] for device in devices)]
    before = [generator.get_state() for generator in generators]
    of_numpy, of_python = np.random.get_state(), random.getstate()
    try:
        seed = torch.initial_seed() ^ 1
        for generator in generators:
            generator.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield
    finally:
        for generator, state in zip(generators, before, strict=True):
            generator.set_state(state)
        np.random.set_state(of_numpy)
        random.setstate(of_python)
