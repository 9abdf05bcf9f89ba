"""A small classifier of categories, whose features replace Inception-v3's, which never saw such images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

FEATURES = 64


class Classifier(nn.Module):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
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
