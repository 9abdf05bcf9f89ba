"""Packs for editing and for placing things, and one that has a part of many others; see `packs`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .more_packs import sampled_by
from .setting_up import Pack, SetUps, hint, noise, on_sd15, patch, sampled, sampler_and_sigmas, submodule

if TYPE_CHECKING:
    from .measuring import Scene, SetUp


def flow_edited(family: str, guider_id: str, sampler_id: str, *names: str, **inputs) -> tuple[str, SetUp]:
    """FlowEdit: the model is called twice a step, for the source and for the target."""
    from .hosted import call
    from .models import FAMILIES, prompt

    def run(scene: Scene):
        source = prompt(9, **FAMILIES[family].extras)
        prompts = dict(zip(names, (source, scene.negative, scene.positive, scene.negative), strict=True))
        made = call(guider_id, model=scene.model, source_cfg=scene.cfg, target_cfg=scene.cfg, **prompts)[0]
        sampler = call(sampler_id, skip_steps=0, seed=3, **inputs)[0]
        return sampled(scene, made, sampler)

    def set_up(scene: Scene) -> None:
        scene.latent = {"samples": noise(44, *scene.latent["samples"].shape)}
        scene.run = run
    return family, set_up


def there_and_back(family: str, *samplers: tuple[str, str, dict]) -> SetUps:
    """Samplers that lead a picture to noise, and one that leads noise to a picture, the last.

    Args:
        samplers: the ids of each, and of the pack's node for its model, and its inputs.
    """
    from .hosted import call

    def sampled(sampler_id: str, node_id: str, inputs: dict) -> SetUp:
        is_back = sampler_id == samplers[-1][0]

        def run(scene: Scene):
            from comfy_extras.nodes_custom_sampler import FlipSigmas, SamplerCustom

            _, sigmas = sampler_and_sigmas(scene)
            if not is_back:  # not quite to noise alone
                sigmas = FlipSigmas.execute(sigmas).result[0][:-1]
            values = {name: value(scene) if callable(value) else value for name, value in inputs.items()}
            return SamplerCustom.execute(scene.model, is_back, 5, scene.cfg, scene.positive, scene.negative,
                                         call(sampler_id, **values)[0], sigmas, scene.latent).result[0]["samples"]

        def set_up(scene: Scene) -> None:
            scene.latent, scene.steps = {"samples": noise(44, *scene.latent["samples"].shape)}, 3
            scene.run = run
            if node_id:
                patch(node_id)(scene)
        return set_up
    return {f"its sampler {sampler[0]}": (family, sampled(*sampler)) for sampler in samplers}


THERE = {"seed": 3, "gamma": 0.5, "end_step": 2}
BACK = {"model": lambda scene: scene.model, "latent_image": lambda scene: scene.latent, "end_step": 2}


def ltx_tricks() -> SetUps:
    edited = flow_edited("LTX-Video", "LTXFlowEditCFGGuider", "LTXFlowEditSampler", "source_pos", "source_neg",
                         "target_pos", "target_neg", refine_steps=1)
    return {"FlowEdit on LTX-Video": edited, "a network of its own": ("LTX-Video", patch("ModifyLTXModel"))} | (
        there_and_back("LTX-Video", ("LTXRFForwardODESampler", "LTXForwardModelSamplingPred", THERE),
                       ("LTXRFReverseODESampler", "LTXReverseModelSamplingPred", BACK)))


def hunyuan_loom() -> SetUps:
    edited = flow_edited("Wan", "HYFlowEditGuiderCFG", "HYFlowEditSampler", "source_cond", "source_uncond",
                         "target_cond", "target_uncond", drift_steps=1)
    return {"FlowEdit on Wan": edited} | there_and_back(
        "Wan", ("HYForwardODESampler", "HYInverseModelSamplingPred", THERE),
        ("HYReverseODESampler", "HYReverseModelSamplingPred", BACK))


def mochi_edit() -> SetUps:
    return there_and_back("Wan", ("MochiUnsampler", "", {"seed": 3, "gamma": 0.5}),
                          ("MochiResampler", "", {"latents": lambda scene: scene.latent, "end_step": 2}))


def overly_complicated() -> SetUps:
    from .hosted import call

    def made(method: str) -> SetUp:
        def sampler(scene: Scene, _) -> object:
            substeps = call("OCS Substeps", substeps=1, step_method=method)[0]
            group = call("OCS Group", merge_method="divide", time_mode="step", time_start=0, time_end=999,
                         substeps=substeps)[0]
            return call("OCS Sampler", groups=group, parameters="")[0]
        return sampled_by(sampler)
    return {f"its sampler, {method}": ("SD 1.5", made(method)) for method in ("euler", "dpmpp_2s (1)", "ttm_jvp (1)")}


class InFullPrecision:
    """Stands for torch in a module that makes half-precision numbers in any case."""

    def __getattr__(self, name: str):
        import torch

        return torch.float32 if name == "float16" else getattr(torch, name)


def instance_diffusion() -> SetUps:
    """Its scaling of the skips. What it puts in places stands for a GLIGEN, and lacks what ComfyUI asks of one now."""
    import torch

    made = submodule("ApplyScaleUModelNode", "apply_scaleu_model_node")
    module = sys.modules[sys.modules[made.get_scaleu_patch.__module__].ScaleU.__module__]
    module.torch = InFullPrecision()
    with torch.inference_mode(False), torch.no_grad():
        nets = [module.ScaleU(True, width, 1).requires_grad_(False)
                for width in (*[128] * 3, *[128] * 4, *[64] * 3, *[32] * 2)]
        for number, weight in enumerate(weight for net in nets for weight in net.parameters()):
            weight.copy_(0.3 * noise(80 + number, *weight.shape))
    return {"ScaleU": ("SD 1.5", patch("ApplyScaleUModelNode", scaleu={"model_list": nets}))}


def easy_use() -> SetUps:
    import torch

    lllite = submodule("easy LLLiteLoader", "loaders").load_control_net_lllite_patch

    def controlled(scene: Scene) -> None:
        import folder_paths
        from safetensors.torch import save_file

        folder = Path(folder_paths.get_folder_paths("controlnet")[0])
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "lllite.safetensors"
        weights = {}
        for place, width in (("input_blocks_4_1", 64), ("input_blocks_5_1", 64)):
            name = f"lllite_unet_{place}_transformer_blocks_0_attn1_to_q"
            for number, (key, shape) in enumerate({
                    "conditioning1.0": (8, 3, 4, 4), "conditioning1.2": (16, 8, 4, 4), "down.0": (16, width),
                    "mid.0": (16, 32), "up.0": (width, 16)}.items()):
                weights |= {f"{name}.{key}.weight": 0.3 * noise(100 + number, *shape),
                            f"{name}.{key}.bias": torch.zeros(shape[0])}
        save_file(weights, path)
        scene.model = scene.model.clone()
        change = lllite(str(path), hint(scene), 1.0, 0, 0.0, 0.0)
        scene.model.set_model_attn1_patch(change)
        scene.model.set_model_attn2_patch(change)
    return {"ControlNet-LLLite": ("SD 1.5", controlled)} | on_sd15("dynamicThresholdingFull")()


FURTHER = (
    Pack("ComfyUI-LTXTricks", "logtd", ltx_tricks, {"comfy.ldm.lightricks.model.precompute_freqs_cis": None}),
    Pack("ComfyUI-HunyuanLoom", "logtd", hunyuan_loom),
    Pack("ComfyUI-MochiEdit", "logtd", mochi_edit),
    Pack("comfyui_overly_complicated_sampling", "blepping", overly_complicated),
    Pack("ComfyUI-InstanceDiffusion", "logtd", instance_diffusion),
    Pack("ComfyUI-Easy-Use", "yolain", easy_use),
)
