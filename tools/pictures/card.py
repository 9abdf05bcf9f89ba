"""The card of an example for a published model: the model, its guidance, and the layers that PAG perturbs."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image, ImageDraw

from .comparison import font

WIDTH, HEIGHT = 800, 500  # pixels
MARGIN = 56
PAPER, INK, FAINT, CELL, PERTURBED = "#14161f", "#ffffff", "#9aa0b5", "#6d7bff", "#d9701f"  # as the panels and the icon
CHAIN_TOP, CHAIN_HEIGHT = 214, 56
STRIP_TOP, STRIP_HEIGHT = 340, 44


@dataclass(frozen=True)
class Card:
    """
    Attributes:
        model: its name.
        title: what the example does with it.
        chain: the nodes from the model to the result, in words.
        layers: the layers that are perturbed, of so many `blocks`.
        words: what to say of them.
    """

    model: str
    title: str
    chain: tuple[str, ...]
    layers: tuple[int, ...]
    blocks: int
    words: str


def draw(card: Card) -> Image.Image:
    sheet = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, 92), card.model, INK, font(46), anchor="ls")
    pen.text((MARGIN, 140), card.title, FAINT, font(26), anchor="ls")
    draw_chain(pen, card.chain)
    draw_layers(pen, card)
    return sheet


def draw_chain(pen: ImageDraw.ImageDraw, chain: tuple[str, ...]) -> None:
    """The nodes as boxes joined by lines; PAG's in its own colour."""
    gap, words = 26, font(21)
    lengths = [pen.textlength(name, words) for name in chain]
    room = (WIDTH - 2 * MARGIN - gap * (len(chain) - 1) - sum(lengths)) / len(chain)  # beside each name
    left, middle = MARGIN, CHAIN_TOP + CHAIN_HEIGHT / 2
    for name, length in zip(chain, lengths, strict=True):
        if left > MARGIN:
            pen.line((left - gap, middle, left, middle), FAINT, 3)
        right = left + length + room
        pen.rounded_rectangle((left, CHAIN_TOP, right, CHAIN_TOP + CHAIN_HEIGHT), 12,
                              outline=PERTURBED if name.startswith("PAG") else CELL, width=3)
        pen.text(((left + right) / 2, middle), name, INK, words, anchor="mm")
        left = right + gap


def draw_layers(pen: ImageDraw.ImageDraw, card: Card) -> None:
    """One cell for each layer, the perturbed ones in PAG's colour."""
    step = (WIDTH - 2 * MARGIN) / card.blocks
    for layer in range(card.blocks):
        left = MARGIN + layer * step
        chosen = layer in card.layers
        pen.rounded_rectangle((left, STRIP_TOP - 8 * chosen, left + step - min(4.0, step / 3),
                               STRIP_TOP + STRIP_HEIGHT + 8 * chosen), 4, PERTURBED if chosen else CELL)
    pen.text((MARGIN, STRIP_TOP + STRIP_HEIGHT + 56), card.words, FAINT, font(24), anchor="ls")
