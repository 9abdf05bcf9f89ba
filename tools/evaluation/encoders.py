"""Two independent networks whose features give the distances: both see emoji drawings, neither is part of the model.

One classifies the eight categories. The other has another architecture and is trained without categories: drawings of
one concept in several styles belong together, drawings of other concepts do not (Khosla et al. 2020, "Supervised
Contrastive Learning"). If both prefer the same images, it is not the taste of one network. Both are trained on the
training drawings of all categories; held-out concepts are new to both.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from harness.errors import HarnessError
from harness.whole_files import written_whole
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm
from training.data import Data
from training.drawings import Drawings

from .classifier import Classifier

STEPS, BATCH, RATE, SEED = 800, 128, 2e-3, 0
SHIFT = 2
FEATURES = 64
TEMPERATURE = 0.1  # of the contrast
LEAST = {"category": 0.3, "concept": 0.05}  # guessing: 0.24 (the largest category) and less than 0.004


class ConceptEncoder(nn.Module):
    """A small residual network of depthwise convolutions, as ConvNeXt's (Liu et al. 2022)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 4, stride=4)
        self.stages = nn.ModuleList(nn.ModuleList(_Block(width) for _ in range(2)) for width in (64, 128))
        self.downs = nn.ModuleList([nn.Conv2d(64, 128, 2, stride=2)])
        self.features = nn.Linear(128, FEATURES)
        self.head = nn.Linear(FEATURES, FEATURES)

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """Of images [N, 3, S, S] in [-1, 1]: each stage's maps, features [N, 64], and what is contrasted [N, 64]."""
        x, maps = self.stem(images), []
        for stage, down in zip(self.stages, [*self.downs, nn.Identity()], strict=True):
            for block in stage:
                x = block(x)
            maps.append(x)
            x = down(x)
        features = self.features(x.mean((2, 3)))
        return maps, features, F.normalize(self.head(F.gelu(features)), dim=1)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.GroupNorm(1, width)
        self.wide, self.narrow = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(3 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(F.gelu(self.wide(self.norm(self.spatial(x)))))


def category_classifier(folder: Path, drawings: Drawings) -> tuple[Classifier, float]:
    """The network that knows the categories, and its accuracy on held-out drawings; trained, unless `folder` has it."""
    data = _data(drawings, drawings.labels)

    def loss(model: nn.Module, rows: Tensor, rand: torch.Generator) -> Tensor:
        seen = model(_shown(data, rows, rand).to(_device()))[2]
        return F.cross_entropy(seen, data.labels[rows].to(_device()), label_smoothing=0.1)

    model = _trained(folder, "category", Classifier(3, len(drawings.categories)), data, loss)
    images, labels = drawings.part(held_out=True)
    right = (encode(model, images)[1].argmax(1) == labels).float().mean()
    return model, _good_enough("category", float(right), folder)


def concept_encoder(folder: Path, drawings: Drawings) -> tuple[ConceptEncoder, float]:
    """The network that knows which drawings show the same; and the share of held-out drawings whose nearest held-out
    neighbour does."""
    names = sorted(set(drawings.concepts))
    concepts = torch.tensor([names.index(name) for name in drawings.concepts])
    data = _data(drawings, concepts)
    members = [(data.labels == concept).nonzero()[:, 0] for concept in data.labels.unique()]
    several = [rows for rows in members if len(rows) > 1]

    def loss(model: nn.Module, rows: Tensor, rand: torch.Generator) -> Tensor:
        chosen = torch.randint(len(several), (BATCH // 2,), generator=rand)
        rows = torch.cat([several[c][torch.randperm(len(several[c]), generator=rand)[:2]] for c in chosen])
        seen = model(_shown(data, rows, rand).to(_device()))[2]
        return contrast(seen, data.labels[rows].to(_device()))

    model = _trained(folder, "concept", ConceptEncoder(), data, loss)
    images, _ = drawings.part(held_out=True)
    labels = concepts[drawings.held_out]
    features = F.normalize(encode(model, images)[0], dim=1)
    nearest = (features @ features.T).fill_diagonal_(-2).argmax(1)
    return model, _good_enough("concept", float((labels[nearest] == labels).float().mean()), folder)


def contrast(seen: Tensor, labels: Tensor) -> Tensor:
    """Khosla et al. 2020, Eq. 2 (the sum outside the logarithm), of unit vectors [N, D] and labels [N]."""
    apart = torch.eye(len(seen), dtype=torch.bool, device=seen.device)
    alike = (labels[:, None] == labels) & ~apart
    logs = (seen @ seen.T / TEMPERATURE).masked_fill(apart, -torch.inf).log_softmax(1).masked_fill(~alike, 0)
    return -(logs.sum(1) / alike.sum(1).clamp(min=1)).mean()


@torch.inference_mode()
def encode(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Features [N, 64] and the last output of a network, on the CPU, of images uint8 [N, 3, S, S]."""
    device = next(model.parameters()).device
    seen = [model(batch.to(device).float().div(127.5).sub(1))[1:] for batch in images.split(256)]
    features, last = zip(*seen, strict=True)
    return torch.cat(features).cpu(), torch.cat(last).cpu()


def _data(drawings: Drawings, labels: Tensor) -> Data:
    rows = ~drawings.held_out
    mirrors = torch.tensor([name != "Symbols" for name in drawings.categories])[drawings.labels]
    return Data(drawings.images[rows], labels[rows], flips=mirrors[rows], shift=SHIFT)


def _device() -> torch.device:
    """Where the two learn. The data stays where it is drawn from."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _shown(data: Data, rows: Tensor, rand: torch.Generator) -> Tensor:
    """Moved and mirrored, and of other brightness, contrast and saturation."""
    x = data.draw(rows, generator=rand)
    change = [0.8 + 0.4 * torch.rand(len(rows), 1, 1, 1, generator=rand) for _ in range(3)]
    grey = x.mean(1, keepdim=True)
    return ((grey + (x - grey) * change[0]) * change[1] + change[2] - 1).clamp(-1, 1)


def _trained(folder: Path, name: str, model: nn.Module, data: Data,
             loss: Callable[[nn.Module, Tensor, torch.Generator], Tensor]) -> nn.Module:
    digest = hashlib.sha256(data.images.numpy().tobytes() + f"{model} {STEPS} {BATCH} {RATE} {SHIFT}".encode())
    path = folder / f"{name}-{digest.hexdigest()[:16]}.safetensors"
    if path.is_file():
        model.load_state_dict(load_file(path))
        return model.eval().requires_grad_(False)
    torch.manual_seed(SEED)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    model.to(_device())
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    rand = torch.Generator().manual_seed(SEED)
    for _ in tqdm(range(STEPS), desc=f"{name} network", unit="step", disable=not sys.stderr.isatty()):
        rows = torch.randint(len(data.images), (BATCH,), generator=rand)
        optimizer.zero_grad()
        loss(model, rows, rand).backward()
        optimizer.step()
        schedule.step()
    model.cpu()
    with written_whole(path) as partial:
        save_file(model.state_dict(), partial)
    return model.eval().requires_grad_(False)


def _good_enough(name: str, accuracy: float, folder: Path) -> float:
    if accuracy < LEAST[name]:
        raise HarnessError(f"The {name} network is right on only {accuracy:.1%} of the held-out drawings, expected "
                           f"{LEAST[name]:.0%} or more; its features would be meaningless. Delete {folder}/{name}-*."
                           "safetensors to train it again.")
    return accuracy
