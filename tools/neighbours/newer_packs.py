"""Packs that keep results, replace attention or bring samplers of their own, and how each is set up; see `packs`."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from .more_packs import NoText, sampled_by
from .setting_up import Pack, SetUps, halves, noise, on_sd15, patch, sampler_and_sigmas, submodule

if TYPE_CHECKING:
    from .measuring import Scene, SetUp


def named_samplers(steps: int, *names: str) -> SetUps:
    """Samplers that the pack has added to ComfyUI's."""
    def named(name: str) -> SetUp:
        def set_up(scene: Scene) -> None:
            scene.sampler, scene.steps = name, steps
        return set_up
    return {f"its sampler {name}": ("SD 1.5", named(name)) for name in names}


def dense_diffusion() -> SetUps:
    from .hosted import call
    from .models import prompt

    def set_up(scene: Scene) -> None:
        for mask, text in zip(halves(scene.latent), (prompt(1), prompt(7)), strict=True):
            scene.model = call("DenseDiffusionAddCondNode", model=scene.model, conditioning=text, strength=1.0,
                               mask=mask)[0]
        scene.model, scene.positive = call("DenseDiffusionApplyNode", model=scene.model)
    return {"two regions": ("SD 1.5", set_up)}


def visual_style() -> SetUps:
    from .hosted import call
    from .models import prompt

    def set_up(scene: Scene) -> None:
        """A picture, whose look the others take over."""
        latent = {"samples": noise(60, 1, *scene.latent["samples"].shape[1:])}
        scene.model, scene.positive, scene.negative, scene.latent = call(
            "ApplyVisualStyle", model=scene.model, clip=NoText(), reference_latent=latent, reference_cond=prompt(9),
            positive=scene.positive, negative=scene.negative, enabled=True, skip_output_layers=2)
    return {"style of a picture": ("SD 1.5", set_up)}


def experiments() -> SetUps:
    from .hosted import call

    def reference(scene: Scene) -> None:
        scene.model, scene.latent = call("ReferenceOnlySimple", model=scene.model, reference={
            "samples": noise(61, 1, *scene.latent["samples"].shape[1:])},
            batch_size=scene.latent["samples"].shape[0])
    return {"ReferenceOnlySimple": ("SD 1.5", reference)} | on_sd15(
        "ModelSamplerTonemapNoiseTest", "TonemapNoiseWithRescaleCFG")()


def ella() -> SetUps:
    made = submodule("EllaApply", "ella")

    def set_up(scene: Scene) -> None:
        """Another text in each step; the network that makes 64 tokens of it for a time is left out."""
        times = scene.model.get_model_object("model_sampling").timestep(sampler_and_sigmas(scene)[1])
        scene.positive, scene.negative = (
            made.ella_encode(tokens_for, times, {"t5_embeds": noise(seed, 1, 128, 32)}) for seed in (62, 63))

    def tokens_for(time, t5_embeds):
        return t5_embeds[:, :64] * (1 + time / 1000)
    return {"another text in each step": ("SD 1.5", set_up)}


def two_experts() -> SetUps:
    from .hosted import call

    def run(scene: Scene):
        return call("WanMoeKSampler", model_high_noise=scene.model, model_low_noise=scene.model.clone(), seed=5,
                    steps=4, cfg_high_noise=scene.cfg, cfg_low_noise=scene.cfg, sampler_name=scene.sampler,
                    scheduler=scene.scheduler, positive=scene.positive, negative=scene.negative,
                    latent_image=scene.latent)[0]["samples"]

    def set_up(scene: Scene) -> None:
        scene.run = run
    return {"its KSampler, the same model twice": ("Wan", set_up)}


def cache_dit() -> SetUps:
    wan = submodule("WanCacheOptimizer", "nodes_wan")
    other = submodule("CacheDiT_Model_Optimizer", "nodes")

    def on_wan(scene: Scene) -> None:
        """Its wrapper around the sampling is not run for a twin."""
        scene.steps, scene.remembers = 6, True
        patch("WanCacheOptimizer", enable=True, warmup_steps=2, skip_interval=2)(scene)
        if scene.is_twin:
            wan._enable_wan_cache(scene.model.model.diffusion_model,
                                  scene.model.model_options["transformer_options"]["wan_cache"])

    def on_flux(scene: Scene) -> None:
        scene.steps, scene.remembers = 6, True
        patch("CacheDiT_Model_Optimizer", enable=True, model_type="Flux", warmup_steps=2, skip_interval=2)(scene)
        if not scene.is_twin:
            return
        network, own = scene.model.model.diffusion_model, {}
        config = scene.model.model_options["transformer_options"]["cache_dit_turbo"].clone()
        config.num_inference_steps = scene.steps
        with in_place_of(other, "_lightweight_cache_state", own):  # which all models share
            other._enable_lightweight_cache(network, [], config, None)
        cached = network.forward

        def forward(*args, **kwargs):
            with in_place_of(other, "_lightweight_cache_state", own):
                return cached(*args, **kwargs)
        network.forward = forward
    return {"cache used on Wan": ("Wan", on_wan), "cache used on Flux": ("Flux", on_flux)}


