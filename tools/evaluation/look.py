"""Takes a quick look at an emoji model: where PAG helps, and whether it repeats training drawings.

Run `python -m evaluation.look FILE` with tools/ on the Python path. It needs no ComfyUI. It draws DDIM samples without
a label, from the same noise without and with PAG, measures Fréchet distances to held-out drawings with two independent
networks, and finds the nearest training drawings. Use it to choose layers and scale during training; the results that
count are those of `nox -s evaluate`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from harness.errors import HarnessError, command
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # last: the pack's `nodes` folder must hide no other module

from pictures.comparison import Block, Row, comparison  # noqa: E402
from training.drawings import get_drawings  # noqa: E402
from training.recipes import CACHE  # noqa: E402
from training.train import MathAttention  # noqa: E402
from training.watch import draw_with_pag  # noqa: E402

from pag_core.adm import ADMUNet  # noqa: E402
from pag_core.adm import Block as Place  # noqa: E402
from pag_core.adm_config import read_config  # noqa: E402

from .encoders import category_classifier, concept_encoder, encode  # noqa: E402
from .metrics import Moments, Value, difference, frechet, resampled  # noqa: E402
from .neighbours import copies, images_of, nearest_features, nearest_pixels, neighbours_sheet  # noqa: E402

FIRST = 1_000_000  # seeds that no table uses
SHOWN = 12
GROUPS = {"input": "d", "middle": "m", "output": "u"}


class Identity(MathAttention):
    """PAG Eq. 13: identity in place of the attention maps of some layers."""

    def __init__(self, places: frozenset[Place]) -> None:
        self.places = places

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int, block: Place) -> Tensor:
        return v if block in self.places else super().attention(q, k, v, heads, block)


def layer_names(model: ADMUNet) -> dict[str, Place]:
    """{d0: block, ...} as the nodes count them."""
    counts = dict.fromkeys(GROUPS, 0)
    names = {}
    for block, _ in model.attention_layers():
        names[f"{GROUPS[block[0]]}{counts[block[0]]}"] = block
        counts[block[0]] += 1
    return names


def draw(model: ADMUNet, seeds: range, scale: float, places: frozenset[Place]) -> Tensor:
    """uint8 [N, 3, S, S] without a label; scale 0 is without PAG."""
    return draw_with_pag(model, seeds, scale, MathAttention(), Identity(places))


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m evaluation.look", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="an ADM file written by nox -s train")
    parser.add_argument("--layers", default="m0,all", help="comma-separated selections to try: d0, m0, u3 and so on, "
                        "several layers joined by +, or all (default: %(default)s)")
    parser.add_argument("--scales", default="1,2", help="comma-separated PAG scales to try (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=100,
                        help="samples per selection and scale (default: 100, at least 50)")
    parser.add_argument("--data", type=Path, default=CACHE, help="folder of nox -s train's data (default: "
                        "%(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "look",
                        help="folder for the images (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.samples < 50:
        parser.error(f"--samples {args.samples}: too few for a meaningful distance; use 50 or more")
    model, facts = read(args.file)
    names = layer_names(model)
    rows = [("no guidance", 0.0, frozenset())]
    for choice in args.layers.split(","):
        chosen = list(names) if choice == "all" else choice.split("+")
        if unknown := [name for name in chosen if name not in names]:
            parser.error(f"--layers {', '.join(unknown)}: this model has {', '.join(names)}")
        rows += [(f"{choice}, s {scale:g}", scale, frozenset(names[name] for name in chosen))
                 for scale in map(float, args.scales.split(","))]
    look(model, json.loads(facts["class_names"]), rows, args)


def read(path: Path) -> tuple[ADMUNet, dict[str, str]]:
    """The network in float32, and the file's metadata."""
    if not path.is_file():
        raise HarnessError(f"{path}: no such file")
    weights = load_file(path)
    with safe_open(path, "pt") as file:
        facts = file.metadata() or {}
    config = read_config({name: weight.shape for name, weight in weights.items()}, facts)
    if "class_names" not in facts or config.image_size == 0:
        raise HarnessError(f"{path} was not written by nox -s train: its metadata lacks classes or size")
    model = ADMUNet(config)
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False), facts


def look(model: ADMUNet, categories: list[str], rows: list[tuple[str, float, frozenset[Place]]],
         args: argparse.Namespace) -> None:
    everything = get_drawings(model.config.image_size, args.data)
    encoders = {"category": category_classifier(args.data, everything)[0],
                "concept": concept_encoder(args.data, everything)[0]}
    chosen = everything.only(categories)
    (training, _), (held_out, _) = chosen.part(False), chosen.part(True)
    seeds = range(FIRST, FIRST + args.samples)
    drawn = {name: draw(model, seeds, scale, places) for name, scale, places in rows}
    figures = {name: {} for name in drawn}
    for name, encoder in encoders.items():
        for row, values in distances(drawn, held_out, encoder).items():
            figures[row] |= {f"{name} network": values[0], f"{name}: gain over none": values[1]}
    by = {"pixels": lambda pictures: nearest_pixels(pictures, training),
          "concept network": lambda pictures: nearest_features(pictures, training, encoders["concept"])}
    for row, pictures in drawn.items():
        figures[row] |= {f"copies by {name}": copies(nearest(pictures), nearest(held_out))
                         for name, nearest in by.items()}
    args.out.mkdir(parents=True, exist_ok=True)
    comparison(args.file.stem, f"The first {SHOWN} samples, not selected. Each column starts from the same noise.",
               [Block("", [Row(row, "", images_of(pictures[:SHOWN])) for row, pictures in drawn.items()])]
               ).save(args.out / f"{args.file.stem}.png")
    first = drawn[rows[0][0]][:20]
    neighbours_sheet(first, training, {name: nearest(first) for name, nearest in by.items()}
                     ).save(args.out / f"{args.file.stem}-neighbours.png")
    print(markdown(figures))
    print(f"Images saved to {args.out}")


def distances(drawn: dict[str, Tensor], held_out: Tensor, encoder: nn.Module) -> dict[str, tuple[Value, Value]]:
    """{row: its Fréchet distance to held-out drawings, and what that is less than the first row's}; the rows are of the
    same noise, and resampled together."""
    real = Moments.of(encode(encoder, held_out)[0])

    def distance(pictures: Tensor) -> Value:
        features = encode(encoder, pictures)[0]
        return resampled(lambda weights: frechet(Moments.of(features, weights), real), len(features))

    found = {row: distance(pictures) for row, pictures in drawn.items()}
    plain = next(iter(found.values()))
    return {row: (value, difference(plain, value)) for row, value in found.items()}


def markdown(figures: dict[str, dict[str, Value]]) -> str:
    names = list(next(iter(figures.values())))
    lines = [f"| | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    for row, values in figures.items():
        lines.append(f"| {row} | " + " | ".join(f"{value.value:.2f} ± {value.margin:.2f}" for value in values.values())
                     + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    command(main)
