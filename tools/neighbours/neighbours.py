"""Checks PAG beside the real packs of other people that it finds in a folder, and writes what came out as a table.

Each pack is loaded into a process of its own, for many change the host for good. What is checked: the same picture
as with PAG in a call of its own whose rows are the conditional ones, as the host's own node makes it, measured from
the raw conditional prediction; with cfg 1 and 5, one and two pictures, one PAG and two in a row. FLOPs are counted, of
a run with CFG and PAG over one with CFG, both with the other pack. The models are small and random, of the host's own
classes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import signal
import subprocess
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

from harness.in_process import ROOT

from neighbours import hosted
from neighbours.packs import PACKS, Pack

NONE = Pack("none", "", lambda: {f"no other pack, {family}": (family, lambda scene: None)
                                 for family in ("SD 1.5", "Flux", "Wan")})
NOTES = """
What costs more, and why; the log of a run says it too:

- 1.50 where the perturbed rows may not start from what the conditional rows left: a pack draws random numbers in each
  call (reference adain), or averages over the batch (Enhance-A-Video). Part of what PAG adds then comes from there: the
  host's own PAG node does the same.
- 1.50 where a pack lays the batch out anew in one call (TiledDiffusion, several tiles at a time): the rows are not
  followed through its tiles.
- More than 1.35 where CFG is off in some steps, which makes the run itself cheaper (CFG Limiter, Automatic CFG): the
  passes are the same.
- More where a pack runs the network by itself, past the model's own call of it (DeepCache): the first perturbed call of
  a run is made again, with the layers perturbed there. Later steps cost nothing extra.

Layers whose attention a pack gives other tokens than the picture's (reference attn) are left alone, and the run says
which.
"""
SECONDS = 900  # for all of one pack
TABLE = ROOT / "docs" / "neighbours.md"


def main() -> None:
    parser = argparse.ArgumentParser(prog="nox -s neighbours --", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the packs are, each in a folder as git clone makes it")
    parser.add_argument("--only", default="", help="packs whose name holds one of these texts, with commas between")
    parser.add_argument("--json", type=Path, help="where to write the figures as JSON")
    parser.add_argument("--table", type=Path, default=TABLE, help="where to write the table, with --only nowhere")
    arguments = parser.parse_args()
    if not arguments.folder.is_dir():
        parser.error(f"{arguments.folder} is no folder. Clone the packs you are interested in into one.")
    hosted.start()
    found = {}
    for name, pack in ({"none": NONE} | PACKS).items():
        if not any(text in name.lower() for text in arguments.only.lower().split(",")):
            continue
        folder = None if pack is NONE else arguments.folder / name
        if folder and not folder.is_dir():
            print(f"{name}: not in {arguments.folder}", flush=True)
            found[name] = {"absent": True}
            continue
        found[name] = {"version": folder and version(folder), **in_a_process(pack, folder)}
        print(f"{name}: " + (found[name].get("cannot_import") or "; ".join(
            f"{row['what']}: {row['verdict']} ({row['error']}, {row['flops']})" for row in found[name]["rows"])),
            flush=True)
        if arguments.json:  # after each, for all of them take a while
            arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if not arguments.only:
        arguments.table.parent.mkdir(exist_ok=True)
        arguments.table.write_text(markdown(found), encoding="utf-8")


def in_a_process(pack: Pack, folder: Path | None) -> dict:
    """What `_child` finds, in a fork of this process."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_child, args=(theirs, pack, folder))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        return {"cannot_import": f"its process ended with {process.exitcode}, or took more than {SECONDS} seconds"}
    finally:
        process.join()


def _child(connection: Connection, pack: Pack, folder: Path | None) -> None:
    signal.alarm(SECONDS)
    try:
        if folder:
            hosted.load(folder, pack.lacking)
        connection.send({"rows": _rows(pack)})
    except hosted.CannotImport as reason:
        connection.send({"cannot_import": str(reason)})
    except Exception as error:
        traceback.print_exc()
        connection.send({"cannot_import": f"{type(error).__name__}: {error}"})


def _rows(pack: Pack) -> list[dict]:
    import torch

    from neighbours.measuring import measure

    torch.set_num_threads(1)
    with torch.inference_mode():
        return [{"what": what, "family": family, **measure(family, set_up).row()}
                for what, (family, set_up) in pack.set_ups().items()]


def version(folder: Path) -> str:
    """What its pyproject.toml says, and the commit where there is one."""
    project = folder / "pyproject.toml"
    said = re.search(r'^version\s*=\s*["\']([^"\']+)', project.read_text(encoding="utf-8"), re.M) if (
        project.is_file()) else None
    commit = subprocess.run(("git", "-C", str(folder), "log", "-1", "--format=%h of %cs"), capture_output=True,
                            text=True, check=False).stdout.strip() if (folder / ".git").exists() else ""
    note = folder / ".commit"  # of a copy without its history
    return ", ".join(filter(None, (said and said[1], commit or (note.is_file() and note.read_text().strip())))) or "?"


def markdown(found: dict[str, dict]) -> str:
    """The page in docs/."""
    from comfyui_version import __version__

    def number(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    lines = [
        "# Beside other packs", "",
        *(line for line in __doc__.splitlines()[2:]), "",
        f"ComfyUI {__version__}; written by `nox -s neighbours -- FOLDER --install`, which runs the packs that it "
        f"finds in the folder and installs what they require. Error: max\\|a − b\\| / max\\|b\\| to the call of its "
        f"own, the largest of all cases. Effect: the same distance from no PAG to PAG, the smallest of all cases. "
        f"FLOPs: of CFG and PAG over CFG, in two steps; passes: what PAG adds, in passes of the conditional rows "
        f"alone, which tells more where CFG is off in some steps. Right: an error of at most 1e-4. †: the pack keeps "
        f"results from call to call, so the call of its own had a second copy of the model with the pack on it.", "",
        "| pack | version | what was set up | error | effect | FLOPs | passes | verdict |",
        "|---|---|---|---:|---:|---:|---:|---|"]
    for name, pack in found.items():
        link = "–" if name == "none" else f"[{name}](https://github.com/{PACKS[name].owner}/{name})"
        start = f"| {link} | {pack.get('version') or '–'} |"
        if pack.get("absent"):
            lines.append(f"| {link} | – | – | – | – | – | – | not in the folder |")
        elif "cannot_import" in pack:
            lines.append(f"{start} – | – | – | – | – | cannot be loaded here: {_cell(pack['cannot_import'])} |")
        else:
            for row in pack["rows"]:
                error = number(row["error"], ".0e") + "†" * row["is_twin"]
                lines.append(f"{start} {_cell(row['what'])} | {error} | {number(row['effect'], '.0e')} "
                             f"| {number(row['flops'], '.3f')} | {number(row['passes'], '.2f')} "
                             f"| {_cell(row['verdict'])} |")
    lines += NOTES.rstrip().splitlines()
    lacking = [f"- {name}: {', '.join(f'`{path}`' for path in PACKS[name].lacking)}." for name in found
               if name in PACKS and PACKS[name].lacking and not found[name].get("absent")]
    if lacking:
        lines += ["", f"Not in ComfyUI {__version__} any more, and put back for the test, so that the rest of the pack "
                  f"loads:", "", *lacking]
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
