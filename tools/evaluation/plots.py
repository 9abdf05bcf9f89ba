"""The results as plots and image grids."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pictures.comparison import Block, Row, comparison
from PIL import Image

from .config import Config
from .store import Store

SHOWN = 10  # samples of each row in a grid
INK, ACCENT = "#1c1c1c", "#3465a4"


def plot(table: dict, path: Path) -> None:
    """Fréchet distances with their intervals: a curve together with the score, or one bar for each row."""
    values, margins = _column(table, "fd")
    names = [row["name"] for row in table["rows"]]
    if table["as_line"]:
        figure, axes = _figure(3.6)
        axes.errorbar(names, values, margins, color=ACCENT, marker="o", capsize=3, label="Fréchet distance (left)")
        second = axes.twinx()
        second.errorbar(names, *_column(table, "score"), color="#888888", marker="s", capsize=3, linestyle="--",
                        label="score (right)")
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        axes.set_ylim(bottom=0)
    else:
        figure, axes = _figure(0.9 + 0.32 * len(names))
        axes.barh(names, values, xerr=margins, color=ACCENT, ecolor=INK, capsize=3, height=0.62)
        axes.axvline(table["real"]["fd"]["value"], color=INK, linestyle=":", linewidth=1)
        axes.invert_yaxis()
        axes.set_xlabel("Fréchet distance (dotted: real images)")
    axes.set_title(table["title"], loc="left", fontsize=11)
    figure.savefig(path, dpi=110)


def _figure(height: float):
    """Without pyplot, which would look for a display."""
    figure = Figure(figsize=(6, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _column(table: dict, metric: str) -> tuple[list[float], list[float]]:
    cells = [row["metrics"][metric] for row in table["rows"]]
    return [cell["value"] for cell in cells], [cell["margin"] for cell in cells]


def grid(table: dict, store: Store) -> Image.Image:
    """The first samples of each row; columns start from the same noise."""
    rows = []
    for row in table["rows"]:
        config = Config(**{**row["config"], "options": tuple(map(tuple, row["config"]["options"]))})
        ids = range(table["first"], table["first"] + min(SHOWN, table["samples"]))
        pictures = store.load(config, ids)
        images = [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in pictures]
        rows.append(Row(row["name"], f"FD {row['metrics']['fd']['value']:.1f}", images))
    subtitle = f"The first {len(images)} samples, not selected. Each column starts from the same noise."
    return comparison(table["title"], subtitle, [Block("", rows)])
