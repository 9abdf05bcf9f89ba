"""The progress bar and the picture that the editor shows while a run goes on."""

from __future__ import annotations

from collections.abc import Callable

import comfy.utils
import latent_preview
import torch
from comfy.cli_args import LatentPreviewMethod
from comfy.model_patcher import ModelPatcher

from ....pag_core.drawing import heat_map
from .. import messages
from .predictions import Pair
from .run import Run


class Progress:
    """A sampling callback as the host's KSampler has it, whose bar counts through several runs of equal length.

    Args:
        in_panel: whether the picture goes to our panel; for nodes that show a result there, which the host's preview
            would outlive.
    """

    def __init__(self, model: ModelPatcher, runs: int = 1, in_panel: bool = False) -> None:
        self.in_panel = in_panel
        self.previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
        self.bar = comfy.utils.ProgressBar(runs)
        self.runs = runs
        self.runs_done = 0

    def __call__(self, step: int, x0: torch.Tensor, x: torch.Tensor, total: int) -> None:
        if x0.is_nested:
            x0 = x0.tensors[0]
        self.show(step, total, self.previewer and self.previewer.decode_latent_to_preview_image("JPEG", x0))

    def show(self, step: int, total: int, image: tuple | None) -> None:
        """Report that a step is done, with the picture that the host's progress bar takes."""
        if image and self.in_panel:
            messages.show(image[1], image[2])
            image = None
        self.bar.update_absolute(self.runs_done * total + step + 1, self.runs * total, image)


def delta_preview(callback: Callable | None, run: Run, latent_shapes: list | None) -> Callable:
    """A sampling callback that shows what PAG changes (PAG Fig. 3) in place of x̂0.

    Where the callback is another node's, that one is called as ever, since it may do more than show x̂0; our picture
    then follows its own.
    """
    ours = callback if isinstance(callback, Progress) else None
    bar = comfy.utils.ProgressBar(1)

    def show(step: int, x0: torch.Tensor, x: torch.Tensor, total: int) -> None:
        image = _delta_image(run.predictions and run.predictions.pair, x0, latent_shapes)
        if ours:
            ours.show(step, total, image)
            return
        if callback:
            callback(step, x0, x, total)
        bar.update_absolute(step + 1, total, image)

    return show


def _delta_image(pair: Pair | None, x0: torch.Tensor, latent_shapes: list | None) -> tuple | None:
    """For the host's progress bar: the first picture of the batch in colours of its own range, black where PAG does
    nothing; None where the user wants no previews or there are no pictures."""
    if latent_preview.args.preview_method == LatentPreviewMethod.NoPreviews:
        return None
    delta = torch.zeros_like(x0) if pair is None else pair.cond - pair.perturbed
    if latent_shapes and len(latent_shapes) > 1:  # video with sound, one after the other in one tensor
        delta = comfy.utils.unpack_latents(delta, latent_shapes)[0]
    if delta.ndim not in (4, 5):
        return None
    values = delta[0].abs().mean(0)
    values = values[0] if values.ndim == 3 else values
    return "JPEG", heat_map(values, float(values.amax())), latent_preview.MAX_PREVIEW_RESOLUTION
