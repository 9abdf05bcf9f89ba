"""Tests PAG together with other custom node packs found in a folder, and writes the results as a table.

Each pack is loaded into a separate process, because many packs modify ComfyUI permanently. The reference computes PAG
in a separate full call on the conditional rows, as ComfyUI's own PAG node does, relative to the raw conditional
prediction. The test covers cfg 1 and 5, batches of one and two images, and one or two PAG nodes in a row. FLOPs are
those of a run with CFG and PAG divided by those of a run with CFG, both with the other pack. The models are small
random models of ComfyUI's own classes.
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
from neighbours.beside import THINGS, applies, beside
from neighbours.packs import PACKS, Pack

NONE = Pack("none", "", lambda: {f"no other pack, {family}": (family, lambda scene: None)
                                 for family in ("SD 1.5", "Flux", "LTX-Video", "Wan")})
NOTES = """
What costs more, and why; the log of each run says so too:

- 1.50 or a little more when the perturbed rows cannot start from the conditional rows' state, because the pack draws
  random numbers in each call (reference adain) or averages over the batch (Enhance-A-Video). Part of PAG's effect then
  comes from this difference, as with ComfyUI's own PAG node.
- 1.50 in the first step when the pack rearranges the batch (TiledDiffusion with several tiles at a time) and another
  patch or attention override acts inside the blocks; in all steps if that goes by a tile's place in the batch. Without
  one, each tile starts from the state of the tile with the same inputs.
- A little more when the pack's patches change the number of rows or compute much (attention couple): to find out
  whether they treat all rows alike, a block, or what the patch computes, runs for the conditional rows alone as well.
- Functions that compute a whole attention or replace a module's forward are tried in all blocks in the first step.
  That weighs most in a run of two steps: Enhance-A-Video takes 1.536 over 2 steps, 1.509 over 8 and 1.504 over 20;
  reference adain 1.540 over 2 and 1.519 over 8.
- A replaced forward of a whole block (attention tuner on LTX-2) is tried as one: 1.540 over 2 steps, 1.389 over 8.
- MSW-MSA draws random windows in each call, from 20 % of the run on. Of the two steps here, the first shares the
  prefix and the second does not, hence 0.86 passes; over 8 steps FLOPs are 1.464. The perturbed rows draw windows of
  their own, as with ComfyUI's own PAG node.
- More than 1.35 when CFG is off in some steps, which makes the run without PAG cheaper (CFG Limiter, Automatic CFG).
  The number of passes is the same.
- More when the pack runs the network itself instead of through the model's own call (DeepCache): the first perturbed
  call of a run is repeated with the layers perturbed there. Later steps cost nothing extra.
- More for BrushNet, which gives a row another text in a pair than alone; the perturbed rows then run from the first
  block. So they do beside TGate, which keeps each block's attention for its later steps.
- 1.427 over two steps for ControlNet-LLLite, which makes what its layers add in the first: from the second step on
  the prefix is shared.
- Less when the pack runs more than the two prompts in each step (STGGuider), which makes the run without PAG dearer.

Layers in which a pack adds tokens to the image's self-attention (reference attn, style_aligned_comfy) are not
perturbed; the run names them.

ReSDPatcher of RES4LYF, which gives the U-Net classes of its own, matches for one image (error 0) and fails without PAG
for two. Beside its ReFluxPatcher, which computes attention without ComfyUI's options, PAG has no effect at cfg 1, and
the run says that it has none; at cfg 5 the pack fails without PAG. ReWanPatcher was only read. Functions after CFG that
do not use the prediction which they are given, as that of ComfyUI-SEGAttention, leave PAG without effect; the run says
so and names them.

