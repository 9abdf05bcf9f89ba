"""Further packs, and how each is set up with PAG; see `packs`."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING

from .setting_up import Pack, SetUps, guider, halves, noise, on_sd15, patch, sampled, sampler_and_sigmas, submodule

if TYPE_CHECKING:
    from .measuring import Scene, SetUp


class NoText:
    """Stands for a CLIP: what a node that asks for the empty prompt needs of one."""

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens(self, tokens, return_pooled: bool = False):
        from .models import CONTEXT, TEXT

        return noise(30, 1, TEXT, CONTEXT), noise(31, 1, CONTEXT)


def sampled_by(make: Callable[[Scene, object], object], names: tuple[str, ...] = ()) -> SetUp:
    """A sampler of the pack, under the host's SamplerCustom; `make` is given the one that it may go around."""
    from comfy_extras.nodes_custom_sampler import SamplerCustom

    def run(scene: Scene):
        sampler, sigmas = sampler_and_sigmas(scene)
        return SamplerCustom.execute(scene.model, True, 5, scene.cfg, scene.positive, scene.negative,
                                     make(scene, sampler), sigmas, scene.latent).result[0]["samples"]

    def set_up(scene: Scene) -> None:
        scene.run = run
    return set_up


def pre_cfg() -> SetUps:
    def ranged(node_id: str, **inputs) -> tuple[str, SetUp]:
        return "SD 1.5", patch(node_id, **inputs)
    return {"its PAG": ranged("Pre CFG PAG"), "zero attention": ranged("Pre CFG zero attention", do_on="cond"),
            "perp-neg": ranged("Pre CFG perp-neg", clip=NoText()),
            "channel multiplier": ranged("Pre CFG channel multiplier", channel_1=0.8, selection="both"),
            "sharpening": ranged("Pre CFG sharpening"),
            "automatic scale": ranged("Pre CFG automatic scale"), "Shape attention": ranged("Shape attention")}


def detail_daemon() -> SetUps:
    from .hosted import call

    return {"Detail Daemon Sampler": ("SD 1.5", sampled_by(lambda scene, sampler: call(
                "DetailDaemonSamplerNode", sampler=sampler, detail_amount=1.0, start=0.0, end=1.0)[0])),
            "Lying Sigma Sampler": ("SD 1.5", sampled_by(lambda scene, sampler: call(
                "LyingSigmaSampler", sampler=sampler, dishonesty_factor=-0.05, start_percent=0.0,
                end_percent=1.0)[0]))}


def style_aligned() -> SetUps:
    def set_up(scene: Scene) -> None:
        batch, *shape = scene.latent["samples"].shape
        scene.latent = {"samples": scene.latent["samples"].new_zeros(2 * batch, *shape)}
        patch("StyleAlignedBatchAlign", share_norm="both", share_attn="q+k")(scene)
    return {"aligned in a batch": ("SD 1.5", set_up)}


def rave() -> SetUps:
    def set_up(scene: Scene) -> None:
        batch, *shape = scene.latent["samples"].shape
        scene.latent = {"samples": scene.latent["samples"].new_zeros(4 * batch, *shape)}
        patch("ApplyRaveAttentionNode", grid_size=2, seed=1)(scene)
    return {"frames in a grid of 2 × 2": ("SD 1.5", set_up)}


def seamless() -> SetUps:
    return {"tiling in both directions": ("SD 1.5", patch("SeamlessTile"))}


def mag_cache() -> SetUps:
    def cached(threshold: float) -> tuple[str, SetUp]:
        def set_up(scene: Scene) -> None:
            scene.steps = 6  # the first is computed in any case
            patch("MagCache", model_type="wan2.1_t2v_1.3B", magcache_thresh=threshold, retention_ratio=0.2)(scene)
        return "Wan", set_up
    return {"MagCache on Wan, cache never used": cached(1e-9), "MagCache on Wan, cache used": cached(0.3)}


def brush_net() -> SetUps:
    import torch

    patching = submodule("RAUNet", "model_patch")
    own = patching.brushNet_out_sample_wrapper
    # The host gives it one argument more than it takes.
    patching.brushNet_out_sample_wrapper = lambda executor, *args, latent_shapes=None, **kwargs: own(
        executor, *args, **kwargs)
    net_class = submodule("RAUNet", "brushnet.brushnet").BrushNetModel
    with torch.inference_mode(False), torch.no_grad():
        net = net_class(block_out_channels=(32, 64, 128, 128), cross_attention_dim=32, attention_head_dim=8)
        for number, weight in enumerate(net.parameters()):
            weight.copy_(0.05 * noise(number, *weight.shape))
        net.eval().requires_grad_(False)

    def set_up(scene: Scene) -> None:
        scene.model = scene.model.clone()
        network = scene.model.model.diffusion_model
        scene.model.model.model_config.custom_operations = SimpleNamespace(Conv2d=type(network.input_blocks[0][0]))
        latents = [noise(40, 1, 4, *scene.latent["samples"].shape[-2:]),
                   torch.ones(1, 1, *scene.latent["samples"].shape[-2:])]
        submodule("RAUNet", "brushnet_nodes").add_brushnet_patch(
            scene.model, net, torch.float32, latents, (1.0, 0, 10000), noise(41, 1, 77, 32), noise(42, 1, 77, 32),
            None, None, None, False)
    return {"BrushNet": ("SD 1.5", set_up), "RAUNet": ("SD 1.5", patch("RAUNet", du_end=1, xa_start=1))}


