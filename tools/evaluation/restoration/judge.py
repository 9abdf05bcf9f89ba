"""Turns restorations into figures: what the search chooses, and what the table contains."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

from torch import Tensor

from ..judge import checked, plain
from ..metrics import Moments, Value, frechet, frechet_between, resampled
from ..networks import METRICS as DISTANCES
from ..networks import Networks, Seen
from ..plan import Check
from ..store import Store
from .plan import METRICS, TASKS, Experiment, Pair, Restoration
from .restorer import Truths

GAINS = {"fd": "closer to the true images as a set",
         "lpips": "closer to the true images in the category network's features",
         "psnr": "closer to the true images pixel by pixel"}


class RestorationJudge:
    """Compares the restorations of a store with the truth."""

    def __init__(self, experiment: Experiment, networks: Networks, store: Store, truths: Truths) -> None:
        self.experiment, self.networks, self.store, self.truths = experiment, networks, store, truths

    def see(self, config: Restoration, ids: range) -> tuple[Seen, dict[str, Tensor]]:
        """What the networks see, and each picture's distances to the truth, {metric: [N]}."""
        restored, truth = self.store.load(config, ids), self.truths[ids]
        error = (restored.float() - truth.float()).div(255).square().mean((1, 2, 3))
        return self.networks.see(restored), {"lpips": self.networks.distance(restored, truth),
                                             "psnr": -10 * error.clamp(min=1e-10).log10()}

    def true(self, ids: range) -> Seen:
        """What the networks see in the truths."""
        return self.networks.see(self.truths[ids])

    def best_step_size(self, task: str, ids: range) -> float:
        """The one that brings the pictures closest to the truth, as the category network sees it."""
        return min(self.experiment.tasks[task].step_sizes, key=lambda size: float(
            self.see(Restoration(self.experiment.key, task, size), ids)[1]["lpips"].mean()))

    def best_guidance(self, step_sizes: dict[str, float], ids: range) -> tuple[float, str]:
        """PAG's scale and layers with the smallest Fréchet distance, added over the tasks."""
        true = self.true(ids).features["fd"]
        return min(self.experiment.guidance, key=lambda guidance: sum(
            frechet_between(self.see(Restoration(self.experiment.key, task, size, *guidance), ids)[0].features["fd"],
                            true) for task, size in step_sizes.items()))

    def table(self, pairs: list[Pair], ids: range, others: range, note: str) -> dict:
        """Figures as JSON knows them, in the form of `Judge.table`, but with the Fréchet distance to the true pictures:
        to all held-out ones it would tell little at this count. The row of real pictures is of as many `others`."""
        rows, checks = [], []
        method = self.experiment.method
        true = self.true(ids)
        for both in pairs:
            name = TASKS[both.task].name
            plain_row, guided_row = f"{name}: {method}", f"{name}: {method} + PAG"
            values = {row: self._row(config, ids, true)
                      for row, config in ((plain_row, both.plain), (guided_row, both.guided))}
            rows += [{"name": row, "settings": config.settings, "config": asdict(config), "metrics": plain(values[row])}
                     for row, config in ((plain_row, both.plain), (guided_row, both.guided))]
            checks += [checked(Check(f"{name}: PAG brings images {GAINS[metric]}", guided_row, plain_row, metric,
                                     higher=metric == "psnr"), values[guided_row], values[plain_row])
                       for metric in METRICS]
        return {"key": self.experiment.key, "title": f"Restoration: {method} with and without PAG",
                "source": self.experiment.source,
                "samples": len(ids), "first": ids.start, "as_line": False, "note": note,
                "real": plain(_distances(self.true(others), true)), "real_samples": len(others), "rows": rows,
                "checks": checks}

    def _row(self, config: Restoration, ids: range, true: Seen) -> dict[str, Value]:
        seen, figures = self.see(config, ids)
        values = _distances(seen, true) | {name: resampled(partial(_mean, each), len(each))
                                           for name, each in figures.items()}
        flops = self.store.flops(config)
        return values if flops is None else {**values, "flops": Value(flops, 0.0)}


def _distances(seen: Seen, true: Seen) -> dict[str, Value]:
    """To the true pictures, which are resampled with them."""
    def distance(name: str, weights: Tensor) -> Tensor:
        return frechet(*(Moments.of(each.features[name], weights) for each in (seen, true)))

    return {name: resampled(partial(distance, name), len(seen.logits)) for name in DISTANCES}


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    return weights @ values.double() / len(values)
