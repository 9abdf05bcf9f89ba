"""From restorations to figures: what the search chooses, and what the table holds."""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import Tensor

from ..classifier import Seen, look
from ..judge import Judge, plain, verdict
from ..metrics import Value, difference, frechet, frechet_value, mean, paired, perceptual_distance
from ..plan import Check
from . import plan
from .plan import KEY, METRICS, TASKS, Pair, Restoration
from .restorer import Truths

GAINS = {"fd": "closer to real pictures", "lpips": "closer to the truth, as the classifier sees it",
         "psnr": "closer to the truth, pixel by pixel"}


class RestorationJudge:
    """Compares the restorations of a store with the truth.

    Args:
        judge: of the same store.
    """

    def __init__(self, judge: Judge, truths: Truths) -> None:
        self.judge, self.truths = judge, truths

    def see(self, config: Restoration, ids: range) -> tuple[Seen, dict[str, Tensor]]:
        """What the classifier sees, and the distances to the truth of each picture: {metric: [N]}."""
        restored, truth = self.judge.store.load(config, ids), self.truths[ids]
        seen, true = (look(self.judge.classifier, pictures, with_maps=True) for pictures in (restored, truth))
        error = (restored.float() - truth.float()).div(255).square().mean((1, 2, 3))
        return seen, {"lpips": perceptual_distance(seen.maps, true.maps),
                      "psnr": -10 * error.clamp(min=1e-10).log10()}

    def best_step_size(self, task: str, ids: range) -> float:
        """The one that brings DPS closest to the truth, as the classifier sees it."""
        return min(TASKS[task].step_sizes,
                   key=lambda size: float(self.see(Restoration(task, size), ids)[1]["lpips"].mean()))

    def best_guidance(self, step_sizes: dict[str, float], ids: range) -> tuple[float, str]:
        """PAG's scale and layers with the smallest Fréchet distance of all tasks' pictures together."""
        def distance(guidance: tuple[float, str]) -> float:
            seen = [self.see(Restoration(task, size, *guidance), ids)[0] for task, size in step_sizes.items()]
            return frechet(torch.cat([each.features for each in seen]), self.judge.real)

        return min(plan.GUIDANCE, key=distance)

    def table(self, pairs: list[Pair], ids: range, note: str) -> dict:
        """Figures as JSON knows them, in the form of `Judge.table`; the row of real pictures is the truth itself."""
        rows, checks = [], []
        for both in pairs:
            name = TASKS[both.task].name
            seen = {}
            for method, config in (("DPS", both.plain), ("DPS + PAG", both.guided)):
                seen[method] = self.see(config, ids)
                values = self._values(config, *seen[method])
                rows.append({"name": f"{name}: {method}", "settings": config.settings, "config": asdict(config),
                             "metrics": plain(values)})
            checks += [self._check(name, metric, seen["DPS + PAG"], seen["DPS"]) for metric in METRICS]
        real = frechet_value(look(self.judge.classifier, self.truths[ids]).features, self.judge.real)
        return {"key": KEY, "title": "Restoration: DPS with and without PAG", "source": "PAG Table 8",
                "samples": len(ids), "first": ids.start, "as_line": False, "note": note,
                "real": plain({"fd": real}), "rows": rows, "checks": checks}

    def _values(self, config: Restoration, seen: Seen, distances: dict[str, Tensor]) -> dict[str, Value]:
        values = {"fd": frechet_value(seen.features, self.judge.real)}
        values |= {name: mean(each) for name, each in distances.items()}
        flops = self.judge.store.flops(config)
        return values if flops is None else {**values, "flops": Value(flops, 0.0)}

    def _check(self, name: str, metric: str, guided: tuple, unguided: tuple) -> dict:
        check = Check(f"{name}: PAG brings the pictures {GAINS[metric]}", f"{name}: DPS + PAG", f"{name}: DPS", metric,
                      higher=metric == "psnr")
        found = (difference("fd", guided[0], unguided[0], self.judge.real) if metric == "fd"
                 else paired(guided[1][metric], unguided[1][metric]))
        return {**asdict(check), "difference": found.value, "margin": found.margin, "verdict": verdict(check, found)}
