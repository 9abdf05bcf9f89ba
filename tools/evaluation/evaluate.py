"""Repeats the paper's tables and figures in miniature, on the shipped model, through this pack's nodes.

Samples are stored in the --out folder, keyed by model file and settings: an interrupted run continues, and a larger run
reuses the samples of a smaller one. Each sample has its own seed and does not depend on batches or ranks. For large
runs, use --ranks N on one machine, or torchrun -m evaluation.evaluate on several that share the --out folder.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import HarnessError, command
from harness.in_process import ROOT, import_pack, start_host
from harness.whole_files import written_whole

from .arguments import SEARCH_FIRST, SEARCH_KEYS, chosen_restorations, chosen_tables, ids_of, parse
from .config import STEPS, Config
from .plan import Choices, Found, Table, layer_search, other_scale_search, pag_scale_search
from .report import as_csv, markdown
from .restoration.plan import EXPERIMENTS, Experiment

sys.path.append(str(ROOT))  # last: the pack's `nodes` folder must hide no other module

if TYPE_CHECKING:  # these need torch or the host, which start later
    from PIL import Image
    from torch import Tensor

    from .judge import Judge
    from .restoration.restorer import Restorer, Truths
    from .store import Store
    from .work import Ranks, Worker

FINALISTS = 2  # layer selections that go on to the search for a scale
FINAL = 4  # times as many samples choose among these: without a label PAG's scales differ least


def main(argv: list[str]) -> None:
    args = parse(argv, __doc__.splitlines()[0])
    if args.ranks > 1 and "RANK" not in os.environ:
        from torch.distributed.run import main as torchrun

        torchrun(["--standalone", "--nproc-per-node", str(args.ranks), "-m", "evaluation.evaluate", *argv])
        return
    if args.device == "cuda" and "LOCAL_RANK" in os.environ:  # before CUDA starts: every rank its own GPU
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        rank = int(os.environ["LOCAL_RANK"])
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[rank] if visible else str(rank)
    # On a GPU the host would take half precision; an error in ε is σ, up to 108, times as large in x̂0.
    start_host(os.environ["COMFYUI_PATH"], "--cpu" if args.device == "cpu" else "--fp32-unet",
               "--use-pytorch-cross-attention")
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        raise HarnessError("--device cuda: no CUDA device was found on this machine. Omit it to run on the CPU.")
    import_pack()
    try:
        evaluate(args)
    except KeyboardInterrupt:
        print("\nThe samples made so far are kept; run the same command again to continue.", file=sys.stderr)
        raise


def evaluate(args: argparse.Namespace) -> None:
    import comfy.utils
    import folder_paths
    import torch
    from pag_pack.nodes.host.models.adm_files import FOLDER
    from pag_pack.nodes.research.adm import SHIPPED
    from training.drawings import get_drawings
    from training.recipes import CACHE

    from .judge import Judge
    from .networks import Networks
    from .plots import grid
    from .restoration.restorer import Truths
    from .restoration.run import run as restore
    from .sampling import Sampler
    from .store import Store, file_key
    from .work import Ranks, Worker

    comfy.utils.PROGRESS_BAR_ENABLED = False
    name = args.model or SHIPPED
    path = folder_paths.get_full_path(FOLDER, name)
    if path is None:
        raise HarnessError(f"--model {name}: PAG ADM Loader does not list this file; it lists "
                           f"{', '.join(folder_paths.get_filename_list(FOLDER))}.")
    ranks = Ranks.join()
    key = file_key(Path(path))
    store = Store(args.out / "samples" / f"{key}-{args.device}")
    sampler = Sampler(name)
    worker = Worker(sampler, store, ranks, args.batch)
    data, judge = args.data or CACHE, None
    if ranks.rank == 0:
        get_drawings(sampler.size, data)
    ranks.agree(None)  # that they are there
    everything = get_drawings(sampler.size, data)
    drawings = everything.only(sampler.classes)
    if ranks.rank == 0:
        judge = Judge(store, Networks.load(data, everything, sampler.classes, args.device), drawings)

    held_out = range(SEARCH_FIRST, SEARCH_FIRST + args.search)
    found = Found()
    searches = args.search and (not args.only or set(args.only) - {*SEARCH_KEYS, *EXPERIMENTS})
    guess = search_samples(found, held_out) if searches else []
    plan = chosen_tables(args, found, sampler.share(found.layers))
    worker.announce(guess + wanted(args, plan))
    if searches:
        found = search(worker, judge, held_out)
        plan = chosen_tables(args, found, sampler.share(found.layers))
    about = {
        "model": name, "model_sha256": key, "steps": STEPS, "accuracy": judge and judge.networks.accuracy,
        "found": asdict(found), "torch": torch.__version__,
        "device": "a CPU" if args.device == "cpu" else torch.cuda.get_device_name(),
        "search": f"Layers and scales were chosen on {args.search} other samples per setting, PAG's scale without "
                  f"a label on {FINAL * args.search}."
                  if searches else "Layers and scales are the best ones of an earlier search.",
        "held_out": int(drawings.held_out.sum())}
    results = Results(args, about) if judge else None
    for table in plan:
        worker.run(wanted(args, [table]))
        if results:
            made = judge.table(table, ids_of(args, table))
            results.add(made, grid(made, store))
    worker.bar.close()
    (training, _), (held_out, _) = drawings.part(held_out=False), drawings.part(held_out=True)
    for experiment in chosen_restorations(args):
        restorer, its_store = restoration_of(experiment, args, name, store, training, Truths(held_out), ranks)
        made = restore(args, restorer, its_store, ranks, judge and judge.networks)
        if results:
            results.add(*made)
    if results:
        print(f"\n{markdown(results.report)}\nWritten to {results.folder}")
    ranks.leave()


def restoration_of(experiment: Experiment, args: argparse.Namespace, file: str, store: Store, images: Tensor,
                   truths: Truths, ranks: Ranks) -> tuple[Restorer, Store]:
    """What restores, and where the pictures of its model are kept.

    Args:
        file, store: the ADM's, for DPS.
        images: uint8 [N, 3, S, S], on which PSLD's latent model is trained.
    """
    from .restoration.latent import get_latent_model, latent_model_key, nothing
    from .restoration.restorer import LatentRestorer, PixelRestorer
    from .store import Store

    if experiment.method == "DPS":
        return PixelRestorer(experiment, file, truths), store
    if ranks.rank == 0:
        get_latent_model(args.out, images)
    ranks.agree(None)  # that it is there
    model, vae = get_latent_model(args.out, images)
    place = args.out / "samples" / f"{latent_model_key(images)}-{args.device}"
    return LatentRestorer(experiment, model, vae, nothing(), truths), Store(place)


def wanted(args: argparse.Namespace, plan: list[Table]) -> list[tuple[Config, range]]:
    """What the tables need, the longest range of each configuration."""
    longest: dict[tuple[Config, int], range] = {}
    for table in plan:
        ids = ids_of(args, table)
        for row in table.rows:
            place = row.config, ids.start
            longest[place] = max(longest.get(place, ids), ids, key=len)
    return [(config, ids) for (config, _), ids in longest.items()]


def search(worker: Worker, judge: Judge | None, ids: range) -> Found:
    """The best layers, then the best scales, by the Fréchet distance of held-out samples; the first rank judges."""
    from .judge import choose_scales

    def choose(choices: Choices, found: Found, ids: range = ids) -> Found:
        worker.run([(config, ids) for options in choices.values() for _, config in options])
        return worker.ranks.agree(judge and choose_scales(judge, choices, found, ids))

    rows = layer_search()
    worker.run([(row.config, ids) for row in rows])
    finalists = worker.ranks.agree(judge and judge.best([(row.name, row.config) for row in rows], ids)[:FINALISTS])
    found = choose(pag_scale_search(finalists), Found(), final(ids))
    return choose(other_scale_search(found.layers), found)


def final(ids: range) -> range:
    """The held-out samples that choose among the finalists, these among them."""
    return range(ids.start, ids.start + FINAL * len(ids))


def search_samples(found: Found, ids: range) -> list[tuple[Config, range]]:
    """What the search will sample, as far as one can say beforehand."""
    return [*((row.config, ids) for row in layer_search()),
            *((config, final(ids)) for _, config in pag_scale_search([found.layers, "all"])["scale"]),
            *((config, ids) for options in other_scale_search(found.layers).values() for _, config in options)]


class Results:
    """A new folder, and --json; both hold every table from when it is made, however the run ends."""

    def __init__(self, args: argparse.Namespace, about: dict) -> None:
        self.args = args
        self.report = {"about": about, "tables": []}

    def add(self, table: dict, picture: Image.Image) -> None:
        """A table and a picture of its samples."""
        from .plots import plot

        if not self.report["tables"]:
            if self.args.json:
                self.args.json.touch(exist_ok=False)  # another's may have come since the command looked
            self.folder = new_folder(self.args.out / "results")
        self.report["tables"].append(table)
        text = json.dumps(self.report, indent=1) + "\n"
        for path, content in ((self.folder / "evaluation.json", text), (self.args.json, text),
                              (self.folder / "evaluation.csv", as_csv(self.report)),
                              (self.folder / "evaluation.md", markdown(self.report))):
            if path:
                with written_whole(path) as partial:
                    partial.write_text(content, encoding="utf-8")
        plot(table, self.folder / f"{table['key']}.png")
        picture.save(self.folder / f"{table['key']}-samples.jpg", quality=80)


def new_folder(parent: Path) -> Path:
    """The first free number, so that no earlier result is lost."""
    number = 1
    while True:
        try:
            (parent / f"{number:03}").mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return parent / f"{number:03}"


if __name__ == "__main__":
    command(main)
