"""The search for attention heads worth perturbing: HeadHunter (arXiv 2506.10978), a greedy search.

In each round every head that is left is perturbed together with those chosen so far; the best of them are chosen too.
Who asks gives a score for each picture that a choice of heads makes, always for the same prompts and seeds in the same
order, so that two choices compare picture by picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from .checks import SettingError
from .selection import Layer, text_of

Head = tuple[Layer, int]
Score = Callable[[tuple[Head, ...]], Sequence[float]]


@dataclass(frozen=True, eq=False)
class Trial:
    """The result of perturbing one more head.

    Attributes:
        scores: one for each picture; higher is better.
    """

    head: Head
    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        return fmean(self.scores)

    def gain(self, base: tuple[float, ...]) -> tuple[float, float | None]:
        """(how much higher than the scores without it, half a 95 % interval of that, None for a single picture)."""
        gains = [one - other for one, other in zip(self.scores, base, strict=True)]
        margin = 1.96 * stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else None
        return fmean(gains), margin


@dataclass(frozen=True, eq=False)
class Round:
    """One round.

    Attributes:
        chosen: the heads that were perturbed in every trial of the round.
        base: what these alone score, one for each picture.
        ranked: a trial for each head that was left, the best first.
        taken: the heads that join the chosen ones.
    """

    chosen: tuple[Head, ...]
    base: tuple[float, ...]
    ranked: tuple[Trial, ...]
    taken: tuple[Head, ...]


def heads_of(selection: Mapping[Layer, frozenset[int] | None]) -> tuple[Head, ...]:
    """The single heads of a selection, in the model's order."""
    return tuple((layer, head) for layer, heads in selection.items()
                 for head in (range(layer.heads) if heads is None else sorted(heads)))


def text_of_heads(heads: Iterable[Head], layers: tuple[Layer, ...]) -> str:
    """The `layers` text that perturbs these heads and no others.

    Args:
        layers: all of the model's, in its order.
    """
    numbers: dict[Layer, set[int]] = {}
    for layer, head in heads:
        numbers.setdefault(layer, set()).add(head)
    return text_of({layer: None if len(numbers[layer]) == layer.heads else frozenset(numbers[layer])
                    for layer in layers if layer in numbers}, layers)


def trials(heads: int, rounds: int, take: int) -> int:
    """The largest number of head selections that `hunt` scores."""
    bases = 1 if take == 1 else rounds  # the best of a round is the next one's base, and has its score
    return bases + sum(heads - number * take for number in range(rounds))


def check_rounds(heads: int, rounds: int, take: int) -> None:
    """Raise SettingError if the rounds would choose more heads than there are."""
    if rounds * take > heads:
        raise SettingError(f"{rounds} rounds with heads_per_round {take} need {rounds * take} heads, but layers has "
                           f"only {heads} to try. Add layers, or lower rounds or heads_per_round.")


def hunt(heads: Iterable[Head], chosen: tuple[Head, ...], rounds: int, take: int, score: Score) -> Iterator[Round]:
    """The rounds of a search, each as soon as it is done.

    A round takes the heads that raise the score, `take` of them at most. The first one always takes the best; a later
    one that finds no head to raise the score is the last.

    Args:
        heads: those to try, none of them in `chosen`.
        chosen: those that are perturbed from the beginning.
        take: how many of a round join the chosen; 0 for a ranking alone.
        score: asked once for every choice of heads.
    """
    left = tuple(heads)
    base = tuple(score(chosen))
    for number in range(rounds):
        found = [Trial(head, tuple(score((*chosen, head)))) for head in left]
        ranked = tuple(sorted(found, key=lambda trial: trial.mean, reverse=True))  # stable: the earlier of equals
        better = [trial for trial in ranked[:take] if trial.mean > fmean(base)]
        if not better and number == 0:
            better = list(ranked[:min(take, 1)])
        taken = tuple(trial.head for trial in better)
        yield Round(chosen, base, ranked, taken)
        if not taken:
            return
        chosen += taken
        left = tuple(head for head in left if head not in taken)
        if number + 1 < rounds:
            base = better[0].scores if len(taken) == 1 else tuple(score(chosen))


def report(rounds: Sequence[Round], layers: tuple[Layer, ...]) -> str:
    """The rankings as a table: each head's score, and how much it adds to what was chosen before."""
    parts = []
    for number, one in enumerate(rounds, 1):
        together = f", together with {text_of_heads(one.chosen, layers)}" if one.chosen else ""
        rows = [("", "head", "score", "gain", "")]
        for place, trial in enumerate(one.ranked, 1):
            gain, margin = trial.gain(one.base)
            rows.append((f"{place}.", text_of_heads([trial.head], layers), f"{trial.mean:.4f}",
                         f"{gain:+.4f}" + (f" ± {margin:.4f}" if margin is not None else ""),
                         "taken" if trial.head in one.taken else ""))
        rows.append(("", "baseline", f"{fmean(one.base):.4f}", "", ""))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        parts.append("\n".join([f"Round {number}{together}", *(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)]))
    return "\n\n".join(parts)
