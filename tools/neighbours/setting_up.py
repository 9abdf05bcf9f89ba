"""What the packs are set up with."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .measuring import Scene, SetUp

SEED = 5  # of the noise
SetUps = dict[str, tuple[str, "SetUp"]]  # {what is set up: (family, how)}


@dataclass(frozen=True)
class Pack:
    """One pack.

    Attributes:
        folder: its name, as `git clone` gives it.
        owner: on GitHub.
        set_ups: made where the host is running.
        lacking: {"module.name" that the pack imports and this host no longer has: what stands there instead, or None},
            so that what does work can be looked at.
    """

    folder: str
    owner: str
    set_ups: Callable[[], SetUps] = field(default=lambda: {"loaded, no node used": ("SD 1.5", nothing)})
    lacking: Mapping[str, str | None] = field(default_factory=dict)


def nothing(scene: Scene) -> None:
    """No node of the pack is in use; but the pack may have changed the host."""


def patch(node_id: str, **inputs) -> SetUp:
    """A node that takes a model and gives a model."""
    from .hosted import call

    def set_up(scene: Scene) -> None:
        scene.model = call(node_id, model=scene.model, **inputs)[0]
    return set_up


def submodule(node_id: str, name: str):
    """A module of the pack that a node is from."""
    import nodes

    return importlib.import_module(f"{nodes.NODE_CLASS_MAPPINGS[node_id].__module__.rpartition('.')[0]}.{name}")


def noise(seed: int, *shape: int):
    import torch

    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def hint(scene: Scene):
    """A random picture for a ControlNet, [1, H, W, 3] in [0, 1], of the size of what is sampled."""
    return noise(70, 1, *(8 * size for size in scene.latent["samples"].shape[-2:]), 3).sigmoid()


def halves(latent: dict) -> list:
    """A left and a right mask, [1, H, W] in pixels."""
    import torch

    height, width = (8 * size for size in latent["samples"].shape[-2:])
    left = torch.zeros(1, height, width)
    left[..., :width // 2] = 1.0
    return [left, 1.0 - left]


def guider(node_id: str, *prompts: str, **inputs) -> SetUp:
    """A node that gives a guider, under the host's SamplerCustomAdvanced; `prompts` name its conditioning inputs."""
    from .hosted import call
    from .models import prompt

    def set_up(scene: Scene) -> None:
        scene.run = run

    def run(scene: Scene):
        given = dict(zip(prompts, (scene.positive, scene.negative, prompt(7)), strict=False))
        values = {name: value(scene) if callable(value) else value for name, value in inputs.items()}
        return sampled(scene, call(node_id, model=scene.model, **given, **values)[0])
    return set_up


def sampled(scene: Scene, made, sampler=None):
    """What the host's SamplerCustomAdvanced makes with a guider, and with a sampler other than the scene's if given."""
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise, SamplerCustomAdvanced

    own, sigmas = sampler_and_sigmas(scene)
    return SamplerCustomAdvanced.execute(Noise_RandomNoise(SEED), made, sampler or own, sigmas,
                                         scene.latent).result[0]["samples"]


def sampler_and_sigmas(scene: Scene) -> tuple:
    import comfy.samplers

    sigmas = comfy.samplers.calculate_sigmas(scene.model.get_model_object("model_sampling"), scene.scheduler,
                                             scene.steps)
    return comfy.samplers.sampler_object(scene.sampler), sigmas


def on_sd15(*node_ids: str, **inputs) -> Callable[[], SetUps]:
    return lambda: {node_id: ("SD 1.5", patch(node_id, **inputs)) for node_id in node_ids}
