"""Several settings of PAG side by side, from the same noise."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from comfy_api.latest import io, ui
from PIL import Image

from ..pag_core.checks import SettingError, check_choice, check_text, shown
from ..pag_core.drawing import PAPERS, Paper, Row, fit, from_image, grid, to_images
from ..pag_core.perturbation import KINDS
from ..pag_core.settings import ROWS, PAGOptions, PAGSettings, check_options
from . import inputs
from .host.run.negative import check_negative
from .host.run.patching import attach
from .host.run.preview import Progress
from .host.sampling.decoding import Decoder
from .host.sampling.guider import CFGWindowGuider
from .host.sampling.sampling import check_options_fit, sample_latent

MAX_CELLS = 64


class PAGGrid(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAGGrid",
            display_name="PAG Grid",
            category=inputs.CATEGORY,
            description="Samples with several PAG scales, layers and perturbations from the same noise and arranges "
                        "the images in one labeled grid. Use it to find out what suits a model.",
            search_aliases=["perturbed attention guidance grid", "xy plot", "compare scales", "compare layers",
                            "对比", "网格", "비교", "그리드"],
            inputs=[
                *inputs.sampling(
                    io.String.Input(
                        "scales", default="0, 1, 3, 5",
                        tooltip="The columns: PAG scales, separated by commas. 0 is the image without PAG; it is "
                                "sampled once and repeated in every row."),
                    io.String.Input(
                        "layer_selections", default="auto", multiline=True,
                        tooltip="The rows: one layer selection per line, written as in the other PAG nodes, such as m0 "
                                "or u0-2, !u1. PAG Layers lists the layers of your model."),
                    io.String.Input(
                        "perturbations", default="", multiline=True,
                        tooltip="More rows: one perturbation per line, named as in PAG Options, such as identity or "
                                "seg; skip_block negative perturbs the negative prompt's prediction. Every layer "
                                "selection is combined with every perturbation. Empty (neutral): the perturbation set "
                                "in options."),
                ),
                inputs.vae(False, "Decodes the images. The PAG ADM Loader provides one for its models."),
                inputs.cell_size(256),
                inputs.paper(),
            ],
            outputs=[
                io.Image.Output(display_name="grid", tooltip="The labeled grid; one for each image of the batch."),
                io.Image.Output(display_name="images", tooltip="The images at full size, row by row; with a batch, all "
                                                               "images of a cell follow each other."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, seed: int, steps: int, cfg: float, scales: str, layer_selections: str, perturbations: str,
                sampler_name: str, scheduler: str, positive, negative, latent_image, vae, denoise: float = 1.0,
                cfg_start_percent: float = 0.0, cfg_end_percent: float = 1.0, options: PAGOptions | None = None,
                cell_size: int = 256, paper: str = "dark") -> io.NodeOutput:
        cell_size = inputs.check_sheet(cell_size, paper)
        inputs.check_samples_pictures(denoise, latent_image, vae, model)
        options = PAGOptions() if options is None else options
        check_options(options)
        check_options_fit(options, model, latent_image)
        decoder = Decoder(model, vae)
        columns = parse_scales(scales)
        rows = parse_rows(layer_selections, perturbations, options)
        check_count(len(columns), len(rows))
        # All of them first, so that a mistake in the last cell is reported before the first is sampled.
        guiders = {cell_of(index, scale, row.options): CFGWindowGuider(
            attach(model, PAGSettings(scale, row.layers, row.options)), positive, negative, cfg, cfg_start_percent,
            cfg_end_percent) for index, row in enumerate(rows) for scale in columns}
        if any(row.options.row == "negative" for row in rows) and any(columns):
            check_negative(next(iter(guiders.values())), sampler_name)

        progress = Progress(model, len(guiders), in_panel=True)
        images: dict[tuple[int, float], torch.Tensor] = {}  # each [B, H, W, 3]
        for cell, guider in guiders.items():
            latent = sample_latent(guider, latent_image, seed, steps, sampler_name, scheduler, denoise, progress)
            images[cell] = decoder.images(latent["samples"])
            progress.runs_done += 1
        cells = [[images[cell_of(index, scale, row.options)] for scale in columns] for index, row in enumerate(rows)]
        sheets = to_images(draw_grids(columns, rows, cells, cell_size, f"cfg {cfg:g}, {steps} steps, seed {seed}",
                                      PAPERS[paper]))
        return io.NodeOutput(sheets, torch.cat([image for line in cells for image in line]),
                             ui=ui.PreviewImage(sheets))


class GridRow(NamedTuple):
    layers: str
    options: PAGOptions


def cell_of(row: int, scale: float, options: PAGOptions) -> tuple[int, float]:
    """Which run a cell shows: without PAG all rows are the same; with the negative perturbed, all scales are."""
    if scale and options.row == "negative":
        return row, 1.0
    return (row if scale else 0), scale


def parse_scales(text: str) -> list[float]:
    """"0, 1.5, 3" -> [0.0, 1.5, 3.0]; duplicates are dropped."""
    scales = []
    for term in check_text("scales", text).split(","):
        try:
            scales.append(float(term))
        except ValueError:
            raise SettingError(f"scales must be numbers separated by commas, such as 0, 1, 3, got "
                               f"{shown(term.strip())}.") from None
    return list(dict.fromkeys(scales))


def parse_rows(layer_selections: str, perturbations: str, options: PAGOptions) -> list[GridRow]:
    """Every selection with every perturbation, or with that of the options if none is given."""
    selections = lines_of(check_text("layer_selections", layer_selections))
    kinds = lines_of(check_text("perturbations", perturbations)) or [options.perturbation]
    if not selections:
        raise SettingError("layer_selections is empty. Write one layer selection per line, such as auto or m0.")
    ways = [perturbation_of(kind, options) for kind in kinds]
    return [GridRow(layers, way) for layers in selections for way in ways]


def perturbation_of(line: str, options: PAGOptions) -> PAGOptions:
    """"skip_block" or "skip_block negative" -> the options with that perturbation, and in that row."""
    kind, _, row = line.partition(" ")
    check_choice("perturbations: a perturbation", kind, tuple(KINDS))
    row = row.strip() or options.row
    check_choice(f"perturbations: what follows {kind}", row, ROWS)
    return replace(options, perturbation=kind, row=row)


def lines_of(text: str) -> list[str]:
    """What stands on the lines; what is named twice counts once."""
    return list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))


def check_count(columns: int, rows: int) -> None:
    """Raise SettingError for more than `MAX_CELLS` cells."""
    if columns * rows > MAX_CELLS:
        raise SettingError(f"{columns} scales × {rows} rows make {columns * rows} cells; the limit is {MAX_CELLS}. Use "
                           f"fewer scales, layer selections or perturbations.")


def draw_grids(columns: list[float], rows: list[GridRow], cells: list[list[torch.Tensor]], cell_size: int,
               corner: str, paper: Paper) -> list[Image.Image]:
    """One grid for each picture of the batch; `cells` as rows of [B, H, W, 3]."""
    heads = [(f"scale {scale:g}" if scale else "without PAG", "") for scale in columns]
    return [grid(heads, [Row(row.layers, f"{row.options.perturbation}{', negative row' * (row.options.row != ROWS[0])}",
                             [fit(from_image(images[index]), cell_size) for images in line])
                         for row, line in zip(rows, cells, strict=True)], cell_size, corner, paper)
            for index in range(len(cells[0][0]))]
