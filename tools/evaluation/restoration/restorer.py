"""Restores images with the pack's own nodes. Needs ComfyUI started in this process (harness.in_process)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from comfy_extras.nodes_custom_sampler import BasicScheduler, SamplerCustomAdvanced
from pag_pack.nodes.guidance import PAGGuider
from pag_pack.nodes.host.models.layers import model_layers
from pag_pack.nodes.research.adm import PAGADMClassLabel, PAGADMLoader
from pag_pack.nodes.research.restoration import PAGDPSSampler, PAGMeasure, PAGMeasurement, PAGPSLDSampler
from pag_pack.pag_core.selection import select
from torch import Tensor

from ..arguments import SEARCH_FIRST
from ..config import STEPS as PLAIN_STEPS
from ..sampling import SampleNoise
from .plan import GLUING, NOISE_SIGMA, TASKS, Experiment, Restoration

BATCH = {"cpu": 8, "cuda": 32}  # always, for the samplers draw each step's noise for a whole batch


class Truths:
    """Held-out pictures in a fixed random order: a table's from the front, those held out for the search from the back.

    Args:
        images: uint8 [N, 3, S, S].
    """

    def __init__(self, images: Tensor) -> None:
        self.images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(2))]

    def __getitem__(self, ids: Iterable[int]) -> Tensor:
        """uint8 [B, 3, S, S]."""
        places = [SEARCH_FIRST - 1 - i if i >= SEARCH_FIRST else i for i in ids]
        return self.images[places]


class Restorer(ABC):
    """One experiment, and everything that is the same for all its configurations.

    Args:
        nothing: the CONDITIONING without a prompt.
    """

    def __init__(self, experiment: Experiment, model: ModelPatcher, nothing: list, truths: Truths) -> None:
        self.experiment, self.model, self.nothing, self.truths = experiment, model, nothing, truths
        self.batch, self.size = BATCH[model.load_device.type], truths.images.shape[-1]
        self.sigmas = BasicScheduler.execute(model, "ddim_uniform", experiment.steps, 1.0).result[0]

    @abstractmethod
    def sampler(self, config: Restoration, measurement: Tensor, operator: object) -> object:
        """The host's SAMPLER."""

    @abstractmethod
    def latent(self, count: int) -> Tensor:
        """Empty latents."""

    @abstractmethod
    def pictures(self, latent: Tensor) -> Tensor:
        """What was sampled, [B, 3, S, S], of which black is -1 and white 1."""

    def cost(self, config: Restoration) -> float:
        """About how much a picture costs, as a multiple of sampling one without guidance."""
        passes = 4.0  # the guided prediction, and the way forth and back for the gradient
        if config.scale:
            found = model_layers(self.model)
            passes += found.share(select(config.layers, tuple(found.layers), found.auto))
        return passes * self.experiment.steps / PLAIN_STEPS

    def batches(self, config: Restoration, wanted: Iterable[int], present: set[int], size: int) -> list[list[int]]:
        """Whole batches of `self.batch`, whatever `size` is, so that a picture's noise depends on its id alone."""
        starts = sorted({i - i % self.batch for i in wanted if i not in present})
        return [list(range(start, start + self.batch)) for start in starts]

    def measure(self, task: str, ids: list[int]) -> tuple[object, Tensor, Tensor]:
        """The operator, the measurement that samplers take, and the same to look at: [B, S, S, 3] in [0, 1]."""
        operator = PAGMeasurement.execute(**TASKS[task].measurement).result[0]
        pictures = self.truths[ids].movedim(1, -1) / 255
        return operator, *PAGMeasure.execute(pictures, operator, NOISE_SIGMA, ids[0]).result

    @torch.inference_mode()
    def sample(self, config: Restoration, ids: list[int]) -> Tensor:
        """uint8 [B, 3, S, S]; the noise is the same with and without PAG."""
        operator, measurement, _ = self.measure(config.task, ids)
        guider = PAGGuider.execute(self.model, self.nothing, self.nothing, 1.0, config.scale,
                                   config.layers or "auto").result[0]
        noise = SampleNoise(ids)
        noise.seed = ids[0]
        sampler = self.sampler(config, measurement, operator)
        output = SamplerCustomAdvanced.execute(noise, guider, sampler, self.sigmas,
                                               {"samples": self.latent(len(ids))}).result[0]
        return self.pictures(output["samples"]).float().add(1).mul(127.5).round().clamp(0, 255).byte().cpu()


class PixelRestorer(Restorer):
    """DPS on an ADM.

    Args:
        file: one that PAG ADM Loader lists.
    """

    def __init__(self, experiment: Experiment, file: str, truths: Truths) -> None:
        model, _ = PAGADMLoader.execute(file).result
        super().__init__(experiment, model, PAGADMClassLabel.execute(model, -1).result[0], truths)

    def sampler(self, config: Restoration, measurement: Tensor, operator: object) -> object:
        return PAGDPSSampler.execute(measurement, operator, config.step_size).result[0]

    def latent(self, count: int) -> Tensor:
        return torch.zeros(count, 3, self.size, self.size)

    def pictures(self, latent: Tensor) -> Tensor:
        return latent


class LatentRestorer(Restorer):
    """PSLD on a latent model; see `latent`."""

    def __init__(self, experiment: Experiment, model: ModelPatcher, vae: VAE, nothing: list, truths: Truths) -> None:
        super().__init__(experiment, model, nothing, truths)
        self.vae = vae

    def sampler(self, config: Restoration, measurement: Tensor, operator: object) -> object:
        size = config.step_size
        return PAGPSLDSampler.execute(measurement, operator, self.vae, size, GLUING * size).result[0]

    def latent(self, count: int) -> Tensor:
        side = self.size // self.vae.spacial_compression_decode()
        return torch.zeros(count, self.vae.latent_channels, side, side)

    def pictures(self, latent: Tensor) -> Tensor:
        return self.vae.decode(latent).movedim(-1, 1).mul(2).sub(1)
