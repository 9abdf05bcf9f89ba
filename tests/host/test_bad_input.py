"""Bad input gets an error that names it, before the model is called once."""

import re
from dataclasses import replace

import pytest
import torch
from comfy.nested_tensor import NestedTensor
from pag_pack.nodes.guidance import PAGGuider
from pag_pack.nodes.host.models.layers import UnsupportedModelError
from pag_pack.nodes.host.run.failures import explain
from pag_pack.nodes.layers import PAGLayers
from pag_pack.nodes.options import PAGOptionsNode
from pag_pack.pag_core.selection import SelectionError
from pag_pack.pag_core.settings import PAGOptions, SettingError

from . import models
from .runs import WAYS, Run, counted
from .sampled_blocks import SAMPLED_BLOCKS
from .sampled_families import SAMPLED
from .test_family_sampling import sampled

SCALE = 3.0
ways = pytest.mark.parametrize("sample", WAYS.values(), ids=WAYS)
ours = pytest.mark.parametrize("sample", [Run.pag_ksampler, Run.pag_guider], ids=["PAGKSampler", "PAGGuider"])


@pytest.fixture
def refused():
    """(error, message, function, run, model, ...): asserts that the run raises this before any call of the model."""
    def check(error: type[Exception], message: str, sample, run: Run, model, *args) -> None:
        model, rows = counted(model)
        with pytest.raises(error, match=message) as raised:
            sample(run, model, *args)
        assert raised.type is error
        assert rows == []

    return check


@ways
@pytest.mark.parametrize("layers", ["d9", "u0.7", "input.2", "nonsense", "double.1", "m0:h9", "m0,!u9"])
def test_unknown_layer(sample, layers, refused):
    refused(SelectionError, r"'.*" + re.escape(layers.rpartition(",")[2]), sample, Run(), models.sd15(), SCALE, layers)


@ways
@pytest.mark.parametrize("layers", ["", "  ", ",", "m0,"])
def test_empty_layers_and_the_list_of_what_the_model_has(sample, layers, refused):
    refused(SelectionError, r"empty term.*This model has: d0-1, m0, u0-3; also all, auto", sample, Run(), models.sd15(),
            SCALE, layers)


@ways
def test_layers_are_checked_where_pag_is_off_too(sample, refused):
    refused(SelectionError, "'d9'", sample, Run(), models.sd15(), 0.0, "d9")


@ways
@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -1.0, 1e6, 10**400, "3", True, None],
                         ids=lambda value: repr(value)[:8])
def test_bad_scale(sample, scale, refused):
    refused(SettingError, r"^PAG scale must be a number from 0 to", sample, Run(), models.sd15(), scale)


@ours
@pytest.mark.parametrize("cfg", [float("nan"), float("inf"), -1.0, 101.0, "7"], ids=repr)
def test_bad_cfg(sample, cfg, refused):
    refused(SettingError, r"^cfg must be a number from 0 to 100", sample, Run(cfg=cfg), models.sd15(), SCALE)


@ours
@pytest.mark.parametrize(("window", "message"), [
    ((0.6, 0.4), r"cfg_start_percent \(0\.6\) must be smaller than cfg_end_percent \(0\.4\)"),
    ((0.5, 0.5), r"cfg_start_percent \(0\.5\) must be smaller"),
    ((-0.1, 1.0), r"cfg_start_percent must be a number from 0 to 1, got -0\.1"),
    ((0.0, 1.1), r"cfg_end_percent must be a number from 0 to 1, got 1\.1"),
    ((float("nan"), 1.0), r"cfg_start_percent must"),
], ids=str)
def test_bad_cfg_window(sample, window, message, refused):
    refused(SettingError, message, sample, Run(cfg_window=window), models.sd15(), SCALE)


@pytest.mark.parametrize(("values", "message"), [
    ({"strength": 1.5}, r"^strength must"),
    ({"start_percent": 0.8, "end_percent": 0.2}, r"^start_percent \(0\.8\) must be smaller than end_percent \(0\.2\)"),
    ({"rescale": float("nan")}, r"^rescale must"),
    ({"rescale_mode": "half"}, r"^rescale_mode must be one of .*'half'"),
])
def test_bad_options(values, message):
    good = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "rescale": 0.0, "rescale_mode": "full"}
    with pytest.raises(SettingError, match=message):
        PAGOptionsNode.execute(**{**good, **values})


