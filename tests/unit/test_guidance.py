"""The algebra of PAG Eq. 10, 11 and 14, and of rescaling, in double precision against formulas written out here."""

import pytest
import torch
import torch.nn.functional as F

from pag_core.guidance import RESCALE_MODES, guide, perturbed_attention_delta

SHAPE = (3, 4, 5, 7)
SCALE = 2.5
CFG = 6.0


@pytest.fixture
def predictions() -> dict[str, torch.Tensor]:
    """x_t and the network's three predictions of its noise, each [3, 4, 5, 7] in fp64, with a spread per sample."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([0.3, 1.0, 4.0], dtype=torch.float64).view(3, 1, 1, 1)
    return {name: spread * torch.randn(SHAPE, generator=generator, dtype=torch.float64)
            for name in ("x", "cond", "uncond", "perturbed")}


def predicted_image(x: torch.Tensor, eps: torch.Tensor, alpha_bar: float) -> torch.Tensor:
    """PAG Eq. 4."""
    return (x - (1.0 - alpha_bar) ** 0.5 * eps) / alpha_bar ** 0.5


def velocity(x: torch.Tensor, eps: torch.Tensor, alpha_bar: float) -> torch.Tensor:
    return alpha_bar ** 0.5 * eps - (1.0 - alpha_bar) ** 0.5 * predicted_image(x, eps, alpha_bar)


@pytest.mark.parametrize("scale", [0.0, 1.0, SCALE, 100.0])
def test_pag_alone_is_equation_10(predictions, scale):
    cond, perturbed = predictions["cond"], predictions["perturbed"]
    guided = guide(cond, cond, perturbed_attention_delta(cond, perturbed, scale))
    torch.testing.assert_close(guided, (1.0 + scale) * cond - scale * perturbed, rtol=1e-12, atol=1e-12)


def test_pag_with_cfg_is_equation_14(predictions):
    cond, uncond, perturbed = (predictions[name] for name in ("cond", "uncond", "perturbed"))
    w = CFG - 1.0
    cfg_result = uncond + CFG * (cond - uncond)
    guided = guide(cfg_result, cond, perturbed_attention_delta(cond, perturbed, SCALE))
    torch.testing.assert_close(guided, cond + w * (cond - uncond) + SCALE * (cond - perturbed), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("convert", [predicted_image, velocity])
@pytest.mark.parametrize("alpha_bar", [0.01, 0.5, 0.999])
def test_guiding_the_noise_and_guiding_the_image_or_velocity_agree(predictions, convert, alpha_bar):
    x = predictions["x"]

    def pag_with_cfg(cond, uncond, perturbed):
        return guide(uncond + CFG * (cond - uncond), cond, perturbed_attention_delta(cond, perturbed, SCALE))

    names = ("cond", "uncond", "perturbed")
    in_noise = pag_with_cfg(*(predictions[name] for name in names))
    converted = pag_with_cfg(*(convert(x, predictions[name], alpha_bar) for name in names))
    torch.testing.assert_close(converted, convert(x, in_noise, alpha_bar), rtol=1e-9, atol=1e-9)


def test_delta_is_zero_where_perturbing_changes_nothing(predictions):
    assert not perturbed_attention_delta(predictions["cond"], predictions["cond"].clone(), SCALE).any()


def test_inputs_are_left_as_they_were(predictions):
    cond, uncond, delta = predictions["cond"], predictions["uncond"], predictions["perturbed"]
    before = [tensor.clone() for tensor in (cond, uncond, delta)]
    for mode in RESCALE_MODES:
        guide(uncond, cond, delta, 0.7, mode, uncond=uncond, origin=delta)
    perturbed_attention_delta(cond, uncond, SCALE)
    assert all(torch.equal(tensor, old) for tensor, old in zip((cond, uncond, delta), before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", list(RESCALE_MODES))
def test_rescale_0_is_the_plain_sum_bit_for_bit(predictions, mode, dtype):
    guided, cond, delta, x = (predictions[name].to(dtype) for name in ("uncond", "cond", "perturbed", "x"))
    assert torch.equal(guide(guided, cond, delta, 0.0, mode, uncond=x, origin=x), guided + delta)


def saliency_by_the_book(update: torch.Tensor) -> torch.Tensor:
    """One update [C, H, W]: log of the softmax of its blurred magnitude over the places, channel by channel (SNF)."""
    taps = torch.exp(-0.5 * torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64) ** 2)
    kernel = (torch.outer(taps, taps) / taps.sum() ** 2)[None, None]
    magnitude = F.pad(update.double().abs()[:, None], (1, 1, 1, 1), mode="reflect")
    return torch.stack([torch.log_softmax(channel.flatten(), 0).view_as(channel)
                        for channel in F.conv2d(magnitude, kernel)[:, 0]])


def rescaled_by_the_book(mode: str, guided: torch.Tensor, cond: torch.Tensor, delta: torch.Tensor, rescale: float,
                         uncond: torch.Tensor, origin: torch.Tensor) -> torch.Tensor:
    """Each mode's own source, one sample after the other."""
    samples = []
    for g, c, d, u, o in zip(guided, cond, delta, uncond, origin, strict=True):
        total = g + d
        if mode in ("full", "partial"):  # sd-perturbed-attention, after Lin et al. 2023, Eq. 15 and 16
            measured = total if mode == "full" else c + d
            samples.append(g + d * (rescale * (c.std() / measured.std()) + (1.0 - rescale)))
        elif mode == "diffusers":  # `rescale_noise_cfg` on the network's output (o − x̂0) / sigma; sigma does not matter
            noise, noise_cond = (o - total) / 0.7, (o - c) / 0.7
            rescaled = noise * (noise_cond.std() / noise.std())
            samples.append(o - 0.7 * (rescale * rescaled + (1.0 - rescale) * noise))
        elif mode == "snf":
            ours = saliency_by_the_book(d) > saliency_by_the_book(g - u)
            samples.append((1.0 - rescale) * total + rescale * (u + torch.where(ours, d, g - u)))
        else:  # APG, arXiv 2410.02416, Sec. 4 with eta
            parallel = (d * c).sum() / (c * c).sum() * c
            samples.append(g + (d - parallel) + (1.0 - rescale) * parallel)
    return torch.stack(samples)


