"""Bad input and interruption, as a client of the API meets them."""

import threading

import pytest
from harness.client import WorkflowError

from .prompts import adm


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
    (dict(label=10), "PAGADMClassLabel", "10"),
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
