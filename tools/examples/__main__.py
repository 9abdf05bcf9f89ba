"""Writes the example workflows for published models: python -m examples, with the variables of nox -s demo.

python -m pictures.workflows draws their pictures.
"""

from __future__ import annotations

import json
import os

from harness.errors import HarnessError, command
from harness.host import ROOT
from harness.in_process import import_pack, start_host
from harness.whole_files import written_whole

from .build import build, definitions, template_files
from .catalogue import EXAMPLES


def main(arguments: list[str]) -> None:
    comfyui = os.environ.get("COMFYUI_PATH")
    if not comfyui or arguments:
        raise HarnessError("Usage: COMFYUI_PATH=... python -m examples")
    start_host(comfyui, "--cpu")
    import_pack()
    known, files = definitions(), template_files()
    for example in EXAMPLES:
        path = ROOT / "workflows" / f"{example.name}.json"
        with written_whole(path) as partial:
            partial.write_text(json.dumps(build(example, known, files), indent=1, ensure_ascii=False) + "\n",
                               encoding="utf-8")
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    command(main)
