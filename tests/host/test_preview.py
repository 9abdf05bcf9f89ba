"""What the editor shows while sampling: progress and x̂0 as the host's KSampler, or what PAG changes."""

from types import SimpleNamespace

import comfy.utils
import latent_preview
import numpy as np
import pytest
import torch
from comfy.cli_args import LatentPreviewMethod
from pag_pack.nodes.host.run.predictions import Pair
from pag_pack.nodes.host.run.preview import delta_preview
from pag_pack.pag_core.drawing import heat_map
from pag_pack.pag_core.settings import PAGOptions

from . import models
from .older import what_older_hosts_lack
from .runs import WAYS, Run, patched
from .test_family_sampling import sampled
from .test_inspection import observed
from .test_modalities import SETTINGS, guider
from .test_sound import HOW

SCALE = 3.0
DELTA = PAGOptions(preview="delta")
ways = pytest.mark.parametrize("sample", WAYS.values(), ids=WAYS)


@pytest.fixture
def shown(monkeypatch):
    """A list that gets (step, steps, picture as an array or None) of each report to the progress bar."""
    reports = []

    def hook(value, total, preview, node_id=None):
        reports.append((value, total, preview and np.asarray(preview[1])))

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    monkeypatch.setattr(latent_preview.args, "preview_method", LatentPreviewMethod.Latent2RGB)
    return reports


def same(ours, theirs) -> bool:
    return len(ours) == len(theirs) and all(a[:2] == b[:2] and np.array_equal(a[2], b[2])
                                            for a, b in zip(ours, theirs, strict=True))


@ways
def test_progress_and_previews_are_the_hosts_by_default(sample, shown):
    Run().ksampler(models.sd15())
    host = shown.copy()
    shown.clear()
    sample(Run(), models.sd15(), 0.0)
    assert same(shown, host)
    assert [report[:2] for report in host] == [(1, 3), (2, 3), (3, 3)]


@ways
def test_delta_preview_shows_what_pag_changes_and_changes_nothing(sample, shown):
    plain = sample(Run(), models.sd15(), SCALE)
    default = shown.copy()
    shown.clear()
    assert torch.equal(sample(Run(), models.sd15(), SCALE, "m0", DELTA), plain)
    pictures = shown[:]
    if sample is not Run.pag_ksampler:  # another node's own callback shows its picture first
        assert same(shown[0::2], default)
        pictures = shown[1::2]
    assert [report[:2] for report in pictures] == [(1, 3), (2, 3), (3, 3)]
    for report, step in zip(pictures, observed(Run(), models.sd15()), strict=True):
        delta = (step.pair.cond - step.pair.perturbed)[0].abs().mean(0)
        assert np.array_equal(report[2], np.asarray(heat_map(delta, float(delta.max()))))
        assert report[2].shape == (8, 12, 3)


def test_delta_preview_is_black_where_pag_does_not_act(shown):
    Run(steps=4).pag_ksampler(models.sd15(), SCALE, "m0", PAGOptions(preview="delta", start_percent=0.5))
    assert [report[2].max() > 100 for report in shown] == [False, False, True, True]


@ways
def test_no_picture_where_the_user_wants_no_previews(sample, shown, monkeypatch):
    monkeypatch.setattr(latent_preview.args, "preview_method", LatentPreviewMethod.NoPreviews)
    sample(Run(), models.sd15(), SCALE, "m0", DELTA)
    assert shown
    assert all(report[2] is None for report in shown)


def test_of_video_with_sound_the_video_is_shown(shown):
    """The host samples both in one flat tensor."""
    video, sound = torch.zeros(1, 4, 2, 6, 8), torch.ones(1, 8, 5)
    changed = video.clone()
    changed[:, :, 0, :3] = 1.0
    flat, shapes = comfy.utils.pack_latents([changed, sound])
    run = SimpleNamespace(predictions=SimpleNamespace(pair=Pair(flat, torch.zeros_like(flat), None)))
    delta_preview(None, run, shapes)(0, flat, flat, 4)
    ((step, total, picture),) = shown
    assert (step, total) == (1, 4)
    assert picture.shape == (6, 8, 3)
    assert (picture[:3].min(), picture[3:].max()) == (164, 4)


@pytest.mark.parametrize(("options", "pictures"), [(None, 1), (DELTA, 2)], ids=["the host's", "delta"])
def test_the_guider_of_video_and_sound_shows_the_video(shown, options, pictures):
    """The picture has the size of a frame of the latent, by the host's callback and by ours behind it."""
    model = HOW.build()
    run = sampled(HOW, 1.0, 1)
    run.advanced(guider(model, run, SETTINGS["no CFG"], options=options))
    frame = run.latent["samples"].unbind()[0].shape[-2:]
    assert [report[0] for report in shown] == [step + 1 for step in range(run.steps) for _ in range(pictures)]
    with what_older_hosts_lack(AttributeError):  # a picture of this latent
        assert all(report[2].shape == (*frame, 3) for report in shown[pictures - 1::pictures])


def test_two_pags_in_a_row_with_delta_previews(shown):
    plain = Run().pag_ksampler(models.sd15(), SCALE)
    twice = Run().pag_ksampler(models.sd15(), SCALE, "m0", DELTA)
    assert torch.equal(plain, twice)
    Run().pag_ksampler(patched(models.sd15(), 1.0, "d0", DELTA), SCALE, "m0", DELTA)
    assert all(report[2] is not None for report in shown)
