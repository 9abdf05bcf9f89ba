"""From restorations to figures: what the search chooses, and what the table holds."""

from __future__ import annotations

from dataclasses import asdict

from torch import Tensor

from ..classifier import Classifier, look
from ..judge import plain, verdict
from ..metrics import Value, frechet_between, mean, paired, perceptual_distance, with_margin
from ..plan import Check
from ..store import Store
from .plan import METRICS, TASKS, Experiment, Pair, Restoration
from .restorer import Truths

GAINS = {"fd": "closer to the true ones, taken together", "lpips": "closer to the truth, as the classifier sees it",
         "psnr": "closer to the truth, pixel by pixel"}


class RestorationJudge:
    """Compares the restorations of a store with the truth."""

    def __init__(self, experiment: Experiment, classifier: Classifier, store: Store, truths: Truths) -> None:
        self.experiment, self.classifier, self.store, self.truths = experiment, classifier, store, truths

    def see(self, config: Restoration, ids: range) -> tuple[Tensor, dict[str, Tensor]]:
        """The classifier's features [N, 64], and each picture's distances to the truth, {metric: [N]}."""
        restored, truth = self.store.load(config, ids), self.truths[ids]
        seen, true = (look(self.classifier, pictures, with_maps=True) for pictures in (restored, truth))
        error = (restored.float() - truth.float()).div(255).square().mean((1, 2, 3))
        return seen.features, {"lpips": perceptual_distance(seen.maps, true.maps),
                               "psnr": -10 * error.clamp(min=1e-10).log10()}

    def features(self, ids: range) -> Tensor:
        """Of the truths."""
        return look(self.classifier, self.truths[ids]).features

    def best_step_size(self, task: str, ids: range) -> float:
        """The one that brings the pictures closest to the truth, as the classifier sees it."""
        return min(self.experiment.tasks[task].step_sizes, key=lambda size: float(
            self.see(Restoration(self.experiment.key, task, size), ids)[1]["lpips"].mean()))

    def best_guidance(self, step_sizes: dict[str, float], ids: range) -> tuple[float, str]:
        """PAG's scale and layers with the smallest Fréchet distance, added over the tasks."""
        true = self.features(ids)
        return min(self.experiment.guidance, key=lambda guidance: sum(
            frechet_between(self.see(Restoration(self.experiment.key, task, size, *guidance), ids)[0], true)
            for task, size in step_sizes.items()))

    def table(self, pairs: list[Pair], ids: range, others: range, note: str) -> dict:
        """Figures as JSON knows them, in the form of `Judge.table`, but with the Fréchet distance to the true pictures:
        to the whole test split it would tell little at this count. The row of real pictures is of as many `others`."""
        rows, checks = [], []
        method = self.experiment.method
        true = self.features(ids)
        for both in pairs:
            name = TASKS[both.task].name
            seen = {}
            for label, config in ((method, both.plain), (f"{method} + PAG", both.guided)):
                features, distances = seen[label] = self.see(config, ids)
                values = {"fd": _frechet(features, true), **{metric: mean(each) for metric, each in distances.items()}}
                flops = self.store.flops(config)
                values |= {} if flops is None else {"flops": Value(flops, 0.0)}
                rows.append({"name": f"{name}: {label}", "settings": config.settings, "config": asdict(config),
                             "metrics": plain(values)})
            checks += [_check(f"{name}: {method}", name, metric, *reversed(seen.values()), true) for metric in METRICS]
        return {"key": self.experiment.key, "title": f"Restoration: {method} with and without PAG",
                "source": self.experiment.source,
                "samples": len(ids), "first": ids.start, "as_line": False, "note": note,
                "real": plain({"fd": _frechet(self.features(others), true)}), "rows": rows, "checks": checks}


def _frechet(features: Tensor, true: Tensor) -> Value:
    return with_margin(lambda rows: frechet_between(features[rows], true[rows]), len(true))


def _check(row: str, task: str, metric: str, guided: tuple, unguided: tuple, true: Tensor) -> dict:
    check = Check(f"{task}: PAG brings the pictures {GAINS[metric]}", f"{row} + PAG", row, metric,
                  higher=metric == "psnr")
    if metric == "fd":
        found = with_margin(lambda rows: frechet_between(guided[0][rows], true[rows])
                            - frechet_between(unguided[0][rows], true[rows]), len(true))
    else:
        found = paired(guided[1][metric], unguided[1][metric])
    return {**asdict(check), "difference": found.value, "margin": found.margin, "verdict": verdict(check, found)}
