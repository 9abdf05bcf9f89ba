"""Linear measurements of images, y = A·x, with their adjoints Aᵀ (PAG App. A.3, C.1; the tasks are those of DPS).

Pictures and measurements are [B, C, H, W] on any device and of any floating dtype, in [-1, 1] where noise levels are
to mean what they mean in the papers. Nothing here keeps state, so every operator can be used from several runs at once.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .blur import gaussian, reflect
from .checks import SettingError, check_choice, check_range, check_whole

DOWNSCALES = ("bicubic", "average")
Size = tuple[int, int]
"""Height and width."""


class Operator:
    """A linear measurement A; subclasses define its effect on an image, and the sizes if they differ.

    Methods take pictures of any size for which `measured_size` raises no SettingError.
    """

    def measured_size(self, size: Size) -> Size:
        """The size of the measurement of a picture of this size; SettingError if the two do not match."""
        return size

    def picture_size(self, size: Size) -> Size:
        """The size of the picture that has a measurement of this size; SettingError if there is none."""
        return size

    def forward(self, x: Tensor) -> Tensor:
        """A·x."""
        raise NotImplementedError

    def adjoint(self, y: Tensor) -> Tensor:
        """Aᵀ·y, so that <A·x, y> = <x, Aᵀ·y>: what autograd gives for a linear map, wherever it is taken."""
        with torch.inference_mode(False), torch.enable_grad():
            x = torch.zeros(*y.shape[:2], *self.picture_size(tuple(y.shape[-2:])), device=y.device, dtype=y.dtype,
                            requires_grad=True)
            y = y.clone() if y.is_inference() else y
            return torch.autograd.grad(self.forward(x), x, y, create_graph=y.requires_grad)[0]


class Inpainting(Operator):
    """A = diag(1 - mask): known pixels stay, the others are 0 (gray, where images are in [-1, 1]).

    Args:
        mask: [H, W], [B, H, W] or [B, 1, H, W]; 1 where the picture is unknown, as in ComfyUI, rounded to 0 or 1.

    Raises:
        SettingError: where the mask leaves nothing known, or nothing unknown.
    """

    def __init__(self, mask: Tensor) -> None:
        self.known = (mask.detach() < 0.5).reshape(-1, 1, *mask.shape[-2:])
        shares = self.known.float().mean((1, 2, 3))
        if (shares == 0).any():
            raise SettingError("The mask covers the whole image, so there is nothing to restore it from. Leave part of "
                               "the image unmasked.")
        if (shares == 1).any():
            raise SettingError("The mask is empty, so nothing is missing. Mark the area to fill in.")

    def measured_size(self, size: Size) -> Size:
        expected = tuple(self.known.shape[-2:])
        if tuple(size) != expected:
            raise SettingError(f"The mask is {_text(expected)}, but the image is {_text(size)} (height x width). "
                               f"Make them the same size.")
        return size

    picture_size = measured_size

    def forward(self, x: Tensor) -> Tensor:
        self.measured_size(x.shape[-2:])
        if len(self.known) not in (1, len(x)):
            raise SettingError(f"There are {len(self.known)} masks, but {len(x)} images. Give one mask, or one for "
                               f"each image.")
        return x * self.known.to(x.device, x.dtype)


def box_mask(size: Size, left: float, top: float, width: float, height: float) -> Tensor:
    """A mask [H, W] for `Inpainting` with one box; position and size are fractions of the image, from 0 to 1.

    Raises:
        SettingError: where the box is empty, fills the picture or sticks out of it.
    """
    for name, value in (("box_left", left), ("box_top", top), ("box_width", width), ("box_height", height)):
        check_range(name, value, 0.0, 1.0)
    for name, start, extent in (("width", left, width), ("height", top, height)):
        if start + extent > 1.0 + 1e-6:
            side = "box_left" if name == "width" else "box_top"
            raise SettingError(f"box_{name} {extent:g} extends beyond the image: {side} {start:g} + {extent:g} > 1.")
    mask = torch.zeros(size)
    rows, columns = (slice(round(start * n), round((start + extent) * n))
                     for start, extent, n in ((top, height, size[0]), (left, width, size[1])))
    mask[rows, columns] = 1.0
    return mask


class BoxInpainting(Operator):
    """`Inpainting` with a box that scales with the image; the arguments are those of `box_mask`."""

    def __init__(self, left: float, top: float, width: float, height: float) -> None:
        self._box = (left, top, width, height)
        box_mask((1, 1), *self._box)

    def measured_size(self, size: Size) -> Size:
        self._inpainting(size)
        return size

    picture_size = measured_size

    def forward(self, x: Tensor) -> Tensor:
        return self._inpainting(tuple(x.shape[-2:])).forward(x)

    def _inpainting(self, size: Size) -> Inpainting:
        return Inpainting(box_mask(size, *self._box))


class SuperResolution(Operator):
    """Downscaling by an integer factor: antialiased bicubic (like PIL and DPS), or the mean of each factor × factor."""

    def __init__(self, factor: int, method: str = "bicubic") -> None:
        check_whole("factor", factor, 2, 64)
        check_choice("downscale", method, DOWNSCALES)
        self.factor, self.method = factor, method

    def measured_size(self, size: Size) -> Size:
        for name, n in zip(("height", "width"), size, strict=True):
            if n % self.factor:
                raise SettingError(f"The image's {name} {n} is not divisible by the factor {self.factor}. Crop it to "
                                   f"{n - n % self.factor or self.factor}, or choose another factor.")
        if self.method == "bicubic" and size[1] == self.factor:  # one column, of which torch's gradient is wrong
            raise SettingError(f"The image's width {size[1]} leaves a single column at the factor {self.factor}. Use a "
                               f"wider image, a smaller factor, or set downscale to average.")
        return size[0] // self.factor, size[1] // self.factor

    def picture_size(self, size: Size) -> Size:
        return size[0] * self.factor, size[1] * self.factor

    def forward(self, x: Tensor) -> Tensor:
        size = self.measured_size(tuple(x.shape[-2:]))
        if self.method == "average":
            return F.interpolate(x, size, mode="area")
        wide = x if x.dtype == torch.float64 else x.float()  # on a CPU it is not there for half precision
        return F.interpolate(wide, size, mode="bicubic", antialias=True).to(x.dtype)


class Blur(Operator):
    """Blur with any kernel, such as that of a moving camera; the image is reflected at its borders.

    Args:
        kernel: [h, w], not negative; it is made to sum to 1.

    Raises:
        SettingError: where it has another shape, a negative or infinite value, or is 0 throughout.
    """

    def __init__(self, kernel: Tensor) -> None:
        if kernel.ndim != 2:
            raise SettingError(f"The kernel must be a single image [height, width], got the shape "
                               f"{list(kernel.shape)}.")
        if not bool(torch.isfinite(kernel).all()) or bool((kernel < 0).any()):
            raise SettingError("The kernel contains negative, NaN or infinite values. Use brightness values of 0 or "
                               "more.")
        if not bool(kernel.sum() > 0):
            raise SettingError("The kernel is completely black, so it would blur every image to nothing. Draw the "
                               "camera path in white.")
        with torch.inference_mode(False):  # gradients run through it
            self.kernel = kernel.detach().double().cpu() / float(kernel.sum())

    def forward(self, x: Tensor) -> Tensor:
        for dim, taps in ((2, self.kernel.shape[0]), (3, self.kernel.shape[1])):
            x = x.index_select(dim, _reflected(x.shape[dim], taps).to(x.device))
        return F.conv2d(x.flatten(0, 1)[:, None], self.kernel.to(x)[None, None]).unflatten(0, x.shape[:2])[:, :, 0]


class GaussianBlur(Operator):
    """Blur with a Gaussian, reflected at the borders.

    Args:
        sigma: its standard deviation in pixels; cut off where less than 1e-4 of it is left.
    """

    def __init__(self, sigma: float) -> None:
        check_range("blur_sigma", sigma, 0.1, 1000.0)
        self.taps = gaussian(sigma, 2 * math.ceil(4 * sigma) + 1)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (self._matrix(size).to(x) for size in x.shape[-2:])
        return rows @ x @ columns.mT  # several times faster than two convolutions on a CPU

    def _matrix(self, size: int) -> Tensor:
        """[size, size]: what the blur does along one axis."""
        places = _reflected(size, len(self.taps)).unfold(0, len(self.taps), 1)
        taps = torch.tensor(self.taps, dtype=torch.float64).expand(size, -1)
        return torch.zeros(size, size, dtype=torch.float64).scatter_add_(1, places, taps)


def _reflected(size: int, taps: int) -> Tensor:
    """[size + taps - 1]: which pixel stands where a kernel of so many taps looks; unlike F.pad's, a border may be
    wider than the picture."""
    return reflect(torch.arange(-(taps // 2), size + taps - 1 - taps // 2), size)


def motion_kernel(size: int, intensity: float, seed: int) -> Tensor:
    """The path of a shaking camera as a kernel [size, size] that sums to 1, the same for the same seed.

    A walk whose direction drifts, drawn with soft points; after the idea of the kernels that DPS uses.

    Args:
        size: in pixels, odd.
        intensity: 0: a straight line; 1: direction changes as if at random.
    """
    check_whole("kernel_size", size, 3, 511)
    check_range("intensity", intensity, 0.0, 1.0)
    if size % 2 == 0:
        raise SettingError(f"kernel_size must be odd, so that the kernel has a center, got {size}.")
    generator = torch.Generator().manual_seed(seed)
    points = 8 * size
    start, turns = torch.rand((), generator=generator), torch.randn(points, generator=generator)
    angles = 2 * math.pi * start + 4 * intensity * turns.cumsum(0) / points ** 0.5  # in radians
    path = torch.stack([angles.sin(), angles.cos()], 1).cumsum(0)
    low, high = path.amin(0), path.amax(0)
    # The longer side of the path fills the kernel but for the soft edge of its points.
    path = (path - (low + high) / 2) / (high - low).max() * (size - 2) + (size - 1) / 2
    grid = torch.arange(size)
    # A point lights the pixels that are less than one pixel away, linearly.
    rows, columns = ((1 - (path[:, axis, None] - grid).abs()).clamp(min=0) for axis in (0, 1))
    kernel = (rows.T @ columns).double()
    return kernel / kernel.sum()


def measure(operator: Operator, x: Tensor, sigma: float = 0.0, seed: int = 0) -> Tensor:
    """A·x + sigma·n, with Gaussian noise n that depends only on the seed; masked pixels stay 0."""
    check_range("noise_sigma", sigma, 0.0, 100.0)
    y = operator.forward(x)
    if sigma == 0.0:
        return y
    noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)).to(y)
    return y + sigma * (operator.forward(noise) if is_masking(operator) else noise)


def is_masking(operator: Operator) -> bool:
    """Whether A·A = A: the measurement is the picture with a part missing."""
    return isinstance(operator, (Inpainting, BoxInpainting))


def squared_norm(operator: Operator, size: Size) -> float:
    """The largest eigenvalue of AᵀA for pictures of this size, by power iteration."""
    x = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
    value = 0.0
    for _ in range(30):
        x = operator.adjoint(operator.forward(x / x.norm()))
        value = float(x.norm())
    return value


def _text(size: Size) -> str:
    return f"{size[0]} x {size[1]}"
