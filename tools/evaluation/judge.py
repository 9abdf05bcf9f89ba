"""From samples to figures: what the search chooses, and what the tables hold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace

import torch
from torch import Tensor

from .classifier import Classifier, Seen, look
from .config import Config
from .metrics import Real, Value, difference, frechet, measure, unpaired
from .plan import Check, Found, Row, Table
from .store import Store


class Judge:
    """Sees the samples of a store through the classifier.

    Args:
        train, test: images uint8 [N, 32, 32] and labels long [N]; the test split is what samples should be like.
    """

    def __init__(self, store: Store, classifier: Classifier, train: tuple[Tensor, Tensor],
                 test: tuple[Tensor, Tensor]) -> None:
        self.store, self.classifier = store, classifier
        self.train = train
        self.real = Real.of(look(classifier, test[0]).features)
        self.tones = tones(test[0])
        self._seen: dict[tuple[Config, range, bool], Seen] = {}

    def see(self, config: Config, ids: range, matched: bool = False) -> Seen:
        if (config, ids, matched) not in self._seen:
            self._seen[config, ids, matched] = look(self.classifier, self._pictures(config, ids, matched))
        return self._seen[config, ids, matched]

    def _pictures(self, config: Config, ids: range, matched: bool) -> Tensor:
        pictures = self.store.load(config, ids)
        return with_tones(pictures, self.tones) if matched else pictures

    def distance(self, config: Config, ids: range) -> float:
        return frechet(self.see(config, ids).features, self.real)

    def best(self, choices: Iterable[tuple[object, Config]], ids: range) -> list[object]:
        """The values of these choices, the smallest Fréchet distance first."""
        return [value for value, config in sorted(choices, key=lambda choice: self.distance(choice[1], ids))]

    def table(self, table: Table, ids: range) -> dict:
        """A table's figures as JSON knows them. The first row is of as many real pictures, of the training split: what
        perfect samples would reach at this count."""
        values = {row.name: self._row(row, ids, table.matched) for row in table.rows}
        by_name = {row.name: row for row in table.rows}
        rows = [{"name": row.name, "settings": row.config.settings, "config": asdict(row.config),
                 "metrics": plain(values[row.name])} for row in table.rows]
        order = torch.randperm(len(self.train[0]), generator=torch.Generator().manual_seed(1))[:len(ids)]
        labels = self.train[1][order] if any(row.config.conditional for row in table.rows) else None
        real = measure(look(self.classifier, self.train[0][order], with_maps=True), self.real, labels)
        return {
            "key": table.key, "title": table.title, "source": table.source, "samples": len(ids), "first": ids.start,
            "as_line": table.as_line, "real": plain(real), "rows": rows,
            "checks": [self._check(check, by_name, values, ids, table.matched) for check in table.checks],
        }

    def _row(self, row: Row, ids: range, matched: bool) -> dict[str, Value]:
        labels = torch.tensor([row.config.label(i) for i in ids]) if row.config.conditional else None
        seen = look(self.classifier, self._pictures(row.config, ids, matched), with_maps=True)
        values = measure(seen, self.real, labels)
        flops = self.store.flops(row.config)
        return values if flops is None else {**values, "flops": Value(flops, 0.0)}

    def _check(self, check: Check, rows: dict[str, Row], values: dict[str, dict[str, Value]], ids: range,
               matched: bool) -> dict:
        better, worse = rows[check.better].config, rows[check.worse].config
        found = difference(check.metric, self.see(better, ids, matched), self.see(worse, ids, matched), self.real)
        if found is None:
            found = unpaired(values[check.better][check.metric], values[check.worse][check.metric])
        return {**asdict(check), "difference": found.value, "margin": found.margin, "verdict": verdict(check, found)}


def tones(pictures: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of all pixels of uint8 pictures."""
    pixels = pictures.float()
    return float(pixels.mean()), float(pixels.std())


def with_tones(pictures: Tensor, wanted: tuple[float, float]) -> Tensor:
    """uint8 pictures with these tones, as one brightness and one contrast setting for the whole set makes them."""
    mean, spread = tones(pictures)
    return ((pictures.float() - mean) * (wanted[1] / max(spread, 1e-6)) + wanted[0]).round().clamp(0, 255).byte()


def plain(values: dict[str, Value]) -> dict[str, dict]:
    return {name: asdict(value) for name, value in values.items()}


def verdict(check: Check, found: Value) -> str:
    """"yes" and "no" where the whole 95 % interval says so."""
    gain = found.value if check.higher else -found.value
    if gain > found.margin or (check.no_worse and gain == found.margin == 0.0):
        return "yes"
    if gain < -found.margin:
        return "no"
    return "no difference seen" if check.no_worse else "undecided"


def choose_scales(judge: Judge, choices: dict[str, list[tuple[object, Config]]], found: Found, ids: range) -> Found:
    """`found` with the best of each of these choices."""
    best = {name: judge.best(options, ids)[0] for name, options in choices.items()}
    if "scale" in best:
        best["layers"], best["scale"] = best["scale"]
    return replace(found, **best)
