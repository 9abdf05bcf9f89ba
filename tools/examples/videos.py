"""The video examples."""

from __future__ import annotations

from .graph import GREEN, NEGATIVE, POSITIVE, Graph, Output
from .parts import prompts, sample, with_pag

SEED = 8
SKATER = ("A figure skater glides across a frozen lake, turns once with both arms spread and comes to a stop. The "
          "camera follows her. Low winter sun.")
# A part of the negative prompt that Wan was trained with: garish, overexposed, static, blurred, subtitles, worst
# quality, ugly, missing or extra fingers, malformed limbs.
WAN_NEGATIVE = "色调艳丽，过曝，静态，细节模糊不清，字幕，最差质量，低质量，丑陋的，残缺的，多余的手指，形态畸形的肢体"
LTX_NEGATIVE = "blurry, low quality, still frame, watermark, overlay, titles, subtitles"
LTX = "ltx-2.3-22b-dev-fp8.safetensors"


def save_video(graph: Graph, samples: Output, vae: Output, fps: float, prefix: str) -> None:
    graph.group("Video")
    video = graph.add("CreateVideo", images=graph.add("VAEDecode", samples=samples, vae=vae)[0], fps=fps)
    graph.add("SaveVideo", video=video[0], filename_prefix=prefix)


def wan_files(graph: Graph, kind: str) -> tuple[list[Output], Output, Output]:
    """The models of high and of low noise, the CLIP and the VAE."""
    graph.group("Model")
    models = [graph.add("UNETLoader", f"{noise.capitalize()} noise",
                        unet_name=f"wan2.2_{kind}_{noise}_noise_14B_fp8_scaled.safetensors")[0]
              for noise in ("high", "low")]
    clip = graph.add("CLIPLoader", clip_name="umt5_xxl_fp8_e4m3fn_scaled.safetensors", type="wan")
    return models, clip[0], graph.add("VAELoader", vae_name="wan_2.1_vae.safetensors")[0]


def wan_stages(graph: Graph, models: list[Output], positive: Output, negative: Output, latent: Output,
               steps: int = 20, cfg: float = 3.5, scale: float = 2.0) -> Output:
    """Half of the steps with each of the two models, both with PAG, which counts its range over the whole run."""
    graph.group("PAG", GREEN)
    options = graph.add("PAGOptions", perturbation="skip_block")
    patched = [graph.add("PAGModelPatch", title, scale=scale, layers="2", options=options[0],
                         model=graph.add("ModelSamplingSD3", "Shift", model=model, shift=5.0)[0])[0]
               for title, model in zip(("PAG at high noise", "PAG at low noise"), models, strict=True)]
    graph.group("Two stages")
    samples = latent
    for stage, model in enumerate(patched):
        samples = graph.add("KSamplerAdvanced", ("High noise", "Low noise")[stage], model=model, positive=positive,
                            negative=negative, latent_image=samples, add_noise=("enable", "disable")[stage],
                            noise_seed=(SEED, 0)[stage], steps=steps, cfg=cfg, sampler_name="euler",
                            scheduler="simple", start_at_step=steps // 2 * stage, end_at_step=steps // 2 * (1 + stage),
                            return_with_leftover_noise=("enable", "disable")[stage])[0]
    return samples


def wan_t2v(graph: Graph) -> None:
    models, clip, vae = wan_files(graph, "t2v")
    positive, negative = prompts(graph, clip, SKATER, WAN_NEGATIVE)
    latent = graph.add("EmptyHunyuanLatentVideo", "Size and length", width=640, height=640, length=81)
    save_video(graph, wan_stages(graph, models, positive, negative, latent[0]), vae, 16.0, "video/pag_wan22_t2v")