def reference() -> SetUps:
    from .hosted import call
    from .models import prompt

    def set_up(scene: Scene) -> None:
        call("ConfigureRefNet", model=scene.model)
        scene.run = run

    def run(scene: Scene):
        """A reference is sampled for one step into a bank, and then read from it."""
        from comfy_extras.nodes_custom_sampler import SamplerCustom

        bank = call("CreateRefBank")[0]
        _, sigmas = sampler_and_sigmas(scene)
        one = {"samples": noise(43, 1, *scene.latent["samples"].shape[1:])}
        write = call("WriteSampler", sampler_name="REFERENCE_WRITE", ref_bank=bank, start_percent=0.0,
                     end_percent=1.0)[0]
        SamplerCustom.execute(scene.model, False, 5, 1.0, prompt(9), prompt(2), write, sigmas, one)
        read = call("ReadSampler", sampler_name="euler", ref_bank=bank, start_percent=0.0, end_percent=1.0)[0]
        return SamplerCustom.execute(scene.model, True, 5, scene.cfg, scene.positive, scene.negative, read, sigmas,
                                     scene.latent).result[0]["samples"]
    return {"reference attention": ("SD 1.5", set_up)}


def batch_of_prompts() -> SetUps:
    import torch

    def set_up(scene: Scene) -> None:
        """Each picture has a prompt of its own, as CLIPTextEncodeBatch gives it."""
        from .models import prompt

        batch = scene.latent["samples"].shape[0]
        texts = [prompt(50 + number)[0] for number in range(batch)]
        scene.positive = [[torch.cat([text for text, _ in texts]),
                           {"pooled_output": torch.cat([extra["pooled_output"] for _, extra in texts])}]]
    return {"a prompt for each picture": ("SD 1.5", set_up)}


def dype() -> SetUps:
    return {"DyPE on Flux": ("Flux", patch("DyPE_FLUX", width=192, height=128, base_resolution=256))}


def ltx_guiders() -> SetUps:
    from .hosted import call

    def skipping(node_id: str, **inputs) -> SetUp:
        def set_up(scene: Scene) -> None:
            patch("LTXVApplySTG", block_indices="1")(scene)
            guider(node_id, "positive", "negative", **inputs)(scene)
        return set_up

    def multimodal(scene: Scene) -> None:
        """Video and sound, each with guidance of its own."""
        import torch
        from comfy.nested_tensor import NestedTensor

        batch = scene.latent["samples"].shape[0]
        scene.latent = {"samples": NestedTensor((scene.latent["samples"], torch.zeros(batch, 8, 5, 16)))}

        def run(scene: Scene):
            parameters = call("GuiderParameters", modality="VIDEO", cfg=scene.cfg, rescale=0.0, modality_scale=2.0)[0]
            parameters = call("GuiderParameters", modality="AUDIO", cfg=scene.cfg, rescale=0.0, modality_scale=2.0,
                              parameters=parameters)[0]
            made = call("MultimodalGuider", model=scene.model, positive=scene.positive, negative=scene.negative,
                        parameters=parameters, skip_blocks="1")[0]
            return torch.cat([part.flatten(1) for part in sampled(scene, made).unbind()], dim=1)
        scene.run = run

    return {"MultimodalGuider": ("LTX-2", multimodal),
            "STGGuider": ("LTX-Video", skipping("STGGuider", cfg=lambda scene: scene.cfg, stg=1.0, rescale=0.0)),
            "APGGuider": ("LTX-Video", guider("APGGuider", "positive", "negative", cfg_scale=lambda scene: scene.cfg))}


def sonar() -> SetUps:
    from .hosted import call

    return {f"its sampler {node_id}": ("SD 1.5", sampled_by(lambda scene, sampler, node_id=node_id: call(node_id)[0]))
            for node_id in ("SamplerSonarEuler", )}