@ours
@pytest.mark.parametrize("missing", [None, []], ids=["None", "empty list"])
@pytest.mark.parametrize("name", ["positive", "negative"])
@pytest.mark.parametrize("scale", [0.0, SCALE])
def test_missing_conditioning(sample, name, missing, scale, refused):
    refused(ValueError, f"^The {name} conditioning is missing. Connect", sample, Run(**{name: missing}), models.sd15(),
            scale)


def test_missing_conditioning_is_found_before_the_guider_is_used():
    with pytest.raises(ValueError, match="The positive conditioning is missing"):
        PAGGuider.execute(models.sd15(), None, models.conditioning(2), 7.0, SCALE, "m0")


@ways
@pytest.mark.parametrize(("family", "latent"), [
    (models.sd15, models.picture_latent(channels=5)),
    (models.sd15, models.picture_latent(channels=16)),
    (models.sd15_inpainting, models.picture_latent(channels=9)),
    (models.flux, models.picture_latent(channels=4)),
], ids=["5 for 4", "16 for 4", "the network's 9 for 4", "4 for 16"])
def test_latent_with_the_channels_of_another_model(sample, family, latent, refused):
    expected = 16 if family is models.flux else 4
    refused(ValueError, rf"^The latent has {latent['samples'].shape[1]} channels, but this model expects {expected}\. "
            "Encode the image with the VAE that belongs", sample, Run(latent=latent), family(), SCALE, "auto")


@ways
def test_latent_is_checked_where_pag_is_off_too(sample, refused):
    refused(ValueError, "^The latent has 5 channels", sample, Run(latent=models.picture_latent(channels=5)),
            models.sd15(), 0.0)


@ways
@pytest.mark.parametrize("scale", [0.0, SCALE])
@pytest.mark.parametrize(("samples", "message"), [
    (torch.zeros(0, 4, 8, 8), r"^The latent is empty: its shape is 0 × 4 × 8 × 8\. Set its size"),
    (torch.zeros(1, 4, 0, 8), r"1 × 4 × 0 × 8"),
    (torch.full((1, 4, 8, 8), float("nan")), "^The latent contains NaN or infinity"),
    (torch.full((1, 4, 8, 8), float("-inf")), "^The latent contains NaN or infinity"),
], ids=["no picture", "no height", "NaN", "infinite"])
def test_latent_of_nothing_or_of_no_numbers(sample, samples, message, scale, refused):
    refused(ValueError, message, sample, Run(latent={"samples": samples}), models.sd15(), scale)


@ways
@pytest.mark.parametrize("scale", [0.0, SCALE])
@pytest.mark.parametrize(("samples", "message"), [
    (torch.zeros(1, 4, 8), r"^The latent has 3 dimensions \(1 × 4 × 8\), but this model samples latents with 4 to 5"),
    (torch.zeros(1, 4, 1, 1, 8, 8), r"^The latent has 6 dimensions \(1 × 4 × 1 × 1 × 8 × 8\)"),
    (torch.zeros(1, 4, 8, 8, dtype=torch.complex64), r"^The latent holds complex numbers \(torch.complex64\)"),
], ids=["3 dimensions", "6 dimensions", "complex"])
def test_latent_of_another_form(sample, samples, message, scale, refused):
    refused(ValueError, message, sample, Run(latent={"samples": samples}), models.sd15(), scale)


@pytest.mark.parametrize(("extra", "message"), [
    *(({"batch_index": value}, r"^batch_index of latent_image is .*, expected a whole number from 0 on")
      for value in ("abc", ["a"], [0.5], [-1], [], 3)),
    ({"noise_mask": torch.zeros(64)}, r"^The noise mask of latent_image has the shape 64 and holds torch.float32"),
    ({"noise_mask": torch.zeros(1, 64, 64, dtype=torch.complex64)}, "holds torch.complex64; expected the MASK output"),
], ids=str)
def test_what_goes_with_a_latent(extra, message, refused):
    refused(ValueError, message, Run.pag_ksampler, Run(latent={**models.picture_latent(channels=4), **extra}),
            models.sd15(), SCALE)


