"""Labeled figures: grids, heat maps with legends, line plots. Uses only PIL, numpy and torch."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw, ImageFont

LINES = ("#d9701f", "#3f86e8", "#3a8f4d")  # PAG and CFG as in the editor's panels; red and green do not meet
MARGIN, GAP, PAD = 20, 6, 12  # pixels
LARGE, SMALL = 16, 13  # text
LABELS = 230  # a row's label is at most this wide
BAR = 14  # width of a legend's bar
# matplotlib's inferno at 18 even places (S. van der Walt and N. Smith, CC0), perceptually uniform; at most 6 of 255
# off in between.
INFERNO = np.array([ImageColor.getrgb(colour) for colour in (
    "#000004", "#0a0722", "#1e0c45", "#380962", "#510e6c", "#69166e", "#801f6c", "#982766", "#b0315b",
    "#c63d4d", "#d94d3d", "#e9612b", "#f47918", "#fa9407", "#fcb014", "#f8cd37", "#f2ea69", "#fcffa4")])


@dataclass(frozen=True)
class Paper:
    """The colors of a sheet: background, text, empty cells, lines."""

    sheet: str
    ink: str
    faint: str
    empty: str
    rule: str


PAPERS = {
    "dark": Paper("#1e1f22", "#e8e8e8", "#a6a6a6", "#2b2c30", "#3c3d42"),
    "white": Paper("#ffffff", "#1c1c1c", "#6b6b6b", "#ededed", "#d8d8d8"),
}
WHITE = PAPERS["white"]


@dataclass(frozen=True, eq=False)
class Row:
    """One row of a grid.

    Attributes:
        cells: pictures, or words that stand where there is no picture.
        captions: what stands under the cells; one for each, or none at all.
        legend: what the brightest and the darkest colour of a row of heat maps mean; none for other pictures.
    """

    name: str
    detail: str
    cells: list[Image.Image | str]
    captions: tuple[str, ...] = ()
    legend: tuple[str, str] | None = None


def heat_map(values: torch.Tensor, largest: float) -> Image.Image:
    """Values [H, W] from 0 (black) to `largest` (bright yellow) in a perceptually uniform color map."""
    share = values.float().cpu().numpy() / largest if largest > 0 else np.zeros(values.shape)
    places = np.linspace(0.0, 1.0, len(INFERNO))
    colours = [np.interp(share, places, INFERNO[:, channel]) for channel in range(3)]
    return Image.fromarray(np.stack(colours, -1).round().astype(np.uint8))


def fit(picture: Image.Image, longest: int) -> Image.Image:
    """The image with its longer side at most that many pixels; small ones are scaled up by an integer, unsmoothed."""
    factor = longest / max(picture.size)
    if factor >= 1:
        width, height = (side * int(factor) for side in picture.size)
        return picture.resize((width, height), Image.Resampling.NEAREST)
    return picture.resize([max(1, round(side * factor)) for side in picture.size], Image.Resampling.LANCZOS)


def grid(columns: list[tuple[str, str]], rows: list[Row], longest: int, corner: str = "",
         paper: Paper = WHITE) -> Image.Image:
    """Rows of cells under their columns' labels.

    Args:
        columns: (label, detail) of each column.
        longest: the cells' longer side in pixels; see `fit`. All cells get the size of the first picture.
        corner: what the labels of the columns mean.
    """
    pictures = [cell for row in rows for cell in row.cells if isinstance(cell, Image.Image)]
    width, height = fit(pictures[0], longest).size if pictures else (longest, longest)
    names = [_wrap(row.name, LARGE, LABELS) for row in rows]
    details = [_wrap(row.detail, SMALL, LABELS) for row in rows]
    labels = [_length(line, LARGE) for lines in names for line in lines]
    labels += [_length(line, SMALL) for lines in (*details, _wrap(corner, SMALL, LABELS)) for line in lines]
    left = MARGIN + max(labels, default=0) + PAD
    heads = [(_wrap(name, LARGE, width), _wrap(detail, SMALL, width)) for name, detail in columns]
    head = max(_height(*texts) for texts in heads)
    top = MARGIN + head + PAD // 2
    right = left + len(columns) * (width + GAP) - GAP
    legends = [_length(text, SMALL) for row in rows for text in row.legend or ()]
    captions = [SMALL + GAP if any(row.captions) else 0 for row in rows]

    sheet = Image.new("RGB", (right + (PAD + BAR + PAD // 2 + max(legends) if legends else 0) + MARGIN,
                              top + sum(captions) + len(rows) * (height + GAP) - GAP + MARGIN), paper.sheet)
    draw = ImageDraw.Draw(sheet)
    _text(draw, paper, MARGIN, MARGIN + head, [], _wrap(corner, SMALL, LABELS), upwards=True)
    for column, texts in enumerate(heads):
        _text(draw, paper, left + column * (width + GAP), MARGIN + head, *texts, upwards=True)
    y = top
    for index, row in enumerate(rows):
        _text(draw, paper, MARGIN, y + (height - _height(names[index], details[index])) // 2, names[index],
              details[index])
        for column, cell in enumerate(row.cells):
            x = left + column * (width + GAP)
            if isinstance(cell, str):
                draw.rectangle((x, y, x + width - 1, y + height - 1), paper.empty)
                draw.multiline_text((x + width / 2, y + height / 2), "\n".join(_wrap(cell, SMALL, width - PAD)),
                                    paper.faint, _font(SMALL), anchor="mm", align="center")
            else:
                enlarge = width >= cell.width
                sheet.paste(cell.resize((width, height), Image.Resampling.NEAREST if enlarge else
                                        Image.Resampling.LANCZOS), (x, y))
        for column, caption in enumerate(row.captions):
            draw.text((left + column * (width + GAP) + width / 2, y + height + 2), caption, paper.faint,
                      _font(SMALL), "ma")
        if row.legend:
            _legend(sheet, paper, right + PAD, y, height, row.legend)
        y += height + captions[index] + GAP
    return sheet


def line_plot(title: str, across: str, lines: dict[str, list[float | None]], width: int = 900,
              height: int = 420, paper: Paper = WHITE) -> Image.Image:
    """One line for each name over the steps 1, 2, ...; None leaves a gap.

    Args:
        title: what the numbers are; stands above.
        across: what is counted along the horizontal axis.
    """
    fine = 3  # drawn larger and shrunk, for smooth lines
    count = max(len(values) for values in lines.values())
    known = [value for values in lines.values() for value in values if value is not None and math.isfinite(value)]
    ticks = _ticks(max(known, default=0.0))
    left = MARGIN + max(_length(number(tick), SMALL) for tick in ticks) + PAD
    top, right, bottom = MARGIN + LARGE + 2 * PAD + LARGE, width - MARGIN, height - MARGIN - 2 * SMALL - PAD

    def place(step: float, value: float) -> tuple[float, float]:
        share = (step - 1) / (count - 1) if count > 1 else 0.5
        return left + share * (right - left), bottom - value / ticks[-1] * (bottom - top)

    canvas = Image.new("RGB", (width * fine, height * fine), paper.sheet)
    draw = ImageDraw.Draw(canvas)
    for tick in ticks:
        y = place(1, tick)[1] * fine
        draw.line((left * fine, y, right * fine, y), paper.rule, fine)
    for values, colour in zip(lines.values(), LINES, strict=False):
        points = [place(step, value) if value is not None and math.isfinite(value) else None
                  for step, value in enumerate(values, 1)]
        for start, end in itertools.pairwise(points):
            if start and end:
                draw.line([side * fine for side in (*start, *end)], colour, 2 * fine)
        for point in filter(None, points):
            draw.circle([side * fine for side in point], 3 * fine, colour)
    sheet = canvas.resize((width, height), Image.Resampling.LANCZOS)

    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), title, paper.ink, _font(LARGE))
    x = left
    for name, colour in zip(lines, LINES, strict=False):
        y = MARGIN + LARGE + PAD + SMALL // 2
        draw.line((x, y, x + 22, y), colour, 3)
        draw.text((x + 28, y), name, paper.ink, _font(SMALL), anchor="lm")
        x += 28 + _length(name, SMALL) + 2 * PAD
    for tick in ticks:
        draw.text((left - PAD // 2, place(1, tick)[1]), number(tick), paper.faint, _font(SMALL), anchor="rm")
    stride = max(1, math.ceil(count / 15))
    for step in range(1, count + 1, stride):
        draw.text((place(step, 0)[0], bottom + PAD // 2), str(step), paper.faint, _font(SMALL), anchor="ma")
    draw.text(((left + right) / 2, height - MARGIN), across, paper.faint, _font(SMALL), anchor="md")
    return sheet


def below(*pictures: Image.Image, paper: Paper = WHITE) -> Image.Image:
    """The images stacked vertically."""
    sheet = Image.new("RGB", (max(picture.width for picture in pictures), sum(picture.height for picture in pictures)),
                      paper.sheet)
    y = 0
    for picture in pictures:
        sheet.paste(picture, (0, y))
        y += picture.height
    return sheet


def to_images(pictures: list[Image.Image]) -> torch.Tensor:
    """The host's IMAGE, [B, H, W, 3] in 0 to 1, of pictures of one size."""
    return torch.from_numpy(np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])).float() / 255.0