Read, but not run: ComfyUI-TripleKSampler and the samplers of was-node-suite-comfyui call ComfyUI's own; ComfyUI_omost
makes prompts with masks; ComfyUI-vectorscope-cc and comfyui-resharpen change the latent between steps;
ComfyUI-wanBlockswap and the regions and styles of RES4LYF need a GPU; ComfyUI_PuLID_Flux_ll, PuLID_ComfyUI and all of
ComfyUI_InstantID but its attention need models of faces; ComfyUI-IPAdapter-Flux reads an attribute that Flux's blocks
no longer have; ComfyUI-FluxRegionAttention and ComfyUI-RadialAttn need a GPU. MultimodalGuider fails at cfg 1 with any
function after CFG, and ComfyUI_smZNodes with any function before CFG where prompts are joined by AND. BrushNet's
wrapper around the sampling takes one argument less than ComfyUI gives it; the test leaves it out.

With one of ComfyUI's own features beside each setup (`--with control_net,areas,times,mask,lora`; cfg 5, two images),
686 of 807 combinations match, with an error of 2e-05 at most. 102 fail without PAG as well, and in 19 the reference
fails, as it does beside the same packs alone (reference attn, style_aligned_comfy, ReferenceOnlySimple and
ComfyUI_smZNodes). Context windows (`--with windows`, cfg 1 and 5) were measured beside 30 packs: of 78 setups, 54
match (2e-05 at most), 11 more match for one image but fail for two without PAG as well, 12 fail without PAG, and in
one the reference fails.

PAG Guider (`--through guider`, cfg 1 and 5, one PAG and two) matches in 116 of 131 setups that sample with KSampler
(3e-05 at most). 11 fail without PAG as well, in three the reference fails, and ComfyUI-CacheDiT on Flux was not
compared, for its library was not installed. PAG KSampler matches in 96 of 100 SD 1.5 setups; in the other four the
reference fails.

ComfyUI_ExtraModels loads, but its networks are its own (PixArt, Sana, DiT) and were not run. What
ComfyUI-InstanceDiffusion puts in places stands for a GLIGEN model and lacks what this ComfyUI asks of one.
comfyui_overly_complicated_sampling's rk4 calls the model at a noise level of almost 0 and divides by it, so that
rounding grows a thousandfold there.

On ComfyUI 0.16.3, where the Flux forwards of ComfyUI-TeaCache and Comfy-WaveSpeed still run, all set-ups of both match
(2e-06 at most): TeaCache on Flux takes 1.253, the first-block cache on Flux 1.253 where it is never used and 1.289
where it is.
"""
COLUMNS = (
    "*Error* is max\\|a − b\\| / max\\|b\\| relative to the reference, the largest of all cases; a result *matches* "
    "when it is at most 1e-4. *Effect* is the same distance between results with and without PAG, the smallest "
    "of all cases. *FLOPs* is CFG + PAG divided by CFG, over two steps. *Passes* is what PAG adds, in passes of "
    "the conditional rows alone; it says more than FLOPs when CFG is off in some steps. †: the pack keeps "
    "results between calls, so the reference used a second copy of the model with the pack applied.")
SECONDS = 900  # of processor time, for all of one pack
TABLE = ROOT / "docs" / "neighbours.md"


def main() -> None:
    parser = argparse.ArgumentParser(prog="nox -s neighbours --", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder with one subfolder per pack, as git clone creates it")
    parser.add_argument("--only", default="",
                        help="only packs whose name contains one of these comma-separated texts")
    parser.add_argument("--json", type=Path, help="also write the figures to this JSON file")
    parser.add_argument("--table", type=Path, default=TABLE,
                        help="file to write the table to (default: %(default)s); not written with --only, --with or "
                             "--through")
    parser.add_argument("--with", dest="things", default="", metavar="THINGS",
                        help="add one of ComfyUI's own features to each setup, one after another: of control_net (on "
                             "both prompts), areas (two positive prompts, each in an area), times (two, each in a "
                             "range of steps), mask (a noise mask), lora (a scheduled LoRA hook on the positive "
                             "prompt) and windows (context windows over frames or images)")
    parser.add_argument("--through", choices=("patch", "ksampler", "guider"), default="patch",
                        help="use PAG KSampler, or PAG Guider under SamplerCustomAdvanced, in place of PAG Model Patch "
                             "(the default); only setups that sample with KSampler, and without FLOPs")
    arguments = parser.parse_args()
    things = [thing for thing in arguments.things.split(",") if thing]
    if unknown := sorted(set(things) - set(THINGS)):
        parser.error(f"--with knows {', '.join(THINGS)}, not {', '.join(unknown)}")
    if not arguments.folder.is_dir():
        parser.error(f"{arguments.folder} is not a folder. Clone the packs to test into one folder and name it.")
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
        found[name] = {"version": folder and version(folder), **in_a_process(pack, folder, things, arguments.through)}
        print(f"{name}: " + (found[name].get("cannot_import") or "; ".join(
            f"{row['what']}: {row['verdict']} ({row['error']}, {row['flops']})" for row in found[name]["rows"])),
            flush=True)
        if arguments.json:  # after each, for all of them take a while
            arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if not (arguments.only or things or arguments.through != "patch"):
        arguments.table.parent.mkdir(exist_ok=True)
        arguments.table.write_text(markdown(found), encoding="utf-8")


def in_a_process(pack: Pack, folder: Path | None, things: list[str], through: str) -> dict:
    """What `_child` finds, in a fork of this process."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_child, args=(theirs, pack, folder, things, through))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        return {"cannot_import": f"its process ended with exit code {process.exitcode} or needed over {SECONDS} s"}
    finally:
        process.join()