@pytest.mark.parametrize("name", ["positive", "negative"])
@ours
def test_what_stands_in_the_place_of_an_encoded_text(sample, name, refused):
    refused(ValueError, f"^The {name} conditioning contains 'a cat' in the place of an encoded text", sample,
            replace(Run(), **{name: [["a cat", {}]]}), models.sd15(), SCALE)


@ways
@pytest.mark.parametrize("row", ["extra", "negative"])
@pytest.mark.parametrize("name", ["positive", "negative"])
@pytest.mark.parametrize(("prompt", "message"), [
    (torch.zeros(1, 7, 999), r"conditioning has 999 channels, but this model expects 32. Encode the prompt with the"),
    (None, r"conditioning contains no text, and this model cannot run without it \(.*\). Encode the prompt")],
    ids=["of another model", "none"])
def test_a_prompt_that_is_not_for_this_model(sample, row, name, prompt, message):
    with pytest.raises(ValueError, match=rf"^The {name} {message}"):
        sample(replace(Run(cfg=5.0), **{name: [[prompt, {}]]}), models.sd15(), SCALE, "m0", PAGOptions(row=row))


@pytest.mark.parametrize("how", [how for how in [*SAMPLED, *SAMPLED_BLOCKS] if how.name in (
    "SDXL", "SD3.5 medium", "Flux", "Qwen-Image", "Z-Image", "Krea 2", "Wan, text to video", "LTX-Video",
    "MiniMax H3")],
    ids=lambda how: how.name)
def test_a_prompt_of_another_model_on_every_kind_of_network(how):
    run = sampled(how, 4.0, 1, steps=1)
    text, extra = run.positive[0]
    wide = [[torch.cat([text, text[..., :8]], dim=-1), extra]]
    with pytest.raises(ValueError, match=r"text encoder"):
        replace(run, positive=wide).model_patch(how.build(), SCALE, "auto", PAGOptions("skip_block"))


