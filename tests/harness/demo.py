"""nox -s demo: the example workflows on the shipped model, through a real server, in one comparison picture."""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from . import picture, workflow
from .client import Client
from .errors import HarnessError, command
from .host import CACHE, ROOT
from .server import Server

MODEL = ROOT / "models" / "adm-fashion-32.safetensors"
UNCONDITIONAL, CONDITIONAL = "unconditional", "class-conditional"
EXAMPLES = {UNCONDITIONAL: "adm_unconditional_pag.json", CONDITIONAL: "adm_class_conditional_cfg_pag.json"}
ROUNDS = 3  # every row is timed this often, in turn, and the median counts


@dataclass
class Row:
    block: str
    name: str
    cfg: float = 1.0  # 1: off
    pag_scale: float = 0.0  # 0: off
    seconds: list[float] = field(default_factory=list)
    images: list[Image.Image] = field(default_factory=list)

    @property
    def detail(self) -> str:
        parts = [f"cfg {self.cfg:g}"] * (self.cfg != 1) + [f"scale {self.pag_scale:g}"] * (self.pag_scale != 0)
        return ", ".join(parts) or "no guidance"

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="nox -s demo --", description=__doc__)
    parser.add_argument("--port", type=int, help="default: a free one")
    parser.add_argument("--columns", type=int, default=10, help="pictures in a row, default: 10")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    options = parser.parse_args(arguments)
    if options.columns < 1:
        raise HarnessError(f"--columns is {options.columns}; it must be at least 1.")
    if not MODEL.is_file():
        raise HarnessError(f"The model {MODEL.relative_to(ROOT)} is missing. Restore it with git, or train it with: "
                           "nox -s train")

    rows = [Row(UNCONDITIONAL, "none"), Row(UNCONDITIONAL, "PAG", pag_scale=3),
            Row(CONDITIONAL, "none"), Row(CONDITIONAL, "PAG", pag_scale=3),
            Row(CONDITIONAL, "CFG", cfg=3), Row(CONDITIONAL, "CFG + PAG", cfg=3, pag_scale=2)]
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="demo-", dir=CACHE) as base:
        print("Starting ComfyUI ...", flush=True)
        with Server(Path(os.environ["COMFYUI_PATH"]), Path(base), options.port, Path(base, "server.log")) as server:
            steps = make_rows(server.client, rows, options.columns, options.seed)

    path = picture.save_new(draw(rows, steps, options.seed), ROOT / "demo", "comparison")
    print(report(rows, options.columns))
    print(f"\nThe picture: {path}")


def make_rows(client: Client, rows: list[Row], columns: int, seed: int) -> int:
    """Fills in every row's images and seconds; the number of sampling steps."""
    info = client.object_info()
    prompts = {block: example(name, info, columns) for block, name in EXAMPLES.items()}
    steps = prompts[CONDITIONAL][sampler_of(prompts[CONDITIONAL])]["inputs"]["steps"]
    with tqdm(total=(1 + ROUNDS * len(rows)) * steps, unit="step", smoothing=0) as bar:
        run(client, prompts[CONDITIONAL], rows[-1], seed + ROUNDS, bar)  # warm-up: loads the model
        for turn in range(ROUNDS):
            for row in rows:
                images, seconds = run(client, prompts[row.block], row, seed + turn, bar)
                row.seconds.append(seconds)
                row.images = row.images or images
    return steps


def example(name: str, info: dict, columns: int) -> workflow.Prompt:
    """An example workflow, cut down to one sampler, for a row of pictures."""
    prompt = workflow.only_branch_of(workflow.load(ROOT / "workflows" / name, info), "PAGKSampler")
    return workflow.set_inputs(prompt, "EmptyLatentImage", batch_size=columns)


def sampler_of(prompt: workflow.Prompt) -> str:
    (node_id,) = [node_id for node_id, node in prompt.items() if node["class_type"] == "PAGKSampler"]
    return node_id


def run(client: Client, prompt: workflow.Prompt, row: Row, seed: int, bar: tqdm) -> tuple[list[Image.Image], float]:
    """The row's pictures and the seconds its sampler took."""
    bar.set_description(f"{row.block}: {row.name}")
    start, sampler = bar.n, sampler_of(prompt)

    def advance(node_id: str, done: int, _: int) -> None:
        if node_id == sampler:
            bar.update(start + done - bar.n)

    result = client.run(workflow.set_inputs(prompt, "PAGKSampler", cfg=row.cfg, pag_scale=row.pag_scale, seed=seed),
                        advance)
    return [Image.open(io.BytesIO(client.image(entry))) for entry in result.images], result.seconds[sampler]


def draw(rows: list[Row], steps: int, seed: int) -> Image.Image:
    blocks = [picture.Block(title.capitalize(), [picture.Row(row.name, row.detail, row.images) for row in rows
                                                 if row.block == title])
              for title in EXAMPLES]
    return picture.comparison(
        "Perturbed-Attention Guidance",
        f"ADM trained on Fashion-MNIST, 32 by 32 pixels, {steps} steps; each column starts from the same noise "
        f"(seed {seed}).", blocks)


def report(rows: list[Row], columns: int) -> str:
    """The time of each row, and how it compares with CFG's."""
    cfg = next(row for row in rows if row.name == "CFG").median
    lines = [f"\n{f'row of {columns}':<34}{'seconds':>9}{'to CFG':>9}"]
    lines += [f"{row.block + ': ' + row.name:<34}{row.median:>9.2f}{row.median / cfg:>8.2f}x" for row in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    command(main)
