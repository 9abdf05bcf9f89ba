"""Turns samples into figures: what the search chooses, and what the tables contain."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace

import torch
from torch import Tensor
from training.drawings import Drawings

from .config import Config
from .metrics import Moments, Real, Value, difference, frechet, measure
from .networks import Networks
from .plan import Check, Found, Row, Table
from .store import Store


class Judge:
    """Sees the samples of a store through two networks.

    Args:
        drawings: of the model's classes, as it numbers them; the held-out ones are what samples should be like.
    """

    def __init__(self, store: Store, networks: Networks, drawings: Drawings) -> None:
        self.store, self.networks = store, networks
        self.train, held_out = drawings.part(held_out=False), drawings.part(held_out=True)[0]
        self.real = Real.of(networks.see(held_out).features)
        self.tones = tones(held_out)
        self._measured: dict[tuple[Config, range, bool], dict[str, Value]] = {}

    def distance(self, config: Config, ids: range) -> float:
        seen = self.networks.see(self.store.load(config, ids))
        return float(frechet(Moments.of(seen.features["fd"]), self.real.moments["fd"]))

    def best(self, choices: Iterable[tuple[object, Config]], ids: range) -> list[object]:
        """The values of these choices, the smallest Fréchet distance first."""
        return [value for value, config in sorted(choices, key=lambda choice: self.distance(choice[1], ids))]

    def table(self, table: Table, ids: range) -> dict:
        """A table's figures as JSON knows them. The first row is of as many training drawings, where there are so many:
        what perfect samples would reach at this count."""
        values = {row.name: self._row(row, ids, table.matched) for row in table.rows}
        rows = [{"name": row.name, "settings": row.config.settings, "config": asdict(row.config),
                 "metrics": plain(values[row.name])} for row in table.rows]
        order = torch.randperm(len(self.train[0]), generator=torch.Generator().manual_seed(1))[:len(ids)]
        labels = None
        if any(row.config.conditional for row in table.rows):
            labels = self.networks.categories[self.train[1][order]]
        real = measure(self.train[0][order], self.networks, self.real, labels)
        return {
            "key": table.key, "title": table.title, "source": table.source, "samples": len(ids), "first": ids.start,
            "as_line": table.as_line, "real": plain(real), "real_samples": len(order), "rows": rows,
            "checks": [checked(check, values[check.better], values[check.worse]) for check in table.checks],
        }

    def _row(self, row: Row, ids: range, matched: bool) -> dict[str, Value]:
        config = row.config
        if (config, ids, matched) not in self._measured:
            pictures = self.store.load(config, ids)
            labels = None
            if config.conditional:
                count = len(self.networks.categories)
                labels = self.networks.categories[torch.tensor([config.label(i, count) for i in ids])]
            pictures = with_tones(pictures, self.tones) if matched else pictures
            values = measure(pictures, self.networks, self.real, labels)
            flops = self.store.flops(config)
            self._measured[config, ids, matched] = values | ({} if flops is None else {"flops": Value(flops, 0.0)})
        return self._measured[config, ids, matched]


def checked(check: Check, better: dict[str, Value], worse: dict[str, Value]) -> dict:
    """A check and its answer. Of a Fréchet distance, `second` is the difference as the other network sees it, and
    whether its sign is the same."""
    found = difference(better[check.metric], worse[check.metric])
    answer = {**asdict(check), "difference": found.value, "margin": found.margin, "verdict": verdict(check, found)}
    if check.metric == "fd":
        other = difference(*(values["fd_concept"] for values in (better, worse)))
        answer["second"] = {"difference": other.value, "margin": other.margin,
                            "agrees": (other.value < 0) == (found.value < 0)}
    return answer


def tones(pictures: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of all pixels of uint8 pictures."""
    pixels = pictures.float()
    return float(pixels.mean()), float(pixels.std())


def with_tones(pictures: Tensor, wanted: tuple[float, float]) -> Tensor:
    """uint8 pictures with these tones, as one brightness and one contrast setting for the whole set makes them."""
    mean, spread = tones(pictures)
    return ((pictures.float() - mean) * (wanted[1] / max(spread, 1e-6)) + wanted[0]).round().clamp(0, 255).byte()


def plain(values: dict[str, Value]) -> dict[str, dict]:
    return {name: {"value": value.value, "margin": value.margin} for name, value in values.items()}


def verdict(check: Check, found: Value) -> str:
    """"yes" and "no" where the whole 95 % interval says so."""
    gain = found.value if check.higher else -found.value
    if gain > found.margin or (check.no_worse and gain == found.margin == 0.0):
        return "yes"
    if gain < -found.margin:
        return "no"
    return "no difference measured" if check.no_worse else "undecided"


def choose_scales(judge: Judge, choices: dict[str, list[tuple[object, Config]]], found: Found, ids: range) -> Found:
    """`found` with the best of each of these choices."""
    best = {name: judge.best(options, ids)[0] for name, options in choices.items()}
    if "scale" in best:
        best["layers"], best["scale"] = best["scale"]
    return replace(found, **best)
