"""The fine-tuning experiment: what its hooks do, and that both copies start from the shipped model."""

from argparse import Namespace

import pytest
import torch
from training import switch, torch_support, train
from training.recipes import FASHION, Data
from training.run import Run


@pytest.fixture(scope="module")
def model():
    return switch.SwitchedADM.shipped().eval().requires_grad_(False)


def predict(model, rows: list[float], x=None):
    hooks = switch.Perturbing(model.switch)
    hooks.rows = torch.tensor(rows)
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)).expand(len(rows), -1, -1, -1)
    return model(x, torch.full([len(rows)], 500.0), None, hooks)


def test_the_layers_are_those_that_the_file_recommends(model):
    inputs = [block for block, _ in model.attention_layers() if block[0] == "input"]
    assert tuple(inputs[2:4]) == switch.LAYERS
    assert FASHION.pag_layers == "d2-3"


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
    hooks = switch.Perturbing(model.switch)
    hooks.rows = torch.tensor([0.0, 1.0])
    elsewhere = train.MathAttention().attention(q, k, v, 2, None)
    for block in switch.LAYERS:
        result = hooks.attention(q, k, v, 2, block)
        assert torch.equal(result[0], elsewhere[0])
        assert torch.equal(result[1], v[1])
    assert torch.equal(hooks.attention(q, k, v, 2, ("middle", 0)), elsewhere)


def test_training_reaches_the_switch_only_through_perturbed_rows(tmp_path):
    images, labels = torch.zeros(4, 32, 32, dtype=torch.uint8), torch.zeros(4, dtype=torch.long)
    for share, moves in ((0.0, False), (1.0, True)):
        model = switch.SwitchedADM.shipped()
        run = Run(train.parse(["--recipe", "fashion", "--steps", "1", "--batch-size", "2", "--device", "cpu",
                               "--checkpoint", str(tmp_path / "c.pt"), "--no-compile", "--no-bf16"]), FASHION, model)
        train.train(run, Data.of_grey(images, labels), switch.Perturbing(model.switch, share))
        assert bool(model.switch.count_nonzero()) is moves


def test_pictures_do_not_depend_on_their_batch(model, monkeypatch):
    monkeypatch.setattr(switch, "STEPS", 2)
    whole = switch.sample(model, 2.0, range(3)).int()
    assert (whole[2:] - switch.sample(model, 2.0, range(2, 3)).int()).abs().max() <= 1
    assert whole[0].ne(whole[1]).any()


def test_fine_tuning_leaves_the_shipped_file_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "EXPORT_SECONDS", 0)
    monkeypatch.setattr(torch_support.shutil, "which", lambda name: None)  # no compiler: it takes longer than this
    shipped = switch.SHIPPED.read_bytes()
    images, labels = torch.zeros(4, 32, 32, dtype=torch.uint8), torch.zeros(4, dtype=torch.long)
    switch.fine_tuned("plain", images, labels, Namespace(steps=2, batch_size=2, lr=1e-4, out=tmp_path))
    assert list(tmp_path.glob("*.safetensors"))
    assert switch.SHIPPED.read_bytes() == shipped
