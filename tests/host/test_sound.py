"""LTX-2: the sound's self-attention beside the video's, as layers of their own."""

from __future__ import annotations

import comfy.samplers
import pytest
import torch
from pag_pack.nodes.host.editor.routes import model_answer, select_answer
from pag_pack.nodes.host.models.layers import model_layers
from pag_pack.nodes.layers import PAGLayers
from pag_pack.pag_core.selection import SelectionError, select, text_of
from pag_pack.pag_core.settings import PAGOptions
from torch.utils.flop_counter import FlopCounterMode

from .sampled_families import SAMPLED
from .test_family_sampling import SCALE, errors, sampled

HOW = next(how for how in SAMPLED if how.name == "LTX-Video with sound")
FAMILY = {"family": "LTX-2"}
WEAK = {"identity": lambda v: v, "skip_attention": torch.zeros_like}


@pytest.fixture(scope="module")
def model():
    return HOW.build()


@pytest.fixture(scope="module")
def layers(model):
    return tuple(model_layers(model).layers)


def in_another_call(model, kind: str, layers: list[str]):
    """The model with these layers weak in calls of their own, told apart by counting attention calls."""
    def post_cfg(args: dict) -> torch.Tensor:
        calls = iter(HOW.reference.calls.split())

        def attention(func, q, k, v, *args, **kwargs):
            return WEAK[kind](v) if next(calls) in layers else func(q, k, v, *args, **kwargs)

        options = args["model_options"].copy()
        options["transformer_options"] = {**options.get("transformer_options", {}),
                                          "optimized_attention_override": attention}
        (weak,) = comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"], options)
        assert next(calls, None) is None
        return args["denoised"] + SCALE * (args["cond_denoised"] - weak)

    model = model.clone()
    model.set_model_sampler_post_cfg_function(post_cfg)
    return model


@pytest.mark.parametrize("cfg", [1.0, 4.0])
@pytest.mark.parametrize("kind", WEAK)
@pytest.mark.parametrize("selection", ["1", "audio.0", "1,audio.1"])
def test_video_and_sound_equal_a_call_of_their_own(model, selection, kind, cfg):
    for batch in (1, 2):
        run = sampled(HOW, cfg, batch)
        ours = run.model_patch(model, SCALE, selection, PAGOptions(kind))
        expected = run.ksampler(in_another_call(model, kind, selection.split(",")))
        assert max(errors(ours, expected)) <= 1e-4, batch
        assert min(errors(ours, run.ksampler(model))) > 1e-4, "both hear of it"


@pytest.mark.parametrize("kind", ["shuffle", "temperature", "seg"])
def test_other_operations_act_on_the_sound_alone(model, kind):
    """In the last block the video hears of the sound's weak attention only through the exchange."""
    run = sampled(HOW, 1.0, 1)
    plain, ours = run.ksampler(model), run.model_patch(model, SCALE, "audio.1", PAGOptions(kind))
    video, sound = errors(ours, plain)
    assert sound > 1e-3
    assert video > 0


def test_a_block_is_skipped_once_whoever_names_it(model):
    for strength in (0.4, 1.0):
        options = PAGOptions("skip_block", strength)
        run = sampled(HOW, 4.0, 1)
        both, one = (run.model_patch(model, SCALE, selection, options) for selection in ("1,audio.1", "1"))
        assert max(errors(both, one)) <= 1e-5


def test_shuffle_moves_the_tokens_of_each_layer_that_is_named(model):
    run = sampled(HOW, 1.0, 1)
    both, video, sound = (run.model_patch(model, SCALE, selection, PAGOptions("shuffle"))
                          for selection in ("1,audio.1", "1", "audio.1"))
    assert max(errors(both, video)) > 1e-3
    assert max(errors(both, sound)) > 1e-3


def test_the_grammar_names_sound_apart(layers):
    assert [layer.name for layer in layers] == ["0", "1", "audio.0", "audio.1"]
    for text, names in {"all": "0 1 audio.0 audio.1", "0-1": "0 1", "audio.0-1": "audio.0 audio.1",
                        "all,!audio.0-1": "0 1", "auto": "1 audio.1", "transformer_blocks.1.audio_attn1": "audio.1",
                        "audio.1:h0": "audio.1"}.items():
        chosen = select(text, layers, "1,audio.1")
        assert [layer.name for layer in chosen] == names.split(), text
        assert select(text_of(chosen, layers), layers, "1,audio.1") == chosen
    with pytest.raises(SelectionError, match=r"no self-attention layer '2' .*This model has: 0-1, audio.0-1; also all"):
        select("0-2", layers, "1")


def test_pag_layers_lists_the_sound_and_what_it_costs(model):
    (text,) = PAGLayers.execute(model, "auto").result
    assert text.startswith("LTX-Video with sound: 4 self-attention layers, 2 selected.\n")
    assert "auto: 1,audio.1 (the middle of the network" in text
    assert [line.split()[0] for line in text.splitlines()[-4:]] == ["0", "1", "audio.0", "audio.1"]


def test_the_picker_draws_a_column_for_the_sound():
    answer = model_answer(FAMILY)
    assert [(column["title"], len(column["layers"])) for column in answer["columns"]] == [("blocks", 48),
                                                                                          ("audio", 48)]
    video, sound = (column["layers"][24] for column in answer["columns"])
    assert (video["name"], sound["name"], sound["aliases"]) == ("24", "audio.24", [])
    assert sound["share"] == 0.5, "it begins at the same block; its own map is small beside the video's"
    assert 0.49 < video["share"] < 0.5
    assert answer["auto"] == "29,audio.29"
    chosen = select_answer({"model": FAMILY, "selected": {"24": None, "audio.24": None, "audio.25": None}})
    assert chosen["text"] == "24,audio.24-25"
    assert answer["presets"][1]["layers"] == "16-32"


def test_the_cost_of_a_skipped_block_counts_it_once(model):
    found = model_layers(model)
    key = {layer.name: key for layer, key in found.layers.items()}
    shares = [found.cost.share({key[name]: None for name in names}, skips_blocks=True)
              for names in (("1",), ("audio.1",), ("1", "audio.1"))]
    assert shares == [0.0, 0.0, 0.0]
    run = sampled(HOW, 1.0, 1)
    with FlopCounterMode(display=False) as plain:
        run.ksampler(model)
    with FlopCounterMode(display=False) as skipping:
        run.model_patch(model, SCALE, "1,audio.1", PAGOptions("skip_block"))
    assert skipping.get_total_flops() < 1.25 * plain.get_total_flops(), "what runs once more is outside the blocks"
