"""The paper's open question (PAG App. E.1.3): does it help to train the perturbed prediction? `nox -s switch`.

PAG's perturbed prediction comes from a network that has never seen its attention map replaced. Here the shipped model
is fine-tuned with a switch: in a share of the rows the chosen layers' maps are the identity, and the network is told so
by a vector that is added to the time embedding. A second copy is fine-tuned for as many steps without any of this, for
more training alone helps too. Then both sample with PAG at several scales, from the same noise.

Interrupt it at any time; the same command goes on from there.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from harness.errors import command
from harness.whole_files import written_whole
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # last: the pack's `nodes` folder must hide no other module

from evaluation.classifier import get_classifier, look  # noqa: E402
from evaluation.config import STEPS  # noqa: E402
from evaluation.metrics import Real, Value, difference, measure  # noqa: E402

from pag_core.adm import ADMUNet  # noqa: E402
from pag_core.guidance import guide, perturbed_attention_delta  # noqa: E402
from pag_core.posterior import denoising_step  # noqa: E402

from . import train  # noqa: E402
from .fashion import DATA, read_data  # noqa: E402
from .recipes import FASHION, Data  # noqa: E402
from .run import Run, alphas_cumprod  # noqa: E402

SHIPPED = ROOT / "models" / "adm-fashion-32.safetensors"
LAYERS = (("input", 7), ("input", 8))  # d2-3, which the file recommends
PERTURBED = 0.25  # share of the rows in training
ARMS = {"plain": 0.0, "with the switch": PERTURBED}  # share of perturbed rows
SCALES = (0.0, 1.0, 3.0, 6.0)
BATCH = 25


class SwitchedADM(ADMUNet):
    """The shipped network, and the vector that tells it that its attention is perturbed."""

    def __init__(self) -> None:
        super().__init__(FASHION.config)
        self.switch = nn.Parameter(torch.zeros(4 * FASHION.config.model_channels))

    @classmethod
    def shipped(cls) -> SwitchedADM:
        model = cls()
        model.load_state_dict({"switch": model.switch.data, **load_file(SHIPPED)})
        return model


class Perturbing(train.MathAttention):
    """The identity in place of the maps of `LAYERS` (PAG Eq. 13) in some rows, which the network is told.

    `rows` [B], 1 for perturbed, is drawn anew for every forward where `share` is given.
    """

    def __init__(self, switch: Tensor, share: float | None = None) -> None:
        self.switch, self.share = switch, share
        self.rows = torch.zeros(0)

    def after_embedding(self, emb: Tensor) -> Tensor:
        if self.share is not None:
            self.rows = (torch.rand(len(emb), device=emb.device) < self.share).to(emb.dtype)
        return emb + self.rows[:, None] * self.switch.to(emb.dtype)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int, block) -> Tensor:
        result = super().attention(q, k, v, heads, block)
        return torch.where(self.rows[:, None, None] > 0, v, result) if block in LAYERS else result


def fine_tuned(name: str, images: Tensor, labels: Tensor, args: argparse.Namespace) -> SwitchedADM:
    """One of `ARMS`: the moving average of its weights."""
    model, share = SwitchedADM.shipped(), ARMS[name]
    options = train.parse(["--recipe", "fashion", "--steps", str(args.steps), "--batch-size", str(args.batch_size),
                           "--lr", str(args.lr), "--cooldown", "1", "--device", "cpu",
                           "--checkpoint", str(args.out / f"{args.steps}-{share:g}.pt"),
                           "--out", str(args.out / f"{args.steps}-{share:g}.safetensors")])  # not the shipped file
    torch.manual_seed(options.seed)
    run = Run(options, FASHION, model)
    if options.checkpoint.is_file():
        run.resume()
    try:
        train.train(run, Data.of_grey(images, labels), Perturbing(model.switch, share))
    finally:
        run.save()
    print(f"{name}: {run.step} steps, {run.seconds:.0f} s, error {run.curve[-1][1] if run.curve else 0:.4f}")
    return run.average()


@torch.inference_mode()
def sample(model: SwitchedADM, scale: float, ids: range) -> Tensor:
    """uint8 [N, 3, 32, 32] by DDIM, without a label; every picture from noise of its own number."""
    hooks, alphas = Perturbing(model.switch), alphas_cumprod()
    # As the host's ddim_uniform spaces them.
    times = list(range(1, 1000, 1000 // STEPS))[::-1]
    levels = [float(alphas[t]) for t in times] + [1.0]
    x = torch.stack([torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(i)) for i in ids])
    for t, alpha, following in zip(times, levels, levels[1:], strict=False):
        def x0(perturbed: float, x: Tensor = x, t: int = t, alpha: float = alpha) -> Tensor:
            hooks.rows = torch.full([len(x)], perturbed)
            epsilon = model(x, torch.full([len(x)], float(t)), None, hooks)
            return (x - (1 - alpha) ** 0.5 * epsilon) / alpha ** 0.5

        plain = x0(0.0)
        delta = perturbed_attention_delta(plain, x0(1.0), scale) if scale else torch.zeros_like(plain)
        x = denoising_step(x, guide(plain, plain, delta).clamp(-1, 1), alpha, following, 0.0, torch.zeros_like(x))
    return x.add(1).mul(127.5).round().clamp(0, 255).byte()


@torch.inference_mode()
def errors(model: SwitchedADM, images: Tensor) -> dict[str, float]:
    """Mean squared error of the predicted noise on these pictures, plain and perturbed."""
    hooks, alphas = Perturbing(model.switch), alphas_cumprod()
    generator = torch.Generator().manual_seed(0)
    x0 = images.float().div(127.5).sub(1)[:, None].expand(-1, 3, -1, -1)
    t = torch.randint(1000, (len(x0),), generator=generator)
    noise = torch.randn(x0.shape, generator=generator)
    a = alphas[t][:, None, None, None]
    found = {}
    for name, perturbed in (("plain", 0.0), ("perturbed", 1.0)):
        total = 0.0
        for rows in torch.arange(len(x0)).split(BATCH):
            hooks.rows = torch.full([len(rows)], perturbed)
            predicted = model(a[rows].sqrt() * x0[rows] + (1 - a[rows]).sqrt() * noise[rows], t[rows], None, hooks)
            total += float((predicted - noise[rows]).square().mean((1, 2, 3)).sum())
        found[name] = total / len(x0)
    return found


def samples(model: SwitchedADM, name: str, scale: float, args: argparse.Namespace) -> Tensor:
    """The same, from the folder where they have been made before."""
    place = args.out / f"samples-{args.steps}" / f"{name.replace(' ', '-')}-{scale:g}.safetensors"
    have = load_file(place)["pictures"] if place.is_file() else torch.zeros(0, 3, 32, 32, dtype=torch.uint8)
    with tqdm(total=args.samples, initial=min(len(have), args.samples), unit="picture",
              desc=f"{name}, scale {scale:g}") as bar:
        while len(have) < args.samples:
            first = len(have)
            made = sample(model, scale, range(first, min(first + BATCH, args.samples)))
            have = torch.cat([have, made])
            with written_whole(place) as path:
                save_file({"pictures": have}, path)
            bar.update(len(made))
    return have[:args.samples]


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="nox -s switch --", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600, help="optimiser steps of either fine-tuning (default: 600)")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=3e-4, help="peak learning rate (default: 0.0003)")
    parser.add_argument("--samples", type=int, default=100, help="pictures at each scale (default: 100, at least 50)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: all)")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of Fashion-MNIST's .gz files")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "switch", help="for checkpoints and samples")
    args = parser.parse_args(argv)
    if args.steps < 1 or args.samples < 50 or args.batch_size < 2:
        parser.error(f"--steps must be at least 1, --batch-size 2, --samples 50; got {args.steps}, {args.batch_size}, "
                     f"{args.samples}")
    if args.threads:
        torch.set_num_threads(args.threads)
    images, test = read_data(args.data), read_data(args.data, "t10k")
    args.out.mkdir(parents=True, exist_ok=True)
    models = {name: fine_tuned(name, *images, args) for name in ARMS}
    classifier, _ = get_classifier(args.out, images, test)
    real = Real.of(look(classifier, test[0]).features)
    seen = {(name, scale): look(classifier, samples(model, name, scale, args), with_maps=True)
            for name, model in models.items() for scale in SCALES}
    figures = {f"{name}, scale {scale:g}": {key: asdict(value) for key, value in measure(found, real).items()}
               for (name, scale), found in seen.items()}
    about = {"steps": args.steps, "batch_size": args.batch_size, "lr": args.lr, "samples": args.samples,
             "errors": {name: errors(model, test[0][:500])
                        for name, model in {"shipped": SwitchedADM.shipped().eval(), **models}.items()}}
    (args.out / f"switch-{args.steps}.json").write_text(
        json.dumps({"about": about, "figures": figures}, indent=1) + "\n", encoding="utf-8")
    report(seen, real, about, figures)


def report(seen: dict, real: Real, about: dict, figures: dict) -> None:
    """Both tables: the error of either prediction, and PAG at every scale with what the switch changes."""
    print("\n| | error of the plain prediction | of the perturbed one |\n|---|---:|---:|")
    for name, found in about["errors"].items():
        print(f"| {name} | {found['plain']:.4f} | {found['perturbed']:.4f} |")
    control, switched = ARMS
    shown = {"fd": 1, "score": 2, "precision": 2, "recall": 2, "diversity": 2}
    print(f"\n| PAG's scale | | {' | '.join(shown)} | fd by the switch |\n|---:|---|{'---:|' * (len(shown) + 1)}")
    for (name, scale), found in seen.items():
        values = figures[f"{name}, scale {scale:g}"]
        cells = [f"{values[key]['value']:.{digits}f}" for key, digits in shown.items()]
        gain = difference("fd", found, seen[control, scale], real) if name == switched else Value(0.0)
        cells.append(f"{gain.value:+.1f} ± {gain.margin:.1f}" if gain and gain.margin is not None else "")
        print(f"| {scale:g} | {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    command(main)
