"""What `--with` puts beside a pack: settings of ComfyUI's own on the prompts and the latent of a scene."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .setting_up import hint, noise

if TYPE_CHECKING:
    from .measuring import Scene, SetUp


def control_net(scene: Scene, family: str) -> None:
    """On both prompts, with a random hint."""
    import nodes

    from .models import FAMILIES

    scene.positive, scene.negative = nodes.ControlNetApplyAdvanced().apply_controlnet(
        scene.positive, scene.negative, FAMILIES[family].control(), hint(scene), 0.5, 0.0, 1.0)


def areas(scene: Scene, family: str) -> None:
    """The positive prompt in the left two thirds, and another in the right."""
    others = scene.latent["samples"].ndim - 3
    left, right = ({"area": ("percentage", *[1.0] * others, 2 / 3, *[0.0] * others, start), "strength": 1.0,
                    "set_area_to_bounds": False} for start in (0.0, 1 / 3))
    _two_prompts(scene, left, right)


def times(scene: Scene, family: str) -> None:
    """The positive prompt from 40 % of the steps on, and another up to 60 %."""
    _two_prompts(scene, {"start_percent": 0.4, "end_percent": 1.0}, {"start_percent": 0.0, "end_percent": 0.6})


def _two_prompts(scene: Scene, values: dict, values_of_another: dict) -> None:
    from node_helpers import conditioning_set_values

    another = [[text.flip(-1), extra] for text, extra in scene.positive]
    scene.positive = [*conditioning_set_values(scene.positive, values),
                      *conditioning_set_values(another, values_of_another)]


def mask(scene: Scene, family: str) -> None:
    """A noise mask: the left half of the latent is kept."""
    samples = scene.latent["samples"]
    given = samples.new_zeros(1, 1, *samples.shape[2:])
    given[..., samples.shape[-1] // 2:] = 1.0
    scene.latent = {**scene.latent, "samples": noise(71, *samples.shape), "noise_mask": given}


def lora(scene: Scene, family: str) -> None:
    """A LoRA hook on the positive prompt, weaker in the second half of the steps."""
    from comfy import hooks

    weights = {}
    for name, weight in scene.model.model.named_parameters():
        if name.startswith("diffusion_model.") and name.endswith(".weight") and weight.ndim == 2:
            rows, columns = weight.shape
            layer = name.removesuffix(".weight")
            weights |= {f"{layer}.lora_up.weight": noise(72, rows, 1) * columns ** -0.5,
                        f"{layer}.lora_down.weight": noise(73, 1, columns) * 0.1}
    strengths = hooks.HookKeyframeGroup()
    for strength, start in ((1.0, 0.0), (0.5, 0.5)):
        strengths.add(hooks.HookKeyframe(strength, start_percent=start))
    made = hooks.create_hook_lora(weights, 1.0, 0.0)
    made.set_keyframes_on_hooks(strengths)
    scene.positive = hooks.set_hooks_for_conditioning(scene.positive, made)


def windows(scene: Scene, family: str) -> None:
    """Context windows over the frames of a video of four, or over four images, that move from step to step."""
    from comfy_extras.nodes_context_windows import ContextWindowsManualNode

    samples = scene.latent["samples"]
    axis = 2 if samples.ndim == 5 else 0
    scene.latent = {"samples": samples.repeat_interleave(4 // samples.shape[axis], axis)}
    scene.model = ContextWindowsManualNode.execute(scene.model, 2, 1, "standard_uniform", 1, False, "pyramid", axis,
                                                   False).result[0]


THINGS: dict[str, Callable[[Scene, str], None]] = {
    "control_net": control_net, "areas": areas, "times": times, "mask": mask, "lora": lora, "windows": windows}


def applies(thing: str, family: str) -> bool:
    """Whether a family has that thing; a latent of several parts has no mask and no windows here."""
    from .models import FAMILIES

    is_one = family != "LTX-2"
    return {"control_net": FAMILIES[family].control is not None, "mask": is_one, "windows": is_one}.get(thing, True)


def beside(thing: str, family: str, set_up: SetUp) -> SetUp:
    """The pack's set-up, and then that thing."""
    def both(scene: Scene) -> None:
        set_up(scene)
        THINGS[thing](scene, family)
    return both
