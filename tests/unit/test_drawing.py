"""Labelled pictures, made without ComfyUI."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from pag_core import drawing


def picture(width: int = 32, height: int = 32, colour: str = "#ff0000") -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def test_colours_run_from_black_to_yellow_and_always_get_lighter():
    row = np.asarray(drawing.heat_map(torch.linspace(0.0, 2.0, 256)[None], 2.0))[0].astype(float)
    assert tuple(row[0]) == (0, 0, 4)
    assert tuple(row[-1]) == (252, 255, 164)
    lightness = row @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > -0.5).all()
    assert lightness[128] == pytest.approx(lightness[-1] * 0.4, rel=0.3)


def test_the_colour_is_that_of_the_share_of_the_largest_value():
    one, other = (np.asarray(drawing.heat_map(torch.tensor([[0.0, largest / 3, largest]]), largest))
                  for largest in (0.3, 3000.0))
    assert np.array_equal(one, other)
    assert drawing.heat_map(torch.zeros(4, 6), 0.0).getextrema() == ((0, 0), (0, 0), (4, 4))
    assert drawing.heat_map(torch.zeros(4, 6), 0.0).size == (6, 4)


@pytest.mark.parametrize(("size", "expected"), [((32, 32), (192, 192)), ((60, 40), (180, 120)), ((192, 64), (192, 64)),
                                                ((1024, 512), (192, 96)), ((5000, 1), (192, 1)), ((8, 12), (128, 192))])
def test_fit(size, expected):
    assert drawing.fit(picture(*size), 192).size == expected


def test_small_pictures_are_enlarged_without_smoothing():
    small = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8))
    assert set(drawing.fit(small, 64).getdata()) == {0, 255}


def test_grid_holds_every_cell_where_its_row_and_column_say():
    colours = [["#ff0000", "#00ff00", "#0000ff"], ["#ffff00", "#ff00ff", "#00ffff"]]
    rows = [drawing.Row(f"row {index}", "", [picture(colour=colour) for colour in line])
            for index, line in enumerate(colours)]
    sheet = np.asarray(drawing.grid([("a", ""), ("b", ""), ("c", "")], rows, 64))
    centres = {}
    for line in colours:
        for colour in line:
            ys, xs = np.nonzero((sheet == tuple(bytes.fromhex(colour[1:]))).all(-1))
            assert len(ys) == 64 * 64
            centres[colour] = ys.mean(), xs.mean()
    for line in colours:
        assert len({centres[colour][0] for colour in line}) == 1
        assert sorted(line, key=lambda colour: centres[colour][1]) == line
    assert centres["#ff0000"][0] < centres["#ffff00"][0]
    assert centres["#ff0000"][1] == centres["#ffff00"][1]


def test_words_stand_where_there_is_no_picture():
    row = drawing.Row("row", "", [picture(), "nothing to see here, and why"])
    sheet = np.asarray(drawing.grid([("a", ""), ("b", "")], [row], 64))
    grey = (sheet == 0xED).all(-1).sum()
    assert 64 * 64 * 0.6 < grey < 64 * 64


def test_labels_captions_and_legends_widen_the_sheet():
    def size(**values):
        return drawing.grid([("a", "")], [drawing.Row(**{"name": "r", "detail": "", "cells": [picture()], **values})],
                            64).size

    bare = size()
    assert size(name="a much longer name")[0] > bare[0]
    assert size(legend=("1", "0"))[0] > bare[0]
    assert size(captions=("below",))[1] > bare[1]
    endless = size(name="x" * 500)
    assert endless[0] < bare[0] + drawing.LABELS + 20  # broken inside the word


@pytest.mark.parametrize("largest", [1e-9, 0.07, 1.0, 1.3, 2.1, 9.9, 123.0, 1e6])
def test_ticks_are_few_and_reach_the_largest_value(largest):
    ticks = drawing._ticks(largest)
    assert 4 <= len(ticks) <= 6
    assert ticks[0] == 0.0
    assert ticks[-2] < largest <= ticks[-1] * (1 + 1e-9)


def coloured(sheet: Image.Image, colour: str) -> np.ndarray:
    """[number, 2] places (y, x) of a line's pixels."""
    rgb = np.array(tuple(bytes.fromhex(colour[1:])))
    places = np.argwhere(np.abs(np.asarray(sheet).astype(int) - rgb).max(-1) < 8)
    return places[places[:, 0] > 70]  # below the legend


def test_line_plot_draws_what_it_is_given():
    sheet = drawing.line_plot("title", "step", {"up": [0.0, 1.0, 2.0], "down": [2.0, 1.0, 0.0]})
    up, down = (coloured(sheet, colour) for colour in drawing.LINES[:2])
    assert np.corrcoef(up.T)[0, 1] < -0.95  # y counts downwards
    assert np.corrcoef(down.T)[0, 1] > 0.95


@pytest.mark.parametrize("gap", [None, math.nan, math.inf])
def test_gaps_stay_empty(gap):
    sheet = drawing.line_plot("t", "s", {"a": [1.0, 0.5, gap, 0.5, 1.0]})
    assert not [x for _, x in coloured(sheet, drawing.LINES[0]) if 300 < x < 600]
    whole = drawing.line_plot("t", "s", {"a": [1.0, 0.5, 0.0, 0.5, 1.0]})
    assert [x for _, x in coloured(whole, drawing.LINES[0]) if 300 < x < 600]


@pytest.mark.parametrize("values", [[0.5], [0.0, 0.0], [None, None]])
def test_line_plot_of_hardly_anything(values):
    assert drawing.line_plot("t", "s", {"a": values}).size == (900, 420)


def test_below():
    sheet = drawing.below(picture(4, 3, "#0000ff"), picture(8, 2, "#00ff00"))
    assert sheet.size == (8, 5)
    assert [sheet.getpixel(place) for place in ((3, 2), (4, 2), (7, 3))] == [(0, 0, 255), (255,) * 3, (0, 255, 0)]


def test_images_of_the_host_and_back():
    colours = [picture(4, 3, "#0080ff"), picture(4, 3, "#010203")]
    images = drawing.to_images(colours)
    assert images.shape == (2, 3, 4, 3)
    assert images.dtype == torch.float32
    assert [list(drawing.from_image(image).getdata()) for image in images] == [list(c.getdata()) for c in colours]
    assert drawing.from_image(torch.full((2, 2, 1), 2.0)).getpixel((0, 0)) == (255, 255, 255)
