"""The networks that see emoji drawings: what they learn, and the figures that come from them."""

import pytest
import torch
from evaluation import encoders, look, neighbours
from evaluation.classifier import Classifier
from harness.errors import HarnessError
from torch import Tensor
from training.drawings import Drawings

CONCEPTS = 12
STYLES = 3


@pytest.fixture(scope="module")
def drawings() -> Drawings:
    """Every concept is a coloured stripe at a place of its own, every style a shade of it; categories are colours."""
    images = torch.full((CONCEPTS * STYLES, 3, 16, 16), 255, dtype=torch.uint8)
    labels = torch.arange(CONCEPTS * STYLES) // STYLES % 2
    for n in range(len(images)):
        concept, style = divmod(n, STYLES)
        images[n, :, 1 + concept] = 40 * style
        images[n, labels[n], 1 + concept] = 255
    names = [f"stripe {n // STYLES}" for n in range(len(images))]
    held_out = torch.arange(len(images)) // STYLES >= CONCEPTS - 4
    return Drawings(images, labels, held_out, names, ["style"] * len(names), ("Red", "Green"))


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(encoders, "STEPS", 25)
    monkeypatch.setattr(encoders, "BATCH", 32)
    monkeypatch.setattr(encoders, "LEAST", {"category": 0.0, "concept": 0.0})


def test_the_category_network_learns_categories_and_is_trained_once(drawings, tmp_path, monkeypatch):
    made, accuracy = encoders.category_classifier(tmp_path, drawings)
    assert accuracy > 0.6  # guessing: 0.5
    monkeypatch.setattr(encoders, "save_file", None)
    again, _ = encoders.category_classifier(tmp_path, drawings)
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), again.parameters(), strict=True))


def test_the_concept_network_is_another_architecture_and_learns_without_categories(drawings, tmp_path):
    network, share = encoders.concept_encoder(tmp_path, drawings)
    assert 0.0 <= share <= 1.0
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    features, contrasted = encoders.encode(network, drawings.images)
    assert features.shape == (CONCEPTS * STYLES, encoders.FEATURES)
    torch.testing.assert_close(contrasted.norm(dim=1), torch.ones(CONCEPTS * STYLES))


def test_the_contrast_is_that_of_the_paper():
    seen = torch.nn.functional.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    labels = [0, 0, 0, 1, 1, 2]
    total = 0.0
    for i in range(6):
        others = [j for j in range(6) if j != i]
        below = sum(torch.exp(seen[i] @ seen[j] / encoders.TEMPERATURE) for j in others)
        alike = [j for j in others if labels[j] == labels[i]]
        if alike:
            total -= sum(torch.log(torch.exp(seen[i] @ seen[j] / encoders.TEMPERATURE) / below) for j in alike
                         ) / len(alike)
    assert float(encoders.contrast(seen, torch.tensor(labels))) == pytest.approx(float(total) / 6, rel=1e-5)


def test_a_network_that_learnt_nothing_is_refused(drawings, tmp_path, monkeypatch):
    monkeypatch.setattr(encoders, "STEPS", 1)
    monkeypatch.setattr(encoders, "LEAST", {"concept": 1.1})
    with pytest.raises(HarnessError, match=r"The concept network is right on only .*expected 110% .*Delete .*concept-"):
        encoders.concept_encoder(tmp_path, drawings)


def noise(count: int, seed: int) -> Tensor:
    return torch.randint(256, (count, 3, 16, 16), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_a_repeated_picture_is_found_also_mirrored_and_counted_as_a_copy():
    training, held_out = noise(30, 0), noise(30, 1)
    drawn = torch.cat([training[3:4], training[7:8].flip(3), noise(2, 2)])
    found = neighbours.nearest_pixels(drawn, training)
    assert found.rows[:2].tolist() == [3, 7]
    assert found.distances[:2].max() < 0.1
    assert neighbours.copies(found, neighbours.nearest_pixels(held_out, training)).value == 0.5
    network = Classifier(3, 2).eval()
    assert neighbours.nearest_features(drawn[:1], training, network).rows.tolist() == [3]
    sheet = neighbours.neighbours_sheet(drawn, training, {"pixels": found})
    assert sheet.width > sheet.height / 4


def test_distances_of_a_look_are_paired_with_the_first_row(monkeypatch):
    monkeypatch.setattr("evaluation.metrics.RESAMPLES", 5)
    real, near, far = noise(80, 0), noise(80, 1), noise(80, 2) // 4
    found = look.distances({"none": far, "same": far, "better": near}, real, Classifier(3, 2).eval())
    assert (found["same"][1].value, found["same"][1].margin) == (0.0, 0.0)
    gain = found["better"][1]
    assert gain.value == pytest.approx(found["none"][0].value - found["better"][0].value)
    assert gain.value > gain.margin > 0
