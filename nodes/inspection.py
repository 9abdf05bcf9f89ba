"""Shows what PAG and CFG do in every step of a run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from comfy_api.latest import io, ui
from PIL import Image

from ..pag_core.checks import check_choice, check_whole
from ..pag_core.drawing import PAPERS, WHITE, Paper, Row, below, fit, grid, heat_map, line_plot, number, to_images
from ..pag_core.settings import PAGOptions, PAGSettings
from . import inputs
from .host.run.patching import attach
from .host.run.predictions import Predictions
from .host.run.preview import Progress
from .host.sampling.decoding import Decoder, check_is_picture, still, with_progress
from .host.sampling.guider import CFGWindowGuider
from .host.sampling.sampling import check_samples_something, sample_latent

MAX_STEPS = 32
PANELS = {"all": (True, True), "predictions": (True, False), "deltas": (False, True)}
UNITS = "in units of the noise"
OFF = "{} does not act here"


class PAGInspect(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAGInspect",
            display_name="PAG Inspect",
            category=inputs.CATEGORY,
            description="Samples like PAG KSampler and shows what happens at each step: the model's plain, perturbed "
                        "and guided predictions, where PAG and CFG change the image, and by how much.",
            search_aliases=["perturbed attention guidance inspect", "pag debug", "visualize guidance", "delta",
                            "可视化", "시각화"],
            inputs=[
                *inputs.sampling(inputs.scale("pag_scale"), inputs.layers()),
                inputs.vae(True, "Decodes the images in the grid. If not connected, they are as coarse as ComfyUI's "
                                 "previews."),
                io.Int.Input("shown_steps", default=6, min=1, max=MAX_STEPS, optional=True,
                             tooltip="How many steps the grid shows, evenly spaced from the first to the last. Only "
                                     "these are kept in memory; the plot covers every step."),
                io.Combo.Input("panels", options=list(PANELS), default="all", optional=True,
                               tooltip="The rows of the grid. predictions: the plain, perturbed and guided "
                                       "predictions. deltas: where PAG and CFG change the image. all: both."),
                inputs.cell_size(192),
                inputs.paper(),
            ],
            outputs=[
                io.Latent.Output(tooltip="The denoised latent, identical to PAG KSampler's."),
                io.Image.Output(display_name="steps", tooltip="The grid: one column per shown step. One grid for each "
                                                              "image of the batch."),
                io.Image.Output(display_name="norms", tooltip="A plot of how much PAG and CFG change the prediction in "
                                                              "every step."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, seed: int, steps: int, cfg: float, pag_scale: float, layers: str, sampler_name: str,
                scheduler: str, positive, negative, latent_image, denoise: float = 1.0,
                cfg_start_percent: float = 0.0, cfg_end_percent: float = 1.0, options: PAGOptions | None = None,
                vae=None, shown_steps: int = 6, panels: str = "all", cell_size: int = 192,
                paper: str = "dark") -> io.NodeOutput:
        shown_steps = check_whole("shown_steps", shown_steps, 1, MAX_STEPS)
        check_choice("panels", panels, tuple(PANELS))
        cell_size = inputs.check_sheet(cell_size, paper)
        sheet_of = PAPERS[paper]
        check_is_picture(latent_image)
        check_samples_something(denoise)
        record = Record(shown_steps)
        settings = PAGSettings(pag_scale, layers, PAGOptions() if options is None else options)
        guided = attach(model, settings, observer=record.observe)
        decoder = Decoder(guided, vae)
        guider = CFGWindowGuider(guided, positive, negative, cfg, cfg_start_percent, cfg_end_percent)
        latent = sample_latent(guider, latent_image, seed, steps, sampler_name, scheduler, denoise,
                               Progress(guided, in_panel=True))
        has_cfg = cfg != 1.0 or record.has_weak_negative  # other nodes can have the negative computed at cfg 1 too
        sheets = draw_steps(record.shown, decoder, *PANELS[panels], has_cfg=has_cfg, cell_size=cell_size,
                            paper=sheet_of)
        plot = draw_norms(record, has_cfg=has_cfg, width=max(600, sheets[0].width), paper=sheet_of)
        shown = to_images([below(sheet, plot, paper=sheet_of) for sheet in sheets])
        return io.NodeOutput(latent, to_images(sheets), to_images([plot]), ui=ui.PreviewImage(shown))


@dataclass(frozen=True, eq=False)
class Shown:
    """A step that the grid shows, on the CPU; pictures [B, C, (1,) H, W], maps of deltas [B, H, W]."""

    label: tuple[str, str]
    age: str  # where the perturbed prediction is an earlier step's
    plain: torch.Tensor
    perturbed: torch.Tensor | None
    guided: torch.Tensor
    pag: torch.Tensor | None
    cfg: torch.Tensor | None
    has_weak_negative: bool = False  # whether `perturbed` is the negative's row


class Record:
    """What is kept of a run: two numbers for every step, and a few complete steps."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.shown: dict[int, Shown] = {}
        self.norms: dict[int, tuple[torch.Tensor | None, torch.Tensor | None]] = {}  # step: PAG's, CFG's
        self.has_weak_negative = False  # whether PAG acts in the negative's row, and so in CFG's delta

    def observe(self, step: int, total: int, seen: Predictions) -> None:
        pag = seen.pair and (seen.pair.cond - seen.pair.perturbed) / seen.sigma
        cfg = None if seen.uncond is None else (seen.cond - seen.uncond) / seen.sigma
        self.norms[step] = (pag if pag is None else rms(pag), cfg if cfg is None else rms(cfg))
        # The latest step is always kept, for some samplers take fewer steps than they are asked for.
        wanted = spread(total, self.count)
        self.shown = {index: shown for index, shown in self.shown.items() if index in wanted}
        self.has_weak_negative |= seen.has_weak_negative
        detail = f"sigma {seen.sigma:.3g}, " + (
            "PAG in the negative row" if seen.has_weak_negative else
            f"PAG scale {seen.scale:.3g}" if seen.scale else "PAG inactive")
        perturbed = seen.uncond if seen.has_weak_negative else seen.pair and seen.pair.perturbed
        reused = seen.pair if seen.pair is not None and seen.pair.sigma != seen.sigma else None
        self.shown[step] = Shown((f"step {step + 1} of {total}", detail),
                                 f"reused from sigma {reused.sigma:.3g}" if reused else "", kept(seen.cond),
                                 None if perturbed is None else kept(perturbed), kept(seen.guided), delta_map(pag),
                                 delta_map(cfg), seen.has_weak_negative)