def wan_slg(graph: Graph) -> None:
    """Wan 2.1's small model, in one stage, with CFG away from a negative whose block is skipped."""
    graph.group("Model")
    model = graph.add("UNETLoader", unet_name="wan2.1_t2v_1.3B_fp16.safetensors")
    clip = graph.add("CLIPLoader", clip_name="umt5_xxl_fp8_e4m3fn_scaled.safetensors", type="wan")
    vae = graph.add("VAELoader", vae_name="wan_2.1_vae.safetensors")
    model = graph.add("ModelSamplingSD3", "Shift", model=model[0], shift=8.0)
    positive, negative = prompts(graph, clip[0], SKATER, WAN_NEGATIVE)
    latent = graph.add("EmptyHunyuanLatentVideo", "Size and length", width=832, height=480, length=33)
    model = with_pag(graph, model[0], 1.0, "10", perturbation="skip_block", row="negative", start_percent=0.2)
    samples = sample(graph, model, positive, negative, latent[0], 30, 6.0, "uni_pc", "simple", SEED)
    save_video(graph, samples, vae[0], 16.0, "video/pag_wan21_slg")


def wan_distilled(graph: Graph) -> None:
    models, clip, vae = wan_files(graph, "t2v")
    graph.group("Four steps")
    models = [graph.add("LoraLoaderModelOnly", f"{noise.capitalize()} noise", model=model, strength_model=1.0,
                        lora_name=f"wan2.2_t2v_lightx2v_4steps_lora_v1.1_{noise}_noise.safetensors")[0]
              for noise, model in zip(("high", "low"), models, strict=True)]
    positive, negative = prompts(graph, clip, SKATER)
    latent = graph.add("EmptyHunyuanLatentVideo", "Size and length", width=640, height=640, length=81)
    samples = wan_stages(graph, models, positive, negative, latent[0], steps=4, cfg=1.0, scale=1.0)
    save_video(graph, samples, vae, 16.0, "video/pag_wan22_four_steps")


def wan_i2v(graph: Graph) -> None:
    models, clip, vae = wan_files(graph, "i2v")
    positive, negative = prompts(graph, clip, "The camera slowly moves closer; a light wind passes.", WAN_NEGATIVE)
    first = graph.add("WanImageToVideo", "First frame", positive=positive, negative=negative, vae=vae,
                      start_image=graph.add("LoadImage", image="example.png")[0], width=640, height=640, length=81)
    samples = wan_stages(graph, models, first["positive"], first["negative"], first["latent"])
    save_video(graph, samples, vae, 16.0, "video/pag_wan22_i2v")


def ltx_t2v(graph: Graph) -> None:
    graph.group("Model")
    loader = graph.add("CheckpointLoaderSimple", ckpt_name=LTX)
    clip = graph.add("LTXAVTextEncoderLoader", text_encoder="gemma_3_12B_it_fp4_mixed.safetensors", ckpt_name=LTX)
    audio_vae = graph.add("LTXVAudioVAELoader", ckpt_name=LTX)
    graph.group("Prompt and size")
    text = [graph.add("CLIPTextEncode", title, colors, clip=clip[0], text=words)[0] for title, colors, words in (
        ("Prompt", POSITIVE, f"{SKATER} Blades hiss on the ice."), ("Negative prompt", NEGATIVE, LTX_NEGATIVE))]
    prompt = graph.add("LTXVConditioning", positive=text[0], negative=text[1], frame_rate=25.0)
    picture = graph.add("EmptyLTXVLatentVideo", "Size and length", width=768, height=512, length=97)
    sound = graph.add("LTXVEmptyLatentAudio", audio_vae=audio_vae[0], frames_number=97, frame_rate=25)
    latent = graph.add("LTXVConcatAVLatent", video_latent=picture[0], audio_latent=sound[0])
    graph.group("PAG", GREEN)
    guider = graph.add("PAGAVGuider", model=loader["MODEL"], positive=prompt["positive"], negative=prompt["negative"],
                       layers="28,audio.28")
    graph.group("Sample")
    sigmas = graph.add("LTXVScheduler", steps=20, latent=picture[0])
    sampled = graph.add("SamplerCustomAdvanced", noise=graph.add("RandomNoise", noise_seed=SEED)[0], guider=guider[0],
                        sampler=graph.add("KSamplerSelect", sampler_name="euler")[0], sigmas=sigmas[0],
                        latent_image=latent[0])
    graph.group("Video with audio")
    apart = graph.add("LTXVSeparateAVLatent", av_latent=sampled[0])
    frames = graph.add("VAEDecode", samples=apart["video_latent"], vae=loader["VAE"])
    heard = graph.add("LTXVAudioVAEDecode", samples=apart["audio_latent"], audio_vae=audio_vae[0])
    video = graph.add("CreateVideo", images=frames[0], audio=heard[0], fps=25.0)
    graph.add("SaveVideo", video=video[0], filename_prefix="video/pag_ltx23")


