"""PAG AV Guider: Lightricks' guidance of video and sound, against the formula written out with a call for each term.

The reference is `MultiModalGuider.calculate` of ltx-core (Lightricks/LTX-2) in each sample, with four calls of the
host: the prompt, the negative, identity attention in some layers, and no attention between video and sound, for which
the host's network has switches of its own.
"""

from __future__ import annotations

import comfy.model_management
import comfy.samplers
import comfy.utils
import pytest
import torch
from pag_pack.nodes.guidance import PAGAVGuider
from pag_pack.nodes.host.models.layers import UnsupportedModelError
from pag_pack.pag_core.checks import SettingError
from pag_pack.pag_core.selection import SelectionError
from pag_pack.pag_core.settings import PAGOptions
from torch.utils.flop_counter import FlopCounterMode

from . import models
from .runs import Run, counted, snapshot
from .test_family_sampling import errors, sampled
from .test_leaves_no_trace import at_call, hooks
from .test_sound import HOW

SCALES = ("cfg", "pag", "modality", "rescale")
# (of the video, of the sound), each in the order of SCALES
SETTINGS = {"Lightricks' defaults": ((3.0, 1.0, 3.0, 0.7), (7.0, 1.0, 3.0, 0.7)),
            "no CFG": ((1.0, 2.0, 2.0, 0.5), (1.0, 1.0, 3.0, 0.0)),
            "one modality alone": ((1.0, 0.0, 1.0, 0.0), (4.0, 2.0, 3.0, 1.0)),
            "no exchange": ((3.0, 1.0, 1.0, 0.7), (5.0, 0.0, 1.0, 0.0)),
            "exchange alone": ((1.0, 0.0, 3.0, 0.0), (1.0, 0.0, 0.0, 0.0))}
OFF = ((1.0, 0.0, 1.0, 0.0),) * 2
LAYERS = "1,audio.1"


class WrittenOut(comfy.samplers.CFGGuider):
    """The formula with a call for each of its four predictions."""

    def __init__(self, model, run: Run, scales, layers: str) -> None:
        super().__init__(model)
        self.set_conds(run.positive, run.negative)
        self.scales, self.layers = scales, layers.split(",")

    def outer_sample(self, *args, **kwargs):
        self.shapes = kwargs["latent_shapes"]
        return super().outer_sample(*args, **kwargs)

    def predicted(self, name: str, x, timestep, model_options, **transformer_options) -> list[torch.Tensor]:
        options = {**model_options, "transformer_options": transformer_options}
        (out,) = comfy.samplers.calc_cond_batch(self.inner_model, [self.conds[name]], x, timestep, options)
        return comfy.utils.unpack_latents(out, self.shapes)

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        calls = iter(HOW.reference.calls.split())

        def identity(func, q, k, v, *args, **kwargs):
            return v if next(calls) in self.layers else func(q, k, v, *args, **kwargs)

        predictions = [self.predicted(name, x, timestep, model_options, **more) for name, more in (
            ("positive", {}), ("negative", {}), ("positive", {"optimized_attention_override": identity}),
            ("positive", {"a2v_cross_attn": False, "v2a_cross_attn": False}))]
        guided = [torch.cat([self.calculate(scales, *sample) for sample in zip(*(part.split(1) for part in parts),
                                                                               strict=True)])
                  for scales, *parts in zip(self.scales, *predictions, strict=True)]
        return comfy.utils.pack_latents(guided)[0]

    @staticmethod
    def calculate(scales, cond, negative, perturbed, isolated) -> torch.Tensor:
        cfg, pag, modality, rescale = scales
        total = cond + (cfg - 1) * (cond - negative) + pag * (cond - perturbed) + (modality - 1) * (cond - isolated)
        return total * (rescale * cond.std() / total.std() + 1 - rescale)


@pytest.fixture(scope="module")
def model():
    return HOW.build()


def guider(model, run: Run, scales, layers: str = LAYERS, options: PAGOptions | None = None):
    named = {f"{modality}_{name}": value for modality, values in zip(("video", "audio"), scales, strict=True)
             for name, value in zip(SCALES, values, strict=True)}
    return PAGAVGuider.execute(model, run.positive, run.negative, **named, layers=layers, options=options).result[0]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", SETTINGS)
def test_equals_the_formula_written_out(model, name, batch):
    run = sampled(HOW, 1.0, batch)
    ours = run.advanced(guider(model, run, SETTINGS[name]))
    expected = run.advanced(WrittenOut(model, run, SETTINGS[name], LAYERS))
    assert max(errors(ours, expected)) <= 1e-4
    assert max(errors(ours, run.ksampler(model))) > 1e-3


