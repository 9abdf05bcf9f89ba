"""One training run, from the first step to the file: network, moving average, checkpoints and export."""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from harness.errors import HarnessError
from harness.whole_files import written_whole
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pag_core.adm import ADMConfig, ADMUNet, AttentionBlock, ResBlock

from .recipes import Recipe

LABEL_DROPOUT = 0.2


def new_model(config: ADMConfig, seed: int) -> ADMUNet:
    """guided-diffusion's start: each residual branch and the output add nothing."""
    torch.manual_seed(seed)
    model = ADMUNet(config)
    ends = [m.out_layers[3] for m in model.modules() if isinstance(m, ResBlock)]
    ends += [m.proj_out for m in model.modules() if isinstance(m, AttentionBlock)]
    for layer in (*ends, model.out[2]):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return model


class Run:
    """Everything that a checkpoint holds."""

    def __init__(self, args: argparse.Namespace, recipe: Recipe, model: ADMUNet):
        self.args, self.recipe = args, recipe
        self.device = torch.device(args.device)
        self.model = model.to(self.device, memory_format=torch.channels_last)
        self.params = list(self.model.parameters())
        self.ema = [p.detach().clone() for p in self.params]
        self.optimizer = torch.optim.AdamW(self.params, lr=args.lr, betas=(0.9, 0.99), weight_decay=0.01,
                                           fused=self.device.type == "cuda")
        self.step, self.seconds = 0, 0.0
        self.origin = ""  # the file whose weights this training started from
        self.curve: list[tuple[int, float]] = []
        self.measured: list[dict[str, float]] = []
        self.end = math.inf  # of the budget, in its unit, once the distances have stopped falling

    def save(self) -> None:
        state = {
            "step": self.step,
            "origin": self.origin,
            "seconds": self.seconds,
            "curve": self.curve,
            "measured": self.measured,
            "end": self.end,
            "model": self.model.state_dict(),
            "ema": self.ema,
            "optimizer": self.optimizer.state_dict(),
        }
        with written_whole(self.args.checkpoint) as path:
            torch.save(state, path)

    def resume(self) -> None:
        state = torch.load(self.args.checkpoint, map_location=self.device, weights_only=True)
        try:
            self.model.load_state_dict(state["model"])
        except RuntimeError:
            raise HarnessError(f"{self.args.checkpoint} contains a network other than {self.recipe.title} with "
                               f"{len(self.recipe.class_names)} classes; name another --checkpoint, or use --fresh to "
                               "start over") from None
        self.step, self.seconds, self.curve = state["step"], state["seconds"], state["curve"]
        self.origin, self.measured, self.end = state["origin"], state["measured"], state["end"]
        for ema, saved in zip(self.ema, state["ema"], strict=True):
            ema.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])

    def start_from(self, path: Path) -> None:
        """The weights of a file that `export` wrote, its classes by name; the optimiser starts anew."""
        weights = load_file(path, device=str(self.device))
        with safe_open(path, "pt") as file:
            facts = file.metadata() or {}
        known = json.loads(facts.get("class_names", "[]"))
        if known and "label_emb.weight" in weights:
            rows = weights["label_emb.weight"]
            weights["label_emb.weight"] = torch.stack([
                rows[known.index(name)] if name in known else rows.new_zeros(rows.shape[1])
                for name in self.recipe.class_names])
        try:
            self.model.load_state_dict(weights)
        except RuntimeError:
            raise HarnessError(f"--start-from {path} contains a network other than {self.recipe.title}") from None
        self.ema = [p.detach().clone() for p in self.params]
        self.origin = f"sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}, {facts.get('steps', '?')} steps"

    def average(self) -> ADMUNet:
        """A copy of the network with the moving average of its weights."""
        model = copy.deepcopy(self.model).eval().requires_grad_(False)
        for parameter, mean in zip(model.parameters(), self.ema, strict=True):
            parameter.copy_(mean)
        return model

    def export(self) -> None:
        """The EMA weights in float16, with all that a reader of the file should know in its metadata."""
        names = [name for name, _ in self.model.named_parameters()]
        weights = {n: p.half().contiguous().cpu() for n, p in zip(names, self.ema, strict=True)}
        with written_whole(self.args.out) as path:
            save_file(weights, path, self.metadata())

    def metadata(self) -> dict[str, str]:
        args, recipe, config = self.args, self.recipe, self.recipe.config

        def as_json(value: Any) -> str:
            return json.dumps(value, separators=(",", ":"))

        return {
            "format": "pt",
            "architecture": "adm",
            "title": recipe.title,
            "image_size": str(config.image_size),
            "head_channels": str(config.head_channels),
            "qkv_order": config.qkv_order,
            "noise_schedule": config.noise_schedule,
            "class_names": json.dumps(recipe.class_names),
            "label_dropout": str(LABEL_DROPOUT),
            **({"pag_layers": recipe.pag_layers} if recipe.pag_layers else {}),
            **recipe.facts,
            **({"started_from": self.origin} if self.origin else {}),
            "seed": str(args.seed),
            "steps": str(self.step),
            "batch_size": str(args.batch_size),
            "learning_rate": str(args.lr),
            "ema_decay": str(recipe.ema_decay),
            "training_seconds": str(round(self.seconds)),
            "training_curve": as_json([[step, round(loss, 5)] for step, loss in self.curve]),
            **({"held_out_curve": as_json(self.measured)} if self.measured else {}),
        }

    def progress(self) -> float:
        """Share of the budget used, 0 to 1: of the steps where --steps is given, else of the minutes."""
        budget = self.args.steps or 60 * self.args.minutes
        return min(1.0, self.used() / min(budget, self.end))

    def used(self) -> float:
        return self.step if self.args.steps else self.seconds

    def cool_down(self) -> None:
        """Shorten the budget so that its last part, in which the learning rate falls, begins now."""
        if self.args.cooldown < 1:
            self.end = min(self.end, self.used() / (1 - self.args.cooldown))


def alphas_cumprod() -> Tensor:
    """ᾱ_t [1000] of guided-diffusion's linear betas."""
    return torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0).float()
