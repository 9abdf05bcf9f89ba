"""A small latent model for PSLD, of ComfyUI's own classes and trained on the training drawings.

A VAE turns images of 64 × 64 into latents of 4 × 16 × 16, and a U-Net like SD 1.5's, without a prompt, learns to
denoise them. Such a short training shows the sign of an effect, not quality.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from harness.whole_files import written_whole
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm
from training.torch_support import can_compile, has_bfloat16

SHRINK, CHANNELS = 4, 4
VAE = {"embed_dim": CHANNELS, "ddconfig": {
    # 64 channels at full size: with 32, each of the 32 groups of the last norm would hold one and lose its brightness.
    "double_z": True, "z_channels": CHANNELS, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32,
    "ch_mult": [2, 2, 2], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}}
U_NET = {"image_size": 16, "in_channels": CHANNELS, "out_channels": CHANNELS, "model_channels": 64,
         "channel_mult": [1, 2], "num_res_blocks": [2, 2], "num_heads": 4, "transformer_depth": [1, 1, 1, 1],
         "transformer_depth_middle": 1, "transformer_depth_output": [1] * 6, "use_spatial_transformer": True,
         "context_dim": 32, "legacy": False, "use_temporal_attention": False, "adm_in_channels": None}
VAE_STEPS, VAE_BATCH, VAE_RATE, KL_WEIGHT = 1200, 32, 1e-3, 1e-5
U_NET_STEPS, U_NET_BATCH, U_NET_RATE, EMA_DECAY = 2500, 64, 1e-3, 0.998
SEED = 0
RECIPE = (VAE, U_NET, VAE_STEPS, VAE_BATCH, VAE_RATE, KL_WEIGHT, U_NET_STEPS, U_NET_BATCH, U_NET_RATE, EMA_DECAY, SEED)


def latent_model_key(images: Tensor) -> str:
    """A short name for the recipe and its data."""
    return "latent-" + hashlib.sha256(f"{RECIPE} {len(images)}".encode()).hexdigest()[:16]


def get_latent_model(folder: Path, images: Tensor) -> tuple[comfy.model_patcher.ModelPatcher, comfy.sd.VAE]:
    """MODEL and VAE; trained, if their recipe has not been yet.

    Args:
        images: uint8 [N, 3, S, S].
    """
    path = folder / f"{latent_model_key(images)}.safetensors"
    device = comfy.model_management.get_torch_device()
    with torch.inference_mode(False):
        if not path.is_file():
            train(path, images, device)
        weights = load_file(path)
    parts = {part: {name.removeprefix(part): weight for name, weight in weights.items() if name.startswith(part)}
             for part in ("vae.", "model.")}
    vae = comfy.sd.VAE(sd=parts["vae."], config={"params": VAE}, dtype=torch.float32)
    vae.upscale_ratio = vae.downscale_ratio = SHRINK  # the host takes 8 for granted
    model = new_model(float(weights["scale"]))
    model.diffusion_model.load_state_dict(parts["model."])
    model.eval().requires_grad_(False)
    offload = comfy.model_management.unet_offload_device()
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=offload), vae


def nothing() -> list:
    """The CONDITIONING of every picture."""
    return [[torch.zeros(1, 1, U_NET["context_dim"]), {}]]


def new_model(scale: float) -> comfy.model_base.BaseModel:
    """SD 1.5's class at this size, for latents that are multiplied by `scale`."""
    config = comfy.supported_models.SD15(dict(U_NET))
    config.latent_format.scale_factor = scale
    config.set_inference_dtype(torch.float32, None)
    return comfy.model_base.BaseModel(config)


def train(path: Path, images: Tensor, device: torch.device) -> None:
    """The VAE, kept in a file of its own until the U-Net is done too."""
    stage, half = AutoencoderKL(**VAE), path.with_suffix(".vae")
    if not half.is_file():
        initialise(stage)
        train_vae(stage.to(device), images.to(device))
        write(stage.state_dict(), half)
    stage.load_state_dict(load_file(half))
    latents = encode_all(stage.to(device).eval(), images.to(device))
    scale = 1 / latents.std()
    model = new_model(float(scale))
    initialise(model.diffusion_model)
    train_u_net(model.to(device), latents * scale)
    write({"scale": scale, **{f"vae.{name}": weight for name, weight in stage.state_dict().items()},
           **{f"model.{name}": weight for name, weight in model.diffusion_model.state_dict().items()}}, path)
    half.unlink()