@pytest.mark.parametrize("error", [
    IndexError("list index out of range"), RuntimeError("The size of tensor a (7) must match"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (14x32 and 768x32)")], ids=str)
def test_what_another_node_fails_at_is_not_put_down_to_the_inputs(error):
    def fail(*_):
        raise error

    model = models.sd15().clone()
    model.set_model_attn2_patch(fail)
    with pytest.raises(type(error)) as found:
        Run().model_patch(model, SCALE)
    assert found.value is error


@pytest.mark.parametrize("how", [how for how in [*SAMPLED, *SAMPLED_BLOCKS] if how.name in (
    "SD 1.5", "SVD", "SD3.5 medium", "AuraFlow", "Flux", "Hunyuan3D 2", "PixelDiT", "Stable Cascade B", "Stable Audio",
    "ACE-Step 1", "ACE-Step 1.5")], ids=lambda how: how.name)
def test_a_latent_with_a_dimension_more(how):
    run, model = sampled(how, 4.0, 1, steps=1), how.build()
    samples = run.latent["samples"].unsqueeze(2) + 0.1
    with pytest.raises(ValueError, match=rf"^The latent has {samples.ndim} dimensions \(.*\), but this model's latents "
                                         rf"have {samples.ndim - 1} \(.*\)\. Connect the empty latent node"):
        replace(run, latent={"samples": samples}).model_patch(model, SCALE, "auto", PAGOptions("skip_block"))


@pytest.mark.parametrize("name", ["Kandinsky 5, one image", "Krea 2"])
def test_a_frame_for_an_image_stays_where_the_model_takes_it(name):
    how = next(how for how in SAMPLED if how.name == name)
    run = sampled(how, 4.0, 1, steps=1)
    latent = {"samples": torch.full((1, 16, 1, 8, 12), 0.1)}
    assert replace(run, latent=latent).model_patch(how.build(), SCALE, "auto").isfinite().all()


@pytest.mark.parametrize(("change", "message"), [
    (lambda video, *sound: (torch.cat([video, video[:, :1]], dim=1), *sound),
     r"^This model could not sample latents with the shapes 1 × \d+ × .* and 1 × .*\)\. Connect the empty latent"),
    (lambda video, *sound: (video.unsqueeze(2), *sound), "could not sample latents with the shapes")],
    ids=["a channel more", "a dimension more"])
@pytest.mark.parametrize("name", ["LTX-Video with sound", "TripoSplat", "MiniMax H3"])
def test_several_latents_of_another_form(name, change, message):
    how = next(how for how in [*SAMPLED, *SAMPLED_BLOCKS] if how.name == name)
    run = sampled(how, 4.0, 1, steps=1)
    latent = {"samples": NestedTensor(change(*run.latent["samples"].unbind()))}
    with pytest.raises(ValueError, match=message):
        replace(run, latent=latent).model_patch(how.build(), SCALE, "auto", PAGOptions("skip_block"))


def test_one_latent_where_the_model_samples_two():
    how = next(how for how in SAMPLED_BLOCKS if how.name == "MiniMax H3")
    run = sampled(how, 4.0, 1, steps=1)
    video = torch.cat([run.latent["samples"].unbind()[0], torch.zeros(1, 8, 2, 6, 4)], dim=1) + 0.1
    with pytest.raises(ValueError, match=r"could not sample a latent with the shape .* some models need several"):
        replace(run, latent={"samples": video}).model_patch(how.build(), SCALE, "auto", PAGOptions("skip_block"))


def test_other_failures_of_a_first_call_stay_what_they_are():
    def fail(*_):
        raise RuntimeError("out of order")

    model = models.sd15().clone()
    model.set_model_unet_function_wrapper(fail)
    with pytest.raises(RuntimeError, match="out of order"):
        Run().model_patch(model, SCALE)


@ours
@pytest.mark.parametrize("name", ["positive", "negative"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_conditioning_of_no_numbers(sample, name, value, refused):
    conditioning = models.conditioning(1)
    conditioning[0][0][0, 2, 3] = value
    refused(ValueError, f"^The {name} conditioning contains NaN or infinity", sample,
            Run(**{name: conditioning}), models.sd15(), SCALE)


def test_predictions_of_no_numbers_are_reported(caplog):
    model = models.sd15().clone()
    model.set_model_patch(lambda h, skip, _: (h * float("nan"), skip), "output_block_patch")
    Run(steps=1).model_patch(model, SCALE)
    assert "returned NaN or infinite values" in caplog.text


@pytest.mark.parametrize("value", [None, {}, 7, "a model"], ids=repr)
def test_values_in_the_place_of_links(value):
    """As only a client of the API can send them."""
    run, model = Run(), models.sd15()
    with pytest.raises(ValueError, match=r"^model is .*, expected the MODEL output"):
        run.model_patch(value, SCALE)
    with pytest.raises(ValueError, match=r"^model is .*, expected the MODEL output"):
        PAGLayers.execute(value, "auto")
    with pytest.raises(ValueError, match=r"^latent_image is .*, expected the LATENT output"):
        Run(latent=value).pag_ksampler(model, SCALE)
    with pytest.raises(ValueError, match=r"^(The )?positive"):
        Run(positive=value).pag_ksampler(model, SCALE)
    if value is not None:
        with pytest.raises(SettingError, match=r"^options must come from a PAG Options node"):
            run.model_patch(model, SCALE, "m0", value)


@ways
def test_empty_latent_of_another_model_is_fitted_as_the_host_does(sample):
    run, fitted = (Run(latent={"samples": torch.zeros(1, channels, 8, 12)}) for channels in (16, 4))
    assert torch.equal(sample(run, models.sd15(), SCALE), sample(fitted, models.sd15(), SCALE))


@ways
@pytest.mark.parametrize("scale", [0.0, SCALE])
def test_model_of_an_unsupported_family(sample, scale, refused):
    refused(UnsupportedModelError, "does not support the model StrangeNetwork. It supports", sample, Run(),
            models.strange(), scale, "auto")


def test_named_errors_are_value_errors():
    assert all(issubclass(error, ValueError) for error in (SettingError, SelectionError, UnsupportedModelError))


@pytest.mark.parametrize("error", [TypeError("expected str, got int"), AttributeError("no attribute 'cache'")])
def test_a_failure_of_other_code_is_not_put_down_to_a_prompt_without_text(error):
    explain(error, {"positive": [{"cross_attn": None}]})  # an ADM has no other
