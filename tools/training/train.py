"""Train the shipped ADM on Fashion-MNIST: `nox -s train`.

60,000 images padded from 28×28 to 32×32, three equal channels in [-1, 1], ten class labels dropped on 20 % of the rows
so that one network gives the conditional and the unconditional estimate. Noise prediction under guided-diffusion's
linear betas: the paper's ImageNet 256 model uses them, and their largest sigma (157) suits samplers that work in sigma,
which cosine betas (sigma above 10,000 at the last step) do not.

Interrupt it at any time; the same command goes on from the last checkpoint. --ranks 2 trains in two processes, which on
two cores is about 1.6 times as fast as two threads; torchrun works too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from harness.errors import HarnessError, command
from harness.whole_files import written_whole
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # last: its `nodes` folder must hide no other module of that name

from pag_core.adm import ADMConfig, ADMHooks, ADMUNet, AttentionBlock, ResBlock  # noqa: E402

from .data import DATA, read_data  # noqa: E402
from .torch_support import can_compile, has_bfloat16  # noqa: E402

CLASS_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
CONFIG = ADMConfig(
    model_channels=32,
    # 64, 64 and 96 channels. With 32, each of the 32 groups of a norm would hold one channel and remove its mean: the
    # network could not tell how bright x_t is, and pictures would get a colour cast.
    channel_mult=(2, 2, 3),
    num_res_blocks=2,
    attention_levels=(1, 2),  # 16×16 and 8×8; the middle block always has one
    num_classes=len(CLASS_NAMES),
    out_channels=3,
    head_channels=32,
    qkv_order="new",
    noise_schedule="linear",
    image_size=32,
)
LABEL_DROPOUT = 0.2
PAG_LAYERS = "d2-3"  # what "auto" stands for on this model: best of all layers and sets in the evaluation
WARMUP_STEPS = 300
EMA_DECAY = 0.999
CURVE_EVERY = 100  # steps per point of the training curve
CHECKPOINT_SECONDS = 120
EXPORT_SECONDS = 600


class MathAttention(ADMHooks):
    """Attention in plain operations: on a CPU its backward is several times faster than the fused kernel's."""

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int, block) -> Tensor:
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        return (weights.softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(2)


def new_model(seed: int) -> ADMUNet:
    """guided-diffusion's start: each residual branch and the output add nothing."""
    torch.manual_seed(seed)
    model = ADMUNet(CONFIG)
    ends = [m.out_layers[3] for m in model.modules() if isinstance(m, ResBlock)]
    ends += [m.proj_out for m in model.modules() if isinstance(m, AttentionBlock)]
    for layer in (*ends, model.out[2]):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return model


def alphas_cumprod() -> Tensor:
    """ᾱ_t [1000] of guided-diffusion's linear betas."""
    return torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0).float()