def write(weights: dict[str, Tensor], path: Path) -> None:
    with written_whole(path) as partial:
        save_file({name: weight.detach().cpu().contiguous() for name, weight in weights.items()}, partial)


def initialise(network: nn.Module) -> None:
    """As torch does; the host's layers leave that to checkpoints."""
    torch.manual_seed(SEED)
    for module in network.modules():
        for kind in (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm):
            if isinstance(module, kind):
                kind.reset_parameters(module)


@contextmanager
def training(network: nn.Module, steps: int, rate: float, name: str) -> Iterator[Callable[[Tensor], None]]:
    """A function that takes one step down a loss."""
    network.train().requires_grad_(True).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), rate, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.05)
    with tqdm(total=steps, desc=name, unit="step", disable=not sys.stderr.isatty()) as bar:
        def step(loss: Tensor) -> None:
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            bar.update()
            if bar.n % 100 == 0:
                bar.set_postfix_str(f"loss {float(loss.detach()):.4f}")

        before, comfy.model_management.in_training = comfy.model_management.in_training, True
        try:
            # Attention in plain operations: on a CPU its backward is faster than the fused kernel's.
            with sdpa_kernel(SDPBackend.MATH):
                yield step
        finally:
            comfy.model_management.in_training = before
            network.requires_grad_(False)


def pictures(images: Tensor) -> Tensor:
    """uint8 [B, 3, S, S] -> float in [-1, 1]."""
    return images.float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)


def compiled(network: nn.Module) -> nn.Module:
    return torch.compile(network) if can_compile() else network


def bf16(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device.type))


def train_vae(stage: AutoencoderKL, images: Tensor) -> None:
    generator = torch.Generator(images.device).manual_seed(SEED)
    rand = {"generator": generator, "device": images.device}
    encoder, decoder = compiled(stage.encoder), compiled(stage.decoder)
    with training(stage, VAE_STEPS, VAE_RATE, "VAE") as step:
        for _ in range(VAE_STEPS):
            x = pictures(images[torch.randint(len(images), (VAE_BATCH,), **rand)])
            with bf16(images.device):
                mean, log_variance = stage.quant_conv(encoder(x)).float().chunk(2, 1)
                log_variance = log_variance.clamp(-30, 20)
                z = mean + (0.5 * log_variance).exp() * torch.randn(mean.shape, **rand)
                restored = decoder(stage.post_quant_conv(z))
            kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum((1, 2, 3)).mean()
            error = restored.float() - x
            step(error.square().mean() + 0.1 * error.abs().mean() + KL_WEIGHT * kl)


@torch.no_grad()
def encode_all(stage: AutoencoderKL, images: Tensor) -> Tensor:
    """[N, 4, S / 4, S / 4]"""
    latents = []
    with bf16(images.device):
        for batch in tqdm(images.split(500), desc="latents", disable=not sys.stderr.isatty()):
            latents.append(stage.quant_conv(stage.encoder(pictures(batch)))[:, :CHANNELS].float())
    return torch.cat(latents)


def train_u_net(model: comfy.model_base.BaseModel, latents: Tensor) -> None:
    """Leaves the moving average of the weights in the model."""
    network, device = model.diffusion_model, latents.device
    forward = compiled(network)
    rand = {"generator": torch.Generator(device).manual_seed(SEED), "device": device}
    sigmas = model.model_sampling.sigmas
    averaged = [weight.detach().clone() for weight in network.parameters()]
    context = torch.zeros(U_NET_BATCH, 1, U_NET["context_dim"], device=device)
    with training(network, U_NET_STEPS, U_NET_RATE, "U-Net") as step:
        for number in range(U_NET_STEPS):
            x0 = latents[torch.randint(len(latents), (U_NET_BATCH,), **rand)]
            t = (torch.arange(U_NET_BATCH, device=device) + torch.rand(U_NET_BATCH, **rand)) * (
                len(sigmas) / U_NET_BATCH)
            t = t.long().clamp(max=len(sigmas) - 1)
            sigma = sigmas[t][:, None, None, None]
            noise = torch.randn(x0.shape, **rand)
            x = (x0 + sigma * noise) / (1 + sigma.square()).sqrt()
            with bf16(device):
                found = forward(x, t.float(), context=context)
            step((found.float() - noise).square().mean())
            decay = min(EMA_DECAY, (1 + number) / (10 + number))
            with torch.no_grad():
                torch._foreach_lerp_(averaged, list(network.parameters()), 1 - decay)
    with torch.no_grad():
        for weight, average in zip(network.parameters(), averaged, strict=True):
            weight.copy_(average)
