"""Inputs shared by several nodes, so that they read and behave the same everywhere."""

from __future__ import annotations

from comfy_api.latest import io

from ..pag_core.checks import check_choice, check_whole
from ..pag_core.drawing import PAPERS
from ..pag_core.perturbation import MAX_SEED
from .host.sampling.decoding import check_is_picture
from .host.sampling.sampling import MAX_STEPS, SAMPLERS, SCHEDULERS, check_samples_something
from .host.sockets import check_model

CATEGORY = "model/patch/pag"  # beside the host's own model patches
RESEARCH = f"{CATEGORY}/research"
# What people search for when they want guidance of this kind. The editor ranks a node first if an alias is the exact
# search term, so only PAG Model Patch has "pag".
SEARCHED = [
    "perturbed attention guidance", "self-attention guidance", "sag", "sharper", "sharpness", "structure", "anatomy",
    "hands", "detail", "details", "coherence", "guidance", "guidance without cfg", "negative guidance", "slg",
    "skip layer", "skip layer guidance", "stg", "spatiotemporal skip guidance", "seg", "smoothed energy guidance",
    "tpg", "token perturbation guidance",
    "扰动注意力引导", "扰动", "注意力", "引导", "清晰", "结构", "细节", "跳层引导",
    "교란 어텐션 가이던스", "가이던스", "어텐션", "교란", "선명", "구조", "디테일",
]
PAGOptionsSocket = io.Custom("PAG_OPTIONS")


def scale(name: str) -> io.Float.Input:
    return io.Float.Input(
        name, default=3.0, min=0.0, max=100.0, step=0.1, round=0.01,
        tooltip="How strongly the result is pushed away from the perturbed prediction (s in the PAG paper; no unit). "
                "Higher: firmer shapes and cleaner outlines, but less variety. 0 turns PAG off at no cost. Start at 3; "
                "with CFG, 1 to 2 is often enough. If colors over-saturate, lower it or raise rescale in PAG Options.")


def layers() -> io.String.Input:
    return io.String.Input(
        "layers", default="auto",
        tooltip="The self-attention layers to perturb, separated by commas. auto is the recommendation for the model's "
                "family (U-Nets: m0, the middle block). d0, m0, u3: encoder, middle and decoder blocks of a U-Net; "
                "u0.4: one transformer block of u0; input.4: ComfyUI's own block numbers; d0-3: a range; all: every "
                "layer; !u5: excludes a layer; m0:h0+2-3: single heads. 60%: m0; 100%: u0 changes the layers during "
                "the run. PAG Layers lists the layers of your model.")


def options() -> io.Input:
    return PAGOptionsSocket.Input(
        "options", optional=True,
        tooltip="Further settings, from a PAG Options node. If not connected: the paper's plain PAG, over the whole "
                "run.")


def percent(name: str, default: float, meaning: str, advanced: bool = True) -> io.Float.Input:
    return io.Float.Input(
        name, default=default, min=0.0, max=1.0, step=0.01, round=0.001, optional=True, advanced=advanced,
        tooltip=f"{meaning} As a fraction of the run: 0 is pure noise, 1 is the finished image. Neutral value: "
                f"{default:g}.")


def cfg_window() -> list[io.Float.Input]:
    return [
        percent("cfg_start_percent", 0.0, "CFG starts at this point. Before it, only the positive prompt's prediction "
                                          "(and PAG) is used."),
        percent("cfg_end_percent", 1.0, "CFG stops at this point. Later steps skip the negative prompt and run faster. "
                                        "0.6 often looks the same as 1, since CFG does most of its work early."),
    ]


def cfg() -> io.Float.Input:
    return io.Float.Input(
        "cfg", default=5.0, min=0.0, max=100.0, step=0.1, round=0.01,
        tooltip="Classifier-free guidance scale (no unit). Higher: closer to the prompt, more contrast. 1 turns CFG "
                "off and skips the negative prompt, which saves a third of the time. With PAG, start at 4 to 6.")


