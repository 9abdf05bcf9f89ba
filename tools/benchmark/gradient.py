"""Measures memory and time of the gradient for restoration, with and without checkpointing.

Memory is the peak held by tensors, without weights: exact, counted on the meta device at full size. Time is measured
alternately in this process, at a size that it can handle.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from pag_pack.nodes.host.research.gradients import differentiable
from pag_pack.pag_core.inverse import SuperResolution, squared_norm
from pag_pack.pag_core.posterior import gluing_error, measurement_error
from torch import Tensor

from .counting import LiveBytes
from .networks import FULL, SCALED, Shape, TrainedADM
from .timing import duration

WAYS = (("plain", False), ("checkpointing", True))
_VAE = {"embed_dim": 4, "ddconfig": {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3,
                                     "out_ch": 3, "ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2,
                                     "attn_resolutions": [], "dropout": 0.0}}


@dataclass(frozen=True)
class Problem:
    """A model, and what its restoration differentiates besides: PSLD's VAE, or nothing for DPS."""

    shape: Shape | TrainedADM
    has_vae: bool

    @property
    def name(self) -> str:
        return f"{'PSLD' if self.has_vae else 'DPS'}, {self.shape.name}"

    def gradient(self, device: str, checkpointing: bool) -> Callable[[], Tensor]:
        """A function that computes ∇ₓ once; the networks are built here."""
        with torch.inference_mode(False):
            return self._gradient(device, checkpointing)

    def _gradient(self, device: str, checkpointing: bool) -> Callable[[], Tensor]:
        network = self.shape.build(device, torch.float32)
        networks: list[torch.nn.Module] = [network]
        inputs = self.shape.inputs(self.shape.batch, device, torch.float32)
        x, t = inputs.pop("x"), inputs.pop("t")
        operator = SuperResolution(4)
        vae = None
        if self.has_vae:
            with torch.device(device):
                vae = AutoencoderKL(**_VAE).requires_grad_(False)
            networks.append(vae)
        size = tuple(n * (8 if vae else 1) for n in x.shape[-2:])
        y = torch.zeros(len(x), 3, *operator.measured_size(size), device=device)
        norm = squared_norm(operator, size)

        def energy(x: Tensor) -> Tensor:
            x0 = x - network(x, t, **inputs)
            if vae is None:
                return measurement_error(operator, y, x0)
            picture = vae.decode(x0)
            return measurement_error(operator, y, picture) + gluing_error(operator, norm, y, x0, picture, vae.encode)

        def run() -> Tensor:
            with differentiable(networks, torch.device(device), checkpointing):
                start = x.detach().clone().requires_grad_()
                return torch.autograd.grad(energy(start).sum(), start)[0]

        return run


# At full size on the meta device, and what a CPU can take.
COUNTED = [Problem(FULL[-1], False), Problem(FULL[0], True), Problem(FULL[1], True)]
TIMED = [Problem(SCALED[-1], False),
         Problem(replace(SCALED[0], name="SD 1.5, full width, 128²", latent=(4, 16, 16)), True)]


def report(only: str, repeats: int, device: str) -> list[dict]:
    """For problems whose name holds the text `only`: {"model", "bytes"} and, with repeats, {"model", "seconds"}; each
    {"plain": number, "checkpointing": number}."""
    def wanted(problems: list[Problem]) -> list[Problem]:
        return [problem for problem in problems if only.lower() in problem.name.lower()]

    found: list[dict] = [{"model": problem.name, "bytes": peak_bytes(problem)} for problem in wanted(COUNTED)]
    if repeats:
        found += [{"model": problem.name, "seconds": seconds(problem, device, repeats)}
                  for problem in wanted(TIMED if device == "cpu" else COUNTED)]
    return found


def peak_bytes(problem: Problem) -> dict[str, int]:
    """Without weights, by the meta device."""
    peaks = {}
    for name, checkpointing in WAYS:
        run = problem.gradient("meta", checkpointing)
        with LiveBytes() as live:
            run()
        peaks[name] = live.peak
    return peaks


def seconds(problem: Problem, device: str, repeats: int) -> dict[str, float]:
    """Medians of runs taken in turn."""
    runs = {name: problem.gradient(device, checkpointing) for name, checkpointing in WAYS}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            took = duration(run, device)
            if repeat:  # the first warms up
                times[name].append(took)
    return {name: statistics.median(values) for name, values in times.items()}


def table(gradients: list[dict]) -> str:
    """In Markdown."""
    lines = ["\nGradient for restoration, fp32\n", "| | plain | checkpointing | ratio |", "|---|---:|---:|---:|"]
    for entry in gradients:
        kind = "bytes" if "bytes" in entry else "seconds"
        plain, saving = entry[kind].values()
        shown = [f"{value / 2**20:,.0f} MiB" if kind == "bytes" else f"{value:.2f} s" for value in (plain, saving)]
        lines.append(f"| {entry['model']} | {shown[0]} | {shown[1]} | {saving / plain:.2f} |")
    return "\n".join(lines)
