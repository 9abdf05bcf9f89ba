"""A quick look at a file in training, from its weights to the tables and pictures."""

import json
from dataclasses import replace

import pytest
from evaluation import look
from evaluation.classifier import Classifier
from harness.errors import HarnessError
from safetensors.torch import save_file
from training import drawings
from training.recipes import emoji
from training.run import new_model

NAMES = ["Food", "Smileys"]


@pytest.fixture
def file(tmp_path):
    config = replace(emoji(tuple(NAMES), 16).config, channel_mult=(1, 1), attention_levels=(1,))
    facts = {"class_names": json.dumps(NAMES), "image_size": "16", "head_channels": "32", "qkv_order": "new",
             "noise_schedule": "linear"}
    save_file(new_model(config, 0).state_dict(), tmp_path / "tiny.safetensors", facts)
    return tmp_path / "tiny.safetensors"


@pytest.fixture(autouse=True)
def short(monkeypatch):
    blank = Classifier(3, 2).eval().requires_grad_(False)
    for name in ("category_classifier", "concept_encoder"):
        monkeypatch.setattr(look, name, lambda *_: (blank, 1.0))
    monkeypatch.setattr("training.watch.STEPS", 2)
    monkeypatch.setattr("evaluation.metrics.RESAMPLES", 2)


def test_a_look_gives_distances_copies_and_two_pictures(file, tmp_path, capsys):
    svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><circle cx="4" cy="4" r="{}" fill="{}"/></svg>'
    drawings.save(drawings.rendered(16, tmp_path), 16, [
        drawings.Drawing(f"disc {n}", "invented", NAMES[n % 2], svg.format(1 + n % 4, ("red", "blue", "green")[n % 3]))
        for n in range(40)])
    out = tmp_path / "out"
    look.main([str(file), "--samples", "50", "--layers", "m0,d0+u0", "--scales", "0.5,1", "--data", str(tmp_path),
               "--out", str(out)])
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in table[1:]] == ["| no guidance", "| m0, s 0.5", "| m0, s 1",
                                                            "| d0+u0, s 0.5", "| d0+u0, s 1"]
    assert "category network" in table[0]
    assert "copies by pixels" in table[0]
    assert {path.name for path in out.iterdir()} == {"tiny.png", "tiny-neighbours.png"}


def test_layers_are_counted_as_the_nodes_count_them(file):
    model, _ = look.read(file)
    assert look.layer_names(model) == {"d0": ("input", 3), "m0": ("middle", 0), "u0": ("output", 0),
                                       "u1": ("output", 1)}


def test_bad_input_names_the_remedy(file, tmp_path, capsys):
    with pytest.raises(SystemExit):
        look.main([str(file), "--layers", "d0+u9"])
    assert "--layers u9: this model has d0, m0, u0, u1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        look.main([str(file), "--samples", "5"])
    with pytest.raises(HarnessError, match=r"nowhere\.safetensors: no such file"):
        look.main([str(tmp_path / "nowhere.safetensors")])
