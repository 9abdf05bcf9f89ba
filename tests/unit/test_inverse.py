"""Measurement operators: their adjoints, known cases, and what is refused."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pag_core.checks import SettingError
from pag_core.inverse import (
    Blur,
    BoxInpainting,
    GaussianBlur,
    Inpainting,
    SuperResolution,
    box_mask,
    measure,
    motion_kernel,
    squared_norm,
)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def free_form(height: int, width: int) -> torch.Tensor:
    mask = (noise(height, width) > 0).float()
    mask[0, 0], mask[-1, -1] = 0.0, 1.0
    return mask


SHARES = (0.25, 0.25, 0.5, 0.5)
OPERATORS = {
    "box": lambda h, w: BoxInpainting(*SHARES),
    "free-form": lambda h, w: Inpainting(free_form(h, w)),
    "bicubic x2": lambda h, w: SuperResolution(2, "bicubic"),
    "bicubic x4": lambda h, w: SuperResolution(4, "bicubic"),
    "average x4": lambda h, w: SuperResolution(4, "average"),
    "gaussian": lambda h, w: GaussianBlur(1.5),
    "motion": lambda h, w: Blur(motion_kernel(9, 0.5, 3)),
    "given": lambda h, w: Blur(noise(4, 5).abs()),
}
every_operator = pytest.mark.parametrize("build", OPERATORS.values(), ids=OPERATORS)


@every_operator
@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(2, 9), batch=st.integers(1, 3), seed=st.integers(0, 99))
def test_the_adjoint_is_one(build, rows, columns, batch, seed):
    """<A·x, y> = <x, Aᵀ·y>, to 1e-6 of the two vectors' size, in double precision."""
    size = (4 * rows, 4 * columns)
    operator = build(*size)
    x = noise(batch, 3, *size, seed=seed)
    y = noise(batch, 3, *operator.measured_size(size), seed=seed + 1)
    assert operator.forward(x).shape == y.shape
    assert operator.adjoint(y).shape == x.shape
    difference = (operator.forward(x) * y).sum() - (x * operator.adjoint(y)).sum()
    assert abs(float(difference)) <= 1e-6 * float(x.norm() * y.norm())


@every_operator
def test_it_is_linear_and_the_adjoint_too(build):
    operator = build(8, 12)
    x, other = noise(2, 3, 8, 12), noise(2, 3, 8, 12, seed=1)
    torch.testing.assert_close(operator.forward(x + 2 * other), operator.forward(x) + 2 * operator.forward(other))
    y = noise(2, 3, *operator.measured_size((8, 12)), seed=1).requires_grad_()
    (gradient,) = torch.autograd.grad(operator.adjoint(y), y, x)
    torch.testing.assert_close(gradient, operator.forward(x), msg="PSLD's gluing term is differentiated through it")


@every_operator
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_types_are_kept(build, dtype):
    operator = build(8, 8)
    y = operator.forward(noise(1, 3, 8, 8).to(dtype))
    assert y.dtype == operator.adjoint(y).dtype == dtype
    torch.testing.assert_close(y.double(), operator.forward(noise(1, 3, 8, 8)), atol=0.1, rtol=0.1)


@every_operator
def test_gradients_run_through_operators_made_under_inference_mode(build):
    with torch.inference_mode():
        operator = build(8, 8)
        operator.adjoint(operator.forward(noise(1, 3, 8, 8)))
    x = noise(1, 3, 8, 8).requires_grad_()
    (gradient,) = torch.autograd.grad(operator.forward(x).square().sum() / 2, x)
    torch.testing.assert_close(gradient, operator.adjoint(operator.forward(x)).detach())


@pytest.mark.parametrize("name", ["bicubic x2", "bicubic x4", "average x4", "gaussian", "motion", "given"])
def test_a_flat_picture_stays_flat(name):
    y = OPERATORS[name](16, 16).forward(torch.full((1, 3, 16, 16), 0.7, dtype=torch.float64))
    torch.testing.assert_close(y, torch.full_like(y, 0.7))


def test_shrinking_is_torchs_own():
    x = noise(2, 3, 16, 24, dtype=torch.float32)
    torch.testing.assert_close(SuperResolution(4, "average").forward(x), F.avg_pool2d(x, 4))
    expected = F.interpolate(x, (4, 6), mode="bicubic", antialias=True)
    torch.testing.assert_close(SuperResolution(4, "bicubic").forward(x), expected)


def test_a_box_is_where_it_was_asked_for():
    mask = box_mask((8, 16), left=0.25, top=0.5, width=0.5, height=0.25)
    expected = torch.zeros(8, 16)
    expected[4:6, 4:12] = 1
    assert torch.equal(mask, expected)
    x = noise(1, 3, 8, 16)
    hidden = BoxInpainting(0.25, 0.5, 0.5, 0.25).forward(x)
    assert torch.equal(hidden, torch.where(expected == 1, 0.0, x))
    assert torch.equal(Inpainting(expected).forward(x), hidden)


