"""PAG Grid: every cell is what PAG KSampler makes of its settings, from the same noise."""

from dataclasses import replace

import comfy.model_management
import comfy.utils
import pytest
import torch
from pag_pack.nodes.comparison import MAX_CELLS, PAGGrid
from pag_pack.pag_core.perturbation import KINDS
from pag_pack.pag_core.settings import PAGOptions

from . import models
from .runs import Run, counted, latent_run, snapshot
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


def test_every_perturbation_and_both_rows_are_pag_ksamplers():
    model, decode = models.sd3(), vae(16)
    run = latent_run((8, 8), 4.0)
    kinds = [*KINDS, "skip_block negative", "identity extra"]
    _, images = compare(run, model, "2", "1", "\n".join(kinds), PAGOptions(perturbation_seed=3), decode)
    cells = []
    for line in kinds:
        kind, _, row = line.partition(" ")
        cells.append(run.pag_ksampler(model, 2.0, "1", PAGOptions(kind, perturbation_seed=3, row=row or "extra")))
    assert torch.equal(images, torch.cat([decode.decode(cell) for cell in cells]))
    assert (images[-2] - images[list(KINDS).index("skip_block")]).abs().max() > 1e-3


def test_in_the_negatives_row_all_scales_are_one():
    model, rows = counted(models.sd15())
    decode = vae()
    _, images = compare(RUN, model, "0, 1, 3", "m0", options=PAGOptions(row="negative"), decode=decode)
    assert rows == [2] * 4
    assert torch.equal(images[1], images[2])
    assert torch.equal(images[1:2], decode.decode(RUN.pag_ksampler(model, 3.0, "m0", PAGOptions(row="negative"))))


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
    ({"perturbations": "identity\nseg positive"}, "what follows seg must be one of extra, negative; got 'positive'"),
    ({"run": replace(RUN, cfg=1.0), "perturbations": "identity\nskip_block negative"}, "at cfg 1 there is no negative"),
    ({"options": PAGOptions(scale_mask=torch.ones(3, 8, 8))}, "has 3 masks, but the batch has 1"),
    ({"selections": "all\nm0", "options": PAGOptions(random_share=0.3)}, "of 1 selected it draws 1"),
    ({"selections": "m0:h0", "perturbations": "skip_block"}, "skip_block acts on the whole block of m0"),
    ({"scales": ",".join(map(str, range(MAX_CELLS + 1))), "selections": "m0"}, f"the limit is {MAX_CELLS}"),
    ({"decode": vae(channels=16)}, "VAE decodes latents with 16 channels"),
    ({"decode": 7}, "^vae is 7, expected the VAE output"),
    ({"cell_size": 1}, "cell_size must be"),
], ids=lambda value: next(iter(value)) if isinstance(value, dict) else "")
def test_a_mistake_anywhere_is_told_before_the_first_cell(values, message):
    model, rows = counted(models.sd15())
    with pytest.raises(ValueError, match=message):
        compare(values.pop("run", RUN), model, **values)
    assert rows == []


@pytest.mark.parametrize("call", [1, 4])
def test_interruption_ends_all_cells(call):
    model, rows = counted(models.sd15())
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        compare(RUN, at_call(model, call, comfy.model_management.interrupt_current_processing))
    assert len(rows) <= call + 1
    assert not comfy.model_management.processing_interrupted()
