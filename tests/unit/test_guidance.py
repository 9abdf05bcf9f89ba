"""The algebra of PAG Eq. 10, 11 and 14, and of rescaling, in double precision against formulas written out here."""

import pytest
import torch

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
        guide(uncond, cond, delta, 0.7, mode)
    perturbed_attention_delta(cond, uncond, SCALE)
    assert all(torch.equal(tensor, old) for tensor, old in zip((cond, uncond, delta), before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", list(RESCALE_MODES))
def test_rescale_0_is_the_plain_sum_bit_for_bit(predictions, mode, dtype):
    guided, cond, delta = (predictions[name].to(dtype) for name in ("uncond", "cond", "perturbed"))
    assert torch.equal(guide(guided, cond, delta, 0.0, mode), guided + delta)


def rescaled_by_the_book(mode: str, guided: torch.Tensor, cond: torch.Tensor, delta: torch.Tensor,
                         rescale: float) -> torch.Tensor:
    """Lin et al. 2023, Eq. 15 and 16, one sample after the other: what is tamed and what is measured differ by mode."""
    samples = []
    for g, c, d in zip(guided, cond, delta, strict=True):
        total = g + d
        measured = {"full": total, "partial": c + d, "total": total}[mode]
        factor = rescale * (c.std() / measured.std()) + (1.0 - rescale)
        samples.append(total * factor if mode == "total" else g + d * factor)
    return torch.stack(samples)


@pytest.mark.parametrize("rescale", [0.25, 0.7, 1.0])
@pytest.mark.parametrize("mode", list(RESCALE_MODES))
def test_rescale_follows_its_formula(predictions, mode, rescale):
    guided, cond, delta = predictions["uncond"], predictions["cond"], predictions["perturbed"]
    torch.testing.assert_close(guide(guided, cond, delta, rescale, mode),
                               rescaled_by_the_book(mode, guided, cond, delta, rescale), rtol=1e-6, atol=1e-6)


def test_full_strength_total_rescale_gives_the_spread_of_the_conditional_prediction(predictions):
    guided, cond, delta = predictions["uncond"], predictions["cond"], 20.0 * predictions["perturbed"]
    spread = guide(guided, cond, delta, 1.0, "total").std(dim=(1, 2, 3))
    torch.testing.assert_close(spread, cond.std(dim=(1, 2, 3)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", list(RESCALE_MODES))
def test_rescale_leaves_no_delta_alone_where_guided_equals_cond(predictions, mode):
    cond = predictions["cond"]
    torch.testing.assert_close(guide(cond, cond, torch.zeros_like(cond), 1.0, mode), cond, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", list(RESCALE_MODES))
def test_samples_of_a_batch_do_not_influence_each_other(predictions, mode):
    guided, cond, delta = predictions["uncond"], predictions["cond"], predictions["perturbed"]
    together = guide(guided, cond, delta, 0.7, mode)
    alone = torch.cat([guide(g[None], c[None], d[None], 0.7, mode)
                       for g, c, d in zip(guided, cond, delta, strict=True)])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 3, 8), (2, 3, 4, 5), (2, 3, 2, 4, 5)], ids=["audio", "image", "video"])
@pytest.mark.parametrize("mode", list(RESCALE_MODES))
def test_any_number_of_axes_works_and_shape_is_kept(mode, shape):
    generator = torch.Generator().manual_seed(1)
    guided, cond, delta = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    torch.testing.assert_close(guide(guided, cond, delta, 0.5, mode),
                               rescaled_by_the_book(mode, guided, cond, delta, 0.5), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 3.0])
@pytest.mark.parametrize("mode", list(RESCALE_MODES))
def test_constant_predictions_give_no_nan(mode, value):
    constant = torch.full(SHAPE, value)
    guided = guide(constant, constant, torch.zeros_like(constant), 1.0, mode)
    assert torch.equal(guided, constant)


@pytest.mark.parametrize("mode", list(RESCALE_MODES))
def test_a_constant_sample_in_a_batch_does_not_spoil_the_others(predictions, mode):
    guided, cond, delta = (predictions[name].float().clone() for name in ("uncond", "cond", "perturbed"))
    expected = guide(guided, cond, delta, 0.7, mode)
    for tensor in (guided, cond, delta):
        tensor[1] = 0.0
    result = guide(guided, cond, delta, 0.7, mode)
    assert result.isfinite().all()
    torch.testing.assert_close(result[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize(("dtype", "magnitude"), [(torch.float16, 5000.0), (torch.bfloat16, 1e18)],
                         ids=["fp16", "bf16"])
@pytest.mark.parametrize("mode", list(RESCALE_MODES))
def test_half_precision_does_not_overflow_and_keeps_its_dtype(predictions, mode, dtype, magnitude):
    """The squares of these values lie outside the half-precision range, the values themselves inside."""
    guided, cond, delta = ((predictions[name] / predictions[name].abs().max() * magnitude).to(dtype)
                           for name in ("uncond", "cond", "perturbed"))
    result = guide(guided, cond, delta, 0.7, mode)
    assert result.dtype == dtype
    assert result.isfinite().all()
    expected = rescaled_by_the_book(mode, guided.double(), cond.double(), delta.double(), 0.7)
    assert (result.double() - expected).abs().max() <= 0.01 * expected.abs().max()
