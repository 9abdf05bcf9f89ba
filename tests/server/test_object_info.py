"""What the editor learns about our nodes."""

import pytest
from harness.workflow import inputs_of

# A promise to users and to their saved workflows.
PROMISED = {
    "PAGModelPatch": (["model", "scale", "layers", "options"], ["MODEL"]),
    "PAGKSampler": (["model", "seed", "steps", "cfg", "pag_scale", "layers", "sampler_name", "scheduler", "positive",
                     "negative", "latent_image", "denoise", "cfg_start_percent", "cfg_end_percent", "options"],
                    ["LATENT"]),
    "PAGGuider": (["model", "positive", "negative", "cfg", "pag_scale", "layers", "cfg_start_percent",
                   "cfg_end_percent", "options"], ["GUIDER"]),
    "PAGAVGuider": (["model", "positive", "negative", "video_cfg", "video_pag", "video_modality", "video_rescale",
                     "audio_cfg", "audio_pag", "audio_modality", "audio_rescale", "layers", "options"], ["GUIDER"]),
    "PAGOptions": (["strength", "start_percent", "end_percent", "rescale", "rescale_mode"], ["PAG_OPTIONS"]),
    "PAGInspect": (["model", "seed", "steps", "cfg", "pag_scale", "layers", "sampler_name", "scheduler", "positive",
                    "negative", "latent_image", "denoise", "cfg_start_percent", "cfg_end_percent", "options", "vae",
                    "shown_steps", "panels", "cell_size"], ["LATENT", "IMAGE", "IMAGE"]),
    "PAGGrid": (["model", "seed", "steps", "cfg", "scales", "layer_selections", "perturbations", "sampler_name",
                 "scheduler", "positive", "negative", "latent_image", "denoise", "cfg_start_percent",
                 "cfg_end_percent", "options", "vae", "cell_size"], ["IMAGE", "IMAGE"]),
    "PAGADMLoader": (["ckpt_name", "head_channels", "qkv_order", "noise_schedule", "clip_denoised"], ["MODEL", "VAE"]),
    "PAGADMClassLabel": (["model", "label"], ["CONDITIONING"]),
    "PAGMeasurement": (["task", "box_left", "box_top", "box_width", "box_height", "mask", "factor", "downscale",
                        "blur_sigma", "kernel", "kernel_size", "intensity", "kernel_seed"], ["PAG_OPERATOR"]),
    "PAGMeasure": (["image", "operator", "noise_sigma", "seed"], ["IMAGE", "IMAGE"]),
    "PAGDPSSampler": (["measurement", "operator", "step_size", "eta", "checkpointing"], ["SAMPLER"]),
    "PAGPSLDSampler": (["measurement", "operator", "vae", "step_size", "gluing", "eta", "checkpointing"],
                       ["SAMPLER"]),
    "PAGSDSGradient": (["guider", "latent_image", "seed", "min_step_percent", "max_step_percent", "weighting"],
                       ["LATENT", "FLOAT"]),
    "PAGSDSImageGradient": (["image", "vae", "gradient"], ["IMAGE"]),
    "PAGHeadSearch": (["model", "seed", "steps", "cfg", "pag_scale", "layers", "score", "seeds", "sampler_name",
                       "scheduler", "positive", "negative", "latent_image", "denoise", "cfg_start_percent",
                       "cfg_end_percent", "options", "vae", "clip_vision", "clip", "prompt", "reference", "chosen",
                       "rounds", "heads_per_round", "max_runs", "cell_size", "paper"], ["STRING", "IMAGE", "STRING"]),
    "PAGSDSOptimizer": (["guider", "latent_image", "seed", "steps", "learning_rate", "order", "min_step_percent",
                         "max_step_percent", "weighting"], ["LATENT"]),
}
# What the paper did beyond guidance; these stand in a menu of their own.
RESEARCH = {"PAGADMLoader", "PAGADMClassLabel", "PAGMeasurement", "PAGMeasure", "PAGDPSSampler", "PAGPSLDSampler",
            "PAGSDSGradient", "PAGSDSImageGradient", "PAGSDSOptimizer", "PAGHeadSearch"}


@pytest.mark.parametrize("name", PROMISED)
def test_promised_names(ours, name):
    inputs, outputs = PROMISED[name]
    assert set(inputs) <= {given for given, *_ in inputs_of(ours[name])}
    assert ours[name]["output"] == outputs


def test_every_node_explains_itself(ours):
    for name, node in ours.items():
        assert node["description"], f"{name} has no description"
        assert node["category"] == ("model/patch/pag/research" if name in RESEARCH else "model/patch/pag")
        assert all(node["output_tooltips"]), f"{name} has an output without a tooltip"


def test_every_input_has_a_tooltip(ours):
    bare = [f"{name}.{given}" for name, node in ours.items() for given, _, options, _ in inputs_of(node)
            if not options.get("tooltip")]
    assert not bare