def from_image(image: torch.Tensor) -> Image.Image:
    """One picture of the host's IMAGE, [H, W, C] in 0 to 1."""
    values = image.float().clamp(0.0, 1.0).mul(255.0).round().to("cpu", torch.uint8)
    return Image.fromarray(values[..., :3].expand(-1, -1, 3).numpy())


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)  # Pillow's own; it has no Greek


def _length(text: str, size: int) -> int:
    return math.ceil(_font(size).getlength(text))


def _wrap(text: str, size: int, width: int) -> list[str]:
    """Lines of at most that width, broken at spaces, and inside words that are longer."""
    lines: list[str] = []
    for word in text.split():
        if lines and _length(f"{lines[-1]} {word}", size) <= width:
            lines[-1] += f" {word}"
            continue
        while _length(word, size) > width and len(word) > 1:
            cut = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or _length(word[:n], size) <= width)
            lines.append(word[:cut])
            word = word[cut:]
        lines.append(word)
    return lines


def _height(names: list[str], details: list[str]) -> int:
    return len(names) * (LARGE + 4) + len(details) * (SMALL + 4)


def _text(draw: ImageDraw.ImageDraw, paper: Paper, x: int, y: int, names: list[str], details: list[str],
          upwards: bool = False) -> None:
    """A label from y on, or with `upwards` down to it."""
    y -= _height(names, details) if upwards else 0
    for lines, size, colour in ((names, LARGE, paper.ink), (details, SMALL, paper.faint)):
        for line in lines:
            draw.text((x, y), line, colour, _font(size))
            y += size + 4


def _legend(sheet: Image.Image, paper: Paper, x: int, y: int, height: int, ends: tuple[str, str]) -> None:
    sheet.paste(heat_map(torch.linspace(1.0, 0.0, height)[:, None].expand(-1, BAR), 1.0), (x, y))
    draw = ImageDraw.Draw(sheet)
    for text, down, anchor in zip(ends, (0, height), ("la", "ld"), strict=True):
        draw.text((x + BAR + PAD // 2, y + down), text, paper.faint, _font(SMALL), anchor)


def _ticks(largest: float) -> list[float]:
    """Round numbers from 0 to at least the largest value, four to six steps."""
    if largest <= 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(largest))
    step = next(step for step in (0.2 * power, 0.25 * power, 0.5 * power, power, 2 * power)
                if math.ceil(largest / step) <= 5)
    return [count * step for count in range(math.ceil(largest / step) + 1)]


def number(value: float) -> str:
    """With two significant digits."""
    return f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}"
