"""A small Fashion-MNIST classifier, whose features stand for Inception-v3's: that network has never seen such pictures.

Trained here, on the training split, to more than 90 % on the test split; the pictures' distances are measured against
the test split, which neither it nor the diffusion model has seen.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from harness.errors import HarnessError
from harness.whole_files import written_whole
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

EPOCHS, BATCH, RATE, SEED = 3, 128, 3e-3, 0
FEATURES = 64
LEAST_ACCURACY = 0.9


class Classifier(nn.Module):
    def __init__(self, channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.channels = channels
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU())
            for c_in, c_out, stride in ((channels, 32, 2), (32, 64, 2), (64, 64, 1), (64, 96, 2)))
        self.features = nn.Linear(96 * 16, FEATURES)
        self.logits = nn.Linear(FEATURES, classes)

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """Of images [N, channels, S, S] in [-1, 1]: each stage's maps [N, C, h, w], features [N, 64], and logits."""
        maps = []
        for stage in self.stages:
            images = stage(images)
            maps.append(images)
        features = F.relu(self.features(F.adaptive_avg_pool2d(images, 4).flatten(1)))
        return maps, features, self.logits(features)


@dataclass(frozen=True)
class Seen:
    """What the classifier sees in pictures: maps of each stage, features [N, 64], logits [N, 10]; and the brightness
    and contrast [N] (mean and standard deviation of the pixels, 0 to 255)."""

    maps: list[Tensor]
    features: Tensor
    logits: Tensor
    brightness: Tensor
    contrast: Tensor


@torch.inference_mode()
def look(classifier: Classifier, images: Tensor, with_maps: bool = False) -> Seen:
    """At images uint8 [N, 32, 32], or [N, 3, 32, 32], of which the mean over the channels is taken. The maps, 72 kB a
    picture, are left out unless asked for."""
    parts = []
    for batch in images.split(500):
        x = batch.float().div(127.5).sub(1)
        maps, features, logits = classifier((x if x.dim() == 4 else x[:, None]).mean(1, keepdim=True))
        parts.append((maps if with_maps else [], features, logits))
    maps, features, logits = zip(*parts, strict=True)
    pixels = images.float().flatten(1)
    return Seen([torch.cat(stage) for stage in zip(*maps, strict=True)], torch.cat(features), torch.cat(logits),
                pixels.mean(1), pixels.std(1))


def get_classifier(folder: Path, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]
                   ) -> tuple[Classifier, float]:
    """The classifier and its accuracy on the test split; trained, if its recipe has not been yet.

    Args:
        train, test: images uint8 [N, 32, 32] and labels long [N].
    """
    classifier = Classifier()
    recipe = f"{classifier} {EPOCHS} {BATCH} {RATE} {SEED} {len(train[0])}"
    path = folder / f"classifier-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.safetensors"
    if path.is_file():
        classifier.load_state_dict(load_file(path))
    else:
        _train(classifier, *train)
        with written_whole(path) as partial:
            save_file(classifier.state_dict(), partial)
    classifier.eval().requires_grad_(False)
    accuracy = float((look(classifier, test[0]).logits.argmax(1) == test[1]).float().mean())
    if accuracy < LEAST_ACCURACY:
        raise HarnessError(f"The classifier knows only {accuracy:.1%} of the test pictures, expected "
                           f"{LEAST_ACCURACY:.0%} or more; its features would say little. Delete {path} to train it "
                           "anew.")
    return classifier, accuracy


def _train(classifier: Classifier, images: Tensor, labels: Tensor) -> None:
    torch.manual_seed(SEED)
    for module in classifier.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    optimizer = torch.optim.AdamW(classifier.parameters(), RATE, weight_decay=0.01)
    steps = EPOCHS * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    generator = torch.Generator().manual_seed(SEED)
    with tqdm(total=steps, desc="classifier", unit="step", disable=not sys.stderr.isatty()) as bar:
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(images), generator=generator).split(BATCH)[:steps // EPOCHS]:
                x = images[rows].float().div(127.5).sub(1)[:, None]
                loss = F.cross_entropy(classifier(x)[2], labels[rows], label_smoothing=0.05)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
