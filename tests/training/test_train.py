"""The trainer on a handful of invented pictures: it stops, goes on, and writes a file that says what it is."""

import gzip
import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from harness.errors import HarnessError
from safetensors import safe_open

from . import train


def idx(*dims: int, data: bytes) -> bytes:
    return b"\0\0\x08" + bytes([len(dims)]) + b"".join(d.to_bytes(4, "big") for d in dims) + data


@pytest.fixture
def data(tmp_path):
    images = idx(4, 28, 28, data=bytes(i % 251 for i in range(4 * 28 * 28)))
    for name, content in (("images-idx3", images), ("labels-idx1", idx(4, data=bytes([0, 3, 9, 1])))):
        (tmp_path / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(content))
    return tmp_path


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(train, "CURVE_EVERY", 1)
    tiny = replace(train.CONFIG, channel_mult=(1, 1), num_res_blocks=1, attention_levels=(1,))
    monkeypatch.setattr(train, "CONFIG", tiny)


def given(data, name: str, *more: str) -> list[str]:
    return ["--data", str(data), "--out", str(data / f"{name}.safetensors"), "--checkpoint", str(data / f"{name}.pt"),
            "--steps", "4", "--batch-size", "2", "--device", "cpu", "--no-compile", "--no-bf16", *more]


def run(data, name: str, *more: str) -> Path:
    train.main(given(data, name, *more))
    return data / f"{name}.safetensors"


def test_an_interrupted_run_ends_as_an_uninterrupted_one(data, monkeypatch):
    class Interrupting(train.tqdm):
        def update(self, n=1):
            if n and self.n:
                raise KeyboardInterrupt
            super().update(n)

    whole = run(data, "whole")
    with monkeypatch.context() as patched:
        patched.setattr(train, "tqdm", Interrupting)
        with pytest.raises(SystemExit, match="stopped at step 2"):
            run(data, "parts")
    parts = run(data, "parts")
    with safe_open(whole, "pt") as a, safe_open(parts, "pt") as b:
        assert all(torch.equal(a.get_tensor(name), b.get_tensor(name)) for name in a.keys())  # noqa: SIM118
        facts = b.metadata()
        assert facts["training_curve"] == a.metadata()["training_curve"]
    assert [step for step, _ in json.loads(facts["training_curve"])] == [1, 2, 3, 4]


def test_the_file_says_what_it_is_and_the_network_can_be_read_from_it(data):
    from pag_core.adm_config import read_config

    with safe_open(run(data, "file"), "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        dtypes = {file.get_tensor(name).dtype for name in shapes}
        facts = file.metadata()
    assert read_config(shapes, facts) == train.CONFIG
    assert dtypes == {torch.float16}
    assert json.loads(facts["class_names"])[9] == "Ankle boot"
    assert (facts["seed"], facts["steps"], facts["label_dropout"]) == ("0", "4", "0.2")
    assert {"license", "data", "training_curve"} <= set(facts)


def test_training_goes_on_from_a_file_which_the_new_one_names(data):
    first = run(data, "first")
    origin = f"sha256 {hashlib.sha256(first.read_bytes()).hexdigest()}, 4 steps"
    again = [*given(data, "second", "--start-from", str(first)), "--steps", "6"]
    with safe_open(run(data, "second", "--start-from", str(first)), "pt") as file:
        assert file.metadata()["started_from"] == origin
    train.main(again)  # goes on from the checkpoint, which knows it too
    with safe_open(data / "second.safetensors", "pt") as file:
        assert (file.metadata()["started_from"], file.metadata()["steps"]) == (origin, "6")
    started = train.Run(train.parse(given(data, "third", "--start-from", str(first))), train.new_model(0))
    started.start_from(first)
    with safe_open(first, "pt") as file:
        assert all(torch.equal(weight, file.get_tensor(name).float())
                   for name, weight in started.model.named_parameters())


def test_several_ranks_share_a_batch_and_the_first_one_writes(data):
    """With the whole network: what makes it small here does not reach other processes."""
    command = [sys.executable, "-m", "training.train", *given(data, "ranks", "--ranks", "2")]
    command[command.index("--steps") + 1] = "1"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(train.ROOT / "tests")}
    subprocess.run(command, check=True, env=environment, timeout=300)
    with safe_open(data / "ranks.safetensors", "pt") as file:
        assert file.metadata()["steps"] == "1"
        assert all(file.get_tensor(name).isfinite().all() for name in file.keys())  # noqa: SIM118


@pytest.mark.parametrize(("more", "message"), [
    (("--ranks", "3"), "--ranks 3 must be at least 1 and divide the batch of 2"),
    (("--start-from", "nowhere.safetensors"), "--start-from nowhere.safetensors: no such file"),
])
def test_what_cannot_be_is_said_before_training(data, capsys, more, message):
    with pytest.raises(SystemExit):
        run(data, "bad", *more)
    assert message in capsys.readouterr().err


def test_missing_data_comes_with_the_remedy(tmp_path):
    with pytest.raises(HarnessError, match="apt install dataset-fashion-mnist"):
        run(tmp_path, "nothing")


def test_a_truncated_data_file_is_named(data):
    path = data / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))
    with pytest.raises(HarnessError, match=r"train-images-idx3.* is no complete IDX file"):
        run(data, "short")


def test_images_are_padded_and_black_is_minus_one(data):
    images, labels = train.read_data(data)
    assert images.shape == (4, 32, 32)
    assert images[:, :2].count_nonzero() == 0
    assert labels.tolist() == [0, 3, 9, 1]
