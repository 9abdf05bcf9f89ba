"""The table of what PAG was tested together with; with PAG_COMPOSITION_TABLE=FILE it is written to FILE as Markdown."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from .runs import relative_error

LIMIT = 1e-4  # max|a − b| / max|b|, in fp32
HOST = "the host's own PAG node, whose perturbed pass is a call of its own"
SEPARATE = "a perturbed pass of its own, its attention written out"
WHOLE = "our whole pass, without the shared prefix"
PLAIN = "the same run without it"


class Compositions:
    """{what: (what it was compared with, largest relative error)}, and {what: why it is refused or left alone}."""

    def __init__(self) -> None:
        self.compared: dict[str, tuple[set[str], float]] = {}
        self.refused: dict[str, str] = {}

    def check(self, what: str, against: str, result: torch.Tensor, reference: torch.Tensor) -> None:
        """Asserts that they are the same, and remembers by how much they are not."""
        error = relative_error(result, reference)
        known, largest = self.compared.get(what, (set(), 0.0))
        self.compared[what] = known | {against}, max(largest, error)
        assert error <= LIMIT

    def refuse(self, what: str, reason: object) -> None:
        self.refused[what] = str(reason).splitlines()[0]

    def markdown(self) -> str:
        lines = ["| together with | compared with | largest relative error |", "|---|---|---:|"]
        lines += [f"| {what} | {'; '.join(sorted(against))} | {error:.0e} |"
                  for what, (against, error) in sorted(self.compared.items(), key=lambda row: row[0].lower())]
        lines += [f"| {what} | refused or left alone: {reason} | – |" for what, reason in sorted(self.refused.items())]
        return "\n".join([*lines, ""])

    def write(self) -> None:
        if path := os.environ.get("PAG_COMPOSITION_TABLE"):
            Path(path).write_text(self.markdown(), encoding="utf-8")
