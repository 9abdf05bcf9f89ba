"""Bad input, interruption, progress and previews, as a client of the API meets them."""

import io
import json
import threading
import time

import numpy as np
import pytest
from harness.client import WorkflowError
from PIL import Image

from .prompts import adm, with_options


@pytest.mark.parametrize(("inputs", "quoted"), [
    (dict(pag_scale=-1.0), "pag_scale"),
    (dict(steps=0), "steps"),
    (dict(sampler_name="no-such-sampler"), "no-such-sampler"),
    (dict(denoise=2.0), "denoise"),
])
def test_refused_before_it_is_queued(client, inputs, quoted):
    with pytest.raises(WorkflowError, match="refused") as caught:
        client.submit(adm(**inputs))
    assert "PAGKSampler (node 5)" in str(caught.value)
    assert quoted in str(caught.value)


def test_unknown_checkpoint_is_refused(client):
    prompt = adm()
    prompt["1"]["inputs"]["ckpt_name"] = "no-such-model.safetensors"
    with pytest.raises(WorkflowError, match="no-such-model"):
        client.submit(prompt)


@pytest.mark.parametrize(("inputs", "node", "quoted"), [
    (dict(layers="u99"), "PAGKSampler", "u99"),
    (dict(layers=""), "PAGKSampler", "auto"),
    (dict(label=4), "PAGADMClassLabel", "class label 4"),
])
def test_fails_with_a_named_error_before_sampling(client, inputs, node, quoted):
    steps = []
    with pytest.raises(WorkflowError, match=node) as caught:
        client.run(adm(**inputs), progress=lambda *step: steps.append(step))
    assert quoted in str(caught.value)
    assert not steps


def test_interruption_stops_the_run_and_leaves_the_server_usable(client):
    def interrupt_once(*_):
        if not interrupted.is_set():
            interrupted.set()
            client.interrupt()

    interrupted = threading.Event()
    with pytest.raises(WorkflowError, match="interrupted"):
        client.run(adm(steps=2000, seed=1), progress=interrupt_once, timeout=120)
    assert interrupted.is_set()
    assert client.run(adm(seed=2), timeout=120).images


def distilled(node: str, **inputs) -> dict:
    """`adm` with one of the score distillation nodes, under PAG Guider, in the sampler's place."""
    prompt = adm()
    guider = {name: prompt["5"]["inputs"][name] for name in ("model", "positive", "negative", "cfg", "pag_scale",
                                                             "layers")}
    return {**prompt, "8": {"class_type": "PAGGuider", "inputs": guider},
            "5": {"class_type": node, "inputs": {"guider": ["8", 0], "latent_image": ["4", 0], "seed": 0, **inputs}}}


def test_score_distillation_shows_progress_and_can_be_interrupted(client):
    optimizer = dict(learning_rate=0.1, order="annealed")
    steps = []
    assert client.run(distilled("PAGSDSOptimizer", steps=3, **optimizer), timeout=120,
                      progress=lambda *step: steps.append(step[-2:])).images
    assert (3, 3) in steps
    interrupted = threading.Event()

    def interrupt_once(*_):
        if not interrupted.is_set():
            interrupted.set()
            client.interrupt()

    with pytest.raises(WorkflowError, match="interrupted"):
        client.run(distilled("PAGSDSOptimizer", steps=2000, **optimizer), progress=interrupt_once, timeout=120)


def test_a_gradient_goes_back_to_the_picture(client):
    """Through the graph, as a renderer of another pack gets it."""
    prompt = distilled("PAGSDSGradient")
    prompt["9"] = {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 32, "batch_size": 1, "color": 8421504}}
    prompt["4"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["9", 0], "vae": ["1", 1]}}
    prompt["6"] = {"class_type": "PAGSDSImageGradient",
                   "inputs": {"image": ["9", 0], "vae": ["1", 1], "gradient": ["5", 0]}}
    (shown,) = client.run(prompt, timeout=120).images
    darkest, brightest = Image.open(io.BytesIO(client.image(shown))).convert("L").getextrema()
    assert darkest == 0 < brightest


