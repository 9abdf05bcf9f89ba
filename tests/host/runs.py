"""One sampling run, by whatever node does it, and what can be seen of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import comfy.model_patcher
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise, SamplerCustomAdvanced
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from pag_pack.nodes.guidance import PAGGuider, PAGModelPatch
from pag_pack.nodes.sampling import PAGKSampler
from pag_pack.pag_core.settings import PAGOptions

import nodes

from .models import conditioning, empty_latent


@dataclass(frozen=True)
class Run:
    """What is to be sampled. `cfg_window` is for our own nodes only."""

    cfg: float = 7.0
    steps: int = 3
    sampler: str = "euler"
    scheduler: str = "normal"
    seed: int = 5
    denoise: float = 1.0
    positive: list = field(default_factory=lambda: conditioning(1, tokens=14))
    negative: list = field(default_factory=lambda: conditioning(2))
    latent: dict = field(default_factory=empty_latent)
    cfg_window: tuple[float, float] = (0.0, 1.0)

    def ksampler(self, model: ModelPatcher) -> torch.Tensor:
        """The host's KSampler: [B, C, H, W]."""
        return nodes.KSampler().sample(model, self.seed, self.steps, self.cfg, self.sampler, self.scheduler,
                                       self.positive, self.negative, self.latent, self.denoise)[0]["samples"]

    def advanced(self, guider: comfy.samplers.CFGGuider) -> torch.Tensor:
        """The host's SamplerCustomAdvanced: [B, C, H, W]."""
        sigmas = comfy.samplers.KSampler(guider.model_patcher, self.steps, torch.device("cpu"), self.sampler,
                                         self.scheduler, self.denoise).sigmas
        return SamplerCustomAdvanced.execute(Noise_RandomNoise(self.seed), guider,
                                             comfy.samplers.sampler_object(self.sampler), sigmas,
                                             self.latent).result[0]["samples"]

    def model_patch(self, model: ModelPatcher, scale: float, layers: str = "m0",
                    options: PAGOptions | None = None) -> torch.Tensor:
        """PAGModelPatch under the host's KSampler."""
        return self.ksampler(patched(model, scale, layers, options))

    def pag_ksampler(self, model: ModelPatcher, scale: float, layers: str = "m0",
                     options: PAGOptions | None = None) -> torch.Tensor:
        """PAGKSampler."""
        return PAGKSampler.execute(model, self.seed, self.steps, self.cfg, scale, layers, self.sampler, self.scheduler,
                                   self.positive, self.negative, self.latent, self.denoise, *self.cfg_window,
                                   options).result[0]["samples"]

    def pag_guider(self, model: ModelPatcher, scale: float, layers: str = "m0",
                   options: PAGOptions | None = None) -> torch.Tensor:
        """PAGGuider under the host's SamplerCustomAdvanced."""
        return self.advanced(PAGGuider.execute(model, self.positive, self.negative, self.cfg, scale, layers,
                                               *self.cfg_window, options).result[0])


def latent_run(size: tuple[int, ...], cfg: float) -> Run:
    """Two steps of a flow model, from an empty latent of 16 channels."""
    return Run(cfg=cfg, steps=2, scheduler="simple", positive=conditioning(1),
               latent={"samples": torch.zeros(1, 16, *size)})


# The three ways to sample with PAG: (run, model, scale, layers, options) -> [B, C, H, W].
WAYS: dict[str, Callable[..., torch.Tensor]] = {
    "PAGModelPatch": Run.model_patch, "PAGKSampler": Run.pag_ksampler, "PAGGuider": Run.pag_guider}


def patched(model: ModelPatcher, scale: float, layers: str = "m0", options: PAGOptions | None = None) -> ModelPatcher:
    """PAGModelPatch's output."""
    return PAGModelPatch.execute(model, scale, layers, options).result[0]


def host_pag(model: ModelPatcher, scale: float) -> ModelPatcher:
    """The host's own PAG node: a separate pass with the middle block's attention replaced."""
    return PerturbedAttentionGuidance.execute(model, scale).result[0]


def separate_passes(model: ModelPatcher, scale: float, replacements: dict[tuple, Callable]) -> ModelPatcher:
    """PAG as the host's own node does it, for any layers and any replacement: the reference for what that node lacks.

    Args:
        replacements: {the host's name of a layer, (kind, number) or (kind, number, transformer block): what replaces
            its self-attention, (q, k, v, extra_options) -> [B, N, C]}.
    """
    def post_cfg(args: dict) -> torch.Tensor:
        options = args["model_options"].copy()
        for key, replacement in replacements.items():
            options = comfy.model_patcher.set_model_options_patch_replace(options, replacement, "attn1", *key)
        (perturbed,) = comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"],
                                                      options)
        return args["denoised"] + scale * (args["cond_denoised"] - perturbed)

    model = model.clone()
    model.set_model_sampler_post_cfg_function(post_cfg)
    return model


def identity(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra_options: dict) -> torch.Tensor:
    """The paper's perturbation (PAG Eq. 13)."""
    return v


def counted(model: ModelPatcher, batch: int = 1) -> tuple[ModelPatcher, list[int]]:
    """A clone of the model, and a list that gets the number of rows of each of its calls."""
    rows: list[int] = []
    model = model.clone()
    sampling = copy.copy(model.get_model_object("model_sampling"))  # a wrapper would count as another node's
    original = sampling.calculate_input

    def count(sigma: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        rows.append(noise.shape[0] // batch)
        return original(sigma, noise)

    sampling.calculate_input = count
    model.add_object_patch("model_sampling", sampling)
    return model, rows


def relative_error(result: torch.Tensor, expected: torch.Tensor) -> float:
    """max|a − b| / max|b|; NaN counts as infinite."""
    error = ((result - expected).abs().max() / expected.abs().max()).item()
    return error if error == error else float("inf")


def snapshot(model: ModelPatcher) -> dict:
    """Everything of a patcher that a node could change, in a form that compares by value or else by identity."""
    def frozen(value):
        if isinstance(value, dict):
            return {key: frozen(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [frozen(item) for item in value]
        return value if isinstance(value, (bool, int, float, str, type(None))) else id(value)

    names = ("model_options", "object_patches", "patches", "wrappers", "callbacks", "attachments", "additional_models",
             "injections", "hook_patches")
    weights = {name: weight.double().sum().item() for name, weight in model.model.state_dict().items()}
    return {"weights": weights, **{name: frozen(getattr(model, name)) for name in names}}
