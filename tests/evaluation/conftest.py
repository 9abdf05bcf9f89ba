"""The evaluation's parts, with the host in this process where there is one; sampling is tiny."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from evaluation.config import Config
from evaluation.plan import Found, layer_search, other_scale_search, pag_scale_search, tables
from harness.in_process import import_pack, start_host

CATEGORIES, COLOURS = ("Smileys", "Food"), ("red", "blue", "green")
COMFYUI = os.environ.get("COMFYUI_PATH")
NEEDS_HOST = ("test_sampling.py", "test_evaluate.py", "test_restoration.py")

if COMFYUI:
    start_host(COMFYUI, "--cpu", "--use-pytorch-cross-attention")
    import_pack()


def pytest_ignore_collect(collection_path):
    return True if not COMFYUI and collection_path.name in NEEDS_HOST else None


@pytest.fixture
def inference_mode():
    import torch

    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def every_config() -> set[Config]:
    """All that a full run may sample."""
    choices = {**pag_scale_search(["u2-3", "all"]), **other_scale_search("u2-3")}
    return {*(row.config for table in tables(Found()) for row in table.rows), *(row.config for row in layer_search()),
            *(config for options in choices.values() for _, config in options)}


@pytest.fixture(scope="session")
def small_model() -> str:
    """A network with the shipped one's layers and heads, for pictures of 16 × 16, as PAG ADM Loader lists it."""
    import folder_paths
    import torch
    from safetensors.torch import save_file
    from training.recipes import emoji

    from pag_core.adm import ADMUNet

    torch.manual_seed(0)
    config = replace(emoji(tuple(CATEGORIES), 16).config, attention_levels=(2, 3))
    facts = {"class_names": json.dumps(CATEGORIES), "image_size": "16", "head_channels": "32", "qkv_order": "new",
             "noise_schedule": "linear", "label_dropout": "0.2", "pag_layers": "m0"}
    path = Path(folder_paths.models_dir) / "adm" / "small.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(ADMUNet(config).half().state_dict(), path, facts)
    return path.name


@pytest.fixture
def data(tmp_path) -> Path:
    """A folder with discs where the drawings of the packages are looked for."""
    from training import drawings

    svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><circle cx="4" cy="4" r="{}" fill="{}"/></svg>'
    made = [drawings.Drawing(f"disc {n}", "invented", CATEGORIES[n % 2], svg.format(1 + n % 4, COLOURS[n % 3]))
            for n in range(60)]
    drawings.save(drawings.rendered(16, tmp_path), 16, made)
    return tmp_path


@pytest.fixture
def tiny(monkeypatch, tmp_path, small_model, data):
    """Arguments for a run of seconds: two steps, four samples a row, networks that have learnt nothing."""
    import torch
    from evaluation import arguments, classifier, networks, sampling
    from training.drawings import CATEGORIES

    monkeypatch.setattr(arguments, "LEAST", 2)
    monkeypatch.setattr(sampling, "STEPS", 2)
    monkeypatch.setattr("evaluation.metrics.NEIGHBOURS", 1)
    monkeypatch.setattr("evaluation.metrics.RESAMPLES", 3)
    monkeypatch.setattr("evaluation.metrics.PAIRS", 4)
    torch.manual_seed(0)
    for name in ("category_classifier", "concept_encoder"):
        blank = classifier.Classifier(3, len(CATEGORIES)).eval().requires_grad_(False)
        monkeypatch.setattr(networks, name, lambda *_, blank=blank: (blank, 0.1))
    return ["--model", small_model, "--data", str(data), "--samples", "8", "--only", "fig12", "--batch", "2",
            "--out", str(tmp_path / "out")]