def previews(client, prompt) -> list[np.ndarray]:
    """The pictures that arrive while the prompt runs."""
    seen = []
    client.run(prompt, timeout=120, preview=lambda data: seen.append(np.asarray(Image.open(io.BytesIO(data)), float)))
    return seen


def test_previews_arrive_and_can_show_what_pag_changes(client):
    plain = previews(client, with_options(adm(steps=4, seed=3), preview="denoised"))
    delta = previews(client, with_options(adm(steps=4, seed=3), preview="delta"))
    assert len(plain) == len(delta) == 4
    assert all(a.shape == b.shape for a, b in zip(plain, delta, strict=True))
    assert all(np.abs(a - b).mean() > 10 for a, b in zip(plain, delta, strict=True))
    for picture in delta:  # in the colours of the map: blue is never the strongest where it is bright
        bright = picture[picture.sum(-1) > 400]
        assert len(bright)
        assert (bright[:, 0] > bright[:, 2]).all()


def test_delta_previews_under_another_nodes_sampler_follow_its_own(client):
    prompt = with_options(adm(steps=3, seed=4), preview="delta")
    prompt["9"] = {"class_type": "PAGModelPatch", "inputs": {"model": ["1", 0], "scale": 2.0, "layers": "auto",
                                                             "options": ["8", 0]}}
    inputs = {name: value for name, value in prompt["5"]["inputs"].items()
              if name not in ("pag_scale", "layers", "options")}
    prompt["5"] = {"class_type": "KSampler", "inputs": {**inputs, "model": ["9", 0]}}
    assert len(previews(client, prompt)) == 6


def grid(**inputs):
    prompt = adm(steps=2)
    given = {name: value for name, value in prompt["5"]["inputs"].items() if name not in ("pag_scale", "layers")}
    prompt["5"] = {"class_type": "PAGGrid", "inputs": {
        **given, "vae": ["1", 1], "scales": "0, 2", "layer_selections": "auto\nm0", "perturbations": "", **inputs}}
    return {name: prompt[name] for name in "12345"}


def test_a_grids_progress_runs_through_all_cells(client):
    steps = []
    images = client.run(grid(), progress=lambda node, done, total: steps.append((done, total)), timeout=120).images
    assert len(images) == 2  # one for each picture of the batch
    assert {total for _, total in steps} == {6}  # three cells of two steps: without PAG once
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert steps[-1] == (6, 6)


def test_a_grid_with_too_many_cells_is_refused_before_sampling(client):
    steps = []
    with pytest.raises(WorkflowError, match="the limit is 64"):
        client.run(grid(scales=",".join(map(str, range(60)))), progress=lambda *step: steps.append(step))
    assert not steps


def queued_pictures(client, prompts: list[dict]) -> list[list[bytes]]:
    """The pictures of each, all of them queued before the first is waited for."""
    keys = [client.submit(prompt) for prompt in prompts]
    deadline = time.monotonic() + 120.0
    while True:
        histories = [json.loads(client.get(f"/history/{key}")).get(key) for key in keys]
        if all(histories):
            return [[client.image(entry) for entry in history["outputs"]["7"]["images"]] for history in histories]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_prompts_queued_at_once_do_not_mix(client):
    """Each gives what it gives in another order, with the model forgotten in between; so does the same seed again."""
    prompts = [adm(seed=11, pag_scale=scale, layers=layers, cfg=cfg, label=3)
               for scale, layers, cfg in ((0.0, "auto", 1.0), (4.0, "m0", 1.0), (4.0, "u1-3", 3.0), (2.0, "all", 1.0))]
    together = queued_pictures(client, prompts)
    assert len({tuple(images) for images in together}) == len(prompts)
    client.post("/free", {"unload_models": True, "free_memory": True})
    assert [queued_pictures(client, [prompt])[0] for prompt in reversed(prompts)] == together[::-1]