class Run:
    """Everything that a checkpoint holds."""

    def __init__(self, args: argparse.Namespace, model: ADMUNet):
        self.args = args
        self.device = torch.device(args.device)
        self.model = model.to(self.device, memory_format=torch.channels_last)
        self.params = list(self.model.parameters())
        self.ema = [p.detach().clone() for p in self.params]
        self.optimizer = torch.optim.AdamW(self.params, lr=args.lr, betas=(0.9, 0.99), weight_decay=0.01)
        self.step, self.seconds = 0, 0.0
        self.origin = ""  # the file whose weights this training started from
        self.curve: list[tuple[int, float]] = []

    def save(self) -> None:
        state = {
            "step": self.step,
            "origin": self.origin,
            "seconds": self.seconds,
            "curve": self.curve,
            "model": self.model.state_dict(),
            "ema": self.ema,
            "optimizer": self.optimizer.state_dict(),
        }
        with written_whole(self.args.checkpoint) as path:
            torch.save(state, path)

    def resume(self) -> None:
        state = torch.load(self.args.checkpoint, map_location=self.device, weights_only=True)
        self.step, self.seconds, self.curve = state["step"], state["seconds"], state["curve"]
        self.origin = state["origin"]
        self.model.load_state_dict(state["model"])
        for ema, saved in zip(self.ema, state["ema"], strict=True):
            ema.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])

    def start_from(self, path: Path) -> None:
        """The weights of a file that `export` wrote; the optimiser starts anew."""
        self.model.load_state_dict(load_file(path, device=str(self.device)))
        self.ema = [p.detach().clone() for p in self.params]
        with safe_open(path, "pt") as file:
            steps = (file.metadata() or {}).get("steps", "?")
        self.origin = f"sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}, {steps} steps"

    def export(self) -> None:
        """The EMA weights in float16, with all that a reader of the file should know in its metadata."""
        names = [name for name, _ in self.model.named_parameters()]
        weights = {n: p.half().contiguous().cpu() for n, p in zip(names, self.ema, strict=True)}
        args = self.args
        metadata = {
            "format": "pt",
            "architecture": "adm",
            "title": "ADM Fashion-MNIST 32",
            "image_size": str(CONFIG.image_size),
            "head_channels": str(CONFIG.head_channels),
            "qkv_order": CONFIG.qkv_order,
            "noise_schedule": CONFIG.noise_schedule,
            "class_names": json.dumps(CLASS_NAMES),
            "label_dropout": str(LABEL_DROPOUT),
            "pag_layers": PAG_LAYERS,
            "license": "MIT",
            "data": "Fashion-MNIST, 60,000 training images (Zalando SE, MIT), Debian package dataset-fashion-mnist",
            **({"started_from": self.origin} if self.origin else {}),
            "seed": str(args.seed),
            "steps": str(self.step),
            "batch_size": str(args.batch_size),
            "learning_rate": str(args.lr),
            "ema_decay": str(EMA_DECAY),
            "training_seconds": str(round(self.seconds)),
            "training_curve": json.dumps([[s, round(loss, 5)] for s, loss in self.curve], separators=(",", ":")),
        }
        with written_whole(args.out) as path:
            save_file(weights, path, metadata)

    def progress(self) -> float:
        """Share of the budget used, 0 to 1: of the steps where --steps is given, else of the minutes."""
        if self.args.steps:
            return min(1.0, self.step / self.args.steps)
        return min(1.0, self.seconds / (60 * self.args.minutes))


def mean_of_ranks(value: float) -> float:
    total = torch.tensor(value, dtype=torch.float64)
    if dist.is_initialized():
        dist.all_reduce(total)
        total /= dist.get_world_size()
    return float(total)


