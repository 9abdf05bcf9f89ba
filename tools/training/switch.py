"""Tests the paper's open question (PAG App. E.1.3): does training the perturbed prediction help? `nox -s switch`.

PAG's perturbed prediction comes from a network that was never trained with its attention map replaced. Here the shipped
model is fine-tuned with a switch: for a share of the samples, the maps of the chosen layers are the identity, and a
vector added to the time embedding tells the network so. A second copy is fine-tuned for as many steps without the
switch, because more training alone helps too. Then both sample with PAG at several scales, from the same noise.

It can be interrupted at any time; the same command continues.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from harness.errors import command
from harness.whole_files import written_whole
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # last: the pack's `nodes` folder must hide no other module

from evaluation.judge import plain  # noqa: E402
from evaluation.metrics import Real, Value, difference, measure  # noqa: E402
from evaluation.networks import METRICS, Networks  # noqa: E402

from pag_core.adm import ADMConfig, ADMUNet  # noqa: E402

from . import train, watch  # noqa: E402
from .data import Data  # noqa: E402
from .drawings import get_drawings  # noqa: E402
from .recipes import CACHE  # noqa: E402
from .run import Run  # noqa: E402

OPTIONS = train.parse([])  # those that nox -s train made the shipped file with
RECIPE, SHIPPED = train.chosen_recipe(OPTIONS), OPTIONS.out
LAYERS = (("middle", 0),)  # m0, with which PAG gets closest to real pictures
PERTURBED = 0.25  # share of the rows in training
ARMS = {"plain": 0.0, "with the switch": PERTURBED}  # share of perturbed rows
SCALES = (0.0, 1.0, 3.0, 6.0)


class SwitchedADM(ADMUNet):
    """The shipped network, and the vector that tells it that its attention is perturbed."""

    def __init__(self, config: ADMConfig) -> None:
        super().__init__(config)
        self.switch = nn.Parameter(torch.zeros(4 * config.model_channels))

    @classmethod
    def shipped(cls) -> SwitchedADM:
        model = cls(RECIPE.config)
        model.load_state_dict({"switch": model.switch.data, **load_file(SHIPPED)})
        return model


class Perturbing(train.MathAttention):
    """The identity in place of the maps of `LAYERS` (PAG Eq. 13) in some rows, which the network is told.

    The rows are drawn anew for every forward: a share of them, none or all.
    """

    def __init__(self, switch: Tensor, share: float) -> None:
        self.switch, self.share = switch, share
        self.rows = torch.zeros(0)

    def after_embedding(self, emb: Tensor) -> Tensor:
        self.rows = (torch.rand(len(emb), device=emb.device) < self.share).to(emb.dtype)
        return emb + self.rows[:, None] * self.switch.to(emb.dtype)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int, block) -> Tensor:
        result = super().attention(q, k, v, heads, block)
        return torch.where(self.rows[:, None, None] > 0, v, result) if block in LAYERS else result


def fine_tuned(name: str, data: Data, args: argparse.Namespace) -> SwitchedADM:
    """One of `ARMS`: the moving average of its weights."""
    model, share = SwitchedADM.shipped(), ARMS[name]
    options = train.parse(["--steps", str(args.steps), "--batch-size", str(args.batch_size),
                           "--lr", str(args.lr), "--cooldown", "1", "--device", args.device,
                           "--checkpoint", str(args.out / f"{args.steps}-{share:g}.pt"),
                           "--out", str(args.out / f"{args.steps}-{share:g}.safetensors")])  # not the shipped file
    torch.manual_seed(options.seed)
    run = Run(options, RECIPE, model)
    if options.checkpoint.is_file():
        run.resume()
    try:
        train.train(run, data, Perturbing(model.switch, share))
    finally:
        run.save()
    print(f"{name}: {run.step} steps, {run.seconds:.0f} s, error {run.curve[-1][1] if run.curve else 0:.4f}")
    return run.average()


def sample(model: SwitchedADM, scale: float, ids: range) -> Tensor:
    """uint8 [N, 3, S, S] by DDIM, without a label; every picture from noise of its own number."""
    return watch.draw_with_pag(model, ids, scale, *(Perturbing(model.switch, share) for share in (0.0, 1.0)))


def errors(model: SwitchedADM, data: Data) -> dict[str, float]:
    """Mean squared error of the predicted noise on held-out pictures, plain and perturbed."""
    return {name: watch.errors(model, data, Perturbing(model.switch, share))["held_out"]
            for name, share in (("plain", 0.0), ("perturbed", 1.0))}


def samples(model: SwitchedADM, name: str, scale: float, args: argparse.Namespace) -> Tensor:
    """The same, from the folder where they have been made before."""
    place = args.out / f"samples-{args.steps}" / f"{name.replace(' ', '-')}-{scale:g}.safetensors"
    have = load_file(place)["pictures"] if place.is_file() else torch.zeros(
        0, 3, *[model.config.image_size] * 2, dtype=torch.uint8)
    with tqdm(total=args.samples, initial=min(len(have), args.samples), unit="picture",
              desc=f"{name}, scale {scale:g}") as bar:
        while len(have) < args.samples:
            first = len(have)
            made = sample(model, scale, range(first, min(first + watch.BATCH[args.device], args.samples)))
            have = torch.cat([have, made])
            with written_whole(place) as path:
                save_file({"pictures": have}, path)
            bar.update(len(made))
    return have[:args.samples]


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="nox -s switch --", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps per fine-tuning (default: 600)")
    parser.add_argument("--batch-size", type=int, default=32, help="default: 32")
    parser.add_argument("--lr", type=float, default=3e-4, help="peak learning rate (default: 0.0003)")
    parser.add_argument("--samples", type=int, default=100, help="samples per scale (default: 100, at least 50)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu",
                        help="default: cuda if available")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: all)")
    parser.add_argument("--data", type=Path, default=CACHE, help="folder of nox -s train's data (default: "
                        "%(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "switch", help="folder for results")
    args = parser.parse_args(argv)
    if args.steps < 1 or args.samples < 50 or args.batch_size < 2:
        parser.error(f"--steps must be at least 1, --batch-size 2 and --samples 50; got {args.steps}, "
                     f"{args.batch_size} and {args.samples}")
    if args.threads:
        torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    data, drawings = RECIPE.load(args.data), get_drawings(RECIPE.config.image_size, args.data)
    assert data.held_out is not None
    networks = Networks.load(args.data, drawings, RECIPE.class_names, args.device)
    models = {name: fine_tuned(name, data, args) for name in ARMS}
    real = Real.of(networks.see(data.held_out[0]).features)
    measured = {(name, scale): measure(samples(model, name, scale, args), networks, real)
                for name, model in models.items() for scale in SCALES}
    figures = {f"{name}, scale {scale:g}": plain(found) for (name, scale), found in measured.items()}
    about = {"steps": args.steps, "batch_size": args.batch_size, "lr": args.lr, "samples": args.samples,
             "errors": {name: errors(model, data)
                        for name, model in {"shipped": SwitchedADM.shipped().to(args.device).eval(), **models}.items()}}
    (args.out / f"switch-{args.steps}.json").write_text(
        json.dumps({"about": about, "figures": figures}, indent=1) + "\n", encoding="utf-8")
    report(measured, about)


def report(measured: dict[tuple[str, float], dict[str, Value]], about: dict) -> None:
    """Both tables: the error of either prediction, and PAG at every scale with what the switch changes."""
    print("\n| | error, plain prediction | error, perturbed prediction |\n|---|---:|---:|")
    for name, found in about["errors"].items():
        print(f"| {name} | {found['plain']:.4f} | {found['perturbed']:.4f} |")
    control, switched = ARMS
    shown = {"fd": 2, "fd_concept": 2, "score": 2, "precision": 2, "recall": 2, "diversity": 2}
    gains = [f"{name} by the switch" for name in METRICS]
    print(f"\n| PAG's scale | | {' | '.join([*shown, *gains])} |\n|---:|---|{'---:|' * len([*shown, *gains])}")
    for (name, scale), values in measured.items():
        cells = [f"{values[key].value:.{digits}f}" for key, digits in shown.items()]
        for metric in METRICS:
            gain = difference(values[metric], measured[control, scale][metric])
            cells.append(f"{gain.value:+.2f} ± {gain.margin:.2f}" if name == switched else "")
        print(f"| {scale:g} | {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    command(main)
