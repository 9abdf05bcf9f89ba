"""Score distillation (SDS) with CFG and PAG (PAG App. C.3): for another pack's renderer, or for a single image."""

from __future__ import annotations

from comfy_api.latest import io

from ...pag_core.checks import check_choice, check_range, check_whole
from ...pag_core.distillation import LEAST, MOST, ORDERS, WEIGHTINGS, noise_levels
from ...pag_core.perturbation import MAX_SEED
from .. import inputs
from ..host.research.distillation import image_gradient, optimized, sds_gradient
from ..host.sockets import check_latent

MAX_STEPS = 100000
LEAST_RATE, MOST_RATE = 0.00001, 10.0


class PAGSDSGradient(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAGSDSGradient",
            display_name="PAG SDS Gradient",
            category=inputs.RESEARCH,
            description="Score distillation (DreamFusion): the gradient that moves a latent toward what the guided "
                        "model finds likely. One model call. For loops that render and optimize, such as text-to-3D.",
            search_aliases=["score distillation sampling", "sds", "dreamfusion", "text to 3d", "gradient"],
            inputs=[
                guider(),
                latent_image("The latent being optimized: an encoded view or image. It is not modified. With a noise "
                             "mask, the gradient is 0 where the mask is black."),
                seed("The random seed of the noise and of its level. Change it at every step of your loop."),
                *levels(),
                weighting(),
            ],
            outputs=[
                io.Latent.Output(display_name="gradient",
                                 tooltip="The gradient with respect to the latent, in the latent's own scaling: "
                                         "w(t)·(ε̂ − ε). Subtract it times a learning rate, or pass it to the "
                                         "renderer's backward pass."),
                io.Float.Output(display_name="norm",
                                tooltip="The norm of the gradient, averaged over the batch."),
            ],
        )

    @classmethod
    def execute(cls, guider, latent_image, seed: int, min_step_percent: float = 0.02,
                max_step_percent: float = 0.98, weighting: str = "sigma_squared") -> io.NodeOutput:
        seed = check_whole("seed", seed, 0, MAX_SEED)
        check_choice("weighting", weighting, tuple(WEIGHTINGS))
        (level,) = noise_levels(1, min_step_percent, max_step_percent, "random", seed)
        gradient = sds_gradient(guider, latent_image, seed, level, weighting)
        return io.NodeOutput({"samples": gradient}, float(gradient.flatten(1).norm(dim=1).mean()))


class PAGSDSImageGradient(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAGSDSImageGradient",
            display_name="PAG SDS Image Gradient",
            category=inputs.RESEARCH,
            description="Backpropagates the gradient from PAG SDS Gradient through the VAE to the encoded image, as a "
                        "renderer needs it.",
            search_aliases=["score distillation sampling", "sds", "dreamfusion", "text to 3d", "vae gradient"],
            inputs=[
                io.Image.Input("image", tooltip="The image that went into VAE Encode."),
                inputs.vae(False, "The VAE that encoded it."),
                io.Latent.Input("gradient", tooltip="From PAG SDS Gradient, for the encoded image."),
            ],
            outputs=[io.Image.Output(display_name="image_gradient",
                                     tooltip="The gradient with respect to the pixels. It is not an image to look at: "
                                             "its values are around 0.")],
        )

    @classmethod
    def execute(cls, image, vae, gradient: dict) -> io.NodeOutput:
        check_latent(gradient, "gradient")
        return io.NodeOutput(image_gradient(vae, image, gradient["samples"]))


class PAGSDSOptimizer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAGSDSOptimizer",
            display_name="PAG SDS Optimizer",
            category=inputs.RESEARCH,
            description="Score distillation in 2-D: optimizes a latent with Adam until the guided model finds it "
                        "likely. Not a sampler: it shows where the gradient from PAG SDS Gradient leads.",
            search_aliases=["score distillation sampling", "sds", "dreamfusion", "optimize image"],
            inputs=[
                guider(),
                latent_image("The starting point of the optimization: an empty latent, which is gray, or an encoded "
                             "image. With a noise mask, only the masked area changes."),
                seed("The random seed of the noise. The same seed gives the same result."),
                io.Int.Input("steps", default=200, min=1, max=MAX_STEPS,
                             tooltip="Number of steps, with one model call each. 100 to 200 are enough for annealed; "
                                     "random needs more."),
                io.Float.Input("learning_rate", default=0.05, min=LEAST_RATE, max=MOST_RATE, step=0.005, round=0.00001,
                               tooltip="Roughly how far one step of Adam moves each value of the latent, whose "
                                       "standard deviation is near 1. Higher: coarser and noisier. Lower: it may not "
                                       "converge within these steps."),
                io.Combo.Input("order", options=list(ORDERS), default=ORDERS[0],
                               tooltip="annealed: from the most noise to the least, so that composition comes first "
                                       "and details last. random: any level at any step, as in DreamFusion; needs more "
                                       "steps."),
                *levels(),
                weighting(),
            ],
            outputs=[io.Latent.Output(tooltip="The optimized latent.")],
        )

    @classmethod
    def execute(cls, guider, latent_image, seed: int, steps: int, learning_rate: float, order: str,
                min_step_percent: float = 0.02, max_step_percent: float = 0.98,
                weighting: str = "sigma_squared") -> io.NodeOutput:
        seed, steps = check_whole("seed", seed, 0, MAX_SEED), check_whole("steps", steps, 1, MAX_STEPS)
        learning_rate = check_range("learning_rate", learning_rate, LEAST_RATE, MOST_RATE)
        check_choice("weighting", weighting, tuple(WEIGHTINGS))
        chosen = noise_levels(steps, min_step_percent, max_step_percent, order, seed)
        return io.NodeOutput(optimized(guider, latent_image, seed, chosen, weighting, learning_rate))


def guider() -> io.Guider.Input:
    return io.Guider.Input("guider", tooltip="The model with its prompts and scales: PAG Guider, for CFG and PAG in "
                                             "one call, or any other guider. The paper uses 100 for both scales; start "
                                             "lower.")


def latent_image(meaning: str) -> io.Latent.Input:
    return io.Latent.Input("latent_image", tooltip=meaning)


def seed(meaning: str) -> io.Int.Input:
    return io.Int.Input("seed", default=0, min=0, max=MAX_SEED, control_after_generate=True, tooltip=meaning)


def levels() -> list[io.Float.Input]:
    def level(name: str, default: float, meaning: str) -> io.Float.Input:
        return io.Float.Input(name, default=default, min=LEAST, max=MOST, step=0.01, round=0.001, optional=True,
                              tooltip=f"{meaning} As a fraction of the model's timesteps: near 0 is the clean image, "
                                      f"near 1 pure noise. DreamFusion uses {default:g}.")

    return [level("min_step_percent", 0.02, "The least noise added."),
            level("max_step_percent", 0.98, "The most noise added.")]


def weighting() -> io.Combo.Input:
    return io.Combo.Input("weighting", options=list(WEIGHTINGS), default="sigma_squared", optional=True, advanced=True,
                          tooltip="The weight of each noise level, w(t). sigma_squared: DreamFusion's weighting, lower "
                                  "at low noise. uniform: 1.")
