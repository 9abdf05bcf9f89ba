"""The trainer on a handful of invented drawings: it stops, goes on, and writes a file that says what it is."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from evaluation.classifier import Classifier
from harness.errors import HarnessError
from PIL import Image
from safetensors import safe_open
from training import drawings, recipes, train, watch
from training.run import Run, new_model

SIZE = 16
SHAPES = ('<circle cx="8" cy="8" r="7" fill="red"/>', '<path d="M2 2h12v12z" fill="blue"/>')


@pytest.fixture
def data(tmp_path):
    """A folder with rendered drawings where the trainer looks for those of the packages."""
    made = [drawings.Drawing(f"thing {n}", "invented", category, f'<svg xmlns="http://www.w3.org/2000/svg" '
                             f'viewBox="0 0 16 16">{SHAPES[n % 2]}</svg>')
            for n in range(24) for category in ("Smileys", "Animals", "Food")]
    drawings.save(drawings.rendered(SIZE, tmp_path), SIZE, made)
    return tmp_path


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(train, "CURVE_EVERY", 1)
    monkeypatch.setattr(watch, "STEPS", 2)
    monkeypatch.setattr(train, "DISTANCE_PICTURES", 2 * train.SHEET)
    whole = train.chosen_recipe

    def tiny(args):
        recipe = whole(args)
        return replace(recipe, config=replace(recipe.config, channel_mult=(1, 1), attention_levels=(1,)),
                       encoders=lambda folder: {"blank": Classifier(3, 3).eval()})

    monkeypatch.setattr(train, "chosen_recipe", tiny)


def given(data, name: str, *more: str) -> list[str]:
    return ["--data", str(data), "--out", str(data / f"{name}.safetensors"), "--checkpoint", str(data / f"{name}.pt"),
            "--size", str(SIZE), "--steps", "4", "--batch-size", "2", "--measure-every", "2", "--device", "cpu",
            "--no-compile", "--no-bf16", "--categories", "Smileys,Animals,Food", *more]


def run(data, name: str, *more: str) -> Path:
    train.main(given(data, name, *more))
    return data / f"{name}.safetensors"


def facts(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_an_interrupted_run_ends_as_an_uninterrupted_one(data, monkeypatch):
    class Interrupting(train.tqdm):
        def update(self, n=1):
            if n and self.n:
                raise KeyboardInterrupt
            super().update(n)

    whole = run(data, "whole")
    with monkeypatch.context() as patched:
        patched.setattr(train, "tqdm", Interrupting)
        with pytest.raises(SystemExit, match="Stopped at step 2"):
            run(data, "parts")
    parts = run(data, "parts")
    with safe_open(whole, "pt") as a, safe_open(parts, "pt") as b:
        assert all(torch.equal(a.get_tensor(name), b.get_tensor(name)) for name in a.keys())  # noqa: SIM118
    for curve in ("training_curve", "held_out_curve"):
        assert facts(parts)[curve] == facts(whole)[curve]
    assert [step for step, _ in json.loads(facts(parts)["training_curve"])] == [1, 2, 3, 4]
    measured = json.loads(facts(parts)["held_out_curve"])
    assert [set(point) for point in measured] == [{"step", "training", "held_out", "distance_blank"}] * 2


def test_the_file_says_what_it_is_and_the_network_can_be_read_from_it(data):
    from pag_core.adm_config import read_config

    path = run(data, "file")
    with safe_open(path, "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        dtypes = {file.get_tensor(name).dtype for name in shapes}
    found = facts(path)
    assert read_config(shapes, found) == train.chosen_recipe(train.parse(given(data, "file"))).config
    assert dtypes == {torch.float16}
    assert json.loads(found["class_names"]) == ["Smileys", "Animals", "Food"]
    assert (found["seed"], found["steps"], found["label_dropout"]) == ("0", "4", "0.2")
    assert {"license", "data", "training_curve"} <= set(found)
    assert "@iconify-json/twemoji 1.2.5 (Twitter and contributors, Twemoji, CC-BY-4.0)" in found["data_licenses"]


def test_training_goes_on_from_a_file_which_the_new_one_names(data):
    first = run(data, "first")
    origin = f"sha256 {hashlib.sha256(first.read_bytes()).hexdigest()}, 4 steps"
    again = [*given(data, "second", "--start-from", str(first)), "--steps", "6"]
    assert facts(run(data, "second", "--start-from", str(first)))["started_from"] == origin
    train.main(again)  # goes on from the checkpoint, which knows it too
    found = facts(data / "second.safetensors")
    assert (found["started_from"], found["steps"]) == (origin, "6")


def started(data, path: Path, *more: str) -> Run:
    args = train.parse(given(data, "third", *more))
    recipe = train.chosen_recipe(args)
    run = Run(args, recipe, new_model(recipe.config, 0))
    run.start_from(path)
    return run


def test_a_file_gives_its_weights_and_its_classes_by_name(data):
    first = run(data, "first")
    with safe_open(first, "pt") as file:
        assert all(torch.equal(weight, file.get_tensor(name).float())
                   for name, weight in started(data, first).model.named_parameters())
        labels = file.get_tensor("label_emb.weight").float()
    wider = started(data, first, "--categories", "Food,People,Smileys").model.label_emb.weight
    assert torch.equal(wider[[0, 2]], labels[[2, 0]])
    assert wider[1].count_nonzero() == 0  # as no label


def test_another_network_is_refused(data, monkeypatch):
    first = run(data, "first")
    monkeypatch.undo()
    for more in (("--start-from", str(first)), ("--checkpoint", str(data / "first.pt"))):
        with pytest.raises(HarnessError, match=r"contains a network other than ADM Emoji 16"):
            run(data, "other", *more)


def test_several_ranks_share_a_batch_and_the_first_one_writes(data):
    """With the whole network: what makes it small here does not reach other processes."""
    command = [sys.executable, "-m", "training.train", *given(data, "ranks", "--ranks", "2", "--no-distances")]
    command[command.index("--steps") + 1] = "1"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(train.ROOT / "tools")}
    subprocess.run(command, check=True, env=environment, timeout=300)
    path = data / "ranks.safetensors"
    with safe_open(path, "pt") as file:
        assert all(file.get_tensor(name).isfinite().all() for name in file.keys())  # noqa: SIM118
    assert facts(path)["steps"] == "1"


def test_the_learning_rate_begins_to_fall_when_the_distances_have_stopped_falling(data, monkeypatch):
    seen = iter(range(5, 99))  # ever worse
    monkeypatch.setattr(watch, "distances", lambda *_: {"distance_blank": float(next(seen))})
    found = facts(run(data, "patient", "--steps", "1000", "--patience", "3", "--cooldown", "0.5",
                      "--measure-every", "1"))
    assert found["steps"] == "8"  # 1 and 3 measurements, and as many steps again


@pytest.mark.parametrize(("a", "b", "stopped"), [
    ((3, 2, 2.5, 2.1), (3, 2, 2.5, 2.1), True),
    ((3, 2, 2.5, 2.1), (3, 2, 2.5, 1.9), False),  # one of the two still falls
    ((3, 2, 1), (3, 2, 1), False),
    ((3, 4), (3, 4), False),  # too few to say
])
def test_distances_have_stopped_falling_when_both_encoders_say_so(a, b, stopped):
    measured = [{"step": 1, "distance_a": x, "distance_b": y} for x, y in zip(a, b, strict=True)]
    assert watch.stopped_falling(measured, 2) is stopped
    assert not watch.stopped_falling([{"step": 1, "held_out": 1.0}] * 9, 2)


def test_a_sheet_of_samples_is_drawn_with_every_measurement(data):
    run(data, "sheet")
    with Image.open(data / "sheet.png") as sheet:
        assert sheet.size == (train.SHEET * SIZE * 3, 5 * SIZE * 3)  # two rows without a label, one of every class


def test_pictures_move_on_white_and_only_some_are_mirrored():
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    images[..., 0] = 200  # a light left edge
    data = recipes.Data(images, torch.tensor([0, 1]), flips=torch.tensor([True, False]))
    seen = torch.cat([data.draw(torch.tensor([0, 1]), generator=torch.Generator().manual_seed(n)) for n in range(20)])
    edges = (seen[:, 0, 0, 0] > seen[:, 0, 0, 3]).unflatten(0, (20, 2))
    assert edges[:, 1].all()
    assert 4 < edges[:, 0].sum() < 16
    moved = replace(data, flips=None, shift=1)
    seen = torch.cat([moved.draw(torch.tensor([0]), generator=torch.Generator().manual_seed(n)) for n in range(40)])
    assert len({tuple(picture.flatten().tolist()) for picture in seen}) == 9
    assert any(torch.equal(picture[:, 1:, 1:], torch.cat([images[0].float().div(127.5).sub(1)])[:, :3, :3])
               and (picture[:, 0] == 1).all() for picture in seen)


@pytest.mark.parametrize(("more", "message"), [
    (("--ranks", "3"), "--ranks 3 must be at least 1 and divide the batch of 2"),
    (("--start-from", "nowhere.safetensors"), "--start-from nowhere.safetensors: no such file"),
    (("--cooldown", "0"), "--cooldown 0.0: expected a share greater than 0 and at most 1"),
    (("--size", "20"), "--size 20: expected a multiple of 8, at least 16"),
    (("--categories", "Food,Cars"), "--categories Cars: expected names from Smileys, Animals, Food, People"),
    (("--categories", " , "), "--categories is empty: expected names from Smileys, Animals, Food, People"),
])
def test_what_cannot_be_is_said_before_training(data, capsys, more, message):
    with pytest.raises(SystemExit):
        run(data, "bad", *more)
    assert message in capsys.readouterr().err
