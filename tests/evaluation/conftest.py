"""The evaluation's parts, with the host in this process where there is one; sampling is tiny."""

import os

import pytest
from evaluation.config import Config
from evaluation.plan import Found, layer_search, other_scale_search, pag_scale_search, tables
from harness.in_process import import_pack, start_host

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
    choices = {**pag_scale_search(["u2-5", "all"]), **other_scale_search("u2-5")}
    return {*(row.config for table in tables(Found()) for row in table.rows), *(row.config for row in layer_search()),
            *(config for options in choices.values() for _, config in options)}


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Arguments for a run of seconds: two steps, four samples a row, a classifier that has learnt nothing."""
    import torch
    from evaluation import arguments, classifier, evaluate, sampling

    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (200, 32, 32), generator=generator, dtype=torch.uint8), torch.arange(200) % 10
    monkeypatch.setattr(evaluate, "read_data", lambda folder: (images, images))
    monkeypatch.setattr(arguments, "LEAST", 2)
    monkeypatch.setattr(sampling, "STEPS", 2)
    monkeypatch.setattr("evaluation.metrics.NEIGHBOURS", 1)
    monkeypatch.setattr("evaluation.metrics.RESAMPLES", 3)
    torch.manual_seed(0)
    blank = classifier.Classifier().eval().requires_grad_(False)
    monkeypatch.setattr(classifier, "get_classifier", lambda *_: (blank, 0.1))
    return ["--samples", "8", "--only", "fig12", "--batch", "2", "--out", str(tmp_path / "out")]
