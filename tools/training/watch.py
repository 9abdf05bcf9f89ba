"""Monitors a training run: its error and its samples' distance on held-out drawings, and a sample sheet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from harness.whole_files import written_whole
from PIL import Image
from torch import Tensor, nn

from pag_core.adm import ADMHooks, ADMUNet
from pag_core.guidance import perturbed_attention_delta
from pag_core.posterior import denoising_step

from .data import Data
from .run import alphas_cumprod

PICTURES = 192  # of either side, for the errors
BATCH = {"cpu": 32, "cuda": 256}
STEPS = 25  # of DDIM, as in the evaluation


def _batch(device: torch.device | str) -> int:
    return BATCH.get(torch.device(device).type, BATCH["cpu"])


@torch.inference_mode()
def errors(model: ADMUNet, data: Data, hooks: ADMHooks) -> dict[str, float]:
    """Mean squared error of the predicted noise, on pictures of the training and on held-out ones, the same each time.

    A gap that opens between the two says that the training pictures are being learnt by heart.
    """
    assert data.held_out is not None
    device = next(model.parameters()).device
    found = {}
    for name, (images, labels) in {"training": (data.images, data.labels), "held_out": data.held_out}.items():
        rows = torch.linspace(0, len(images) - 1, min(PICTURES, len(images))).long()
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(len(rows), *images.shape[1:], generator=generator).to(device)
        t = ((torch.arange(len(rows)) + 0.5) * (1000 / len(rows))).long()
        t = t[torch.randperm(len(rows), generator=generator)].to(device)
        rows = rows.to(images.device)
        x0, y = images[rows].to(device), labels[rows].to(device)
        a = alphas_cumprod().to(device)[t][:, None, None, None]
        x = a.sqrt() * x0.float().div(127.5).sub(1) + (1 - a).sqrt() * noise
        predicted = torch.cat([model(*batch, hooks) for batch in zip(*(part.split(_batch(device))
                                                                       for part in (x, t, y)), strict=True)])
        found[name] = round(float((predicted - noise).square().mean()), 5)
    return found


def draw(model: ADMUNet, seeds: range, label: int, hooks: ADMHooks) -> Tensor:
    """uint8 [N, 3, S, S] without guidance; label -1 is none."""
    return ddim(lambda x, t: model(x, t, torch.full([len(x)], label, device=x.device), hooks), model.config.image_size,
                seeds, next(model.parameters()).device)


def draw_with_pag(model: ADMUNet, seeds: range, scale: float, plain: ADMHooks, perturbed: ADMHooks) -> Tensor:
    """uint8 [N, 3, S, S] without a label, `perturbed` for the weak prediction; scale 0 is without PAG."""
    def predict(x: Tensor, t: Tensor) -> Tensor:
        epsilon = model(x, t, None, plain)
        if not scale:
            return epsilon
        return epsilon + perturbed_attention_delta(epsilon, model(x, t, None, perturbed), scale)

    return ddim(predict, model.config.image_size, seeds, next(model.parameters()).device)


@torch.inference_mode()
def ddim(predict: Callable[[Tensor, Tensor], Tensor], size: int, seeds: range, device: torch.device | str = "cpu"
         ) -> Tensor:
    """uint8 [N, 3, size, size], every picture from noise of its own seed.

    Args:
        predict: the noise in x [B, 3, size, size] at timesteps [B].
    """
    alphas = alphas_cumprod()
    times = list(range(1, 1000, 1000 // STEPS))[::-1]  # as the host's ddim_uniform spaces them
    levels = [float(alphas[t]) for t in times] + [1.0]
    noise = [torch.randn(3, size, size, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    drawn = []
    for x in torch.stack(noise).to(device).split(_batch(device)):
        for t, alpha, following in zip(times, levels, levels[1:], strict=False):
            epsilon = predict(x, torch.full([len(x)], float(t), device=device))
            x0 = ((x - (1 - alpha) ** 0.5 * epsilon) / alpha**0.5).clamp(-1, 1)
            x = denoising_step(x, x0, alpha, following, 0.0, torch.zeros_like(x))
        drawn.append(x.add(1).mul(127.5).round().clamp(0, 255).byte().cpu())
    return torch.cat(drawn)


def draw_together(model: ADMUNet, count: int, hooks: ADMHooks) -> Tensor:
    """About `count` pictures without a label, of which every rank draws its share; the same on all of them."""
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    share = -(-count // ranks)
    if ranks == 1:
        return draw(model, range(share), -1, hooks)
    own = draw(model, range(share * dist.get_rank(), share * (dist.get_rank() + 1)), -1, hooks)
    parts = [torch.empty_like(own) for _ in range(ranks)]
    dist.all_gather(parts, own)
    return torch.cat(parts)


def distances(pictures: Tensor, real: Tensor, encoders: Mapping[str, nn.Module]) -> dict[str, float]:
    """The Fréchet distance of pictures to real ones, both uint8 [N, 3, S, S], as each of the encoders sees them."""
    from evaluation.encoders import encode
    from evaluation.metrics import frechet_between

    return {f"distance_{name}": round(frechet_between(*(encode(encoder, each)[0] for each in (pictures, real))), 3)
            for name, encoder in encoders.items()}


def stopped_falling(measured: list[dict[str, float]], patience: int) -> bool:
    """Whether the last `patience` distances are all above an earlier one, for every encoder."""
    names = [name for name in (measured[-1] if measured else ()) if name.startswith("distance_")]
    if not names or len(measured) <= patience:
        return False
    return all(min(point[name] for point in measured[-patience:]) > min(point[name] for point in measured[:-patience])
               for name in names)


def save_sheet(path: Path, rows: list[Tensor], enlarged: int = 3) -> None:
    """One picture of rows of pictures uint8 [N, 3, S, S]."""
    sheet = torch.cat([torch.cat(list(row), 2) for row in rows], 1).permute(1, 2, 0).numpy()
    with written_whole(path) as partial:
        Image.fromarray(sheet).resize((sheet.shape[1] * enlarged, sheet.shape[0] * enlarged), 0).save(partial, "PNG")