@pytest.mark.parametrize(("name", "rows"), [("Lightricks' defaults", 4), ("no CFG", 3), ("no exchange", 3),
                                            ("exchange alone", 2)])
def test_all_rows_run_in_one_call_and_only_those_that_are_needed(model, name, rows):
    run = sampled(HOW, 1.0, 1)
    counting, calls = counted(model)
    run.advanced(guider(counting, run, SETTINGS[name]))
    assert calls == [rows, rows]


def test_the_weak_row_shares_the_prefix_beside_the_isolated_one(model):
    run = sampled(HOW, 1.0, 1)
    flops = []
    for share in (True, False):
        with FlopCounterMode(display=False) as counter:
            result = run.advanced(guider(model, run, SETTINGS["Lightricks' defaults"], "1",
                                         PAGOptions(share_prefix=share)))
        flops.append((counter.get_total_flops(), result))
    assert max(errors(flops[0][1], flops[1][1])) <= 1e-5
    assert flops[0][0] < 0.9 * flops[1][0]


@pytest.mark.parametrize("why", ["memory", "wrapper"])
def test_calls_of_their_own_give_the_same(model, why, monkeypatch):
    run = sampled(HOW, 1.0, 1)
    expected = run.advanced(guider(model, run, SETTINGS["Lightricks' defaults"]))
    if why == "wrapper":
        model = model.clone()
        model.set_model_unet_function_wrapper(lambda apply, args: apply(args["input"], args["timestep"], **args["c"]))
    else:
        monkeypatch.setattr(type(model), "get_free_memory", lambda self, device: 0)
    counting, calls = counted(model) if why == "memory" else (model, None)
    assert max(errors(run.advanced(guider(counting, run, SETTINGS["Lightricks' defaults"])), expected)) <= 1e-5
    assert calls is None or set(calls) == {1}


def test_neutral_values_are_the_plain_model(model):
    run = sampled(HOW, 1.0, 1)
    counting, calls = counted(model)
    assert errors(run.advanced(guider(counting, run, OFF)), run.ksampler(model)) == [0.0, 0.0]
    assert calls[:2] == [1, 1]


def test_options_act_on_pag_alone(model):
    run = sampled(HOW, 1.0, 1)
    late = run.advanced(guider(model, run, SETTINGS["no CFG"], options=PAGOptions(start_percent=0.99)))
    without = run.advanced(guider(model, run, ((1.0, 0.0, 2.0, 0.5), (1.0, 0.0, 3.0, 0.0))))
    assert max(errors(late, without)) <= 1e-5


def test_an_interrupted_run_ends_there_and_leaves_nothing(model):
    run = sampled(HOW, 1.0, 1)
    expected = run.advanced(guider(model, run, SETTINGS["Lightricks' defaults"]))
    before = snapshot(model)
    inside = at_call(model, 2, comfy.model_management.interrupt_current_processing)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run.advanced(guider(inside, run, SETTINGS["Lightricks' defaults"]))
    assert snapshot(model) == before
    assert hooks(model) == 0
    assert errors(run.advanced(guider(model, run, SETTINGS["Lightricks' defaults"])), expected) == [0.0, 0.0]


def test_bad_input_is_refused_before_sampling(model):
    run = sampled(HOW, 1.0, 1)
    with pytest.raises(UnsupportedModelError, match=r"which UNetModel does not. Use PAG Guider"):
        guider(models.sd15(), Run(), OFF)
    with pytest.raises(SettingError, match="audio_rescale must be a number from 0 to 1, got 2"):
        guider(model, run, (OFF[0], (1.0, 0.0, 1.0, 2.0)))
    with pytest.raises(SettingError, match=r"rescale in PAG Options is 0.5.*Set it to 0"):
        guider(model, run, OFF, options=PAGOptions(rescale=0.5))
    with pytest.raises(SettingError, match=r"row is negative.*extra"):
        guider(model, run, OFF, options=PAGOptions(row="negative"))
    with pytest.raises(SelectionError, match=r"no self-attention layer 'audio.7'"):
        guider(model, run, OFF, "audio.7")
    ours = model.clone()
    ours.set_model_sampler_cfg_function(lambda args: args["cond"])
    with pytest.raises(SettingError, match="Remove that node"):
        guider(ours, run, OFF)
    video = {"samples": torch.zeros(1, 128, 2, 4, 6)}
    with pytest.raises(SettingError, match=r"needs a latent of video and audio.*contains 1 latent"):
        Run(steps=1, scheduler="simple", latent=video, positive=run.positive, negative=run.negative).advanced(
            guider(model, run, OFF))
