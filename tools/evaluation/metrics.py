"""Metrics for a set of images, computed from the features of two networks, with confidence intervals.

All distances depend on the number of images (the Fréchet distance is biased upwards, more so for small sets), so sets
are compared only at equal size and with the same noise. Sets of one size are resampled alike, image by image, so that
what they have in common through the noise cancels in their difference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from .networks import METRICS, Networks, Seen

RESAMPLES = 100  # of the bootstrap
Z = 1.96  # standard deviations to either side: 95 %
NEIGHBOURS = 3  # Kynkäänniemi et al. 2019
PAIRS = 2000  # for the diversity


@dataclass(frozen=True)
class Value:
    """A figure and half the width of its 95 % interval, None where it has none; and, if it was resampled, the figures
    [1 + RESAMPLES] of all pictures and of every resample."""

    value: float
    margin: float | None = None
    resampled: Tensor | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, resampled: Tensor) -> Value:
        """The interval stands around the value of all rows: resamples hold doubles, which shifts their mean, not their
        spread."""
        return cls(float(resampled[0]), Z * float(resampled[1:].std(correction=0)), resampled)


@dataclass(frozen=True)
class Moments:
    """Mean [..., D] and covariance [..., D, D] of features, float64."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, features: Tensor, weights: Tensor | None = None) -> Moments:
        """Of features [N, D], each as often as `weights` [R, N] say, or once."""
        points = features.double()
        weights = torch.ones(len(points), dtype=torch.float64) if weights is None else weights
        count = len(points)
        middle = points.mean(0)
        points = points - middle
        mean = weights @ points / count
        products = (points[:, :, None] * points[:, None, :]).flatten(1)
        squares = (weights @ products).unflatten(-1, (points.shape[1], -1))
        return cls(mean + middle, (squares - count * mean[..., :, None] * mean[..., None, :]) / (count - 1))


@dataclass(frozen=True)
class Real:
    """The pictures that samples should be like.

    Attributes:
        moments: by metric, for the Fréchet distances.
        features: [N, 64] of the category network, in random order.
    """

    moments: dict[str, Moments]
    features: Tensor

    @classmethod
    def of(cls, features: dict[str, Tensor]) -> Real:
        order = torch.randperm(len(features["fd"]), generator=torch.Generator().manual_seed(0))
        return cls({name: Moments.of(each) for name, each in features.items()}, features["fd"][order])


def frechet(a: Moments, b: Moments) -> Tensor:
    """The squared Fréchet distance [...] of Gaussians with these moments (Heusel et al. 2017, Eq. 6)."""
    values, vectors = torch.linalg.eigh(b.covariance)
    root = (vectors * values.clamp(min=0).sqrt()[..., None, :]) @ vectors.mT
    common = torch.linalg.eigvalsh(root @ a.covariance @ root).clamp(min=0).sqrt().sum(-1)
    traces = [each.covariance.diagonal(dim1=-2, dim2=-1).sum(-1) for each in (a, b)]
    return (a.mean - b.mean).square().sum(-1) + traces[0] + traces[1] - 2 * common


def frechet_between(features: Tensor, others: Tensor) -> float:
    """Of features [N, D] and [M, D]."""
    return float(frechet(Moments.of(features), Moments.of(others)))


def score(logits: Tensor, weights: Tensor | None = None) -> Tensor:
    """As the Inception score, of logits [N, C], each as often as `weights` [R, N] say; 1 to C."""
    log_shares = logits.double().log_softmax(1)
    shares = log_shares.exp()
    weights = torch.ones(len(logits), dtype=torch.float64) if weights is None else weights
    sure = weights @ (shares * log_shares).sum(1) / len(logits)
    return (sure + torch.special.entr(weights @ shares / len(logits)).sum(-1)).exp()