def train(run: Run, images: Tensor, labels: Tensor, hooks: ADMHooks) -> None:
    args, device = run.args, run.device
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    batch = args.batch_size // ranks
    generator = torch.Generator(device)
    images, labels = images.to(device), labels.to(device)
    signal = alphas_cumprod().to(device)
    # An error in ε is σ times as large in x̂0. Equal weights neglect the noisy first steps, which set the brightness.
    weight = ((1 - signal) / signal).sqrt().clamp(1, 50)
    network = torch.compile(run.model) if args.compile else run.model
    if ranks > 1:
        network = nn.parallel.DistributedDataParallel(network)
    saved = exported = time.monotonic()
    losses: list[Tensor] = []
    layout = "{percentage:5.1f}% |{bar}| {elapsed}<{remaining}{postfix}"
    bar = tqdm(total=100, unit="%", bar_format=layout, mininterval=5, disable=rank > 0)
    bar.update(100 * run.progress())
    while run.progress() < 1:
        start = time.monotonic()
        rate = args.lr * min(1, (run.step + 1) / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * run.progress()))
        for group in run.optimizer.param_groups:
            group["lr"] = rate
        # A seed of its own for every step and rank: an interrupted run draws what an uninterrupted one does.
        rand = dict(generator=generator.manual_seed((args.seed << 20) + run.step * ranks + rank), device=device)
        rows = torch.randint(len(images), (batch,), **rand)
        x0 = images[rows].float().div(127.5).sub(1)[:, None].expand(-1, 3, -1, -1)
        # One timestep out of each of `batch` equal strata: less variance than independent draws.
        t = ((torch.arange(batch, device=device) + torch.rand(batch, **rand)) * (1000 / batch)).long().clamp(max=999)
        y = torch.where(torch.rand(batch, **rand) < LABEL_DROPOUT, -1, labels[rows])
        noise = torch.randn(x0.shape, **rand)
        a = signal[t][:, None, None, None]
        x = (a.sqrt() * x0 + (1 - a).sqrt() * noise).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
            eps = network(x, t, y, hooks)
        errors = (eps.float() - noise).square().mean((1, 2, 3))
        loss = (errors * weight[t]).mean()
        run.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(run.params, 1.0)
        run.optimizer.step()
        run.step += 1
        decay = min(EMA_DECAY, (1 + run.step) / (10 + run.step))
        with torch.no_grad():
            torch._foreach_lerp_(run.ema, run.params, 1 - decay)
        losses.append(errors.detach().mean())
        if len(losses) == CURVE_EVERY:
            run.curve.append((run.step, mean_of_ranks(float(torch.stack(losses).mean()))))
            losses.clear()
            if not math.isfinite(run.curve[-1][1]):
                raise HarnessError(f"the loss is {run.curve[-1][1]} at step {run.step}; try a smaller --lr")
        now = time.monotonic()
        run.seconds = mean_of_ranks(run.seconds + now - start)  # the same on all, for it sets the learning rate
        shown = run.curve[-1][1] if run.curve else float(loss.detach())
        bar.set_postfix_str(f"step {run.step} loss {shown:.4f}", refresh=False)
        bar.update(100 * run.progress() - bar.n)
        if rank == 0 and now - saved > CHECKPOINT_SECONDS:
            run.save()
            saved = now
        if rank == 0 and now - exported > EXPORT_SECONDS:
            run.export()
            exported = now
    bar.close()


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="nox -s train --", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float, default=90, help="training time (default: 90)")
    budget.add_argument("--steps", type=int, default=0, help="optimiser steps, instead of --minutes")
    parser.add_argument("--data", type=Path, default=DATA, help=f"folder of the .gz files (default: {DATA})")
    parser.add_argument("--out", type=Path, default=ROOT / "models" / "adm-fashion-32.safetensors")
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "build" / "train" / "adm-fashion-32.pt")
    parser.add_argument("--fresh", action="store_true", help="start anew even where a checkpoint exists")
    parser.add_argument("--start-from", type=Path, help="a file of this command's, to train on from its weights")
    parser.add_argument("--ranks", type=int, default=1, help="processes that share each batch (default: 1)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate (default: 0.001)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of each rank (default: all)")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=can_compile(),
        help="torch.compile: about twice as fast, needs a C++ compiler (default: where there is one)",
    )
    parser.add_argument(
        "--bf16",
        action=argparse.BooleanOptionalAction,
        default=has_bfloat16("cuda" if torch.cuda.is_available() else "cpu"),
        help="bfloat16 autocast (default: where the processor has it)",
    )
    args = parser.parse_args(argv)
    if args.minutes <= 0 or args.steps < 0 or args.batch_size < 1:
        parser.error("--minutes and --batch-size must be above 0, --steps not below")
    if args.ranks < 1 or args.batch_size % args.ranks:
        parser.error(f"--ranks {args.ranks} must be at least 1 and divide the batch of {args.batch_size}")
    if args.start_from and not args.start_from.is_file():
        parser.error(f"--start-from {args.start_from}: no such file")
    return args


def main(argv: list[str]) -> None:
    args = parse(argv)
    if args.ranks > 1 and "RANK" not in os.environ:
        from torch.distributed.run import main as torchrun

        os.environ.setdefault("OMP_NUM_THREADS", str(args.threads or max(1, (os.cpu_count() or 1) // args.ranks)))
        torchrun(["--standalone", "--nproc-per-node", str(args.ranks), "-m", "training.train", *argv])
        return
    images, labels = read_data(args.data)
    if args.threads:
        torch.set_num_threads(args.threads)
    if "RANK" in os.environ:
        dist.init_process_group()
        if args.device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    first = not dist.is_initialized() or dist.get_rank() == 0
    run = Run(args, new_model(args.seed))
    if args.checkpoint.is_file() and not args.fresh:
        run.resume()
    elif args.start_from:
        run.start_from(args.start_from)
    if first:
        print(f"{sum(p.numel() for p in run.params):,} parameters on {run.device}, from step {run.step}", flush=True)
    try:
        train(run, images, labels, MathAttention() if run.device.type == "cpu" else ADMHooks())
    except KeyboardInterrupt:
        if first:
            run.save()
        raise SystemExit(f"\nstopped at step {run.step}; the same command goes on from there") from None
    if first:
        run.save()
        run.export()
        loss = run.curve[-1][1] if run.curve else math.nan
        print(f"{args.out}: {run.step} steps, {run.seconds:.0f} s, loss {loss:.4f}")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    command(main)
