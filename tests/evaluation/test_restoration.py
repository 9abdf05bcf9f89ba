"""Restorations: which pictures, the same noise for both methods, the figures, and the command."""

import json
from dataclasses import replace

import pytest
import torch
from evaluation import arguments, evaluate
from evaluation.arguments import SEARCH_FIRST
from evaluation.networks import perceptual_distance
from evaluation.restoration import latent, restorer
from evaluation.restoration.plan import (
    EXPERIMENTS,
    TASKS,
    Restoration,
    Settings,
    found_before,
    guidance_search,
    pair,
    step_size_search,
)
from evaluation.restoration.restorer import LatentRestorer, PixelRestorer, Restorer, Truths
from PIL import Image


@pytest.fixture
def small(monkeypatch):
    """Two steps, batches of two."""
    for key, experiment in EXPERIMENTS.items():
        monkeypatch.setitem(EXPERIMENTS, key, replace(experiment, steps=2))
    monkeypatch.setattr(restorer, "BATCH", {"cpu": 2})


@pytest.fixture
def pictures():
    return torch.randint(256, (40, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (a.int() - b.int()).abs().max() <= 1


def test_no_picture_is_both_searched_with_and_judged_by(pictures):
    pictures[:, 0, 0, 0] = torch.arange(40)
    truths = Truths(pictures)
    table, held_out = (set(truths[ids][:, 0, 0, 0].tolist())
                       for ids in (range(20), range(SEARCH_FIRST, SEARCH_FIRST + 20)))
    assert len(table) == len(held_out) == 20
    assert not table & held_out


def test_configurations_that_differ_have_keys_that_differ():
    every = set()
    for experiment in EXPERIMENTS.values():
        sizes = {name: task.step_size for name, task in experiment.tasks.items()}
        every |= {*step_size_search(experiment), *guidance_search(experiment, sizes)}
        every |= {config for both in found_before(experiment) for config in (both.plain, both.guided)}
    assert len({config.key for config in every}) == len(every)


@pytest.fixture(scope="module")
def latent_model(tmp_path_factory):
    """Two steps of training, which the second call must not repeat."""
    folder, images = tmp_path_factory.mktemp("latent"), torch.zeros(40, 3, 16, 16, dtype=torch.uint8)
    images[:, :, 4:12, 4:12] = torch.arange(40, dtype=torch.uint8)[:, None, None, None]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("VAE_STEPS", "U_NET_STEPS", "VAE_BATCH", "U_NET_BATCH"):
            patch.setattr(latent, name, 2)
        patch.setattr(latent, "compiled", lambda network: network)
        latent.get_latent_model(folder, images)
        patch.setattr(latent, "train", None)
        return latent.get_latent_model(folder, images)


@pytest.fixture(params=EXPERIMENTS)
def made(request, small, small_model, pictures) -> Restorer:
    experiment = EXPERIMENTS[request.param]
    if experiment.method == "DPS":
        return PixelRestorer(experiment, small_model, Truths(pictures))
    model, vae = request.getfixturevalue("latent_model")
    return LatentRestorer(experiment, model, vae, latent.nothing(), Truths(pictures))


def test_a_picture_is_restored_the_same_in_every_run_and_pag_changes_it(made):
    both = pair(made.experiment, "sr4", 3.0, 4.0, "all")
    assert made.batches(both.plain, range(5), {0, 1}, 25) == [[2, 3], [4, 5]]
    plain, guided = (made.sample(config, [2, 3]) for config in (both.plain, both.guided))
    assert plain.shape == (2, 3, 16, 16)
    assert torch.equal(plain, made.sample(both.plain, [2, 3]))
    assert not close(plain, guided)
    assert not close(plain, made.sample(both.plain, [4, 5]))
    assert made.cost(both.guided) > made.cost(both.plain)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_measures_pictures_of_the_data(task, small_model, pictures):
    with torch.inference_mode():
        operator, y, shown = PixelRestorer(EXPERIMENTS["table8"], small_model, Truths(pictures)).measure(task, [0, 1])
    assert operator.picture_size(tuple(y.shape[1:3])) == (16, 16)
    assert shown.shape == (2, 16, 16, 3)


def test_the_perceptual_distance_looks_at_directions_alone():
    maps = [torch.rand(3, 5, 4, 4), torch.rand(3, 7, 2, 2)]
    assert perceptual_distance(maps, [2 * stage for stage in maps]).abs().max() < 1e-6
    assert perceptual_distance(maps, [-stage for stage in maps]) == pytest.approx([8.0] * 3)


def test_it_is_part_of_full_runs_only():
    def chosen(*given: str) -> list[str]:
        return [experiment.key for experiment in arguments.chosen_restorations(arguments.parse([*given]))]

    assert chosen() == []
    assert chosen("--full") == ["table8", "table4"]
    assert chosen("--full", "--only", "table1") == []
    assert chosen("--only", "table4") == ["table4"]


def test_the_command_searches_restores_and_goes_on(tiny, small, monkeypatch, tmp_path):
    """On one task, with few settings."""
    monkeypatch.setitem(EXPERIMENTS, "table8", replace(EXPERIMENTS["table8"], tasks={"box": Settings((1.0, 5.0), 1.0)},
                                                       guidance=((1.0, "u3"),)))
    sample, made = Restorer.sample, []

    def counted(self, config, ids):
        made.append((config, ids[0]))
        return sample(self, config, ids)

    monkeypatch.setattr(Restorer, "sample", counted)
    given = arguments.parse([*tiny, "--only", "table8", "--samples", "10", "--search", "10",
                             "--json", str(tmp_path / "figures.json")])
    evaluate.evaluate(given)
    searched = [config for config, first in made if first == SEARCH_FIRST]
    assert searched[:2] == [Restoration("table8", "box", 1.0), Restoration("table8", "box", 5.0)]
    assert len(made) == len(set(made)) == 5  # three settings in the search, two in the table
    made.clear()
    given.json = None
    evaluate.evaluate(given)
    assert made == []

    (table,) = json.loads((tmp_path / "figures.json").read_text())["tables"]
    assert [row["name"] for row in table["rows"]] == ["box inpainting: DPS", "box inpainting: DPS + PAG"]
    assert table["samples"] == 2
    for row in table["rows"]:
        assert set(row["metrics"]) == {"fd", "fd_concept", "lpips", "psnr", "flops"}
    assert [check["metric"] for check in table["checks"]] == ["fd", "lpips", "psnr"]
    results = tmp_path / "out" / "results" / "001"
    assert {path.name for path in results.iterdir()} == {
        "evaluation.json", "evaluation.csv", "evaluation.md", "table8.png", "table8-samples.jpg"}
    assert "Table 8" in (results / "evaluation.md").read_text()
    assert Image.open(results / "table8-samples.jpg").width > 900