def flow_edit() -> SetUps:
    from .hosted import call
    from .models import prompt

    def set_up(scene: Scene) -> None:
        scene.latent = {"samples": noise(44, *scene.latent["samples"].shape)}
        scene.run = run

    def run(scene: Scene):
        """The model is called twice a step, for the source and for the target."""
        guider_class = type(call("FlowEditGuider", model=scene.model, source_cond=prompt(9),
                                 target_cond=scene.positive)[0])
        made = guider_class(scene.model)
        made.set_conds(source_positive=prompt(9), source_negative=scene.negative, target_positive=scene.positive,
                       target_negative=scene.negative)
        made.set_cfgs(source=scene.cfg, target=scene.cfg)
        sampler = call("FlowEditSampler", skip_steps=0, refine_steps=1, seed=3)[0]
        return sampled(scene, made, sampler)
    return {"FlowEdit on Flux": ("Flux", set_up)}


def weights_file(name: str, weights: dict) -> str:
    """A file of weights among the host's diffusion models."""
    from pathlib import Path

    import folder_paths
    from safetensors.torch import save_file

    folder = Path(folder_paths.get_folder_paths("diffusion_models")[0])
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / name)
    return name


def ic_light() -> SetUps:
    from .hosted import call

    name = weights_file("ic_light.safetensors", {"input_blocks.0.0.weight": 0.05 * noise(45, 32, 8, 3, 3)})

    def set_up(scene: Scene) -> None:
        scene.model = call("LoadAndApplyICLightUnet", model=scene.model, model_path=name)[0]
        foreground = {"samples": noise(46, 1, *scene.latent["samples"].shape[1:])}
        scene.positive, scene.negative, _ = call("ICLightConditioning", positive=scene.positive,
                                                 negative=scene.negative, vae=None, foreground=foreground)
    return {"IC-Light": ("SD 1.5", set_up)}


def ic_light_native() -> SetUps:
    from .hosted import call

    weights = {"input_blocks.0.0.weight": 0.05 * noise(45, 32, 8, 3, 3)}
    model = SimpleNamespace(model=SimpleNamespace(diffusion_model=SimpleNamespace(state_dict=lambda: weights)))

    def set_up(scene: Scene) -> None:
        scene.model = call("ICLightAppply", model=scene.model, ic_model=model, c_concat={
            "samples": noise(46, 1, *scene.latent["samples"].shape[1:])})[0]
    return {"IC-Light": ("SD 1.5", set_up)}


def negative_weights() -> SetUps:
    def negpip(scene: Scene) -> None:
        """Each word is in the text twice, once for the keys and once for the values."""
        patch("Negapip", clip=SimpleNamespace(cond_stage_model=None))(scene)
        scene.positive, scene.negative = ([[noise(seed, 1, 154, 32), text[0][1]]] for seed, text in (
            (47, scene.positive), (48, scene.negative)))
    return {"Negapip": ("SD 1.5", negpip),
            "CDTuner": ("SD 1.5", patch("CDTuner", detail_1=5.0, detail_2=5.0, contrast_1=5.0))}


def instant_id() -> SetUps:
    """Its attention, without the face that it is given."""
    made = submodule("ApplyInstantID", "InstantID")

    def set_up(scene: Scene) -> None:
        scene.model = scene.model.clone()
        adapter = SimpleNamespace(ip_layers=made.To_KV({f"1.to_{name}_ip.weight": 0.3 * noise(49, 128, 32)
                                                        for name in "kv"}))
        for place in (("input", 7, 0), ("middle", 0, 0)):
            made._set_model_patch_replace(scene.model, {
                "ipadapter": adapter, "weight": 0.8, "cond": noise(50, 1, 16, 32), "uncond": noise(51, 1, 16, 32),
                "mask": None, "sigma_start": 999.0, "sigma_end": 0.0, "module_key": "1"}, place)
    return {"attention to a face": ("SD 1.5", set_up)}


def scheduled() -> SetUps:
    inputs = {"sigmas": lambda scene: sampler_and_sigmas(scene)[1], "from_cfg": lambda scene: scene.cfg}
    return {"Scheduled CFGGuider": ("SD 1.5", guider("ScheduledCFGGuider //Inspire", "positive", "negative",
                                                     to_cfg=1.5, schedule="linear", **inputs)),
            "Scheduled PerpNeg CFGGuider": ("SD 1.5", guider(
                "ScheduledPerpNegCFGGuider //Inspire", "positive", "negative", "empty_conditioning", to_cfg=1.5,
                schedule="linear", **inputs))}


def weighted_prompts() -> SetUps:
    from .models import prompt

    def set_up(scene: Scene) -> None:
        scene.positive = [*prompt(1, weight=1.0), *prompt(7, weight=0.5)]
    return {"two prompts joined by AND": ("SD 1.5", set_up)}