@contextmanager
def in_place_of(module, name: str, value):
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def f_sampler() -> SetUps:
    from .hosted import call

    def sampled(**inputs) -> tuple[str, SetUp]:
        def run(scene: Scene):
            return call("FSampler", model=scene.model, positive=scene.positive, negative=scene.negative,
                        latent_image=scene.latent, seed=5, steps=8, cfg=scene.cfg, scheduler="simple",
                        **inputs)[0]["samples"]

        def set_up(scene: Scene) -> None:
            scene.run = run
        return "SD 1.5", set_up
    return {"euler, no step skipped": sampled(sampler="euler", skip_mode="none"),
            "euler, steps skipped": sampled(sampler="euler", skip_mode="h2/s2"),
            "res_2s, steps skipped": sampled(sampler="res_2s", skip_mode="h2/s2")}


def clybs() -> SetUps:
    from .hosted import call

    def wrapped(scene: Scene, sampler) -> object:
        return call("SamplerWrapperCFGPP", sampler=sampler)[0]
    return {"SamplerTaylorFlow": ("Flux", sampled_by(lambda scene, sampler: call("SamplerTaylorFlow")[0])),
            "SamplerClyb_BDF": ("Flux", sampled_by(lambda scene, sampler: call("SamplerClyb_BDF")[0])),
            "SamplerWrapperCFGPP": ("Flux", sampled_by(wrapped))}


def klein() -> SetUps:
    return {"reference weight": ("Flux, a reference", patch("Flux2KleinRefLatentController", conditioning=None,
                                                            strength=1.5)),
            "identity transfer": ("Flux, a reference", patch("IdentityFeatureTransfer", strength=0.5))}


def kj_on_blocks() -> SetUps:
    def enhance(scene: Scene) -> None:
        patch("LTXVEnhanceAVideoKJ", latent=scene.latent)(scene)

    def tuned(scene: Scene) -> None:
        patch("LTX2AttentionTunerPatch", video_scale=1.2, triton_kernels=False)(scene)
        video_and_sound(scene)
    return {"Enhance-A-Video on LTX-Video": ("LTX-Video", enhance),
            "feed-forward in parts, LTX-Video": ("LTX-Video", patch("LTXVChunkFeedForward", dim_threshold=16)),
            "feed-forward in parts, Wan": ("Wan", patch("WanChunkFeedForward", dim_threshold=16)),
            "attention tuner on LTX-2": ("LTX-2", tuned)}


def video_and_sound(scene: Scene) -> None:
    import torch
    from comfy.nested_tensor import NestedTensor

    batch = scene.latent["samples"].shape[0]
    scene.latent = {"samples": NestedTensor((scene.latent["samples"], torch.zeros(batch, 8, 5, 16)))}

    def run(scene: Scene):
        scene.run = None
        return torch.cat([part.flatten(1) for part in scene.sample().unbind()], dim=1)
    scene.run = run


def clownshark() -> SetUps:
    import torch

    from .hosted import call

    torch.Tensor.cuda = lambda self, *_, **__: self  # its patchers keep some weights on a GPU

    def sampled(family: str, patcher: str = "", sampler: str = "multistep/res_2m") -> tuple[str, SetUp]:
        def set_up(scene: Scene) -> None:
            if patcher:
                patch(patcher, enable=True, style_dtype="float32")(scene)
            scene.run = run

        def run(scene: Scene):
            return call("ClownsharKSampler_Beta", model=scene.model, seed=5, steps=3, cfg=scene.cfg, eta=0.5,
                        sampler_name=sampler, positive=scene.positive, negative=scene.negative,
                        latent_image=scene.latent)[0]["samples"].float()
        return family, set_up
    return {"ClownsharKSampler": sampled("SD 1.5"), "ClownsharKSampler, res_3s": sampled("SD 1.5", "", "res_3s"),
            "ClownsharKSampler, ReSDPatcher": sampled("SD 1.5", "ReSDPatcher")}


NEWER = (
    Pack("Euler-Smea-Dyn-Sampler", "Koishi-Star", lambda: named_samplers(4, "euler_dy", "euler_smea_dy",
                                                                         "euler_dy_negative")),
    Pack("ComfyUI-semantic-aware-guidance", "shiimizu", on_sd15("SemanticAwareGuidance")),
    Pack("ComfyUI_densediffusion", "huchenlei", dense_diffusion),
    Pack("ComfyUI_VisualStylePrompting", "ExponentialML", visual_style),
    Pack("ComfyUI_experiments", "comfyanonymous", experiments),
    Pack("ComfyUI-ELLA", "TencentQQGYLab", ella),
    Pack("ComfyUI-WanMoeKSampler", "stduhpf", two_experts),
    Pack("ComfyUI-CacheDiT", "Jasonzzt", cache_dit),
    Pack("ComfyUI-FSampler", "obisin", f_sampler),
    Pack("ComfyUI-ClybsChromaNodes", "Clybius", clybs),
    Pack("ComfyUI-Flux2Klein-Enhancer", "capitan01R", klein),
)
