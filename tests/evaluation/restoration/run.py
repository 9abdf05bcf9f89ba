"""Makes the table: searches where asked to, restores what is missing, and judges."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from PIL import Image
from torch import Tensor

from ..arguments import SEARCH_FIRST
from ..judge import Judge
from ..store import Store
from ..work import Ranks, Worker
from .judge import RestorationJudge
from .picture import restorations
from .plan import NOISE_SIGMA, SHARE, STEPS, TASKS, Pair, found_before, guidance_search, pair, step_size_search
from .restorer import BATCH, Restorer, Truths


def run(args: argparse.Namespace, file: str, images: Tensor, store: Store, ranks: Ranks, judge: Judge | None
        ) -> tuple[dict, Image.Image] | None:
    """The table and its picture; None on all ranks but the first.

    Args:
        file: an ADM file that PAG ADM Loader lists.
        images: uint8 [N, 32, 32] of the test split.
    """
    truths = Truths(images)
    restorer = Restorer(file, truths)
    worker = Worker(restorer, store, ranks, BATCH)
    judging = judge and RestorationJudge(judge, truths)
    ids = range(count(args.samples, images))
    held_out = range(SEARCH_FIRST, SEARCH_FIRST + count(args.search, images))

    pairs = found_before()
    step_sizes = {name: task.step_size for name, task in TASKS.items()}
    guess = [*step_size_search(), *guidance_search(step_sizes)] if args.search else []
    worker.announce([(config, held_out) for config in guess] + wanted(pairs, ids))
    if args.search:
        pairs = search(judging, lambda configs: worker.run([(config, held_out) for config in configs]), ranks, held_out)
    worker.run(wanted(pairs, ids))
    worker.bar.close()
    chosen = f"were chosen on {len(held_out)} other pictures" if args.search else "are those found before"
    note = (f"{STEPS} steps of DDPM, measurements with noise of σ {NOISE_SIGMA:g}. Distances are to the true pictures. "
            f"Step sizes, scale and layers {chosen}.")
    if judging is None:
        return None
    others = range(SEARCH_FIRST, SEARCH_FIRST + len(ids))
    return judging.table(pairs, ids, others, note), restorations(restorer, store, pairs)


def count(samples: int, images: Tensor) -> int:
    """Pictures for the table, or for the search, in whole batches; both find theirs among the images."""
    return min(max(1, round(samples * SHARE) // BATCH), len(images) // 2 // BATCH) * BATCH


def wanted(pairs: list[Pair], ids: range) -> list:
    return [(config, ids) for both in pairs for config in (both.plain, both.guided)]


def search(judge: RestorationJudge | None, restore: Callable, ranks: Ranks, ids: range) -> list[Pair]:
    """The best step size for each task, then the best PAG for all; the first rank judges.

    Args:
        restore: makes what is missing of a list of configurations, on all ranks.
    """
    restore(step_size_search())
    sizes = ranks.agree(judge and {task: judge.best_step_size(task, ids) for task in TASKS})
    restore(guidance_search(sizes))
    scale, layers = ranks.agree(judge and judge.best_guidance(sizes, ids))
    return [pair(task, size, scale, layers) for task, size in sizes.items()]