def t_gate() -> SetUps:
    def gated(**inputs) -> tuple[str, SetUp]:
        def set_up(scene: Scene) -> None:
            scene.steps, scene.remembers = 4, True
            patch("TGateApplyAdvanced", start_at=0.5, self_attn_start_at=0.5, **inputs)(scene)
        return "SD 1.5", set_up
    return {"cross-attention kept": gated(only_cross_attention=True),
            "all attention kept": gated(only_cross_attention=False)}


def fooocus_inpaint() -> SetUps:
    made = submodule("INPAINT_ApplyFooocusInpaint", "nodes").InpaintBlockPatch

    def set_up(scene: Scene) -> None:
        scene.model, change = scene.model.clone(), made()
        change.inpaint_head_feature = noise(52, 1, 32, *scene.latent["samples"].shape[-2:])
        scene.model.set_model_input_block_patch(change)
    return {"Fooocus inpaint": ("SD 1.5", set_up)}


def regions() -> SetUps:
    from .hosted import call
    from .models import prompt

    def set_up(scene: Scene) -> None:
        _, right = halves(scene.latent)
        found = call("ETN_BackgroundRegion", conditioning=scene.positive)[0]
        found = call("ETN_DefineRegion", mask=right, conditioning=prompt(7), regions=found)[0]
        scene.model = call("ETN_AttentionMask", model=scene.model, regions=found)[0]
    return {"attention couple, two regions": ("SD 1.5", set_up)}


def tiled_sampler() -> SetUps:
    from .hosted import call

    def set_up(scene: Scene) -> None:
        scene.latent = {"samples": scene.latent["samples"].new_zeros(len(scene.latent["samples"]), 4, 48, 40)}
        scene.run = run

    def run(scene: Scene):
        return call("BNK_TiledKSampler", model=scene.model, seed=5, tile_width=256, tile_height=256,
                    tiling_strategy="padded", steps=scene.steps, cfg=scene.cfg, sampler_name=scene.sampler,
                    scheduler=scene.scheduler, positive=scene.positive, negative=scene.negative,
                    latent_image=scene.latent, denoise=1.0)[0]["samples"]
    return {"its KSampler, padded tiles": ("SD 1.5", set_up)}


MORE = (
    Pack("ComfyUI-BrushNet", "nullquant", brush_net),
    Pack("ComfyUI-MagCache", "Zehong-Ma", mag_cache, {"comfy.ldm.lightricks.model.precompute_freqs_cis": None}),
    Pack("ComfyUI-Detail-Daemon", "Jonseed", detail_daemon),
    Pack("ComfyUI-LTXVideo", "Lightricks", ltx_guiders, {
        f"comfy.ldm.lightricks.model.{name}": None for name in ("interleaved_freqs_cis", "split_freqs_cis")} | {
        "kornia.geometry.transform.pyramid.pad": "torch.nn.functional.pad"}),
    Pack("ComfyUI-DyPE", "wildminder", dype),
    Pack("pre_cfg_comfy_nodes_for_ComfyUI", "Extraltodeus", pre_cfg),
    Pack("Uncond-Zero-for-ComfyUI", "Extraltodeus", on_sd15("Uncond Zero")),
    Pack("ComfyUI-APG_ImYourCFGNow", "MythicalChu", on_sd15("APG_ImYourCFGNow")),
    Pack("ComfyUI-Latent-Modifiers", "Clybius", on_sd15("Latent Diffusion Mega Modifier")),
    Pack("FreeU_Advanced", "WASasquatch", on_sd15("WAS_FreeU_V2", "WAS_PostCFGShift")),
    Pack("ComfyUI-seamless-tiling", "spinagon", seamless),
    Pack("style_aligned_comfy", "brianfitzgerald", style_aligned),
    Pack("ComfyUI-RAVE_ATTN", "logtd", rave),
    Pack("ComfyUI-RefUNet", "logtd", reference),
    Pack("comfy-todo", "ethansmith2000", on_sd15("ToDoPatchModel")),
    Pack("Batch-Condition-ComfyUI", "laksjdjf", batch_of_prompts),
    Pack("ComfyUI-sonar", "blepping", sonar),
    Pack("ComfyUI-IC-Light", "kijai", ic_light),
    Pack("ComfyUI_TGate", "JettHu", t_gate),
    Pack("comfyui-inpaint-nodes", "Acly", fooocus_inpaint),
    Pack("comfyui-tooling-nodes", "Acly", regions),
    Pack("ComfyUI_TiledKSampler", "BlenderNeko", tiled_sampler),
    Pack("ComfyUI_InstantID", "cubiq", instant_id),
    Pack("ComfyUI-Inspire-Pack", "ltdrdata", scheduled),
    Pack("ComfyUI_smZNodes", "shiimizu", weighted_prompts),
)