def modality(name: str) -> list[io.Float.Input]:
    """The scales of one modality; the defaults are those of Lightricks' pipelines for LTX-2."""
    what = {"video": "the video", "audio": "the audio"}[name]
    other = {"video": "the audio", "audio": "the video"}[name]

    def scale(kind: str, default: float, maximum: float, meaning: str) -> io.Float.Input:
        step = 0.1 if maximum > 1 else 0.01
        return io.Float.Input(f"{name}_{kind}", default=default, min=0.0, max=maximum, step=step, round=0.01,
                              tooltip=meaning)

    return [
        scale("cfg", {"video": 3.0, "audio": 7.0}[name], 100.0,
              f"Classifier-free guidance scale for {what}: how closely it follows the prompt. Neutral value: 1; if "
              f"video and audio are both at 1, the negative prompt is not computed."),
        scale("pag", 1.0, 100.0,
              f"How strongly {what} is pushed away from the prediction with perturbed self-attention (Lightricks call "
              f"this stg). Neutral value: 0; if video and audio are both at 0, that prediction is not computed."),
        scale("modality", 3.0, 100.0,
              f"How closely {what} follows {other}: it is pushed away from a prediction in which the two cannot attend "
              f"to each other. Neutral value: 1; if video and audio are both at 1, that prediction is not computed."),
        scale("rescale", 0.7, 1.0,
              f"How far the contrast of {what} is pulled back to that of the plain prediction, after all guidance. "
              f"Neutral value: 0."),
    ]


def conditioning(name: str) -> io.Conditioning.Input:
    meaning = {"positive": "What the image should show. PAG also works with an empty prompt.",
               "negative": "What the image should avoid. Not computed when cfg is 1."}[name]
    return io.Conditioning.Input(name, tooltip=meaning)


def model() -> io.Model.Input:
    return io.Model.Input("model", tooltip="The diffusion model to guide. It is copied, never modified.")


def vae(optional: bool, meaning: str) -> io.Vae.Input:
    return io.Vae.Input("vae", optional=optional, tooltip=meaning)


def cell_size(default: int) -> io.Int.Input:
    return io.Int.Input(
        "cell_size", default=default, min=64, max=1024, step=16, optional=True, advanced=True,
        tooltip="The longer side of each image in the grid, in pixels. Larger images are scaled down; smaller ones are "
                "scaled up by an integer factor, without smoothing.")


def paper() -> io.Combo.Input:
    return io.Combo.Input(
        "paper", options=list(PAPERS), default="dark", optional=True, advanced=True,
        tooltip="Background of the grid: dark, like the editor, or white, for documents. The images themselves are the "
                "same.")


def check_sheet(cell_size: int, paper: str) -> int:
    """The cell size as a plain integer; SettingError unless a grid can be drawn with these."""
    check_choice("paper", paper, tuple(PAPERS))
    return check_whole("cell_size", cell_size, 64, 1024)


def check_samples_pictures(denoise: float, latent_image: dict, vae, model) -> None:
    """Raise ValueError unless each run of this sampling gives images that a grid can show."""
    check_samples_something(denoise)
    check_is_picture(latent_image)
    if vae is None:
        raise ValueError("The VAE is missing. Connect the one that belongs to the model.")
    check_model(model)


def sampling(*guidance: io.Input) -> list[io.Input]:
    """The inputs of PAG KSampler, in its order, with these between cfg and sampler_name."""
    return [
        model(),
        io.Int.Input("seed", default=0, min=0, max=MAX_SEED, control_after_generate=True,
                     tooltip="The random seed of the noise. The same seed gives the same image."),
        io.Int.Input("steps", default=25, min=1, max=MAX_STEPS,
                     tooltip="Number of denoising steps. 20 to 30 suits most samplers."),
        cfg(),
        *guidance,
        io.Combo.Input("sampler_name", options=SAMPLERS, default="euler",
                       tooltip="The sampling algorithm. The paper uses ddim."),
        io.Combo.Input("scheduler", options=SCHEDULERS, default="normal",
                       tooltip="How the noise levels (sigmas) are distributed over the steps."),
        conditioning("positive"),
        conditioning("negative"),
        io.Latent.Input("latent_image", tooltip="The latent to denoise: an empty latent for a new image, or an encoded "
                                                "image, with a mask for inpainting."),
        io.Float.Input("denoise", default=1.0, min=0.0, max=1.0, step=0.01, round=0.001,
                       tooltip="How much noise is added and removed. 1 starts from pure noise; lower values keep more "
                               "of the input image."),
        *cfg_window(),
        options(),
    ]
