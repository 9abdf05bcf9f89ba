"""nox -s demo: runs the example workflows on the shipped model with a real server and draws a comparison image."""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from harness import workflow
from harness.client import Client
from harness.errors import HarnessError, command
from harness.host import CACHE, ROOT, get_comfyui
from harness.server import Server
from pictures import comparison as picture
from PIL import Image
from safetensors import safe_open
from tqdm import tqdm

SAMPLER = "PAGKSampler"
MODEL = ROOT / "models" / "adm-emoji-64.safetensors"
UNCONDITIONAL, CONDITIONAL = "without a label", "with a label"
EXAMPLES = {UNCONDITIONAL: "Example model without a label.json", CONDITIONAL: "Example model with CFG and PAG.json"}
NO_CFG, NO_PAG = {"cfg": 1.0}, {"pag_scale": 0.0}
ENLARGED = 2.0
# Every row is timed so often, in turn, on so few pictures: a ratio then compares runs that are seconds apart.
ROUNDS, TIMED_STEPS, TIMED_PICTURES = 5, 3, 2
WARM_UP_STEPS = 2


@dataclass
class Row:
    """One row of the picture: an example workflow with a part of its guidance turned off."""

    block: str
    name: str
    off: dict[str, float]
    guidance: dict[str, float] = field(default_factory=dict)  # what is left: {"cfg": ..., "pag_scale": ...}
    images: list[Image.Image] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of each round

    @property
    def detail(self) -> str:
        parts = [f"{name} {self.guidance[key]:g}" for name, key, off in (("cfg", "cfg", 1), ("scale", "pag_scale", 0))
                 if self.guidance[key] != off]
        return ", ".join(parts) or "the model alone"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="nox -s demo --", description=__doc__)
    parser.add_argument("--port", type=int, help="port of the server (default: a free one)")
    parser.add_argument("--columns", type=int, default=8, help="images per row (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first image (default: 0)")
    options = parser.parse_args(arguments)
    if options.columns < 1:
        raise HarnessError(f"--columns is {options.columns}; it must be at least 1.")
    if not MODEL.is_file():
        raise HarnessError(f"The model {MODEL.relative_to(ROOT)} is missing. Restore it with git, or train it with: "
                           "nox -s train")

    rows = [Row(UNCONDITIONAL, "no guidance", NO_CFG | NO_PAG), Row(UNCONDITIONAL, "PAG", NO_CFG),
            Row(CONDITIONAL, "CFG", NO_PAG), Row(CONDITIONAL, "CFG + PAG", {})]
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="demo-", dir=CACHE) as base:
        print("Starting ComfyUI ...", flush=True)
        with Server(get_comfyui(), Path(base), options.port, Path(base, "server.log")) as server:
            example = make_rows(server.client, rows, options.columns, options.seed)

    path = picture.save_new(draw(rows, example, options.seed), ROOT / "demo", "comparison")
    print(report(rows))
    print(f"\nImage saved to {path}")


def make_rows(client: Client, rows: list[Row], columns: int, seed: int) -> workflow.Prompt:
    """Fills in every row's images and seconds; the class-conditional example that it ran."""
    info = client.object_info()
    prompts = {block: load_example(name, info, columns) for block, name in EXAMPLES.items()}
    timed = {block: workflow.set_inputs(workflow.set_inputs(prompt, "EmptyLatentImage", batch_size=TIMED_PICTURES),
                                        SAMPLER, steps=TIMED_STEPS) for block, prompt in prompts.items()}
    steps = settings(prompts[CONDITIONAL])["steps"]
    total = WARM_UP_STEPS + len(rows) * (steps + ROUNDS * TIMED_STEPS)
    with tqdm(total=total, unit="step", smoothing=0) as bar:
        warm_up = workflow.set_inputs(prompts[CONDITIONAL], SAMPLER, steps=WARM_UP_STEPS)
        run(client, warm_up, rows[-1], seed, bar)  # loads the model
        for row in rows:
            row.images, _ = run(client, prompts[row.block], row, seed, bar)
        for turn in range(ROUNDS):
            for row in rows:
                row.seconds.append(run(client, timed[row.block], row, seed + 1 + turn, bar)[1])
    return prompts[CONDITIONAL]


def load_example(name: str, info: dict, columns: int) -> workflow.Prompt:
    """An example workflow, cut down to its PAGKSampler, for a row of pictures."""
    prompt = workflow.only_branch_of(workflow.load(ROOT / "workflows" / name, info), SAMPLER)
    prompt = workflow.set_inputs(prompt, "ImageScaleBy", scale_by=ENLARGED)
    return workflow.set_inputs(prompt, "EmptyLatentImage", batch_size=columns)


def sampler_of(prompt: workflow.Prompt) -> str:
    (node_id,) = [node_id for node_id, node in prompt.items() if node["class_type"] == SAMPLER]
    return node_id


def settings(prompt: workflow.Prompt) -> dict:
    return prompt[sampler_of(prompt)]["inputs"]


def run(client: Client, prompt: workflow.Prompt, row: Row, seed: int, bar: tqdm) -> tuple[list[Image.Image], float]:
    """The row's pictures and the seconds its sampler took."""
    bar.set_description(f"{row.block}: {row.name}")
    prompt = workflow.set_inputs(prompt, SAMPLER, seed=seed, **row.off)
    row.guidance = settings(prompt)
    start, sampler = bar.n, sampler_of(prompt)

    def advance(node_id: str, done: int, _: int) -> None:
        if node_id == sampler:
            bar.update(start + done - bar.n)

    result = client.run(prompt, advance)
    return [Image.open(io.BytesIO(client.image(entry))) for entry in result.images], result.seconds[sampler]


def draw(rows: list[Row], example: workflow.Prompt, seed: int) -> Image.Image:
    steps = settings(example)["steps"]
    label = example[settings(example)["positive"][0]]["inputs"]["label"]
    with safe_open(MODEL, "np") as file:
        facts = file.metadata()
    titles = {UNCONDITIONAL: "Without a label",
              CONDITIONAL: f"With a label: {json.loads(facts['class_names'])[label]}"}
    blocks = [picture.Block(title, [picture.Row(row.name, row.detail, row.images) for row in rows
                                    if row.block == block])
              for block, title in titles.items()]
    return picture.comparison(
        "Perturbed-Attention Guidance",
        f"A small model of emoji, {facts['image_size']} × {facts['image_size']} pixels, {steps} steps. Each column "
        f"starts from the same noise (seed {seed}).", blocks)


def report(rows: list[Row]) -> str:
    """The time of each row relative to CFG's in the same round: median, minimum and maximum of all rounds."""
    cfg = next(row for row in rows if row.name == "CFG")
    lines = [f"\n{f'time for {TIMED_PICTURES} images':<34}{'vs. CFG':>8}{f'range ({ROUNDS} rounds)':>18}"]
    for row in rows:
        if row is not cfg:
            ratios = [seconds / base for seconds, base in zip(row.seconds, cfg.seconds, strict=True)]
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            lines.append(f"{row.block + ': ' + row.name:<34}{statistics.median(ratios):>7.2f}x{spread:>18}")
    lines.append("A wide range means that other programs used this machine; nox -s bench is more precise.")
    return "\n".join(lines)


if __name__ == "__main__":
    command(main)
