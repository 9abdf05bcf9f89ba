"""The examples: what each is built of, and where its settings come from.

Model files, samplers, steps and cfg are those of ComfyUI's own template for the model, so that people who have used the
template already have the files. PAG's settings name their source, or say that they are only a starting point.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import videos
from .graph import GREEN, NEGATIVE, POSITIVE, Graph, Node, Output
from .parts import NOTHING_PUBLISHED, decode_and_save, prompts, sample, with_pag

DANCER = ("a ballet dancer in mid-leap on an empty stage, one arm raised, both hands visible, hard studio light from "
          "the left, photograph")
BICYCLE = ("a red bicycle leaning against a whitewashed wall, every spoke and both pedals visible, morning sun, "
           "photograph")
STAIRS = "a spiral staircase with wrought-iron railings seen from above, a cat on the third step, soft daylight"
SEED = 8


@dataclass(frozen=True)
class Example:
    """
    Attributes:
        name: of the file, and so the title in the editor's list of templates.
        template: the host's template that the model files and the sampler's settings are from.
        build: adds the nodes.
        intro: what it is for.
        settings: where PAG's settings come from.
        tries: what to try, one line each.
        model, layers, blocks: for the picture: the model's name, the layers perturbed, and how many there are.
    """

    name: str
    template: str
    build: Callable[[Graph], None]
    intro: str
    settings: str
    tries: tuple[str, ...]
    model: str
    layers: tuple[int, ...]
    blocks: int


def separate_files(graph: Graph, unet: str, clip: str, kind: str, vae: str, shift: float | None = None
                   ) -> tuple[Output, Output, Output]:
    """The model, with its noise levels shifted if it is said how far, the CLIP and the VAE."""
    graph.group("Model")
    model = graph.add("UNETLoader", unet_name=unet)
    text = graph.add("CLIPLoader", clip_name=clip, type=kind)
    decoder = graph.add("VAELoader", vae_name=vae)
    if shift is not None:
        model = graph.add("ModelSamplingAuraFlow", "Shift", model=model[0], shift=shift)
    return model[0], text[0], decoder[0]


def z_image_turbo(graph: Graph) -> None:
    model, clip, vae = separate_files(graph, "z_image_turbo_bf16.safetensors", "qwen_3_4b.safetensors", "lumina2",
                                      "ae.safetensors", shift=3.0)
    positive, negative = prompts(graph, clip, DANCER)
    latent = graph.add("EmptySD3LatentImage", "Size", width=1024, height=1024)
    model = with_pag(graph, model, 1.0)
    samples = sample(graph, model, positive, negative, latent[0], 8, 1.0, "res_multistep", "simple", SEED)
    decode_and_save(graph, samples, vae, "pag/z_image_turbo")


def krea2_turbo(graph: Graph) -> None:
    model, clip, vae = separate_files(graph, "krea2_turbo_fp8_scaled.safetensors",
                                      "qwen3vl_4b_fp8_scaled.safetensors", "krea2", "qwen_image_vae.safetensors")
    positive, negative = prompts(graph, clip, BICYCLE)
    latent = graph.add("EmptyLatentImage", "Size", width=1024, height=1024)
    model = with_pag(graph, model, 1.0)
    samples = sample(graph, model, positive, negative, latent[0], 8, 1.0, "euler", "simple", SEED)
    decode_and_save(graph, samples, vae, "pag/krea2_turbo")


def z_image(graph: Graph) -> None:
    model, clip, vae = separate_files(graph, "z_image_bf16.safetensors", "qwen_3_4b.safetensors", "lumina2",
                                      "ae.safetensors", shift=3.0)
    positive, negative = prompts(graph, clip, DANCER, "")
    latent = graph.add("EmptySD3LatentImage", "Size", width=1024, height=1024)
    model = with_pag(graph, model, 1.5, "10,15,20")
    samples = sample(graph, model, positive, negative, latent[0], 25, 4.0, "res_multistep", "simple", SEED)
    decode_and_save(graph, samples, vae, "pag/z_image")


def qwen_image(graph: Graph) -> None:
    model, clip, vae = separate_files(graph, "qwen_image_fp8_e4m3fn.safetensors",
                                      "qwen_2.5_vl_7b_fp8_scaled.safetensors", "qwen_image",
                                      "qwen_image_vae.safetensors", shift=3.1)
    positive, negative = prompts(graph, clip, STAIRS, "")
    latent = graph.add("EmptySD3LatentImage", "Size", width=1328, height=1328)
    model = with_pag(graph, model, 1.0)
    samples = sample(graph, model, positive, negative, latent[0], 20, 4.0, "euler", "simple", SEED)
    decode_and_save(graph, samples, vae, "pag/qwen_image")


def qwen_image_edit(graph: Graph) -> None:
    model, clip, vae = separate_files(graph, "qwen_image_edit_2511_fp8mixed.safetensors",
                                      "qwen_2.5_vl_7b_fp8_scaled.safetensors", "qwen_image",
                                      "qwen_image_vae.safetensors", shift=3.1)
    graph.group("Image and instruction")
    loaded = graph.add("LoadImage", image="example.png")
    picture = graph.add("FluxKontextImageScale", "Fit to a size the model supports", image=loaded[0])[0]
    encoded = [graph.add("TextEncodeQwenImageEditPlus", title, colors, clip=clip, vae=vae, image1=picture, prompt=text)
               for title, colors, text in (("Instruction", POSITIVE, "Make it a pencil drawing; keep the composition."),
                                           ("Negative prompt", NEGATIVE, ""))]
    latent = graph.add("VAEEncode", pixels=picture, vae=vae)
    model = graph.add("CFGNorm", model=model, strength=1.0)[0]
    samples = sample(graph, with_pag(graph, model, 1.0), encoded[0][0], encoded[1][0], latent[0], 40, 4.0, "euler",
                     "simple", SEED)
    decode_and_save(graph, samples, vae, "pag/qwen_image_edit")


def flux_dev(graph: Graph) -> None:
    graph.group("Model")
    model = graph.add("UNETLoader", unet_name="flux1-dev.safetensors")
    clip = graph.add("DualCLIPLoader", clip_name1="clip_l.safetensors", clip_name2="t5xxl_fp16.safetensors",
                     type="flux")
    vae = graph.add("VAELoader", vae_name="ae.safetensors")
    positive, negative = prompts(graph, clip[0], BICYCLE)
    latent = graph.add("EmptySD3LatentImage", "Size", width=1024, height=1024)
    model = with_pag(graph, model[0], 1.0, "single.19:h18")
    samples = sample(graph, model, positive, negative, latent[0], 20, 1.0, "euler", "simple", SEED)
    decode_and_save(graph, samples, vae[0], "pag/flux_dev")


def flux2_dev(graph: Graph) -> None:
    model, clip, vae = separate_files(graph, "flux2_dev_fp8mixed.safetensors", "mistral_3_small_flux2_fp8.safetensors",
                                      "flux2", "flux2-vae.safetensors")
    graph.group("Prompt")
    text = graph.add("CLIPTextEncode", "Prompt", POSITIVE, clip=clip, text=STAIRS)
    positive = graph.add("FluxGuidance", conditioning=text[0], guidance=4.0)
    latent = graph.add("EmptyFlux2LatentImage", "Size", width=1024, height=1024)
    guider = graph.add("BasicGuider", model=with_pag(graph, model, 1.0), conditioning=positive[0])
    samples = advanced(graph, guider, "euler", graph.add("Flux2Scheduler", steps=20, width=1024, height=1024), latent)
    decode_and_save(graph, samples, vae, "pag/flux2_dev")


def advanced(graph: Graph, guider: Node, sampler: str, sigmas: Node, latent: Node) -> Output:
    noise = graph.add("RandomNoise", noise_seed=SEED)
    select = graph.add("KSamplerSelect", sampler_name=sampler)
    return graph.add("SamplerCustomAdvanced", noise=noise[0], guider=guider[0], sampler=select[0], sigmas=sigmas[0],
                     latent_image=latent[0])[0]


def anima(graph: Graph) -> None:
    model, clip, vae = separate_files(graph, "anima-base-v1.0.safetensors", "qwen_3_06b_base.safetensors",
                                      "stable_diffusion", "qwen_image_vae.safetensors")
    positive, negative = prompts(
        graph, clip, "masterpiece, best quality, 1girl, playing the violin on a rooftop, both hands visible, wind in "
        "her hair, city lights at dusk", "worst quality, low quality, score_1, score_2, score_3, blurry, jpeg "
        "artifacts, sepia")
    latent = graph.add("EmptyLatentImage", "Size", width=1024, height=1024)
    model = with_pag(graph, model, 4.0, "18", strength=0.75, end_percent=0.7, rescale=0.2, rescale_mode="full")
    samples = sample(graph, model, positive, negative, latent[0], 30, 4.0, "euler", "simple", SEED)
    decode_and_save(graph, samples, vae, "pag/anima")


def sd35_large(graph: Graph) -> None:
    graph.group("Model")
    loader = graph.add("CheckpointLoaderSimple", ckpt_name="sd3.5_large_fp8_scaled.safetensors")
    positive, negative = prompts(graph, loader["CLIP"], STAIRS, "")
    latent = graph.add("EmptySD3LatentImage", "Size", width=1024, height=1024)
    model = with_pag(graph, loader["MODEL"], 3.0, "9", strength=0.5)
    samples = sample(graph, model, positive, negative, latent[0], 20, 4.0, "euler", "sgm_uniform", SEED)
    decode_and_save(graph, samples, loader["VAE"], "pag/sd35_large")


def chroma(graph: Graph) -> None:
    model, clip, vae = separate_files(graph, "Chroma1-HD-fp8mixed.safetensors",
                                      "t5xxl_fp8_e4m3fn_scaled.safetensors", "chroma", "ae.safetensors", shift=1.0)
    clip = graph.add("T5TokenizerOptions", clip=clip, min_padding=0, min_length=0)[0]
    positive, negative = prompts(graph, clip, BICYCLE, "low quality, blurred, distorted, unfinished sketch")
    latent = graph.add("EmptySD3LatentImage", "Size", width=1024, height=1024)
    model = with_pag(graph, model, 1.0)
    guider = graph.add("CFGGuider", model=model, positive=positive, negative=negative, cfg=3.5)
    sigmas = graph.add("BasicScheduler", model=model, scheduler="beta", steps=26)
    decode_and_save(graph, advanced(graph, guider, "euler", sigmas, latent), vae, "pag/chroma")


def sdxl_hires(graph: Graph) -> None:
    graph.group("Model")
    loader = graph.add("CheckpointLoaderSimple", ckpt_name="sd_xl_base_1.0.safetensors")
    positive, negative = prompts(graph, loader["CLIP"], DANCER, "text, watermark")
    latent = graph.add("EmptyLatentImage", "Size", width=1024, height=1024)
    graph.group("First pass, without PAG")
    first = sample(graph, loader["MODEL"], positive, negative, latent[0], 25, 7.0, "dpmpp_2m", "karras", SEED)
    decode_and_save(graph, first, loader["VAE"], "pag/sdxl_first_pass", group=False)
    graph.group("Upscale, then sample again with PAG", GREEN)
    larger = graph.add("LatentUpscaleBy", samples=first, upscale_method="bislerp", scale_by=1.5)
    second = graph.add("PAGKSampler", model=loader["MODEL"], positive=positive, negative=negative,
                       latent_image=larger[0], seed=SEED, steps=25, cfg=5.0, pag_scale=3.0, layers="m0",
                       sampler_name="dpmpp_2m", scheduler="karras", denoise=0.5)
    decode_and_save(graph, second[0], loader["VAE"], "pag/sdxl_hires")


AT_CFG_1 = ("runs at cfg 1: the negative prompt is not used and CFG cannot act. PAG can, because it needs neither: the "
            "model is guided away from its own prediction with perturbed attention.")
SAME_SEED = "`scale` 0 with the same seed: the difference is PAG."
CHEAP = "The picker at the bottom of **PAG Model Patch** shows the layers; later ones cost less and change less."

EXAMPLES = (
    Example("Z-Image-Turbo with PAG at cfg 1", "image_z_image_turbo", z_image_turbo, f"Z-Image-Turbo {AT_CFG_1}",
            "`auto` is layers 10, 15 and 20, the ones used in public experiments with skip-layer guidance on Z-Image "
            "(not measured there). Nothing is published for Turbo: the scale is a starting point.",
            (SAME_SEED, "`scale` 0.5 to 2.", CHEAP), "Z-Image-Turbo", (10, 15, 20), 30),
    Example("Krea 2 Turbo with PAG at cfg 1", "image_krea2_turbo_t2i", krea2_turbo, f"Krea 2 Turbo {AT_CFG_1}",
            NOTHING_PUBLISHED, (SAME_SEED, "`scale` 0.5 to 2.", CHEAP), "Krea 2 Turbo", (14,), 28),
    Example("Z-Image with CFG and PAG", "image_z_image", z_image,
            "The base model, with CFG and PAG together: CFG pulls toward the prompt, PAG toward an image that holds "
            "together.",
            "Layers 10, 15 and 20 are the ones used in public experiments with skip-layer guidance on Z-Image (at a "
            "scale of 2.8, not measured there). Here their attention is perturbed instead, at a moderate scale.",
            (SAME_SEED, "cfg 3 with `scale` 2: less prompt adherence, more structure."), "Z-Image", (10, 15, 20), 30),
    Example("Qwen-Image with CFG and PAG", "image_qwen_image", qwen_image,
            "CFG and PAG together on Qwen-Image, without the Lightning LoRA.", NOTHING_PUBLISHED,
            (SAME_SEED, "With the Lightning LoRA, 8 steps and cfg 1, PAG is the only guidance left.", CHEAP),
            "Qwen-Image", (30,), 60),
    Example("Qwen-Image-Edit with CFG and PAG", "image_qwen_image_edit_2511", qwen_image_edit,
            "Edits an image according to an instruction. Reference tokens are image tokens too: in the perturbed "
            "layers they do not attend to each other either.", NOTHING_PUBLISHED, (SAME_SEED, CHEAP),
            "Qwen-Image-Edit 2511", (30,), 60),
    Example("Flux.1 dev with one head perturbed", "flux_dev_full_text_to_image", flux_dev,
            "Flux.1 dev is distilled to run at cfg 1. Here PAG acts on a single attention head; single heads have "
            "distinct effects.",
            "HeadHunter (arXiv 2506.10978) lists heads of FLUX.1-dev by their effect: layer 38, head 18 golden hour; "
            "layer 51, head 23 vintage; layer 52, head 22 warm; layer 34, head 0 soft bokeh. It counts all 57 layers "
            "in one sequence, so 38 is `single.19`. The scale is a starting point.",
            ("`layers` `single.32:h23` (vintage), `single.33:h22` (warm), `single.15:h0` (soft bokeh).",
             "`layers` `auto`, all heads of a layer in the middle: structure instead of a look.", SAME_SEED),
            "Flux.1 dev", (38,), 57),
    Example("Flux.2 dev with PAG", "image_flux2_fp8", flux2_dev,
            "Flux.2 dev is distilled too and has no negative prompt; PAG acts in addition to its guidance embedding.",
            NOTHING_PUBLISHED, (SAME_SEED, CHEAP), "Flux.2 dev", (28,), 56),
    Example("Anima with CFG and PAG", "image_anima_base_v1", anima,
            "CFG and PAG together on Anima, with settings found by its community.",
            "Layer 18 of 28 (16 to 20 work), scale 4, strength 0.75, the first 70% of the run, rescale 0.2: the "
            "defaults of the node pack anima-safe-pag.",
            (SAME_SEED, "`layers` 16 or 20."), "Anima", (18,), 28),
    Example("SD 3.5 Large with CFG and PAG", "sd3.5_simple_example", sd35_large,
            "CFG and PAG together on Stable Diffusion 3.5.",
            "For SD3 Medium, PAG's first author uses one of layers 7 to 10, scale 3 to 5 and strength 0.25 to 0.5 "
            "(HeadHunter, arXiv 2506.10978; layer 9 in its figures). Nothing is published for 3.5 Large: these are the "
            "same values.", (SAME_SEED, "`layers` 13 or 17: Large has 38 layers, Medium 24.", "`scale` 5."),
            "SD 3.5 Large", (9,), 38),
    Example("Chroma with CFG and PAG", "image_chroma_text_to_image", chroma,
            "CFG and PAG together on Chroma, with SamplerCustomAdvanced.", NOTHING_PUBLISHED, (SAME_SEED, CHEAP),
            "Chroma1-HD", (28,), 57),
    Example("SDXL hires pass with PAG", "sdxl_simple_example", sdxl_hires,
            "An image at SDXL's native size, then at one and a half times that size. Above its native size SDXL "
            "duplicates bodies and bends lines; PAG works against that. It is used in the second pass only, and costs "
            "nothing in the first.",
            "The middle block and scale 3 are from diffusers' SDXL examples for PAG; steps, sampler and cfg are common "
            "values.",
            ("`pag_scale` 0 in the second sampler: the difference is PAG.", "`denoise` 0.4 to 0.6."), "SDXL", (4,),
            11),
    *(Example(*entry) for entry in videos.ENTRIES),
)
