"""Figures whose answer is known: the same pictures twice, shifted clouds of points, one picture many times over."""

import pytest
import torch
from evaluation.classifier import Classifier
from evaluation.judge import checked, tones, verdict, with_tones
from evaluation.metrics import (
    Moments,
    Real,
    Value,
    difference,
    distances,
    frechet,
    frechet_between,
    measure,
    random_pairs,
    resampled,
    score,
)
from evaluation.networks import Networks, Seen
from evaluation.plan import Check
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric


def cloud(count: int, shift: float = 0.0, spread: float = 1.0, seed: int = 0) -> torch.Tensor:
    return shift + spread * torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))


def seen(points: torch.Tensor) -> Seen:
    """The second network sees the same, twice as far apart."""
    return Seen({"fd": points, "fd_concept": 2 * points}, points, points.mean(1), points.std(1))


class Clouds(Networks):
    """Pictures are points [N, 8], as both networks see them."""

    def __init__(self) -> None:
        super().__init__(None, None, torch.arange(8), (1.0, 1.0))

    def see(self, pictures):
        return seen(pictures)

    def distance(self, pictures, others):
        return (pictures - others).square().sum(1)


def real_of(points: torch.Tensor) -> Real:
    return Real.of(seen(points).features)


def fd(points: torch.Tensor, real: Real) -> float:
    return float(frechet(Moments.of(points), real.moments["fd"]))


@pytest.mark.parametrize("count", [20, 300])
def test_distance_and_score_are_those_of_torch_fidelity_on_every_resample(count, monkeypatch):
    """With fewer pictures than features too."""
    monkeypatch.setattr("evaluation.metrics.RESAMPLES", 3)
    a, b = (torch.randn(count + 30 * n, 64, generator=torch.Generator().manual_seed(n)).relu() for n in (0, 1))
    others = fid_features_to_statistics(b.double())
    rows = [torch.arange(count), *torch.randint(count, (3, count), generator=torch.Generator().manual_seed(0))]
    found = resampled(lambda weights: frechet(Moments.of(a, weights), Moments.of(b)), count)
    expected = [fid_statistics_to_metric(fid_features_to_statistics(a[each].double()), others, False) for each in rows]
    assert found.resampled.tolist() == pytest.approx([x["frechet_inception_distance"] for x in expected], rel=1e-6)
    found = resampled(lambda weights: score(a, weights), count)
    expected = [isc_features_to_metric(a[each], splits=1, shuffle=False) for each in rows]
    assert found.resampled.tolist() == pytest.approx([x["inception_score_mean"] for x in expected], rel=1e-5)


def test_a_set_has_no_distance_from_itself():
    points = cloud(500)
    assert fd(points, real_of(points)) == pytest.approx(0, abs=1e-6)
    assert frechet_between(points[:20], points[:20]) == pytest.approx(0, abs=1e-6)
    assert frechet_between(points[:20], points[20:40]) > 0.1


def test_the_frechet_distance_of_shifted_and_widened_gaussians():
    """|μ₁ − μ₂|² + Σ (σ₁ − σ₂)²: 8 · 0.5² and 8 · (2 − 1)²."""
    real = real_of(cloud(20000))
    assert fd(cloud(20000, shift=0.5, seed=1), real) == pytest.approx(2.0, rel=0.05)
    assert fd(cloud(20000, spread=2.0, seed=1), real) == pytest.approx(8.0, rel=0.05)


def test_fewer_pictures_look_further_away_so_only_equal_counts_compare():
    real = real_of(cloud(5000))
    assert fd(cloud(30, seed=1), real) > 2 * fd(cloud(300, seed=1), real)


def test_the_score_is_the_number_of_classes_at_best_and_one_at_worst():
    sure = 100 * torch.eye(10).repeat(20, 1)
    assert float(score(sure)) == pytest.approx(10)
    assert float(score(sure[:1].repeat(50, 1))) == pytest.approx(1)


