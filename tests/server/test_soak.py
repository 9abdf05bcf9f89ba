"""nox -s soak, for seconds: it plies a server, finds what is wrong, and says what it saw when it is ended."""

import json
import random

import pytest
from harness.errors import HarnessError
from soak import soak
from soak.prompts import Attempt
from soak.soak import Report, Soak
from soak.vitals import Sample, trend
from tqdm import tqdm

from .prompts import adm


@pytest.fixture
def bar():
    with tqdm(total=60.0, disable=True) as bar:
        yield bar


def test_a_few_seconds_find_nothing_wrong(server, bar):
    run = Soak(server, seed=3)
    run.run(2.0, pause=0.0, bar=bar)
    assert run.report.defects == []
    assert run.report.answers
    assert run.report.samples
    assert "defects    0" in run.report.text()


def broken() -> dict:
    prompt = adm()
    prompt["5"]["inputs"]["layers"] = "u99"
    return prompt


@pytest.mark.parametrize(("prompt", "flaw", "defect"), [
    (adm(), "a lie", "picture: accepted"), (broken(), None, "'u99'"), (adm(steps=0), None, "refused: "),
    (broken(), "layers", None), (adm(seed=9), None, None)])
def test_answers_are_held_against_what_is_wrong_with_the_prompt(server, prompt, flaw, defect):
    run = Soak(server, seed=0)
    run.rng = random.Random(2)  # of which the first draw is above the share of the cancelled
    run.burst([Attempt(prompt, flaw)])
    found = [one["what"] for one in run.report.defects]
    assert defect in found[0] if defect else not found


def test_cancelled_prompts_are_no_defects(server, monkeypatch):
    monkeypatch.setattr(soak, "CANCELLED", 1.0)
    run = Soak(server, seed=1)
    run.burst([Attempt(adm(steps=2000, seed=seed), None) for seed in range(3)])
    assert run.report.defects == []
    assert run.report.answers["interrupted"] + run.report.answers["deleted"] == 3


def test_ended_early_it_leaves_its_figures(server, bar, tmp_path, monkeypatch):
    def end(*_):
        raise KeyboardInterrupt

    run = Soak(server, seed=0)
    monkeypatch.setattr(run, "ask", end)
    monkeypatch.setattr(run.rng, "randint", lambda low, high: high)
    with pytest.raises(KeyboardInterrupt):
        run.run(60.0, 0.0, bar)
    soak.leave(run.report, tmp_path / "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert sum(figures["answers"].values()) > 0
    assert figures["seconds"] > 0


def samples(memory, noise=2.0):
    rng = random.Random(0)
    return [Sample(30.0 * i, memory(i) + rng.gauss(0.0, noise), 20, 8, 0) for i in range(120)]


@pytest.mark.parametrize(("memory", "leaks"), [
    (lambda i: 800.0, False),
    (lambda i: 500.0 + 300.0 * min(i, 25) / 25, False),  # warms up
    (lambda i: 800.0 + i, True),
    (lambda i: 800.0 + 100.0 * (i > 70), True),
])
def test_a_leak_is_told_from_noise(memory, leaks):
    found = trend("memory", samples(memory))
    assert found.leaks is leaks
    assert Report(0, samples=samples(memory)).problems() == ["memory grows"] * leaks
    assert not trend("handles", samples(memory)).leaks


def test_one_process_more_is_a_leak():
    assert trend("children", [Sample(float(i), 1.0, 1, 1, i // 60) for i in range(120)]).leaks


def test_too_few_samples_say_nothing():
    assert trend("memory", [Sample(0.0, 1.0, 1, 1, 1)]) is None


@pytest.mark.parametrize(("arguments", "quoted"), [
    (["--minutes", "0"], "--minutes is 0"), (["--minutes", "nan"], "--minutes is nan"), (["--pause", "-1"], "--pause"),
    (["--json", __file__], "not overwritten")])
def test_bad_arguments_are_refused_before_a_server_starts(arguments, quoted):
    with pytest.raises(HarnessError, match=quoted):
        soak.main(arguments)
