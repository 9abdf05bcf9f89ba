"""PAG by our three nodes equals PAG by the host's own node: the parity table.

Every case runs the host's PerturbedAttentionGuidance under its KSampler, and the same by PAGModelPatch under KSampler,
by PAGKSampler, and by PAGGuider under SamplerCustomAdvanced. The largest errors are printed at the end of the module;
with PAG_PARITY_TABLE set, the whole table is also written there as JSON.
"""

import functools
import json
import os
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from comfy.model_patcher import ModelPatcher

from . import models
from .composed import HOST
from .runs import WAYS, Run, counted, host_pag, patched, relative_error

LIMIT = 1e-4  # max|a − b| / max|b|, in fp32
SCALE = 3.0
EVEN, ODD = (8, 12), (9, 13)


@dataclass(frozen=True, eq=False)
class Case:
    """One row of the table."""

    model: Callable[[], ModelPatcher]
    sampler: str = "euler"
    cfg: float = 7.0
    batch: int = 1
    size: tuple[int, int] = EVEN
    masked: bool = False        # an inpainting mask and a picture
    low_memory: bool = False    # the host runs one row at a time
    note: str = ""
    others: dict = field(default_factory=dict)  # of a Run

    @property
    def name(self) -> str:
        parts = [self.model.__name__, self.sampler, f"cfg{self.cfg:g}", f"batch{self.batch}",
                 "x".join(map(str, self.size)), "masked" * self.masked, "lowmem" * self.low_memory, self.note]
        return "-".join(filter(None, parts))

    @property
    def run(self) -> Run:
        latent = models.empty_latent(self.batch, *self.size)
        if self.masked:
            latent = models.picture_latent(self.batch, *self.size, noise_mask=models.half_mask(1, *self.size))
        return Run(cfg=self.cfg, sampler=self.sampler, **{"latent": latent, **self.others})


@contextmanager
def memory(model: ModelPatcher, low: bool):
    """With `low`, no two rows fit into one call."""
    if not low:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.model, "memory_required", lambda *args, **kwargs: 1e30)
        yield


EMPTY = {"positive": models.empty_conditioning(), "negative": models.empty_conditioning()}
CASES = [
    Case(models.sd15, "euler", 7.0, 1, EVEN),
    Case(models.sd15, "euler", 1.0, 3, ODD),
    Case(models.sd15, "dpmpp_2m", 7.0, 3, ODD),
    Case(models.sd15, "ddim", 1.0, 1, EVEN),
    Case(models.sd15, "euler_ancestral", 7.0, 1, ODD),
    Case(models.sd15, "dpmpp_2s_ancestral", 7.0, 3, EVEN),
    Case(models.sd2, "euler", 1.0, 1, ODD),
    Case(models.sd2, "dpmpp_2m", 7.0, 3, EVEN),
    Case(models.sd2, "ddim", 7.0, 3, ODD),
    Case(models.sd2, "euler_ancestral", 1.0, 1, EVEN),
    Case(models.sdxl, "euler", 7.0, 3, ODD),
    Case(models.sdxl, "dpmpp_2m", 1.0, 1, EVEN),
    Case(models.sdxl, "ddim", 7.0, 1, EVEN),
    Case(models.sdxl, "euler_ancestral", 1.0, 3, ODD),
    Case(models.sdxl_v, "dpmpp_2m", 7.0, 1, ODD),
    Case(models.x4_upscaler, "euler", 7.0, 1, ODD),
    Case(models.sd15, "euler", 7.0, 3, ODD, masked=True),
    Case(models.sd2, "euler_ancestral", 7.0, 1, EVEN, masked=True),
    Case(models.sdxl, "ddim", 1.0, 1, ODD, masked=True),
    Case(models.sd15_inpainting, "euler", 7.0, 1, ODD, masked=True),
    Case(models.sd15_inpainting, "dpmpp_2m", 1.0, 3, EVEN, masked=True),
    Case(models.sd15_inpainting, "ddim", 7.0, 1, EVEN),
    Case(models.sd15, "euler", 7.0, 3, ODD, low_memory=True),
    Case(models.sdxl, "dpmpp_2m", 1.0, 1, EVEN, low_memory=True),
    Case(models.sd15_inpainting, "euler_ancestral", 7.0, 1, EVEN, masked=True, low_memory=True),
    Case(models.sd15, "euler", 1.0, 1, EVEN, note="unconditional", others=EMPTY),
    Case(models.sdxl, "dpmpp_2m", 7.0, 3, ODD, note="unconditional", others=EMPTY),
    Case(models.sd15, "dpmpp_2m", 7.0, 1, EVEN, note="karras", others={"scheduler": "karras"}),
    Case(models.sd15, "euler", 7.0, 1, EVEN, note="img2img", others={
        "latent": models.picture_latent(), "denoise": 0.5, "steps": 2}),
    Case(models.sd15, "euler", 7.0, 3, ODD, note="areas", others={
        "positive": models.conditioning(1) + models.conditioning(3, area=(4, 6, 0, 0), strength=0.8)}),
]


@functools.cache
def host_reference(case: Case) -> torch.Tensor:
    """The host's own PAG, checked to be worth the comparison: PAG has a visible effect here."""
    model = case.model()
    with memory(model, case.low_memory):
        reference = case.run.ksampler(host_pag(model, SCALE))
        assert relative_error(case.run.ksampler(model), reference) > 100 * LIMIT
    return reference


@pytest.fixture(scope="module")
def parity_table(request):
    """Collects {"case", "node", "error"} and reports them when the module is done."""
    table: list[dict] = []
    yield table
    if path := os.environ.get("PAG_PARITY_TABLE"):
        Path(path).write_text(json.dumps(table, indent=1), encoding="utf-8")
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    capture = request.config.pluginmanager.get_plugin("capturemanager")
    if not table or reporter is None:
        return
    with capture.global_and_fixture_disabled():
        reporter.write_line(f"\nparity with the host's own PAG: {len(table)} comparisons, limit {LIMIT:g}, largest:")
        for row in sorted(table, key=lambda row: -row["error"])[:5]:
            reporter.write_line(f"  {row['error']:.1e}  {row['node']:<13}  {row['case']}")


@pytest.mark.in_turn("node")
@pytest.mark.parametrize("node", WAYS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_node_equals_the_hosts_own_pag(case, node, parity_table, record_property, composed):
    reference = host_reference(case)
    model = case.model()
    with memory(model, case.low_memory):
        result = WAYS[node](case.run, model, SCALE)
    error = relative_error(result, reference)
    record_property("relative_max_error", error)
    parity_table.append({"case": case.name, "node": node, "error": error})
    if case.low_memory:
        composed.check("low memory, one row in each call", HOST, result, reference)
    assert error <= LIMIT


@pytest.mark.parametrize("cfg", [1.0, 7.0])
def test_low_memory_really_runs_one_row_at_a_time(cfg):
    model = models.sd15()
    counting, rows = counted(model, batch=3)
    with memory(model, low=True):
        Run(cfg=cfg, steps=2, latent=models.empty_latent(3)).ksampler(patched(counting, SCALE))
    assert rows == [1] * (6 if cfg == 7.0 else 4)
