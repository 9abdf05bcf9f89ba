"""Copies each node's English help page (en.md) to <node>.md, which the editor shows if its language has none.

python -m commands.english_help
"""

from __future__ import annotations

import shutil

from harness.host import ROOT

DOCS = ROOT / "web" / "docs"


def copies() -> dict:
    """{page that editors of other languages get: the English page}."""
    return {DOCS / f"{page.parent.name}.md": page for page in sorted(DOCS.glob("*/en.md"))}


if __name__ == "__main__":
    for copy, page in copies().items():
        shutil.copyfile(page, copy)