@pytest.fixture
def step(predictions) -> dict[str, torch.Tensor]:
    """The arguments of `guide`: CFG's result, the conditional prediction, PAG's delta, and what some modes need."""
    return {"guided": predictions["uncond"] + CFG * (predictions["cond"] - predictions["uncond"]),
            "cond": predictions["cond"], "delta": predictions["cond"] - predictions["perturbed"],
            "uncond": predictions["uncond"], "origin": predictions["x"]}


@pytest.mark.parametrize("rescale", [0.25, 0.7, 1.0])
@pytest.mark.parametrize("mode", list(RESCALE_MODES))
def test_rescale_follows_its_formula(step, mode, rescale):
    expected = rescaled_by_the_book(mode, **step, rescale=rescale)
    torch.testing.assert_close(guide(**step, rescale=rescale, rescale_mode=mode), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("alpha_bar", [0.01, 0.5, 0.999])
@pytest.mark.parametrize("prediction", ["noise", "velocity", "image", "flow"])
def test_diffusers_mode_rescales_what_the_network_predicts(predictions, prediction, alpha_bar):
    """`origin`, the x̂0 of an output of zero, is all that `guide` has to know about the kind of prediction."""
    x, w, rescale = predictions["x"], CFG - 1.0, 0.7
    to_image = {"noise": lambda out: (x - (1 - alpha_bar) ** 0.5 * out) / alpha_bar ** 0.5,
                "velocity": lambda out: alpha_bar ** 0.5 * x - (1 - alpha_bar) ** 0.5 * out,
                "image": lambda out: out,
                "flow": lambda out: x - (1 - alpha_bar) * out}[prediction]
    cond, uncond, perturbed = (predictions[name] for name in ("cond", "uncond", "perturbed"))
    output = cond + w * (cond - uncond) + SCALE * (cond - perturbed)
    axes = (1, 2, 3)
    rescaled = output * (cond.std(axes, keepdim=True) / output.std(axes, keepdim=True))
    expected = to_image(rescale * rescaled + (1 - rescale) * output)
    c, u, p = (to_image(out) for out in (cond, uncond, perturbed))
    result = guide(c + w * (c - u), c, perturbed_attention_delta(c, p, SCALE), rescale, "diffusers",
                   origin=to_image(torch.zeros_like(x)))
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_full_rescale_of_the_image_gives_the_spread_of_the_conditional_prediction(predictions):
    guided, cond, delta = predictions["uncond"], predictions["cond"], 20.0 * predictions["perturbed"]
    spread = guide(guided, cond, delta, 1.0, "diffusers").std(dim=(1, 2, 3))
    torch.testing.assert_close(spread, cond.std(dim=(1, 2, 3)), rtol=1e-6, atol=1e-6)


def test_full_projection_leaves_nothing_parallel_to_the_conditional_prediction(step):
    update = guide(**step, rescale=1.0, rescale_mode="apg") - step["guided"]
    cosine = (update * step["cond"]).sum((1, 2, 3)) / (update.norm() * step["cond"].norm())
    torch.testing.assert_close(cosine, torch.zeros_like(cosine), rtol=0, atol=1e-6)


def test_fusion_takes_every_place_from_one_of_the_two_updates(step):
    fused = guide(**step, rescale=1.0, rescale_mode="snf") - step["uncond"]
    from_cfg = torch.isclose(fused, step["guided"] - step["uncond"])
    from_pag = torch.isclose(fused, step["delta"])
    assert (from_cfg | from_pag).all()
    assert from_cfg.any()
    assert from_pag.any()


def test_fusion_without_cfg_is_the_plain_sum(step):
    step["uncond"] = None
    assert torch.equal(guide(**step, rescale=1.0, rescale_mode="snf"), step["guided"] + step["delta"])


@pytest.mark.parametrize("mode", sorted(RESCALE_MODES.keys() - {"snf"}))  # for which no update, too, can stand out
def test_rescale_leaves_no_delta_alone_where_guided_equals_cond(predictions, mode):
    cond = predictions["cond"]
    result = guide(cond, cond, torch.zeros_like(cond), 1.0, mode, uncond=predictions["uncond"], origin=predictions["x"])
    torch.testing.assert_close(result, cond, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", list(RESCALE_MODES))
def test_samples_of_a_batch_do_not_influence_each_other(step, mode):
    together = guide(**step, rescale=0.7, rescale_mode=mode)
    alone = torch.cat([guide(**{name: value[i:i + 1] for name, value in step.items()}, rescale=0.7, rescale_mode=mode)
                       for i in range(SHAPE[0])])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 3, 8), (2, 3, 2, 4, 5)], ids=["audio", "video"])
