"""Numbers for a set of pictures, from what the classifier sees in them, with torch-fidelity; and how sure they are.

All distances depend on how many pictures there are (the Fréchet distance is biased upwards, the more so the fewer), so
sets are compared at equal counts only, with the same noise in both: pairs are resampled together, which takes out what
the noise has in common.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from .classifier import Seen
from .config import CLASSES

RESAMPLES = 100  # of the bootstrap
Z = 1.96  # standard deviations to either side: 95 %
NEIGHBOURS = 3  # Kynkäänniemi et al. 2019
PAIRS = 2000  # for the diversity


@dataclass(frozen=True)
class Real:
    """The pictures that samples should be like.

    Attributes:
        statistics: of the whole test split, for the Fréchet distance.
        features: [N, 64] of the test split, in random order.
    """

    statistics: dict
    features: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Real:
        order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
        return cls(fid_features_to_statistics(features.double()), features[order])


@dataclass(frozen=True)
class Value:
    """A figure and half the width of its 95 % interval; None where it was not resampled."""

    value: float
    margin: float | None = None


def frechet(features: Tensor, real: Real) -> float:
    """Fréchet distance to the whole test split."""
    statistics = fid_features_to_statistics(features.double())
    return fid_statistics_to_metric(statistics, real.statistics, False)[KEY_METRIC_FID]


def frechet_between(features: Tensor, others: Tensor) -> float:
    """Fréchet distance of two sets of pictures, both small."""
    a, b = (fid_features_to_statistics(each.double()) for each in (features, others))
    return fid_statistics_to_metric(a, b, False)[KEY_METRIC_FID]


def score(logits: Tensor) -> float:
    """As the Inception score, with the classifier's ten classes; 1 to 10."""
    return isc_features_to_metric(logits, splits=1, shuffle=False)[KEY_METRIC_ISC_MEAN]


def measure(seen: Seen, real: Real, labels: Tensor | None = None) -> dict[str, Value]:
    """Everything that the tables show for one set of pictures.

    `labels` [N] are those that the samples were asked for; with them come `accuracy`, the share in which the classifier
    sees the label too, and, over pictures with the same label, `label_diversity` and `label_score`. `classes` is how
    many labels the pictures are spread over, as the classifier sees it (the exponential of the entropy, 1 to 10).
    """
    count = len(seen.features)
    shares = seen.logits.softmax(1).mean(0)
    values = {
        "fd": with_margin(lambda rows: frechet(seen.features[rows], real), count),
        "kd": Value(_kernel_distance(seen.features, real)),
        "score": with_margin(lambda rows: score(seen.logits[rows]), count),
        **_precision_recall(seen.features, real),
        "diversity": _diversity(seen, [torch.arange(count)]),
        "classes": Value(float(torch.special.entr(shares).sum().exp())),
        "brightness": mean(seen.brightness),
        "contrast": mean(seen.contrast),
    }
    if labels is not None:
        groups = [(labels == label).nonzero()[:, 0] for label in range(CLASSES)]
        scores = torch.tensor([score(seen.logits[rows]) for rows in groups if len(rows)])
        values["accuracy"] = mean((seen.logits.argmax(1) == labels).float())
        values["label_diversity"] = _diversity(seen, groups)
        values["label_score"] = mean(scores)
    return values


def mean(values: Tensor) -> Value:
    """Of [N] independent figures."""
    return Value(float(values.mean()), Z * float(values.std()) / len(values) ** 0.5)


def paired(better: Tensor, worse: Tensor) -> Value:
    """The mean difference of figures [N] of the same pictures."""
    return mean(better - worse)


def _diversity(seen: Seen, groups: list[Tensor]) -> Value:
    distances = pair_distances(seen, groups)
    # Pairs share pictures, so that there are no more independent ones than half the pictures.
    return Value(float(distances.mean()), Z * float(distances.std()) / (len(seen.features) / 2) ** 0.5)


def difference(metric: str, better: Seen, worse: Seen, real: Real) -> Value | None:
    """`metric` of `better` minus that of `worse`, where both come from the same noise and are resampled together; None
    for a metric that is not resampled."""
    if metric == "fd":
        return with_margin(lambda rows: frechet(better.features[rows], real) - frechet(worse.features[rows], real),
                            len(better.features))
    if metric == "score":
        return with_margin(lambda rows: score(better.logits[rows]) - score(worse.logits[rows]), len(better.logits))
    return None


def unpaired(better: Value, worse: Value) -> Value:
    """The difference of two figures that each have an interval of their own."""
    margin = None if better.margin is None or worse.margin is None else (better.margin**2 + worse.margin**2) ** 0.5
    return Value(better.value - worse.value, margin)


def pair_distances(seen: Seen, groups: list[Tensor]) -> Tensor:
    """[P] perceptual distances of random pairs, each within one of `groups` (rows)."""
    generator = torch.Generator().manual_seed(0)
    left, right = [], []
    groups = [rows for rows in groups if len(rows) > 1]
    for rows in groups:
        first = torch.randint(len(rows), (PAIRS // len(groups),), generator=generator)
        other = torch.randint(1, len(rows), first.shape, generator=generator)
        left.append(rows[first])
        right.append(rows[(first + other) % len(rows)])
    left, right = torch.cat(left), torch.cat(right)
    return torch.cat([perceptual_distance([stage[a] for stage in seen.maps], [stage[b] for stage in seen.maps])
                      for a, b in zip(left.split(200), right.split(200), strict=True)])


def perceptual_distance(maps: list[Tensor], others: list[Tensor]) -> Tensor:
    """[N] LPIPS-like distances of pictures, of which `maps` and `others` hold each stage's maps [N, C, h, w]: at every
    place the squared distance of the unit-length channel vectors, averaged over the places and added over the stages
    (Zhang et al. 2018, without their learned weights)."""
    total = torch.zeros(len(maps[0]))
    for stage, other in zip(maps, others, strict=True):
        a, b = (torch.nn.functional.normalize(each, dim=1) for each in (stage, other))
        total += (a - b).square().sum(1).mean((1, 2))
    return total


def _kernel_distance(features: Tensor, real: Real) -> float:
    """Unbiased kernel distance (Bińkowski et al. 2018), for it does not depend on the count."""
    size = min(len(features), 1000)
    return kid_features_to_metric(features, real.features, kid_subsets=20, kid_subset_size=size, rng_seed=0,
                                  verbose=False)[KEY_METRIC_KID_MEAN]


def _precision_recall(features: Tensor, real: Real) -> dict[str, Value]:
    """Improved precision and recall (Kynkäänniemi et al. 2019), against as many real pictures as there are samples."""
    equal = real.features[: len(features)]
    found = prc_features_to_metric(features[: len(equal)], equal, prc_neighborhood=NEIGHBOURS, verbose=False)
    count = len(equal)

    def value(share: float) -> Value:
        return Value(share, Z * (share * (1 - share) / count) ** 0.5)

    return {"precision": value(found[KEY_METRIC_PRECISION]), "recall": value(found[KEY_METRIC_RECALL])}


def with_margin(statistic: Callable[[Tensor], float], count: int) -> Value:
    """The statistic of all rows, and 1.96 standard deviations of it over bootstrap resamples of the rows.

    The interval stands around the value of all rows: resamples hold doubles, which shifts their mean, not their spread.
    """
    generator = torch.Generator().manual_seed(0)
    resampled = [statistic(torch.randint(count, (count,), generator=generator)) for _ in range(RESAMPLES)]
    return Value(statistic(torch.arange(count)), Z * float(np.std(resampled)))