def spread(total: int, count: int) -> list[int]:
    """Indices of `count` of `total` steps, evenly from the first to the last; all where there are no more, and of
    one the last."""
    if count == 1:
        return [total - 1]
    return [round(place * (total - 1) / (count - 1)) for place in range(count)] if count < total else list(range(total))


def rms(delta: torch.Tensor) -> torch.Tensor:
    """Root mean square over a sample, averaged over the batch: ‖Δ‖ / √n, independent of the image size."""
    return delta.float().flatten(1).square().mean(1).sqrt().mean()


def kept(latent: torch.Tensor) -> torch.Tensor:
    """A copy on the CPU of what is shown of a latent: [B, C, (T,) H, W] -> [B, C, (1,) H, W]."""
    return still(latent).to("cpu", copy=True)


def delta_map(delta: torch.Tensor | None) -> torch.Tensor | None:
    """|Δ| averaged over the channels (PAG Fig. 3), of a video's first frame: [B, C, (T,) H, W] -> [B, H, W]."""
    if delta is None:
        return None
    values = still(delta).abs().mean(1)
    return (values[:, 0] if values.ndim == 4 else values).float().cpu()


def draw_steps(shown: dict[int, Shown], decoder: Decoder, predictions: bool, deltas: bool, has_cfg: bool,
               cell_size: int, paper: Paper = WHITE) -> list[Image.Image]:
    """One grid for each picture of the batch."""
    steps = [shown[step] for step in sorted(shown)]
    in_negative = any(step.has_weak_negative for step in steps)
    pictures = [("plain", "x0 as the model predicts it", [step.plain for step in steps]),
                ("perturbed", "x0 of the negative, perturbed" if in_negative else "x0 of the perturbed pass",
                 [step.perturbed for step in steps]),
                ("guided", f"x0 after {'CFG and ' * has_cfg}PAG", [step.guided for step in steps])]
    of_pag = ("PAG delta", f"|plain - perturbed| {UNITS}, mean over channels", [step.pag for step in steps])
    of_cfg = ("CFG delta", f"|plain - {'perturbed ' * in_negative}negative| {UNITS}, mean over channels",
              [step.cfg for step in steps])
    maps = [*[of_pag] * (not in_negative), *[of_cfg] * has_cfg]
    batch = range(len(steps[0].plain))
    rows: list[list[Row]] = [[] for _ in batch]
    pictures = pictures if predictions else []
    decoded = (None if latent is None else [fit(picture, cell_size) for picture in decoder(latent)]
               for latent in with_progress([latent for *_, latents in pictures for latent in latents]))
    for name, detail, latents in pictures:
        cells = [next(decoded) for _ in latents]
        for index in batch:
            rows[index].append(Row(name, detail, [cell[index] if cell else OFF.format("PAG") for cell in cells],
                                   tuple(step.age for step in steps) if name == "perturbed" else ()))
    for name, detail, values in maps if deltas else ():
        # Each step in colours of its own range, for what changes late is many times what changes early.
        largest = [0.0 if value is None else float(value.amax()) for value in values]
        captions = tuple("" if value is None else f"brightest: {number(most)}"
                         for value, most in zip(values, largest, strict=True))
        for index in batch:
            cells = [OFF.format(name.split()[0]) if value is None else heat_map(value[index], most)
                     for value, most in zip(values, largest, strict=True)]
            rows[index].append(Row(name, detail, cells, captions, ("brightest", "0")))
    return [grid([step.label for step in steps], rows[index], cell_size, paper=paper) for index in batch]


def draw_norms(record: Record, has_cfg: bool, width: int, paper: Paper = WHITE) -> Image.Image:
    """The size of PAG's and CFG's deltas over the steps; `width` in pixels."""
    columns = zip(*(record.norms[step] for step in sorted(record.norms)), strict=True)
    lines = {name: [None if value is None else float(value) for value in column]
             for name, column in zip(("PAG: plain - perturbed", "CFG: plain - negative"), columns, strict=True)}
    if not has_cfg:
        lines.popitem()
    if record.has_weak_negative:
        del lines["PAG: plain - perturbed"]
    return line_plot(f"Size of the deltas in every step (root mean square, {UNITS})", "step", lines, width,
                     paper=paper)
