"""Makes the tables: searches if asked to, restores what is missing, and judges the results."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from PIL import Image

from ..arguments import SEARCH_FIRST
from ..networks import Networks
from ..store import Store
from ..work import Ranks, Worker
from .judge import RestorationJudge
from .picture import restorations
from .plan import NOISE_SIGMA, SHARE, Experiment, Pair, found_before, guidance_search, pair, step_size_search
from .restorer import Restorer


def run(args: argparse.Namespace, restorer: Restorer, store: Store, ranks: Ranks, networks: Networks | None
        ) -> tuple[dict, Image.Image] | None:
    """An experiment's table and its picture; None on all ranks but the first, which has the networks."""
    experiment, truths = restorer.experiment, restorer.truths
    worker = Worker(restorer, store, ranks, restorer.batch)
    judge = networks and RestorationJudge(experiment, networks, store, truths)
    ids = range(count(args.samples, restorer))
    held_out = range(SEARCH_FIRST, SEARCH_FIRST + count(args.search, restorer))

    pairs = found_before(experiment)
    step_sizes = {name: task.step_size for name, task in experiment.tasks.items()}
    guess = [*step_size_search(experiment), *guidance_search(experiment, step_sizes)] if args.search else []
    worker.announce([(config, held_out) for config in guess] + wanted(pairs, ids))
    if args.search:
        pairs = search(experiment, judge, lambda configs: worker.run([(config, held_out) for config in configs]),
                       ranks, held_out)
    worker.run(wanted(pairs, ids))
    worker.bar.close()
    if judge is None:
        return None
    chosen = f"were chosen on {len(held_out)} other images" if args.search else "are the best of an earlier search"
    note = (f"{experiment.steps} steps, measurement noise with σ {NOISE_SIGMA:g}. Distances are measured to the true "
            f"images. Step sizes, scale and layers {chosen}.")
    others = range(SEARCH_FIRST, SEARCH_FIRST + len(ids))
    return judge.table(pairs, ids, others, note), restorations(restorer, store, pairs)


def count(samples: int, restorer: Restorer) -> int:
    """Pictures for the table, or for the search, in whole batches; both find theirs among the truths."""
    batch, most = restorer.batch, len(restorer.truths.images) // 2
    return min(max(1, round(samples * SHARE) // batch), most // batch) * batch


def wanted(pairs: list[Pair], ids: range) -> list:
    return [(config, ids) for both in pairs for config in (both.plain, both.guided)]


def search(experiment: Experiment, judge: RestorationJudge | None, restore: Callable, ranks: Ranks, ids: range
           ) -> list[Pair]:
    """The best step size for each task, then the best PAG for all; the first rank judges.

    Args:
        restore: makes what is missing of a list of configurations, on all ranks.
    """
    restore(step_size_search(experiment))
    sizes = ranks.agree(judge and {task: judge.best_step_size(task, ids) for task in experiment.tasks})
    restore(guidance_search(experiment, sizes))
    scale, layers = ranks.agree(judge and judge.best_guidance(sizes, ids))
    return [pair(experiment, task, size, scale, layers) for task, size in sizes.items()]
