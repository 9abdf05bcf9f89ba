"""What goes wrong in the middle of a run: nothing of it stays, however often, and the next run is right.

PAG_FAULT_RUNS=200 makes the interrupted runs as many; an ordinary run takes a few.
"""

import gc
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import comfy.model_management
import psutil
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from pag_pack.nodes.host.hooks import attention
from pag_pack.nodes.host.run.report import Report
from pag_pack.pag_core.settings import PAGOptions

from . import models
from .runs import WAYS, Run, host_pag, patched, snapshot
from .test_leaves_no_trace import BrokenError, at_call, hooks

SCALE = 3.0
RUNS = int(os.environ.get("PAG_FAULT_RUNS", "12"))
STEPS = 3
families = pytest.mark.parametrize("family", [models.sd15, models.flux], ids=["U-Net", "transformer"])
ways = pytest.mark.parametrize("sample", WAYS.values(), ids=WAYS)


def tensor_bytes() -> int:
    return sum(thing.numel() * thing.element_size() for thing in gc.get_objects() if type(thing) is torch.Tensor)


def held() -> tuple[int, int, int]:
    """(objects, bytes in tensors, resident bytes) of this process."""
    gc.collect()
    return len(gc.get_objects()), tensor_bytes(), psutil.Process().memory_info().rss


@families
def test_interrupted_runs_leave_no_memory(family, record_property):
    """By every node, at every call of the network in turn, with and without what a run remembers between steps."""
    model = family()
    settings = (PAGOptions(), PAGOptions(reuse_every=2), PAGOptions(preview="delta"))

    def interrupted(number: int) -> None:
        sample = tuple(WAYS.values())[number % len(WAYS)]
        options = settings[number // len(WAYS) % len(settings)]
        inside = at_call(model, 1 + number % STEPS, comfy.model_management.interrupt_current_processing)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            sample(Run(steps=2 * STEPS), inside, SCALE, "auto", options)

    before = snapshot(model)
    for number in range(9):  # what the host and torch keep from the first runs
        interrupted(number)
    objects, tensors, resident = held()
    for number in range(RUNS):
        interrupted(number)
    more_objects, more_tensors, more_resident = (after - start for after, start in
                                                 zip(held(), (objects, tensors, resident), strict=True))
    record_property("growth", [more_objects, more_tensors, more_resident])
    print(f"{RUNS} interrupted runs: {more_objects:+d} objects, {more_tensors:+d} bytes in tensors, "
          f"{more_resident / 2**20:+.1f} MB resident")
    assert more_objects < max(20, RUNS // 2), "less than one object for every second run"
    assert more_tensors == 0
    assert more_resident < 40 * 2**20
    assert snapshot(model) == before
    assert hooks(model) == 0


def broken_at(number: int, function):
    """The function, failing in its call with that number."""
    calls = []

    def call(*args, **kwargs):
        calls.append(None)
        if len(calls) == number:
            raise BrokenError
        return function(*args, **kwargs)

    return call


@pytest.mark.in_turn("sample")
@ways
@families
@pytest.mark.parametrize(("where", "name"), [(attention, "perturb_attention"), (Report, "record")],
                         ids=["in the attention", "after the step"])
def test_a_failure_of_our_own_leaves_no_trace(family, sample, where, name, monkeypatch):
    model, settings = family(), Run(steps=STEPS)
    plain, guided = settings.ksampler(model), sample(settings, model, SCALE, "auto")
    before = snapshot(model)
    with monkeypatch.context() as patch, pytest.raises(BrokenError):
        patch.setattr(where, name, broken_at(2, getattr(where, name)))
        sample(settings, model, SCALE, "auto")
    assert snapshot(model) == before
    assert hooks(model) == 0
    assert torch.equal(settings.ksampler(model), plain)
    assert torch.equal(sample(settings, model, SCALE, "auto"), guided)


def fail(*_):
    raise BrokenError


@pytest.mark.in_turn("sample")
@ways
@pytest.mark.parametrize(("family", "kind"), [
    (models.sd15, "attn1_patch"), (models.sd15, "attn2_patch"), (models.sd15, "attn1_output_patch"),
    (models.sd15, "output_block_patch"), (models.flux, "dit")], ids=lambda value: getattr(value, "__name__", value))
def test_a_failure_of_another_nodes_patch_leaves_no_trace(family, kind, sample):
    """Some of these fail inside the network while the perturbed rows are left out of it, or just put back."""
    settings, model = Run(steps=STEPS), family()
    guided = sample(settings, model, SCALE, "auto")
    before = snapshot(model)
    broken = model.clone()
    if kind == "dit":
        broken.set_model_patch_replace(fail, "dit", "single_block", 1)
    else:
        broken.set_model_patch(fail, kind)
    with pytest.raises(BrokenError):
        sample(settings, broken, SCALE, "auto")
    assert snapshot(model) == before
    assert hooks(model) == 0
    assert torch.equal(sample(settings, model, SCALE, "auto"), guided)


@ways
@families
def test_a_failure_after_every_wrapper_of_the_step_leaves_no_trace(family, sample):
    """In the innermost wrapper, at the last step, where a run holds most."""
    settings, model = Run(steps=STEPS), family()
    guided = sample(settings, model, SCALE, "auto")
    broken = model.clone()
    broken.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "broken", broken_at(STEPS, lambda call, *args: call(*args)))
    with pytest.raises(BrokenError):
        sample(settings, broken, SCALE, "auto", PAGOptions(reuse_every=2))
    assert hooks(model) == 0
    assert torch.equal(sample(settings, model, SCALE, "auto"), guided)


ROOT = Path(__file__).resolve().parents[2]
ELSEWHERE = """
import os, sys
sys.path[:0] = {paths!r}
from harness.in_process import import_pack, start_host
start_host(os.environ["COMFYUI_PATH"], "--cpu", "--use-pytorch-cross-attention")
import_pack()
import hashlib, torch
from host import models
from host.runs import WAYS, Run
with torch.inference_mode():
    for build in (models.sd15, models.flux):
        result = WAYS["PAGKSampler"](Run(sampler="euler_ancestral"), build(), {scale}, "auto")
        print("picture", hashlib.sha256(result.numpy().tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_the_same_seed_gives_the_same_picture_again_after_other_nodes_and_in_another_process():
    settings = Run(sampler="euler_ancestral")
    found = []
    for build in (models.sd15, models.flux):
        model = build()
        first = settings.pag_ksampler(model, SCALE, "auto")
        settings.ksampler(host_pag(model, 1.0))
        settings.model_patch(model, 1.0, "all", PAGOptions("random_mask"))
        settings.ksampler(patched(patched(model, 1.0, "auto"), 2.0, "all"))
        assert torch.equal(settings.pag_ksampler(model, SCALE, "auto"), first)
        found.append(hashlib.sha256(first.numpy().tobytes()).hexdigest())
    script = ELSEWHERE.format(paths=[str(ROOT / folder) for folder in ("tools", "tests")], scale=SCALE)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    lines = [line.removeprefix("picture ") for line in done.stdout.splitlines() if line.startswith("picture ")]
    assert lines == found, done.stderr[-2000:]
