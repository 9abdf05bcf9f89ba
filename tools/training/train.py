"""Trains the shipped model: `nox -s train`.

The data are emoji drawings from npm packages, rendered on white (see `drawings`). The labels are their categories,
dropped for 20 % of the samples, so that one network gives both conditional and unconditional predictions. The network
predicts noise with guided-diffusion's linear betas, as the paper's ImageNet 256 model does. Their largest sigma (157)
suits samplers that work in sigma; that of cosine betas (above 10,000 at the last step) does not.

It can be interrupted at any time; the same command continues from the last checkpoint. --ranks 2 trains in two
processes, about 1.6 times as fast on two cores as two threads; torchrun works too.
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from harness.errors import HarnessError, command
from torch import Tensor, nn
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # last: its `nodes` folder must hide no other module of that name

from pag_core.adm import ADMHooks  # noqa: E402

from . import watch  # noqa: E402
from .data import Data  # noqa: E402
from .drawings import CATEGORIES  # noqa: E402
from .recipes import CACHE, Recipe, emoji  # noqa: E402
from .run import LABEL_DROPOUT, Run, alphas_cumprod, new_model  # noqa: E402
from .torch_support import can_compile, has_bfloat16  # noqa: E402

WARMUP_STEPS = 300
CURVE_EVERY = 100  # steps per point of the training curve
DISTANCE_PICTURES = 256  # drawn each time
CHECKPOINT_SECONDS = 120
EXPORT_SECONDS = 600
SHEET = 12  # pictures a row


class MathAttention(ADMHooks):
    """Attention in plain operations: on a CPU its backward is several times faster than the fused kernel's."""

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int, block) -> Tensor:
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        return (weights.softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(2)


def mean_of_ranks(value: float) -> float:
    total = torch.tensor(value, dtype=torch.float64)
    if dist.is_initialized():
        dist.all_reduce(total)
        total /= dist.get_world_size()
    return float(total)


def train(run: Run, data: Data, hooks: ADMHooks, encoders: Mapping[str, nn.Module] | None = None) -> None:
    args, device = run.args, run.device
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    batch = args.batch_size // ranks
    generator = torch.Generator(device)
    data = data.to(device)
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
        cooling = max(0.0, 1 - (1 - run.progress()) / args.cooldown)
        rate = args.lr * min(1, (run.step + 1) / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * cooling))
        for group in run.optimizer.param_groups:
            group["lr"] = rate
        # A seed of its own for every step and rank: an interrupted run draws what an uninterrupted one does.
        rand = dict(generator=generator.manual_seed((args.seed << 20) + run.step * ranks + rank), device=device)
        rows = torch.randint(len(data.images), (batch,), **rand)
        x0 = data.draw(rows, **rand)
        # One timestep out of each of `batch` equal strata: less variance than independent draws.
        t = ((torch.arange(batch, device=device) + torch.rand(batch, **rand)) * (1000 / batch)).long().clamp(max=999)
        y = torch.where(torch.rand(batch, **rand) < LABEL_DROPOUT, -1, data.labels[rows])
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
        decay = min(run.recipe.ema_decay, (1 + run.step) / (10 + run.step))
        with torch.no_grad():
            torch._foreach_lerp_(run.ema, run.params, 1 - decay)
        losses.append(errors.detach().mean())
        if len(losses) == CURVE_EVERY:
            run.curve.append((run.step, mean_of_ranks(float(torch.stack(losses).mean()))))
            losses.clear()
            if not math.isfinite(run.curve[-1][1]):
                raise HarnessError(f"The loss is {run.curve[-1][1]} at step {run.step}; try a smaller --lr.")
        if data.held_out is not None and run.step % args.measure_every == 0:
            measure(run, data, encoders, hooks)
            if run.end == math.inf and watch.stopped_falling(run.measured, args.patience):
                run.cool_down()
            run.end = mean_of_ranks(run.end)  # no rank may stop before the others
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


