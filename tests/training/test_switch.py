"""The fine-tuning experiment: what its hooks do, and that both copies start from the shipped model."""

import json
from argparse import Namespace
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from training import switch, torch_support, train, watch
from training.data import Data
from training.run import Run

from pag_core.adm import ADMUNet
from pag_core.adm_config import read_config


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """A narrow network for pictures of 16 × 16 in place of the shipped one."""
    torch.manual_seed(0)
    config = replace(switch.RECIPE.config, image_size=16, channel_mult=(1, 1), attention_levels=())
    monkeypatch.setattr(switch, "RECIPE", replace(switch.RECIPE, config=config))
    save_file(ADMUNet(config).state_dict(), tmp_path / "shipped.safetensors")
    monkeypatch.setattr(switch, "SHIPPED", tmp_path / "shipped.safetensors")


@pytest.fixture
def model():
    return switch.SwitchedADM.shipped().eval().requires_grad_(False)


@pytest.fixture
def data():
    images, labels = torch.zeros(4, 3, 16, 16, dtype=torch.uint8), torch.zeros(4, dtype=torch.long)
    return Data(images, labels, (images, labels))


class Chosen(switch.Perturbing):
    """In these rows."""

    def __init__(self, model, rows: list[float]) -> None:
        super().__init__(model.switch, 0.0)
        self.chosen = torch.tensor(rows)

    def after_embedding(self, emb):
        super().after_embedding(emb)
        self.rows = self.chosen
        return emb + self.rows[:, None] * self.switch


def predict(model, rows: list[float]):
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)).expand(len(rows), -1, -1, -1)
    return model(x, torch.full([len(rows)], 500.0), None, Chosen(model, rows))


def test_the_recipe_is_that_of_the_shipped_file():
    path = train.parse([]).out
    with safe_open(path, "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        facts = file.metadata()
    recipe = train.chosen_recipe(train.parse([]))
    assert read_config(shapes, facts) == recipe.config
    assert (tuple(json.loads(facts["class_names"])), facts["pag_layers"]) == (recipe.class_names, recipe.pag_layers)


def test_only_the_chosen_rows_are_perturbed_and_told(model):
    plain, perturbed = predict(model, [0.0, 1.0])
    torch.testing.assert_close(plain, predict(model, [0.0])[0])
    assert (plain - perturbed).abs().max() > 1e-3
    with torch.no_grad():
        model.switch.fill_(0.1)
        told_plain, told = predict(model, [0.0, 1.0])
        model.switch.zero_()
    torch.testing.assert_close(told_plain, plain)
    assert (told - perturbed).abs().max() > 1e-3


def test_a_chosen_row_gets_its_own_values(model):
    """PAG Eq. 13."""
    q, k, v = torch.randn(3, 2, 16, 64, generator=torch.Generator().manual_seed(0))
    hooks = switch.Perturbing(model.switch, 0.0)
    hooks.rows = torch.tensor([0.0, 1.0])
    elsewhere = train.MathAttention().attention(q, k, v, 2, None)
    for block in switch.LAYERS:
        result = hooks.attention(q, k, v, 2, block)
        assert torch.equal(result[0], elsewhere[0])
        assert torch.equal(result[1], v[1])
    assert torch.equal(hooks.attention(q, k, v, 2, ("input", 1)), elsewhere)


def test_training_reaches_the_switch_only_through_perturbed_rows(tmp_path, data):
    for share, moves in ((0.0, False), (1.0, True)):
        model = switch.SwitchedADM.shipped()
        run = Run(train.parse(["--steps", "1", "--batch-size", "2", "--device", "cpu", "--no-compile", "--no-bf16",
                               "--checkpoint", str(tmp_path / "c.pt")]), switch.RECIPE, model)
        train.train(run, data, switch.Perturbing(model.switch, share))
        assert bool(model.switch.count_nonzero()) is moves


def test_pictures_do_not_depend_on_their_batch_and_the_switch_changes_them(model, monkeypatch):
    monkeypatch.setattr(watch, "STEPS", 2)
    whole = switch.sample(model, 2.0, range(3)).int()
    assert (whole[2:] - switch.sample(model, 2.0, range(2, 3)).int()).abs().max() <= 1
    assert whole[0].ne(whole[1]).any()
    model.switch.fill_(0.5)
    assert whole.ne(switch.sample(model, 2.0, range(3)).int()).any()


def test_the_error_of_the_perturbed_prediction_is_another(model, data):
    found = switch.errors(model, data)
    assert set(found) == {"plain", "perturbed"}
    assert found["plain"] != found["perturbed"]


def test_fine_tuning_leaves_the_shipped_file_alone(tmp_path, monkeypatch, data):
    monkeypatch.setattr(train, "EXPORT_SECONDS", 0)
    monkeypatch.setattr(torch_support.shutil, "which", lambda name: None)  # no compiler: it takes longer than this
    shipped = switch.SHIPPED.read_bytes()
    switch.fine_tuned("plain", data, Namespace(steps=2, batch_size=2, lr=1e-4, out=tmp_path / "out", device="cpu"))
    assert list((tmp_path / "out").glob("*.safetensors"))
    assert switch.SHIPPED.read_bytes() == shipped
