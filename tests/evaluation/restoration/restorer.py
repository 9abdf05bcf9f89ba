"""Restorations through the pack's own nodes in the host's process. Needs a started host (harness.in_process)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from comfy_extras.nodes_custom_sampler import BasicScheduler, SamplerCustomAdvanced
from pag_pack.nodes.adm import PAGADMClassLabel, PAGADMLoader
from pag_pack.nodes.guidance import PAGGuider
from pag_pack.nodes.host.layers import model_layers
from pag_pack.nodes.restoration import PAGDPSSampler, PAGMeasure, PAGMeasurement
from pag_pack.pag_core.selection import select
from torch import Tensor

import nodes

from ..arguments import SEARCH_FIRST
from ..config import STEPS as PLAIN_STEPS
from ..sampling import SIZE, SampleNoise
from . import plan
from .plan import NOISE_SIGMA, TASKS, Restoration

BATCH = 8  # always, for the samplers draw each step's noise for a whole batch


class Truths:
    """Test pictures in a fixed random order: a table's from the front, those held out for the search from the back.

    Args:
        images: uint8 [N, 32, 32].
    """

    def __init__(self, images: Tensor) -> None:
        self.images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(2))]

    def __getitem__(self, ids: Iterable[int]) -> Tensor:
        """uint8 [B, 3, 32, 32]."""
        places = [SEARCH_FIRST - 1 - i if i >= SEARCH_FIRST else i for i in ids]
        return self.images[places][:, None].expand(-1, 3, -1, -1)


class Restorer:
    """One model, and everything that is the same for all configurations."""

    def __init__(self, file: str, truths: Truths) -> None:
        self.model, _ = PAGADMLoader.execute(file).result
        self.nothing = PAGADMClassLabel.execute(self.model, -1).result[0]
        self.sigmas = BasicScheduler.execute(self.model, "ddim_uniform", plan.STEPS, 1.0).result[0]
        self.truths = truths

    def cost(self, config: Restoration) -> float:
        """About how much a picture costs, as a multiple of sampling one without guidance."""
        passes = 4.0  # the guided prediction, and the way forth and back for the gradient
        if config.scale:
            found = model_layers(self.model)
            passes += found.share(select(config.layers, tuple(found.layers), found.auto))
        return passes * plan.STEPS / PLAIN_STEPS

    def batches(self, config: Restoration, wanted: Iterable[int], present: set[int], size: int) -> list[list[int]]:
        """Whole batches of BATCH, whatever `size` is, so that a picture's noise depends on its id alone."""
        starts = sorted({i - i % BATCH for i in wanted if i not in present})
        return [list(range(start, start + BATCH)) for start in starts]

    def measure(self, task: str, ids: list[int]) -> tuple[object, Tensor, Tensor]:
        """The operator, the measurement that samplers take, and the same to look at: [B, 32, 32, 3] in [0, 1]."""
        operator = PAGMeasurement.execute(**TASKS[task].measurement).result[0]
        pictures = self.truths[ids].movedim(1, -1) / 255
        return operator, *PAGMeasure.execute(pictures, operator, NOISE_SIGMA, ids[0]).result

    @torch.inference_mode()
    def sample(self, config: Restoration, ids: list[int]) -> Tensor:
        """uint8 [B, 3, 32, 32]; the noise is the same with and without PAG."""
        operator, measurement, _ = self.measure(config.task, ids)
        sampler = PAGDPSSampler.execute(measurement, operator, config.step_size).result[0]
        guider = PAGGuider.execute(self.model, self.nothing, self.nothing, 1.0, config.scale,
                                   config.layers or "auto").result[0]
        noise = SampleNoise(ids)
        noise.seed = ids[0]
        latent = nodes.EmptyLatentImage().generate(SIZE, SIZE, len(ids))[0]
        output = SamplerCustomAdvanced.execute(noise, guider, sampler, self.sigmas, latent).result[0]
        return output["samples"].float().add(1).mul(127.5).round().clamp(0, 255).byte().cpu()