def measure(run: Run, data: Data, encoders: Mapping[str, nn.Module] | None, hooks: ADMHooks) -> None:
    """Append to `run.measured`, the same on every rank; the first one saves samples beside the checkpoint."""
    first = not dist.is_initialized() or dist.get_rank() == 0
    model = run.average()
    point = {"step": run.step, **watch.errors(model, data, hooks)}
    if encoders:
        assert data.held_out is not None
        pictures = watch.draw_together(model, DISTANCE_PICTURES, hooks)
        point |= watch.distances(pictures, data.held_out[0].cpu(), encoders)
    else:
        pictures = watch.draw_together(model, 2 * SHEET, hooks)
    run.measured.append(point)
    if first:
        labelled = [watch.draw(model, range(SHEET), label, hooks) for label in range(len(run.recipe.class_names))]
        watch.save_sheet(run.args.checkpoint.with_suffix(".png"), [*pictures[:2 * SHEET].split(SHEET), *labelled])


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="nox -s train --", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float, default=600, help="training time in minutes (default: 600)")
    budget.add_argument("--steps", type=int, default=0, help="optimizer steps, instead of --minutes")
    parser.add_argument("--categories", default="Smileys,Animals,Food,People", metavar="NAMES",
                        help=f"comma-separated categories: {', '.join(CATEGORIES)} (default: %(default)s)")
    parser.add_argument("--size", type=int, default=64, help="image size in pixels (default: 64)")
    parser.add_argument("--data", type=Path,
                        help=f"folder of the npm archives, downloaded if missing (default: {CACHE})")
    parser.add_argument("--out", type=Path, help="file to write (default: in models/)")
    parser.add_argument("--checkpoint", type=Path, help=f"checkpoint file (default: in {CACHE})")
    parser.add_argument("--fresh", action="store_true", help="start over even if a checkpoint exists")
    parser.add_argument("--start-from", type=Path, help="a file written by this command, whose weights to start from")
    parser.add_argument("--ranks", type=int, default=1, help="processes that share each batch (default: 1)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu",
                        help="cpu or cuda (default: cuda if available)")
    parser.add_argument("--batch-size", type=int, default=32, help="default: 32")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate (default: 0.001)")
    parser.add_argument("--cooldown", type=float, default=0.2, metavar="SHARE",
                        help="last share of the budget, over which the learning rate falls to 0 (default: 0.2)")
    parser.add_argument("--patience", type=int, default=8, metavar="TIMES",
                        help="start that last share early if the Fréchet distance to held-out drawings has not fallen "
                             "for this many measurements (default: 8)")
    parser.add_argument("--measure-every", type=int, default=1000, metavar="STEPS",
                        help="steps between measurements on held-out drawings (default: 1000)")
    parser.add_argument("--distances", action=argparse.BooleanOptionalAction, default=True,
                        help="measure Fréchet distances; this first trains two small networks (default: on)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads per rank (default: all)")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=can_compile(),
        help="use torch.compile: about twice as fast, needs a C++ compiler (default: on if there is one)",
    )
    parser.add_argument(
        "--bf16",
        action=argparse.BooleanOptionalAction,
        default=has_bfloat16("cuda" if torch.cuda.is_available() else "cpu"),
        help="use bfloat16 autocast (default: on if the hardware supports it)",
    )
    args = parser.parse_args(argv)
    if args.minutes <= 0 or args.steps < 0 or args.batch_size < 1:
        parser.error("--minutes and --batch-size must be greater than 0, and --steps must not be negative")
    for name in ("patience", "measure_every"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    if not 0 < args.cooldown <= 1:
        parser.error(f"--cooldown {args.cooldown}: expected a share greater than 0 and at most 1")
    if args.ranks < 1 or args.batch_size % args.ranks:
        parser.error(f"--ranks {args.ranks} must be at least 1 and divide the batch of {args.batch_size}")
    if args.start_from and not args.start_from.is_file():
        parser.error(f"--start-from {args.start_from}: no such file")
    args.categories = tuple(name.strip() for name in args.categories.split(",") if name.strip())
    unknown = [name for name in args.categories if name not in CATEGORIES]
    if unknown or not args.categories:
        parser.error(f"--categories {', '.join(unknown) or 'is empty'}: expected names from {', '.join(CATEGORIES)}")
    if args.size < 16 or args.size % 8:
        parser.error(f"--size {args.size}: expected a multiple of 8, at least 16")
    recipe = chosen_recipe(args)
    args.out = args.out or ROOT / "models" / f"{recipe.file}.safetensors"
    args.checkpoint = args.checkpoint or CACHE / f"{recipe.file}.pt"
    return args


def chosen_recipe(args: argparse.Namespace) -> Recipe:
    return emoji(args.categories, args.size)


def main(argv: list[str]) -> None:
    args = parse(argv)
    if args.ranks > 1 and "RANK" not in os.environ:
        from torch.distributed.run import main as torchrun

        # Fetched, rendered and trained once, not by every rank.
        recipe = chosen_recipe(args)
        recipe.load(args.data)
        if args.distances:
            recipe.encoders(args.data)
        os.environ.setdefault("OMP_NUM_THREADS", str(args.threads or max(1, (os.cpu_count() or 1) // args.ranks)))
        torchrun(["--standalone", "--nproc-per-node", str(args.ranks), "-m", "training.train", *argv])
        return
    recipe = chosen_recipe(args)
    data = recipe.load(args.data)
    if args.threads:
        torch.set_num_threads(args.threads)
    if "RANK" in os.environ:
        # The others wait while the first one draws a sheet.
        dist.init_process_group(timeout=datetime.timedelta(hours=6))
        if args.device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    first = not dist.is_initialized() or dist.get_rank() == 0
    run = Run(args, recipe, new_model(recipe.config, args.seed))
    if args.checkpoint.is_file() and not args.fresh:
        run.resume()
    elif args.start_from:
        run.start_from(args.start_from)
    if first:
        print(f"{sum(p.numel() for p in run.params):,} parameters on {run.device}, from step {run.step}", flush=True)
    try:
        train(run, data, MathAttention() if run.device.type == "cpu" else ADMHooks(),
              recipe.encoders(args.data) if args.distances else None)
    except KeyboardInterrupt:
        if first:
            run.save()
        raise SystemExit(f"\nStopped at step {run.step}; run the same command again to continue.") from None
    if first:
        run.save()
        run.export()
        loss = run.curve[-1][1] if run.curve else math.nan
        print(f"{args.out}: {run.step} steps, {run.seconds:.0f} s, loss {loss:.4f}")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    command(main)
