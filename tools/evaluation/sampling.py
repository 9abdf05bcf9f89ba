"""Samples with the pack's own nodes. Needs ComfyUI started in this process (harness.in_process)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from comfy_extras.nodes_custom_sampler import BasicScheduler, KSamplerSelect, SamplerCustomAdvanced
from comfy_extras.nodes_sag import SelfAttentionGuidance
from harness.errors import HarnessError
from pag_pack.nodes.guidance import PAGGuider
from pag_pack.nodes.host.models.layers import model_layers
from pag_pack.nodes.options import PAGOptionsNode
from pag_pack.nodes.research.adm import SHIPPED, PAGADMClassLabel, PAGADMLoader
from pag_pack.pag_core.perturbation import KINDS
from pag_pack.pag_core.selection import select
from pag_pack.pag_core.settings import PAGOptions
from pag_pack.pag_core.stages import select_stages
from torch import Tensor

import nodes

from .config import STEPS, Config

BATCH = 25  # rows of a batch; small, so that little is lost when a run is interrupted


class SampleNoise:
    """The host's NOISE with a seed of its own for every sample, so that batches and ranks make no difference."""

    seed = 0  # DDIM at eta 0 draws nothing after the start

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    def generate_noise(self, latent: dict) -> Tensor:
        shape = latent["samples"].shape[1:]
        return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in self.ids])


class Sampler:
    """One model, and everything that is the same for all configurations.

    Raises:
        HarnessError: where the file does not say what its pictures are.
    """

    def __init__(self, file: str = SHIPPED) -> None:
        self.model, _ = PAGADMLoader.execute(file).result
        self.size, self.classes = self.model.model.adm_config.image_size, self.model.model.class_names
        if not self.size or not self.classes:
            raise HarnessError(f"--model {file} names no size or no classes in its metadata, unlike files of nox -s "
                               "train; the evaluation has nothing to compare its samples with")
        self.found = model_layers(self.model)
        self.sampler = KSamplerSelect.execute("ddim").result[0]
        self.sigmas = BasicScheduler.execute(self.model, "ddim_uniform", STEPS, 1.0).result[0]

    def check(self, config: Config) -> None:
        """Raise the nodes' own error where a configuration cannot be sampled, before any work."""
        self._guider(config, 0 if config.conditional else -1, 0)

    def share(self, layers: str) -> float:
        """What a perturbed pass of these layers costs, as a share of a whole pass."""
        return self.found.share(select(layers, tuple(self.found.layers), self.found.auto))

    def cost(self, config: Config) -> float:
        """About how much a sample costs, as a multiple of sampling without guidance."""
        if config.sag:
            return 3.0
        cost = 1.0 + (config.cfg_end if config.cfg != 1.0 else 0.0)
        if config.scale:
            options = dict(config.options)
            active = options.get("end_percent", 1.0) - options.get("start_percent", 0.0)
            extra = self.found.extra(select_stages(config.layers, tuple(self.found.layers), self.found.auto),
                                     PAGOptions(**options))
            cost += extra * active / options.get("reuse_every", 1)
        return cost

    def batches(self, config: Config, wanted: Iterable[int], present: set[int], size: int) -> list[list[int]]:
        """See the function."""
        return batches(config, wanted, present, len(self.classes), size)

    @torch.inference_mode()
    def sample(self, config: Config, ids: list[int]) -> Tensor:
        """uint8 [N, 3, S, S] of samples that all have the same label."""
        labels = {config.label(i, len(self.classes)) for i in ids}
        if len(labels) != 1:
            raise ValueError(f"samples {ids} have several labels: {sorted(labels)}")
        latent = nodes.EmptyLatentImage().generate(self.size, self.size, len(ids))[0]
        guider = self._guider(config, labels.pop(), ids[0])
        output = SamplerCustomAdvanced.execute(SampleNoise(ids), guider, self.sampler, self.sigmas, latent).result[0]
        return output["samples"].float().add(1).mul(127.5).round().clamp(0, 255).byte().cpu()

    def _guider(self, config: Config, label: int, first: int):
        positive = PAGADMClassLabel.execute(self.model, label).result[0]
        negative = PAGADMClassLabel.execute(self.model, -1).result[0]
        model = self.model
        if config.sag:
            # The node blurs what the negative predicts; the paper's SAG blurs the one prediction that there is.
            model, negative = SelfAttentionGuidance.execute(model, config.sag, config.sag_sigma).result[0], positive
        options = dict(config.options)
        if is_random(config):
            options["perturbation_seed"] = first  # other random numbers for every batch
        return PAGGuider.execute(model, positive, negative, config.cfg, config.scale, config.layers or "auto",
                                 cfg_end_percent=config.cfg_end, options=PAGOptionsNode.execute(**options).result[0]
                                 ).result[0]


def is_random(config: Config) -> bool:
    """Whether the perturbation draws numbers, for each sample by its place in the batch, or layers, for a batch."""
    options = dict(config.options)
    return KINDS[options.get("perturbation", "identity")].is_random or options.get("random_share", 0.0) > 0.0


def batches(config: Config, wanted: Iterable[int], present: set[int], classes: int, size: int = BATCH
            ) -> list[list[int]]:
    """The samples of a model of so many classes to compute, in batches of one label each.

    A sample's batch follows from its id alone, so that random perturbations, which look at the place in the batch, do
    the same wherever and however often a run is interrupted; for them the size is always BATCH.
    """
    stride = classes if config.conditional else 1
    random = is_random(config)
    size = BATCH if random else size
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i in wanted:
        groups[i // (size * stride), config.label(i, classes)].append(i)
    missing = []
    for (number, label), ids in groups.items():
        left = [i for i in ids if i not in present]
        if left and random:  # from the batch's first sample on
            left = list(range(number * size * stride + max(label, 0), left[-1] + 1, stride))
        if left:
            missing.append(left)
    return missing