_WAN = ("Two models take turns, one for high noise and one for low; each is guided away from its own prediction with a "
        "whole block skipped (`skip_block`, known as SLG and STG). A range in **PAG Options** refers to the whole run, "
        "so it spans both stages.")
_WAN_SOURCE = ("Block 2 skipped, scale 2: the settings that the authors of STG (arXiv 2411.18664) use for Wan 2.1. "
               "Nothing is published for Wan 2.2.")
_WAN_TRIES = ("`scale` 0 in both patches with the same seed: the difference is PAG.",
              "`perturbation` `identity` with `layers` 9: PAG itself.",
              "PAG in the high-noise stage alone, which decides shape and motion: `scale` 0 in the other.")
_SLG = ("Skip-layer guidance as Wan users know it: at cfg 6, CFG steers away from a negative prediction in which one "
        "block is skipped (`row` *negative*). It costs nothing, and even saves computing that block. The scale only "
        "turns it on or off; `strength` sets how weak the negative is.")
# The fields of an Example, in its order.
ENTRIES = (
    ("Wan 2.2 text to video with PAG", "video_wan2_2_14B_t2v", wan_t2v, _WAN, _WAN_SOURCE, _WAN_TRIES, "Wan 2.2",
     (2,), 40),
    ("Wan 2.2 image to video with PAG", "video_wan2_2_14B_i2v", wan_i2v,
     f"An image brought into motion. {_WAN}", _WAN_SOURCE, _WAN_TRIES, "Wan 2.2", (2,), 40),
    ("Wan 2.1 text to video with skipped blocks", "text_to_video_wan", wan_slg, _SLG,
     "Block 10 of the negative prediction is skipped from 20% on: the defaults of KJNodes' SLG for Wan 2.1 14B. The "
     "small model has 30 blocks instead of 40.",
     ("`scale` 0 with the same seed: the difference is the skipped block.",
      "`layers` 9, `start_percent` 0.1, `end_percent` 0.9: Wan2GP's settings.",
      "`row` *extra*, `layers` 2, `scale` 2: STG as its authors use it, at the cost of an extra prediction in each "
      "step."),
     "Wan 2.1", (10,), 30),
    ("Wan 2.2 in four steps at cfg 1 with skipped blocks", "video_wan2_2_14B_t2v", wan_distilled,
     "With a distillation LoRA, Wan runs at cfg 1: CFG has nothing to steer away from, and SLG has no negative. A "
     "weaker prediction of the model itself still works, here with block 2 skipped (`skip_block`, STG).",
     "Block 2: the authors of STG (arXiv 2411.18664) use it for Wan 2.1, with CFG. Nothing is published for four "
     "steps; scale 1 is a starting point.",
     ("`scale` 0 in both patches with the same seed: the difference is PAG.", "`scale` 0.5 and 2.",
      "`perturbation` *identity* with `layers` 9: PAG itself."), "Wan 2.2", (2,), 40),
    ("LTX-2.3 text to video with PAG", "video_ltx2_3_t2v", ltx_t2v,
     "Video and audio from one model, in one stage, without the distilled LoRA. **PAG AV Guider** guides both with "
     "Lightricks' own formula and separate scales: CFG, PAG (identity attention in one block, which Lightricks call "
     "STG), and a term that keeps audio and video together.",
     "Block 28 of 48, both its video and its audio layer, PAG 1, modality 3, rescale 0.7, cfg 3 and 7: the defaults of "
     "Lightricks' LTX-2.3 pipelines.",
     ("`video_pag` and `audio_pag` 0 with the same seed: the difference is PAG.",
      "`video_modality` and `audio_modality` 1: video and audio without that term.",
      "`layers` 29,audio.29: the default for LTX-2.0."), "LTX-2.3", (28,), 48),
)