def test_precision_and_recall_tell_missing_variety_from_bad_pictures():
    real = real_of(cloud(400))
    narrow, wide = (measure(cloud(400, spread=spread, seed=1), Clouds(), real) for spread in (0.2, 3.0))
    assert narrow["precision"].value > 0.95 > 0.5 > narrow["recall"].value
    assert wide["recall"].value > 0.9 > 0.2 > wide["precision"].value


def test_the_interval_is_as_wide_as_other_seeds_scatter():
    real = real_of(cloud(20000, seed=99))
    first = distances(seen(cloud(200, shift=0.5)), real)["fd"]
    others = torch.tensor([fd(cloud(200, shift=0.5, seed=seed), real) for seed in range(1, 41)])
    assert first.margin == pytest.approx(1.96 * float(others.std()), rel=0.35)


def test_a_difference_is_surer_than_its_parts_where_the_noise_is_shared():
    real = real_of(cloud(5000, seed=9))
    near, far = (distances(seen(cloud(200, shift=shift)), real) for shift in (0.5, 0.6))
    paired = difference(near["fd"], far["fd"])
    assert paired.value < -paired.margin
    assert paired.margin < min(near["fd"].margin, far["fd"].margin)


def test_a_check_of_distances_says_whether_both_networks_agree():
    real = real_of(cloud(5000, seed=9))
    near, far = (measure(cloud(200, shift=shift), Clouds(), real, torch.arange(200) % 8) for shift in (0.5, 0.6))
    answer = checked(Check("near is nearer", "near", "far"), near, far)
    assert (answer["verdict"], answer["second"]["agrees"]) == ("yes", True)
    assert answer["second"]["difference"] == pytest.approx(4 * answer["difference"])
    other = checked(Check("near is nearer", "near", "far"), {**near, "fd_concept": far["fd_concept"]},
                    {**far, "fd_concept": near["fd_concept"]})
    assert other["second"]["agrees"] is False
    assert "second" not in checked(Check("more right", "near", "far", "accuracy"), near, far)


def test_diversity_is_within_labels_and_zero_for_copies():
    classifier = Classifier(3, 8).eval()
    networks = Networks(classifier, classifier, torch.arange(2), (1.0, 1.0))

    def pairs(pictures: torch.Tensor, groups: list[torch.Tensor]) -> torch.Tensor:
        left, right = random_pairs(groups)
        return networks.distance(pictures[left], pictures[right]).abs().max()

    two_kinds = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8).repeat(10, 1, 1, 1)
    kinds = [torch.arange(0, 20, 2), torch.arange(1, 20, 2)]
    assert pairs(two_kinds, kinds) < 1e-5
    assert pairs(two_kinds, [torch.arange(20)]) > 1e-3


def test_matched_tones_are_those_asked_for_and_one_setting_for_the_whole_set():
    pictures = torch.randint(60, 200, (4, 3, 8, 8), dtype=torch.uint8)
    pictures[0] += 40
    matched = with_tones(pictures, (100.0, 20.0))
    assert tones(matched) == pytest.approx((100.0, 20.0), abs=0.2)
    assert matched[0].float().mean() > matched[1:].float().mean() + 5
    assert torch.equal(with_tones(pictures, tones(pictures)), pictures)


@pytest.mark.parametrize(("higher", "no_worse", "value", "expected"), [
    (False, False, -2.0, "yes"), (False, False, 2.0, "no"), (False, False, -0.5, "undecided"),
    (True, False, 2.0, "yes"), (True, False, -2.0, "no"),
    (False, True, 0.5, "no difference measured"), (False, True, 2.0, "no"), (False, True, -2.0, "yes"),
])
def test_verdicts_need_the_whole_interval(higher, no_worse, value, expected):
    check = Check("", "", "", higher=higher, no_worse=no_worse)
    assert verdict(check, Value(value, 1.0)) == expected
