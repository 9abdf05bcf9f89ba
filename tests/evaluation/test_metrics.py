"""Figures whose answer is known: the same pictures twice, shifted clouds of points, one picture many times over."""

import pytest
import torch
from evaluation.classifier import Classifier, Seen, look
from evaluation.judge import tones, verdict, with_tones
from evaluation.metrics import Real, Value, difference, frechet, frechet_between, measure, pair_distances, score
from evaluation.plan import Check


def cloud(count: int, shift: float = 0.0, spread: float = 1.0, seed: int = 0) -> torch.Tensor:
    return shift + spread * torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))


def seen(features: torch.Tensor) -> Seen:
    maps = features[:, :, None, None]
    return Seen([maps], features, features, features.mean(1), features.std(1))


def test_a_set_has_no_distance_from_itself():
    points = cloud(500)
    assert frechet(points, Real.of(points)) == pytest.approx(0, abs=1e-6)
    assert frechet_between(points[:20], points[:20]) == pytest.approx(0, abs=1e-6)
    assert frechet_between(points[:20], points[20:40]) > 0.1


def test_the_frechet_distance_of_shifted_and_widened_gaussians():
    """|μ₁ − μ₂|² + Σ (σ₁ − σ₂)²: 8 · 0.5² and 8 · (2 − 1)²."""
    real = Real.of(cloud(20000))
    assert frechet(cloud(20000, shift=0.5, seed=1), real) == pytest.approx(2.0, rel=0.05)
    assert frechet(cloud(20000, spread=2.0, seed=1), real) == pytest.approx(8.0, rel=0.05)


def test_fewer_pictures_look_further_away_so_only_equal_counts_compare():
    real = Real.of(cloud(5000))
    assert frechet(cloud(30, seed=1), real) > 2 * frechet(cloud(300, seed=1), real)


def test_the_score_is_the_number_of_classes_at_best_and_one_at_worst():
    sure = 100 * torch.eye(10).repeat(20, 1)
    assert score(sure) == pytest.approx(10)
    assert score(sure[:1].repeat(50, 1)) == pytest.approx(1)


def test_precision_and_recall_tell_missing_variety_from_bad_pictures():
    real = Real.of(cloud(400))
    narrow, wide = (measure(seen(cloud(400, spread=spread, seed=1)), real) for spread in (0.2, 3.0))
    assert narrow["precision"].value > 0.95 > 0.5 > narrow["recall"].value
    assert wide["recall"].value > 0.9 > 0.2 > wide["precision"].value


def test_the_interval_is_as_wide_as_other_seeds_scatter():
    real = Real.of(cloud(20000, seed=99))
    first = measure(seen(cloud(200, shift=0.5)), real)["fd"]
    others = torch.tensor([frechet(cloud(200, shift=0.5, seed=seed), real) for seed in range(1, 41)])
    assert first.margin == pytest.approx(1.96 * float(others.std()), rel=0.35)


def test_a_difference_is_surer_than_its_parts_where_the_noise_is_shared():
    real = Real.of(cloud(5000, seed=9))
    near, far = cloud(200, shift=0.5), cloud(200, shift=0.6)
    paired = difference("fd", seen(near), seen(far), real)
    apart = [measure(seen(points), real)["fd"].margin for points in (near, far)]
    assert paired.value < -paired.margin
    assert paired.margin < min(apart)


def test_diversity_is_within_labels_and_zero_for_copies():
    classifier = Classifier().eval()
    same = look(classifier, torch.randint(256, (1, 32, 32), dtype=torch.uint8).expand(20, -1, -1),
                with_maps=True)
    assert pair_distances(same, [torch.arange(20)]).abs().max() < 1e-5
    two_kinds = torch.randint(256, (2, 32, 32), dtype=torch.uint8).repeat(10, 1, 1)
    kinds = [torch.arange(0, 20, 2), torch.arange(1, 20, 2)]
    assert pair_distances(look(classifier, two_kinds, with_maps=True), kinds).abs().max() < 1e-5
    assert pair_distances(look(classifier, two_kinds, with_maps=True), [torch.arange(20)]).max() > 1e-3


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
    (False, True, 0.5, "no difference seen"), (False, True, 2.0, "no"), (False, True, -2.0, "yes"),
])
def test_verdicts_need_the_whole_interval(higher, no_worse, value, expected):
    check = Check("", "", "", higher=higher, no_worse=no_worse)
    assert verdict(check, Value(value, 1.0)) == expected
