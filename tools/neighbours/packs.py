"""The packs, and how each is set up with PAG; weights that a pack brings along are replaced by random ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .beside import control_net
from .further_packs import FURTHER
from .more_packs import MORE, flow_edit, ic_light_native, negative_weights
from .newer_packs import NEWER, clownshark, kj_on_blocks
from .setting_up import Pack, SetUps, guider, halves, noise, on_sd15, patch, sampler_and_sigmas, submodule

if TYPE_CHECKING:
    from .measuring import Scene, SetUp


def ipadapter() -> SetUps:
    channels = [32, 32, 64, 64, 128, 128, *[128] * 3, *[64] * 3, *[32] * 3, 128]
    layers = {f"{2 * i + 1}.to_{name}_ip.weight": 0.3 * noise(10 + i + (name == "v"), width, 32)
              for i, width in enumerate(channels) for name in "kv"}
    weights = {"image_proj": {"norm.weight": 1 + 0.1 * noise(1, 32), "norm.bias": 0.1 * noise(2, 32),
                              "proj.weight": 0.3 * noise(3, 4 * 32, 16), "proj.bias": 0.1 * noise(4, 4 * 32)},
               "ip_adapter": layers}
    embeds = {"pos_embed": noise(5, 1, 1, 16), "neg_embed": noise(6, 1, 1, 16)}
    return {f"IPAdapter Embeds, {kind}": ("SD 1.5", patch("IPAdapterEmbeds", ipadapter=weights, weight_type=kind,
                                                          embeds_scaling=scaling, **embeds))
            for kind, scaling in (("linear", "V only"), ("style transfer", "K+mean(V) w/ C penalty"))}


def tiled_diffusion() -> SetUps:
    def tiles(method: str, batch: int) -> Callable:
        return patch("TiledDiffusion", method=method, tile_width=128, tile_height=128, tile_overlap=64,
                     tile_batch_size=batch)

    def with_hypertile(scene: Scene) -> None:
        patch("HyperTile", tile_size=32, swap_size=2, max_depth=0, scale_depth=False)(scene)
        tiles("MultiDiffusion", 4)(scene)
        scene.steps = 8  # in the first nothing is shared

    def with_control_net(scene: Scene) -> None:
        control_net(scene, "SD 1.5")
        tiles("MultiDiffusion", 4)(scene)

    return {**{f"{method}, tiles in batches of {batch}": ("SD 1.5", tiles(method, batch))
               for method, batch in (("MultiDiffusion", 4), ("MultiDiffusion", 1), ("Mixture of Diffusers", 4),
                                     ("SpotDiffusion", 4))},
            "MultiDiffusion, tiles in batches of 4, with HyperTile (8 steps)": ("SD 1.5", with_hypertile),
            "MultiDiffusion, tiles in batches of 4, with a ControlNet": ("SD 1.5", with_control_net)}


def masked_pair(scene: Scene) -> list:
    from .models import prompt

    left, right = halves(scene.latent)
    return [*prompt(1, mask=left, mask_strength=1.0), *prompt(7, mask=right, mask_strength=1.0)]


def attention_couple() -> SetUps:
    from .hosted import call

    def set_up(scene: Scene) -> None:
        scene.model, scene.positive, scene.negative = call(
            "Attention couple", model=scene.model, positive=masked_pair(scene), negative=scene.negative,
            mode="Attention")
    return {"Attention couple, two regions": ("SD 1.5", set_up)}


def couple_by_masks(node_id: str) -> SetUps:
    from .hosted import call
    from .models import prompt

    def set_up(scene: Scene) -> None:
        left, right = halves(scene.latent)
        inputs = {"base_cond": scene.positive} if node_id.endswith("PPM") else {}
        scene.model = call(node_id, model=scene.model, base_mask=left, cond_1=prompt(7), mask_1=right, **inputs)[0]
    return {f"{node_id.partition('|')[0]}, two regions": ("SD 1.5", set_up)}


def ppm() -> SetUps:
    return couple_by_masks("AttentionCouplePPM") | {
        "FreeU (ppm), middle and output": ("SD 1.5", patch("FreeU2PPM", middle_block=True, output_block=True,
                                                            slice_b1=64, slice_b2=32)),
        "RescaleCFG (post)": ("SD 1.5", patch("RescaleCFGPost")), "TCFG": ("SD 1.5", patch("TCFGAdvanced")),
        "CFG Limiter": ("SD 1.5", guider("CFGLimiterGuider", "positive", "negative", cfg=lambda scene: scene.cfg))}


def prompt_control() -> SetUps:
    couple = submodule("PCTextEncode", "attention_couple_ppm").set_cond_attnmask

    def set_up(scene: Scene) -> None:
        base, other = masked_pair(scene)
        scene.positive = couple([base], [other])
    return {"attention couple, two regions": ("SD 1.5", set_up)}


def wavespeed() -> SetUps:
    state = submodule("ApplyFBCacheOnModel", "first_block_cache")

    def cache(threshold: float) -> SetUp:
        def set_up(scene: Scene) -> None:
            scene.remembers = True
            patch("ApplyFBCacheOnModel", residual_diff_threshold=threshold)(scene)
            if scene.is_twin:
                scene.model.set_model_unet_function_wrapper(apart(scene.model.model_options["model_function_wrapper"]))
        return set_up

    def apart(wrapper: Callable) -> Callable:
        """It keeps its cache in a variable of its module, which both copies of the model would share."""
        own = [None]

        def wrapped(function, inputs: dict):
            with state.cache_context(own[0]):
                result = wrapper(function, inputs)
                own[0] = state.get_current_cache_context()
            return result
        return wrapped
    return {f"first-block cache {words}, {family}": (family, cache(threshold))
            for family in ("SD 1.5", "Flux") for words, threshold in (("never used", 1e-6), ("used", 10.0))}


def deepcache() -> SetUps:
    def set_up(scene: Scene) -> None:
        scene.remembers = True
        patch("DeepCache", cache_interval=2, cache_depth=3)(scene)
    return {"DeepCache, every second step": ("SD 1.5", set_up)}


def kj() -> SetUps:
    from .models import prompt

    def enhance(scene: Scene) -> None:
        patch("WanVideoEnhanceAVideoKJ", latent=scene.latent)(scene)

    def tea(threshold: float) -> SetUp:
        return patch("WanVideoTeaCacheKJ", rel_l1_thresh=threshold, start_percent=0.0, coefficients="disabled",
                     cache_device="main_device")
    return {"TeaCache on Wan, cache never used": ("Wan", tea(1e-9)), "TeaCache on Wan, cache used": ("Wan", tea(10.0)),
            "NAG on Wan": ("Wan", patch("WanVideoNAG", conditioning=prompt(9))),
            "skipped layers on Wan": ("Wan", patch("SkipLayerGuidanceWanVideo", blocks="1", start_percent=0.0)),
            "Enhance-A-Video on Wan": ("Wan", enhance),
            "CFG-Zero*": ("Wan", patch("CFGZeroStarAndInit", use_zero_init=False)),
            "scheduled CFG": ("Wan", guider("ScheduledCFGGuidance", "positive", "negative",
                                            cfg=lambda scene: scene.cfg))}


def teacache() -> SetUps:
    def tea(kind: str, threshold: float) -> SetUp:
        return patch("TeaCache", model_type=kind, rel_l1_thresh=threshold, cache_device="cpu")
    return {f"TeaCache on {family}, {words}": (family, tea(kind, threshold))
            for family, kind in (("Flux", "flux"), ("Wan", "wan2.1_t2v_1.3B"))
            for words, threshold in (("cache never used", 1e-9), ("cache used", 10.0))}


def pamparamm() -> SetUps:
    from .models import prompt

    return {
        "NAG": ("SD 1.5", patch("NormalizedAttentionGuidance", negative=prompt(9))),
        "NAG in the middle block": ("SD 1.5", patch("NormalizedAttentionGuidance", negative=prompt(9),
                                                    unet_block_list="m0")),
        "PLADIS": ("SD 1.5", patch("PLADIS")), "its own PAG node": ("SD 1.5", patch("PerturbedAttention")),
        "SEG": ("SD 1.5", patch("SmoothedEnergyGuidanceAdvanced")),
        "token perturbation": ("SD 1.5", patch("TokenPerturbationGuidance", unet_block_list="d2,d3")),
        "frequency-decoupled guidance": ("SD 1.5", patch("FrequencyDecoupledGuidance")),
        "momentum guidance": ("SD 1.5", patch("MomentumGuidance")),
        "sliding-mode CFG": ("SD 1.5", patch("SlidingModeControlCFG"))}


def nag() -> SetUps:
    from .hosted import call
    from .models import prompt

    def run(scene: Scene):
        return call("KSamplerWithNAG", model=scene.model, seed=5, steps=scene.steps, cfg=scene.cfg,
                    sampler_name=scene.sampler, scheduler=scene.scheduler, positive=scene.positive,
                    negative=scene.negative, nag_negative=prompt(9), latent_image=scene.latent)[0]["samples"]

    def set_up(scene: Scene) -> None:
        scene.run = run
    return {f"its KSampler on {family}": (family, set_up) for family in ("SD 1.5", "Flux", "Wan")}


def layerdiffuse() -> SetUps:
    import torch

    patcher = submodule("LayeredDiffusionJointApply", "lib_layerdiffusion.attention_sharing").AttentionSharingPatcher

    def set_up(scene: Scene) -> None:
        scene.model = scene.model.clone()
        with torch.inference_mode(False), torch.no_grad():
            made = patcher(scene.model, frames=3, use_control=False, rank=8)
            for i, weight in enumerate(made.hookers.parameters()):
                weight.copy_(0.05 * noise(i, *weight.shape))
        scene.model.model_options["transformer_options"]["cond_overwrite"] = [noise(20 + i, 1, 77, 32)
                                                                              for i in range(3)]
        scene.latent = {"samples": scene.latent["samples"].repeat(3, 1, 1, 1)}
    return {"attention sharing, three layers": ("SD 1.5", set_up)}


def evolved_sampling() -> SetUps:
    from .hosted import call

    def set_up(node_id: str, **windows: int) -> SetUp:
        def inner(scene: Scene) -> None:
            context = call(node_id, context_length=2, **windows)[0]
            scene.model = call("ADE_UseEvolvedSampling", model=scene.model, context_options=context)[0]
            scene.latent = {"samples": scene.latent["samples"].repeat(4, 1, 1, 1)}
        return inner
    return {"evolved sampling, static context windows": ("SD 1.5", set_up("ADE_StandardStaticContextOptions",
                                                                          context_overlap=1)),
            "evolved sampling, batched context windows": ("SD 1.5", set_up("ADE_BatchedContextOptions"))}


def advanced_controlnet() -> SetUps:
    from .hosted import call

    def set_up(kind: str) -> SetUp:
        def inner(scene: Scene) -> None:
            wrapper = submodule("ACN_ReferenceControlNet", "control_reference").ReferencePreprocWrapper
            net = call("ACN_ReferenceControlNet", reference_type=kind)[0]
            scene.positive, scene.negative = call(
                "ACN_AdvancedControlNetApply_v2", positive=scene.positive, negative=scene.negative, control_net=net,
                image=wrapper(noise(3, 1, *scene.latent["samples"].shape[1:])))[:2]
        return inner
    return {f"reference control, {kind}": ("SD 1.5", set_up(f"reference_{kind}")) for kind in ("attn", "adain")}


def prediction() -> SetUps:
    from .hosted import call

    def run(scene: Scene):
        made = call("CFGPrediction", positive=call("ConditionedPrediction", conditioning=scene.positive)[0],
                    negative=call("ConditionedPrediction", conditioning=scene.negative)[0], cfg_scale=scene.cfg)[0]
        sampler, sigmas = sampler_and_sigmas(scene)
        return call("SamplerCustomPrediction", model=scene.model, noise_seed=5, sampler=sampler, sigmas=sigmas,
                    latent_image=scene.latent, noise_prediction=made)[0]["samples"]

    def set_up(scene: Scene) -> None:
        scene.run = run
    return {"CFG prediction in its sampler": ("SD 1.5", set_up)}


def gguf() -> SetUps:
    def set_up(scene: Scene) -> None:
        """The same weights, in a file that the pack's loader reads."""
        import folder_paths
        import gguf as library

        from .hosted import call

        folder = folder_paths.get_folder_paths("diffusion_models")[0]
        Path(folder).mkdir(parents=True, exist_ok=True)
        path = f"{folder}/small.gguf"
        writer = library.GGUFWriter(path, "flux")
        for name, weight in scene.model.model.diffusion_model.state_dict().items():
            large = weight.ndim == 2 and weight.shape[1] % 32 == 0 and weight.numel() > 4096
            kind = library.GGMLQuantizationType.Q8_0 if large else library.GGMLQuantizationType.F32
            writer.add_tensor(name, library.quants.quantize(weight.numpy(), kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        scene.model = call("UnetLoaderGGUF", unet_name="small.gguf")[0]
    return {"Flux in Q8_0 from its loader": ("Flux", set_up)}


def tiles_of_a_picture() -> SetUps:
    import torch
    import torch.nn.functional as F

    from .hosted import call

    class Pixels:
        """A VAE without a network."""

        latent_channels = 4

        def encode(self, pixels):
            small = F.avg_pool2d(pixels.movedim(-1, 1), 8)
            return torch.cat((small, small.mean(1, keepdim=True)), 1)

        def decode(self, samples):
            decoded.append(samples)  # pictures are rounded to bytes on their way
            return F.interpolate(samples[:, :3].sigmoid(), scale_factor=8).movedim(1, -1)

    decoded = []

    def run(scene: Scene):
        decoded.clear()
        batch = scene.latent["samples"].shape[0]
        picture = torch.rand(batch, 128, 256, 3, generator=torch.Generator().manual_seed(1))
        inputs = {"mode_type": "Linear", "tile_width": 128, "tile_height": 128, "tile_padding": 0, "mask_blur": 0,
                  "seam_fix_mode": "None", "force_uniform_tiles": True, "tiled_decode": False}
        call("UltimateSDUpscaleNoUpscale", upscaled_image=picture, model=scene.model, vae=Pixels(), seed=5,
             steps=scene.steps, cfg=scene.cfg, sampler_name=scene.sampler, scheduler=scene.scheduler,
             positive=scene.positive, negative=scene.negative, denoise=1.0, **inputs)
        return torch.cat(decoded)

    def set_up(scene: Scene) -> None:
        scene.run = run
    return {"an image in tiles": ("SD 1.5", set_up)}


def samplers() -> SetUps:
    def named(name: str) -> SetUp:
        def set_up(scene: Scene) -> None:
            scene.sampler = name
        return set_up
    return {f"its sampler {name} in ComfyUI's KSampler": ("SD 1.5", named(name)) for name in ("res_2s", "res_2m")}


def extra_guiders() -> SetUps:
    cfg = {"cfg": lambda scene: scene.cfg}
    return {"ScaledCFGGuider": ("SD 1.5", guider("ScaledCFGGuider", "cond1", "negative", "cond2", **cfg)),
            "GeometricCFGGuider": ("SD 1.5", guider("GeometricCFGGuider", "cond1", "negative", "cond2", **cfg)),
            "WarmupDecayCFGGuider": ("SD 1.5", guider("WarmupDecayCFGGuider", "positive", "negative",
                                                      cfg_max=lambda scene: scene.cfg))}


def hidiffusion() -> SetUps:
    import torch

    def on_a_larger_latent(node_id: str) -> SetUp:
        """It halves the latent once more, which would leave the middle block one token, and PAG nothing to do."""
        def set_up(scene: Scene) -> None:
            batch, channels, height, width = scene.latent["samples"].shape
            scene.latent = {"samples": torch.zeros(batch, channels, 2 * height, 2 * width)}
            patch(node_id, model_type="SD15")(scene)
        return set_up
    return {node_id: ("SD 1.5", on_a_larger_latent(node_id))
            for node_id in ("ApplyMSWMSAAttentionSimple", "ApplyRAUNetSimple")}


def cgem156() -> SetUps:
    return couple_by_masks("AttentionCouple|cgem156") | {
        "AttentionScale": ("SD 1.5", patch("AttentionScale|cgem156", temperature=1.2)),
        "LimitedIntervalCFGGuider": ("SD 1.5", guider("LimitedIntervalCFGGuider|cgem156", "positive", "negative",
                                                      cfg=lambda scene: scene.cfg))}


PACKS = {pack.folder: pack for pack in (
    Pack("ComfyUI_IPAdapter_plus", "cubiq", ipadapter),
    Pack("ComfyUI-Advanced-ControlNet", "Kosinkadink", advanced_controlnet),
    Pack("ComfyUI-AnimateDiff-Evolved", "Kosinkadink", evolved_sampling),
    Pack("ComfyUI-KJNodes", "kijai", lambda: kj() | kj_on_blocks()),
    Pack("ComfyUI-TeaCache", "welltop-cn", teacache, {"comfy.ldm.lightricks.model.precompute_freqs_cis": None}),
    Pack("Comfy-WaveSpeed", "chengzeyi", wavespeed),
    Pack("ComfyUI-TiledDiffusion", "shiimizu", tiled_diffusion),
    Pack("ComfyUI-ppm", "pamparamm", ppm, {"comfy.ldm.cosmos.predict2.apply_rotary_pos_emb": None}),
    Pack("comfyui-prompt-control", "asagi4", prompt_control),
    Pack("cgem156-ComfyUI", "laksjdjf", cgem156),
    Pack("attention-couple-ComfyUI", "laksjdjf", attention_couple),
    Pack("ComfyUI-layerdiffuse", "huchenlei", layerdiffuse),
    Pack("ComfyUI-GGUF", "city96", gguf),
    Pack("sd-dynamic-thresholding", "mcmonkeyprojects", on_sd15("DynamicThresholdingSimple")),
    Pack("Skimmed_CFG", "Extraltodeus", on_sd15("Skimmed CFG", "Skimmed CFG - replace", "Skimmed CFG - Timed flip")),
    Pack("ComfyUI-AutomaticCFG", "Extraltodeus", on_sd15(
        "Automatic CFG", "Automatic CFG - Negative", "Automatic CFG - Excellent attention")),
    Pack("ComfyUI-NAG", "ChenDarYen", nag, {
        f"comfy.ldm.chroma.layers.{name}": f"comfy.ldm.flux.layers.{name}"
        for name in ("DoubleStreamBlock", "SingleStreamBlock")}),
    Pack("sd-perturbed-attention", "pamparamm", pamparamm),
    Pack("ComfyUI-bleh", "blepping", on_sd15("BlehDeepShrink", "BlehHyperTile", "BlehBlockCFG",
                                             "BlehContrastiveOrthoCFG")),
    Pack("comfyui_jankhidiffusion", "blepping", hidiffusion),
    Pack("RES4LYF", "ClownsharkBatwing", lambda: samplers() | clownshark()),
    Pack("ComfyUI-MultiGPU", "pollockjj"),
    Pack("ComfyUI-Impact-Pack", "ltdrdata"),
    Pack("efficiency-nodes-comfyui", "jags111"),
    Pack("ComfyUI_UltimateSDUpscale", "ssitu", tiles_of_a_picture),
    Pack("ComfyUI-deepcache", "styler00dollar", deepcache),
    Pack("ComfyUI-CADS", "asagi4", on_sd15("CADS", seed=3)),
    Pack("ComfyUI-Prediction", "redhottensors", prediction,
         {"comfy.sample.convert_cond": "comfy.sampler_helpers.convert_cond"}),
    Pack("ComfyUI-Extra-Samplers", "Clybius", extra_guiders),
    Pack("ComfyUI_essentials", "cubiq", on_sd15("GuidanceTimestepping+")),
    Pack("comfyui-diffusion-cg", "Haoming02"),
    Pack("ComfyUI-Fluxtapoz", "logtd", flow_edit),
    Pack("x-flux-comfyui", "XLabs-AI"),
    Pack("ComfyUI-IPAdapter-Flux", "Shakker-Labs"),
    Pack("ComfyUI-IC-Light-Native", "huchenlei", ic_light_native),
    Pack("ComfyUI-PuLID-Flux", "balazik"),
    Pack("cd-tuner_negpip-ComfyUI", "laksjdjf", negative_weights),
    *MORE,
    *NEWER,
    *FURTHER,
)}
