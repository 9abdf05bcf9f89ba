"""PAG Head Search over the API: lists of prompts, what it shows, and going on after an interruption."""

import itertools
import threading

import pytest
from harness.client import WorkflowError

from .prompts import adm


def search(steps: int = 2, seed: int = 40, **inputs) -> dict:
    """Every head of the middle block, by eye; `adm` without what comes after the sampler."""
    prompt = adm(steps=steps, seed=seed)
    prompt["5"] = {"class_type": "PAGHeadSearch", "inputs": {
        **prompt["5"]["inputs"], "vae": ["1", 1], "layers": "m0", "score": "eye", "seeds": 1, **inputs}}
    return {name: prompt[name] for name in "12345"}


def ran(client, prompt: dict) -> tuple[dict, list[tuple[int, int]]]:
    """(what the node shows, the reports of progress)."""
    steps: list[tuple[int, int]] = []
    outputs = client.run(prompt, progress=lambda node, done, total: steps.append((done, total)), timeout=240).outputs
    return outputs["5"], steps


def test_it_shows_the_ranking_and_a_grid_for_each_picture_and_keeps_what_it_made(client):
    shown, steps = ran(client, search())
    assert len(shown["images"]) == 2  # of the batch
    (text,) = shown["text"]
    assert text.startswith("5 heads, 1 prompt, 1 seed, 1 round.")
    assert text.count("m0:h") == 5
    assert steps[-1] == (12, 12)
    again, steps = ran(client, search(pag_scale=2.0, chosen=""))
    assert again["text"] == [text]
    assert max(done for done, _ in steps) <= 2  # without PAG; a step within 0.1 s is not reported


def test_a_list_of_prompts(client, object_info):
    if "CreateList" not in object_info:
        pytest.skip("this ComfyUI has no node that makes lists")
    prompt = search(positive=["6", 0])
    prompt["6"] = {"class_type": "CreateList", "inputs": {"inputs.input0": ["2", 0], "inputs.input1": ["3", 0]}}
    shown, _ = ran(client, prompt)
    assert shown["text"][0].startswith("5 heads, 2 prompts, 1 seed")
    assert len(shown["images"]) == 4


def test_an_interrupted_search_goes_on(client):
    interrupted = threading.Event()

    def interrupt_once(node, done, total):
        if done > 25 and not interrupted.is_set():  # the first head is done
            interrupted.set()
            client.interrupt()

    prompt = search(steps=12, seed=41)
    with pytest.raises(WorkflowError, match="interrupted"):
        client.run(prompt, progress=interrupt_once, timeout=240)
    shown, steps = ran(client, prompt)
    assert shown["text"][0].count("m0:h") == 5
    numbers = [done for done, _ in steps]
    assert max(after - before for before, after in itertools.pairwise(numbers)) > 12  # a head was passed over


def test_a_search_that_is_too_long_is_refused_before_it_samples(client):
    steps = []
    with pytest.raises(WorkflowError, match=r"needs 6 runs of 2 steps .* but max_runs is 3"):
        client.run(search(max_runs=3), progress=lambda *step: steps.append(step))
    assert not steps
