"""PAG Grid: every cell is what PAG KSampler makes of its settings, from the same noise."""

import comfy.model_management
import comfy.utils
import pytest
import torch
from pag_pack.nodes.comparison import MAX_CELLS, PAGGrid
from pag_pack.pag_core.settings import PAGOptions

from . import models
from .runs import Run, counted, snapshot
from .test_inspection import vae
from .test_leaves_no_trace import at_call

RUN = Run(steps=2)


def compare(run: Run, model, scales: str = "0, 1, 3", selections: str = "m0\nd0", perturbations: str = "",
            options: PAGOptions | None = None, decode=None, **extra):
    """(grids [B, H, W, 3], images [cells·B, H, W, 3])."""
    return PAGGrid.execute(
        model, run.seed, run.steps, run.cfg, scales, selections, perturbations, run.sampler, run.scheduler,
        run.positive, run.negative, run.latent, decode or vae(), run.denoise, *run.cfg_window, options,
        **{"cell_size": 64, **extra}).result


@pytest.mark.parametrize("run", [RUN, Run(steps=2, cfg=1.0, latent=models.empty_latent(2))], ids=["CFG", "batch"])
def test_every_cell_is_pag_ksamplers(run):
    model, decode = models.sd15(), vae()
    before = snapshot(model)
    grids, images = compare(run, model, decode=decode)
    cells = [run.pag_ksampler(model, scale, layers) for layers in ("m0", "d0") for scale in (0.0, 1.0, 3.0)]
    assert torch.equal(images, torch.cat([decode.decode(cell) for cell in cells]))
    assert grids.shape[0] == len(run.latent["samples"])
    assert grids.std() > 0.05
    assert snapshot(model) == before


def test_rows_are_every_selection_with_every_perturbation():
    model, decode, options = models.sd15(), vae(), PAGOptions(rescale=0.5)
    _, images = compare(RUN, model, "3", " m0 \n\nd0", "identity\nuniform", options, decode)
    cells = [RUN.pag_ksampler(model, 3.0, layers, PAGOptions(rescale=0.5, perturbation=kind))
             for layers in ("m0", "d0") for kind in ("identity", "uniform")]
    assert torch.equal(images, torch.cat([decode.decode(cell) for cell in cells]))


def test_without_pag_is_sampled_once_for_all_rows():
    model, rows = counted(models.sd15())
    _, images = compare(RUN, model, "0, 3, 3.0", "m0\nd0\nall")
    assert sorted(rows) == [2] * 2 + [3] * 6
    assert len(images) == 6
    assert torch.equal(images[0], images[2])
    assert torch.equal(images[0], images[4])


def test_progress_counts_through_all_cells(monkeypatch):
    reports = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK",
                        lambda value, total, preview, node_id=None: reports.append((value, total)))
    monkeypatch.setattr(comfy.utils, "PROGRESS_THROTTLE_MIN_INTERVAL", 0.0)
    compare(RUN, models.sd15(), "0, 3", "m0\nd0")
    assert [report for report in reports if report[1] == 6] == [(value, 6) for value in range(1, 7)]


@pytest.mark.parametrize(("values", "message"), [
    ({"scales": ""}, "scales must be numbers separated by commas.*''"),
    ({"scales": "0, much"}, "'much'"),
    ({"scales": "0, -1"}, "PAG scale must be"),
    ({"scales": "nan"}, "PAG scale must be"),
    ({"selections": " \n "}, "layer_selections is empty"),
    ({"selections": "m0\nd9"}, "'d9'"),
    ({"perturbations": "identity\nnonsense"}, "nonsense"),
    ({"scales": ",".join(map(str, range(MAX_CELLS + 1))), "selections": "m0"}, f"at most {MAX_CELLS}"),
    ({"decode": vae(channels=16)}, "VAE decodes latents of 16 channels"),
    ({"decode": 7}, "^vae is 7, expected the VAE output"),
    ({"cell_size": 1}, "cell_size must be"),
], ids=lambda value: next(iter(value)) if isinstance(value, dict) else "")
def test_a_mistake_anywhere_is_told_before_the_first_cell(values, message):
    model, rows = counted(models.sd15())
    with pytest.raises(ValueError, match=message):
        compare(RUN, model, **values)
    assert rows == []


@pytest.mark.parametrize("call", [1, 4])
def test_interruption_ends_all_cells(call):
    model, rows = counted(models.sd15())
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        compare(RUN, at_call(model, call, comfy.model_management.interrupt_current_processing))
    assert len(rows) <= call + 1
    assert not comfy.model_management.processing_interrupted()