@pytest.mark.parametrize("mode", list(RESCALE_MODES))
def test_any_number_of_axes_works_and_shape_is_kept(mode, shape):
    generator = torch.Generator().manual_seed(1)
    names = ("guided", "cond", "delta", "uncond", "origin")
    step = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name in names}
    result = guide(**step, rescale=0.5, rescale_mode=mode)
    assert result.shape == shape
    if mode != "snf":
        expected = rescaled_by_the_book(mode, **step, rescale=0.5)
    else:  # a picture for each frame; sound is a picture of one row
        frames = {name: value.movedim(2, 1).flatten(0, 1) if len(shape) == 5 else value[:, :, None]
                  for name, value in step.items()}
        expected = guide(**frames, rescale=0.5, rescale_mode=mode)
        expected = expected.unflatten(0, (2, 2)).movedim(1, 2) if len(shape) == 5 else expected[:, :, 0]
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 3.0])
@pytest.mark.parametrize("mode", list(RESCALE_MODES))
def test_constant_predictions_give_no_nan(mode, value):
    constant = torch.full(SHAPE, value)
    guided = guide(constant, constant, torch.zeros_like(constant), 1.0, mode, uncond=constant, origin=constant)
    assert torch.equal(guided, constant)


@pytest.mark.parametrize("mode", list(RESCALE_MODES))
def test_a_constant_sample_in_a_batch_does_not_spoil_the_others(step, mode):
    step = {name: value.float().clone() for name, value in step.items()}
    expected = guide(**step, rescale=0.7, rescale_mode=mode)
    for tensor in step.values():
        tensor[1] = 0.0
    result = guide(**step, rescale=0.7, rescale_mode=mode)
    assert result.isfinite().all()
    torch.testing.assert_close(result[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize(("dtype", "magnitude"), [(torch.float16, 5000.0), (torch.bfloat16, 1e18)],
                         ids=["fp16", "bf16"])
@pytest.mark.parametrize("mode", list(RESCALE_MODES))
def test_half_precision_does_not_overflow_and_keeps_its_dtype(step, mode, dtype, magnitude):
    """The squares of these values lie outside the half-precision range, the values themselves inside."""
    step = {name: (value / value.abs().max() * magnitude).to(dtype) for name, value in step.items()}
    result = guide(**step, rescale=0.7, rescale_mode=mode)
    assert result.dtype == dtype
    assert result.isfinite().all()
    expected = rescaled_by_the_book(mode, **{name: value.double() for name, value in step.items()}, rescale=0.7)
    # Fusion chooses between two values; where they stand out alike, rounding may choose.
    wrong = (result.double() - expected).abs() > 0.01 * expected.abs().max()
    assert wrong.double().mean() <= (0.02 if mode == "snf" else 0.0)
