"""What a user would have to guess is said in the log: PAG that did nothing, and layers that were left alone."""

import logging

import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise, SamplerCustomAdvanced
from comfy_extras.nodes_hypertile import HyperTile
from comfy_extras.nodes_tomesd import TomePatchModel
from pag_pack.nodes.guidance import PAGGuider
from pag_pack.pag_core.settings import PAGOptions

from . import models
from .runs import WAYS, Run, relative_error

SCALE = 3.0
ways = pytest.mark.parametrize("sample", WAYS.values(), ids=WAYS)
NO_STEP = "no sampled step lies between start_percent and end_percent"


@pytest.fixture
def warned(caplog):
    """() -> the warnings of this pack so far."""
    caplog.set_level(logging.WARNING)
    return lambda: [record.getMessage() for record in caplog.records
                    if record.name.startswith("pag_pack") and record.levelno >= logging.WARNING]


@ways
def test_an_ordinary_run_warns_of_nothing(sample, warned):
    sample(Run(), models.sd15(), SCALE)
    assert warned() == []


@ways
@pytest.mark.parametrize("scale", [0.0, SCALE])
def test_pag_turned_off_warns_of_nothing(sample, scale, warned):
    sample(Run(), models.sd15(), scale, "m0", PAGOptions(strength=0.0))
    assert warned() == []


@ways
def test_a_window_without_a_step_is_reported_once_a_run(sample, warned):
    options = PAGOptions(start_percent=0.6, end_percent=0.7)  # three steps: 0, 1/2, 1
    sample(Run(), models.sd15(), SCALE, "m0", options)
    (message,) = warned()
    assert NO_STEP in message
    sample(Run(), models.sd15(), SCALE, "m0", options)
    assert len(warned()) == 2


@pytest.mark.parametrize(("sigmas", "options", "message"), [
    ([0.0], PAGOptions(), "this run has no steps"),
    ([0.0], PAGOptions(row="negative"), "this run has no steps"),
    ([15.0, 0.0], PAGOptions(schedule="linear_up"), "schedule is linear_up, and the scale is 0 in every sampled step"),
    ([15.0, 0.0], PAGOptions(start_percent=0.5, row="negative"), NO_STEP),
], ids=["no step", "no step, negative", "schedule", "range, negative"])
def test_what_left_a_run_without_effect_is_named(sigmas, options, message, warned):
    run = Run()
    guider = PAGGuider.execute(models.sd15(), run.positive, run.negative, run.cfg, SCALE, "m0",
                               options=options).result[0]
    SamplerCustomAdvanced.execute(Noise_RandomNoise(1), guider, comfy.samplers.sampler_object("euler"),
                                  torch.tensor(sigmas), run.latent)
    (said,) = warned()
    assert message in said


def hypertile(model):
    """Cuts the tokens of the layers at full resolution into tiles."""
    return HyperTile.execute(model, 32, 2, 0, False)[0]


def token_merging(model):
    """Merges tokens in the layers at full resolution."""
    return TomePatchModel.execute(model, 0.5).result[0]


other_nodes = pytest.mark.parametrize("other", [hypertile, token_merging])
SQUARE = Run(latent=models.empty_latent(2, 16, 16))


@ways
@other_nodes
def test_layers_whose_tokens_another_node_changes_are_left_alone_and_named(sample, other, warned, composed):
    sample(SQUARE, other(models.sd15()), SCALE, "d0,m0,u3")
    (message,) = [message for message in warned() if "left the self-attention" in message]
    assert "d0" in message
    assert "u3" in message
    assert "m0" not in message
    assert "Select other layers or remove that patch" in message
    composed.refuse("HyperTile or token merging in a selected layer", message)


@other_nodes
def test_the_other_selected_layers_are_still_perturbed(other):
    model = other(models.sd15())
    with_skipped = SQUARE.model_patch(model, SCALE, "d0,m0,u3")
    assert relative_error(with_skipped, SQUARE.model_patch(model, SCALE, "m0")) < 1e-4
    assert relative_error(with_skipped, SQUARE.ksampler(model)) > 1e-3


def test_what_the_last_step_alone_could_not_perturb_is_no_run_without_effect(warned):
    model = hypertile(models.sd15())
    staged = SQUARE.model_patch(model, SCALE, "60%: m0; 100%: d0")
    assert relative_error(staged, SQUARE.ksampler(model)) > 1e-3
    assert not any("had no effect" in message for message in warned())


def test_pag_without_any_effect_is_reported(warned):
    SQUARE.model_patch(hypertile(models.sd15()), SCALE, "d0")
    assert any("had no effect" in message for message in warned())


def first_of_each_half(model):
    """As style alignment: samples see the tokens of the first in their half of a batch, of two prompts or of one."""
    def shared(q, k, v, extra_options):
        first = [t[[0, len(t) // 2]].repeat_interleave(len(t) // 2, 0) for t in (k, v)]
        return q, torch.cat((k, first[0]), 1), torch.cat((v, first[1]), 1)

    model = model.clone()
    model.set_model_attn1_patch(shared)
    return model


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_pag_without_any_effect_leaves_the_picture_as_it_is(cfg, warned):
    """Though the other node treats the rows of another call otherwise."""
    run, model = Run(cfg, latent=models.empty_latent(2)), first_of_each_half(models.sd15())
    assert torch.equal(run.model_patch(model, SCALE, "m0"), run.ksampler(model))
    assert any("had no effect" in message for message in warned())