def test_masks_of_a_batch_act_on_their_own_pictures():
    masks = torch.stack([box_mask((4, 4), 0, 0, 0.5, 1), box_mask((4, 4), 0.5, 0, 0.5, 1)])
    y = Inpainting(masks).forward(torch.ones(2, 3, 4, 4))
    assert torch.equal(y[:, 0], 1 - masks)
    with pytest.raises(SettingError, match="2 masks, but 3 images"):
        Inpainting(masks).forward(torch.ones(3, 3, 4, 4))


def test_a_kernel_blurs_as_a_convolution_does():
    kernel = torch.zeros(3, 3)
    kernel[1, 0] = 5.0  # correlation, as everywhere in torch: each pixel becomes its left neighbour
    x = noise(1, 3, 6, 7)
    y = Blur(kernel).forward(x)
    torch.testing.assert_close(y[..., 1:], x[..., :-1])
    torch.testing.assert_close(y[..., 0], x[..., 1])  # reflected


@pytest.mark.parametrize("size", [3, 9, 61])
def test_motion_kernels_are_paths_that_the_seed_decides(size):
    kernel = motion_kernel(size, 0.5, seed=7)
    assert kernel.shape == (size, size)
    assert float(kernel.sum()) == pytest.approx(1)
    assert (kernel >= 0).all()
    assert torch.equal(kernel, motion_kernel(size, 0.5, seed=7))
    assert not torch.equal(kernel, motion_kernel(size, 0.5, seed=8))
    occupied = (kernel > 0).any(0) | (kernel > 0).any(1)
    assert occupied.sum() >= size - 2, "the path fills the kernel"
    assert (kernel > 0).float().mean() < 0.8 or size == 3, "and is a path, no cloud"


def test_noise_is_seeded_and_spares_what_is_hidden():
    x = torch.zeros(1, 3, 64, 64)
    noisy = measure(GaussianBlur(1.0), x, sigma=0.05, seed=1)
    assert float(noisy.std()) == pytest.approx(0.05, rel=0.05)
    assert torch.equal(noisy, measure(GaussianBlur(1.0), x, sigma=0.05, seed=1))
    assert not torch.equal(noisy, measure(GaussianBlur(1.0), x, sigma=0.05, seed=2))
    box = measure(BoxInpainting(*SHARES), x, sigma=0.05)
    assert (box[..., 16:48, 16:48] == 0).all()
    assert (box[..., :16, :] != 0).all()


def test_norms():
    assert squared_norm(BoxInpainting(*SHARES), (16, 16)) == pytest.approx(1)
    assert squared_norm(SuperResolution(4, "average"), (16, 16)) == pytest.approx(1 / 16)
    operator, x = SuperResolution(4, "bicubic"), noise(1, 1, 16, 16)
    assert float(operator.forward(x).norm() ** 2) <= squared_norm(operator, (16, 16)) * float(x.norm() ** 2)


@pytest.mark.parametrize(("build", "words"), [
    (lambda: Inpainting(torch.zeros(8, 8)), "mask is empty"),
    (lambda: Inpainting(torch.ones(8, 8)), "covers the whole image"),
    (lambda: Inpainting(torch.eye(8)).forward(torch.zeros(1, 3, 8, 9)), "8 x 8, but the image is 8 x 9"),
    (lambda: BoxInpainting(0.5, 0.0, 0.75, 0.5), "box_width 0.75 extends beyond the image: box_left 0.5"),
    (lambda: BoxInpainting(0.5, 0.0, 0.01, 0.5).forward(torch.zeros(1, 3, 8, 8)), "mask is empty"),
    (lambda: BoxInpainting(0.0, 0.0, 1.0, 1.0).measured_size((8, 8)), "covers the whole image"),
    (lambda: BoxInpainting(-1.0, 0.0, 1.0, 1.0), "box_left must be a number from 0 to 1, got -1.0"),
    (lambda: SuperResolution(4).forward(torch.zeros(1, 3, 16, 18)), "width 18 is not divisible by the factor 4"),
    (lambda: SuperResolution(4).forward(torch.zeros(1, 3, 16, 4)), "width 4 leaves a single column at the factor 4"),
    (lambda: SuperResolution(1), "factor must be a whole number from 2 to 64, got 1"),
    (lambda: SuperResolution(2, "nearest"), "downscale must be one of bicubic, average; got 'nearest'"),
    (lambda: GaussianBlur(0.0), "blur_sigma"),
    (lambda: Blur(torch.zeros(3, 3)), "completely black"),
    (lambda: Blur(torch.full((3, 3), -1.0)), "negative"),
    (lambda: Blur(torch.ones(1, 3, 3)), "a single image"),
    (lambda: motion_kernel(8, 0.5, 0), "kernel_size must be odd"),
    (lambda: motion_kernel(9, 2.0, 0), "intensity must be a number from 0 to 1"),
    (lambda: measure(GaussianBlur(1.0), torch.zeros(1, 3, 8, 8), -0.1), "noise_sigma"),
])
def test_bad_values_are_named(build, words):
    with pytest.raises(SettingError, match=words):
        build()