def _child(connection: Connection, pack: Pack, folder: Path | None, things: list[str], through: str) -> None:
    signal.setitimer(signal.ITIMER_PROF, SECONDS * max(1, len(things)))
    try:
        if folder:
            hosted.load(folder, pack.lacking)
        connection.send({"rows": _rows(pack, things, through)})
    except hosted.CannotImport as reason:
        connection.send({"cannot_import": str(reason)})
    except Exception as error:
        traceback.print_exc()
        connection.send({"cannot_import": f"{type(error).__name__}: {error}"})


def _rows(pack: Pack, things: list[str], through: str) -> list[dict]:
    import torch

    from neighbours.measuring import measure, samples_with_ksampler

    torch.set_num_threads(1)
    with torch.inference_mode():
        set_ups = pack.set_ups()
        if things:
            set_ups = {f"{what}, {thing}": (family, beside(thing, family, set_up))
                       for what, (family, set_up) in set_ups.items() for thing in things if applies(thing, family)}
        found = [(what, family, measure(family, set_up, through)) for what, (family, set_up) in set_ups.items()
                 if through == "patch" or samples_with_ksampler(family, set_up)]
        return [{"what": what, "family": family, **one.row()} for what, family, one in found]


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
        "# Compatibility with other packs", "",
        *(line for line in __doc__.splitlines()[2:]), "",
        f"ComfyUI {__version__}; written by `nox -s neighbours -- FOLDER --install`, which installs the requirements "
        f"of the packs in the folder and runs them. {COLUMNS}", "",
        "| pack | version | setup | error | effect | FLOPs | passes | result |",
        "|---|---|---|---:|---:|---:|---:|---|"]
    for name, pack in found.items():
        link = "–" if name == "none" else f"[{name}](https://github.com/{PACKS[name].owner}/{name})"
        start = f"| {link} | {pack.get('version') or '–'} |"
        if pack.get("absent"):
            lines.append(f"| {link} | – | – | – | – | – | – | not in the folder |")
        elif "cannot_import" in pack:
            lines.append(f"{start} – | – | – | – | – | does not load: {_cell(pack['cannot_import'])} |")
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
        lines += ["", f"These names no longer exist in ComfyUI {__version__} and were restored for the test, so that "
                  f"the rest of the pack loads:", "", *lacking]
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
