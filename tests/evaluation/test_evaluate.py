"""The command: what it refuses, how it goes on after an interruption, what it writes, and ranks that share the work."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import evaluation.sampling as sampling
import pytest
from evaluation import arguments, evaluate
from evaluation.config import Config, pag
from evaluation.plan import SCALES, SINGLE_LAYERS, Found
from evaluation.store import Store
from evaluation.work import Ranks
from harness.errors import HarnessError
from harness.in_process import ROOT
from safetensors import safe_open
from safetensors.torch import load_file, save_file


@pytest.mark.parametrize(("given", "complaint"), [
    (["--only", "table1,table7"], "table7"),
    (["--samples", "7"], "--samples 7"),
    (["--full", "--search", "3"], "--search 3"),
    (["--batch", "0"], "--batch"),
    (["--ranks", "-1"], "--ranks"),
    (["--quick", "--full"], "not allowed with"),
    (["--device", "tpu"], "tpu"),
    (["--json", "no/such/folder/a.json"], "the folder no/such/folder does not exist"),
    (["--out", __file__], "is not a folder"),
])
def test_bad_arguments_are_named_before_any_work(given, complaint, capsys):
    with pytest.raises(SystemExit) as stopped:
        evaluate.main(given)
    assert stopped.value.code == 2
    assert complaint in capsys.readouterr().err


def test_a_json_file_that_exists_is_left_alone(tmp_path, capsys):
    path = tmp_path / "mine.json"
    path.write_text("mine")
    with pytest.raises(SystemExit):
        evaluate.main(["--json", str(path)])
    assert "exists" in capsys.readouterr().err
    assert path.read_text() == "mine"


def test_a_json_file_that_has_come_meanwhile_is_left_alone(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text("mine")
    args = arguments.parse(["--out", str(tmp_path)])
    args.json = path
    with pytest.raises(FileExistsError):
        evaluate.Results(args, {}).add({}, None)
    assert path.read_text() == "mine"


def test_what_runs_by_default():
    quick = arguments.parse([])
    assert (quick.samples, quick.search) == (arguments.QUICK, 0)
    assert [table.key for table in arguments.chosen_tables(quick, Found(), 0.65)] == ["table1", "fig12"]
    full = arguments.parse(["--full"])
    everything = {table.key for table in arguments.all_tables()}
    assert {table.key for table in arguments.chosen_tables(full, Found(), 0.65)} == everything
    for key in arguments.SEARCH_KEYS:
        alone = arguments.parse(["--only", key])
        (table,) = arguments.chosen_tables(alone, Found(), 0.65)
        assert arguments.ids_of(alone, table).start == arguments.SEARCH_FIRST


def run(given: list[str], *more: str) -> None:
    evaluate.evaluate(arguments.parse([*given, *more]))


def test_an_interrupted_run_goes_on_and_nothing_is_sampled_twice(tiny, monkeypatch, tmp_path):
    sample, made = sampling.Sampler.sample, []

    def interrupted(self, config, ids):
        if len(made) == 5:
            raise KeyboardInterrupt
        made.append((config, tuple(ids)))
        return sample(self, config, ids)

    monkeypatch.setattr(sampling.Sampler, "sample", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tiny)
    before, made[:] = made[:], [None]  # never 5 again: 11 more are to come, one entry is there

    def counted(self, config, ids):
        made.append((config, tuple(ids)))
        return sample(self, config, ids)

    monkeypatch.setattr(sampling.Sampler, "sample", counted)
    run(tiny, "--json", str(tmp_path / "figures.json"))
    assert len(before) == 5
    assert not set(before) & set(made[1:])
    assert len(before) + len(made[1:]) == 8 * 2  # eight scales, four samples in batches of two

    made.clear()
    run(tiny)
    assert made == []
    results = sorted(path.name for path in (tmp_path / "out" / "results").iterdir())
    assert results == ["001", "002"]
    names = {path.name for path in (tmp_path / "out" / "results" / "001").iterdir()}
    assert names == {"evaluation.json", "evaluation.csv", "evaluation.md", "fig12.png", "fig12-samples.jpg"}

    report = json.loads((tmp_path / "figures.json").read_text())
    (table,) = report["tables"]
    assert table["samples"] == 4
    assert [row["name"] for row in table["rows"]] == [f"s {s}" for s in range(8)]
    cost = [row["metrics"]["flops"]["value"] for row in table["rows"]]
    assert 1.4 < cost[1] / cost[0] < 2
    assert {check["verdict"] for check in table["checks"]} <= {"yes", "no", "undecided"}


def test_what_is_judged_is_written_before_the_next_table_is_sampled(tiny, monkeypatch, tmp_path):
    table, made = evaluate.wanted, []

    def interrupted(args, plan):
        if len(plan) == 1 and made:
            raise KeyboardInterrupt
        made.extend(plan if len(plan) == 1 else [])
        return table(args, plan)

    monkeypatch.setattr(evaluate, "wanted", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tiny, "--only", "heads,rescale", "--json", str(tmp_path / "figures.json"))
    for path in (tmp_path / "figures.json", tmp_path / "out" / "results" / "001" / "evaluation.json"):
        assert [each["key"] for each in json.loads(path.read_text())["tables"]] == ["heads"]


def test_a_model_of_other_things_is_refused(tiny, small_model):
    import folder_paths

    path = Path(folder_paths.get_full_path_or_raise("pag_adm", small_model))
    weights = load_file(path)
    with safe_open(path, "pt") as file:
        facts = file.metadata()
    for name, value, message in (("class_names", '["Cars", "Food"]', "categories Cars: expected names from Smileys"),
                                 ("image_size", "0", "names no size or no classes")):
        save_file(weights, path.with_name("other.safetensors"), {**facts, name: value})
        with pytest.raises(HarnessError, match=message):
            run(tiny, "--model", "other.safetensors")


RANKS = """
import sys
from pathlib import Path
from types import SimpleNamespace
from pathlib import Path
from harness.in_process import import_pack, start_host
start_host(sys.argv[1], "--cpu")
import_pack()
import folder_paths
import evaluation.sampling as sampling
from evaluation.config import Config, pag
from evaluation.store import Store
from evaluation.work import Ranks, Worker
sampling.STEPS = 2
ranks = Ranks.join()
folder_paths.add_model_folder_path("pag_adm", sys.argv[3])
sampler = sampling.Sampler(sys.argv[4])
Worker(sampler, Store(Path(sys.argv[2])), ranks, 2).run([(Config(), range(4)), (pag(2, "u2"), range(3))])
Path(sys.argv[2], f"rank-{ranks.rank}").touch()
ranks.leave()
"""


def test_two_ranks_make_the_samples_of_one(tmp_path, monkeypatch, small_model):
    import folder_paths

    path = Path(folder_paths.get_full_path_or_raise("pag_adm", small_model))
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                    str(script), os.environ["COMFYUI_PATH"], str(tmp_path / "two"), str(path.parent), path.name],
                   check=True, timeout=300,
                   env={**os.environ, "PYTHONPATH": str(ROOT / "tools"), "OMP_NUM_THREADS": "1"})
    assert {path.name for path in (tmp_path / "two").glob("rank-*")} == {"rank-0", "rank-1"}
    monkeypatch.setattr(sampling, "STEPS", 2)
    sampler, two = sampling.Sampler(small_model), Store(tmp_path / "two")
    for config, count in ((Config(), 4), (pag(2, "u2"), 3)):
        alone = sampler.sample(config, list(range(count)))
        assert (alone.int() - two.load(config, range(count)).int()).abs().max() <= 1


def test_more_samples_choose_pags_scale_than_its_layers():
    """A judge that takes the first of all choices."""
    runs, held_out = [], range(10, 15)
    worker = SimpleNamespace(run=runs.extend, ranks=Ranks())
    judge = SimpleNamespace(best=lambda choices, ids: [value for value, _ in choices])
    found = evaluate.search(worker, judge, held_out)
    assert (found.layers, found.scale) == (SINGLE_LAYERS[0], SCALES[0])
    finals = {config for config, ids in runs if len(ids) > len(held_out)}
    assert finals == {pag(s, layers) for s in SCALES for layers in SINGLE_LAYERS[:evaluate.FINALISTS]}
    assert {ids.start for _, ids in runs} == {held_out.start}
    assert len(runs) == len(evaluate.search_samples(found, held_out))