def measure(pictures: Tensor, networks: Networks, real: Real, labels: Tensor | None = None) -> dict[str, Value]:
    """Everything that the tables show for one set of pictures uint8 [N, 3, S, S].

    `labels` [N] are the categories that the samples were asked for; with them come `accuracy`, the share in which the
    network sees the category too, and, over pictures with the same label, `label_diversity` and `label_score`.
    `classes` is how many categories the pictures are spread over, as the network sees it (the exponential of the
    entropy).
    """
    seen, count = networks.see(pictures), len(pictures)
    shares = seen.logits.softmax(1).mean(0)
    values = {
        **distances(seen, real),
        "kd": Value(_kernel_distance(seen.features["fd"], real)),
        "score": resampled(lambda weights: score(seen.logits, weights), count),
        **_precision_recall(seen.features["fd"], real),
        "diversity": _diversity(pictures, networks, [torch.arange(count)]),
        "classes": Value(float(torch.special.entr(shares).sum().exp())),
        "brightness": mean(seen.brightness),
        "contrast": mean(seen.contrast),
    }
    if labels is not None:
        groups = [(labels == label).nonzero()[:, 0] for label in labels.unique()]
        values["accuracy"] = mean((seen.logits.argmax(1) == labels).float())
        values["label_diversity"] = _diversity(pictures, networks, groups)
        values["label_score"] = mean(torch.stack([score(seen.logits[rows]) for rows in groups]))
    return values


def distances(seen: Seen, real: Real) -> dict[str, Value]:
    """The Fréchet distances to the real pictures, as both networks see them."""
    def distance(name: str, weights: Tensor) -> Tensor:
        return frechet(Moments.of(seen.features[name], weights), real.moments[name])

    return {name: resampled(partial(distance, name), len(seen.logits)) for name in METRICS}


def mean(values: Tensor) -> Value:
    """Of [N] independent figures."""
    return Value(float(values.mean()), Z * float(values.std()) / len(values) ** 0.5)


def _diversity(pictures: Tensor, networks: Networks, groups: list[Tensor]) -> Value:
    left, right = random_pairs(groups)
    found = networks.distance(pictures[left], pictures[right])
    # Pairs share pictures, so that there are no more independent ones than half the pictures.
    return Value(float(found.mean()), Z * float(found.std()) / (len(pictures) / 2) ** 0.5)


def difference(better: Value, worse: Value) -> Value:
    """`better` minus `worse`: of the same resamples where there are any, else of two independent figures."""
    if better.resampled is not None and worse.resampled is not None:
        return Value.of(better.resampled - worse.resampled)
    margin = None if better.margin is None or worse.margin is None else (better.margin**2 + worse.margin**2) ** 0.5
    return Value(better.value - worse.value, margin)


def random_pairs(groups: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The rows [P] of both sides of random pairs, each within one of `groups` (rows)."""
    generator = torch.Generator().manual_seed(0)
    left, right = [], []
    groups = [rows for rows in groups if len(rows) > 1]
    for rows in groups:
        first = torch.randint(len(rows), (PAIRS // len(groups),), generator=generator)
        other = torch.randint(1, len(rows), first.shape, generator=generator)
        left.append(rows[first])
        right.append(rows[(first + other) % len(rows)])
    return torch.cat(left), torch.cat(right)


def _kernel_distance(features: Tensor, real: Real) -> float:
    """Unbiased kernel distance (Bińkowski et al. 2018), for it does not depend on the count."""
    size = min(len(features), len(real.features), 1000)
    return kid_features_to_metric(features, real.features, kid_subsets=20, kid_subset_size=size, rng_seed=0,
                                  verbose=False)[KEY_METRIC_KID_MEAN]


def _precision_recall(features: Tensor, real: Real) -> dict[str, Value]:
    """Improved precision and recall (Kynkäänniemi et al. 2019), of equally many samples and real pictures."""
    equal = real.features[: len(features)]
    found = prc_features_to_metric(features[: len(equal)], equal, prc_neighborhood=NEIGHBOURS, verbose=False)
    count = len(equal)

    def value(share: float) -> Value:
        return Value(share, Z * (share * (1 - share) / count) ** 0.5)

    return {"precision": value(found[KEY_METRIC_PRECISION]), "recall": value(found[KEY_METRIC_RECALL])}


def resampled(statistic: Callable[[Tensor], Tensor], count: int) -> Value:
    """A statistic [R] of weights float64 [R, count], of all pictures and of bootstrap resamples."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(count, (RESAMPLES, count), generator=generator)
    weights = torch.zeros(RESAMPLES, count, dtype=torch.float64).scatter_add_(
        1, rows, torch.ones(rows.shape, dtype=torch.float64))
    return Value.of(statistic(torch.cat([torch.ones(1, count, dtype=torch.float64), weights])))
