"""One labeled comparison image: blocks of rows, with the same seeds in each column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

MARGIN, GAP, BLOCK_GAP = 28, 4, 20  # pixels
LABELS = 176  # width of the row labels
CELL = 112  # at least this wide; small images are enlarged by whole factors, without smoothing
INK, FAINT, PAPER = "#1c1c1c", "#6b6b6b", "#ffffff"
WITHOUT_GLYPH = str.maketrans("×²−–", "x2--")  # Pillow's font lacks these


@dataclass(frozen=True)
class Row:
    name: str  # "CFG + PAG"
    detail: str  # "cfg 4, scale 3"
    images: list[Image.Image]


@dataclass(frozen=True)
class Block:
    title: str
    rows: list[Row]


def comparison(title: str, subtitle: str, blocks: list[Block], columns: Sequence[str] = ()) -> Image.Image:
    """All blocks under each other, every row as long as the first. `columns` stand above the first row."""
    first = blocks[0].rows[0].images
    factor = max(1, -(-CELL // first[0].width))
    width, height = first[0].width * factor, first[0].height * factor
    left = MARGIN + LABELS
    total_width = left + len(first) * (width + GAP) - GAP + MARGIN
    heading, block_title = 76, 34
    total_height = MARGIN + heading + MARGIN + sum(
        block_title + len(block.rows) * (height + GAP) + BLOCK_GAP for block in blocks) - BLOCK_GAP

    sheet = Image.new("RGB", (total_width, total_height), PAPER)
    draw = ImageDraw.Draw(sheet)

    def write(x: float, y: float, text: str, colour: str, size: int, anchor: str = "la") -> None:
        draw.text((x, y), text.translate(WITHOUT_GLYPH), colour, font(size), anchor=anchor)

    write(MARGIN, MARGIN, title, INK, 26)
    write(MARGIN, MARGIN + 38, subtitle, FAINT, 15)
    y = MARGIN + heading
    for column, name in enumerate(columns):
        write(left + column * (width + GAP) + width / 2, y + block_title - 8, name, FAINT, 15, "ms")
    for block in blocks:
        write(MARGIN, y, block.title, INK, 17)
        y += block_title
        for row in block.rows:
            write(MARGIN, y + height / 2 - 3, row.name, INK, 19, "ls")
            write(MARGIN, y + height / 2 + 19, row.detail, FAINT, 14, "ls")
            for column, image in enumerate(row.images):
                enlarged = image.convert("RGB").resize((width, height), Image.Resampling.NEAREST)
                sheet.paste(enlarged, (left + column * (width + GAP), y))
            y += height + GAP
        y += BLOCK_GAP
    return sheet


def font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def save_new(image: Image.Image, folder: Path, stem: str) -> Path:
    """Saves under the first free number, so that no earlier picture is lost, and gives the path."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = folder / f"{stem}-{number:03}.png"
        try:
            with path.open("xb") as file:
                image.save(file, "PNG")
            return path
        except FileExistsError:
            number += 1
        except BaseException:
            path.unlink(missing_ok=True)
            raise
