"""Measures PAG's cost: FLOPs, time and peak memory of a sampling step relative to a CFG step, and of restoration.

Everything goes through ComfyUI's own sampling and this pack's nodes. FLOPs at full size are counted on the meta device,
without weights, with torch's FlopCounterMode. Times are taken in rounds in one process, each row once per round, and a
ratio is the median of the rounds' ratios: drift in the machine's speed affects all rows of a round equally.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from harness.in_process import ROOT, import_pack, start_host
from tqdm import tqdm

STEPS = 5
CFG, SCALE = 7.0, 3.0
CFG_END, PAG_START = 0.6, 0.4  # the scheduled row: CFG early, PAG late (PAG Fig. 44, App. E.2)


def main() -> None:
    parser = argparse.ArgumentParser(prog="nox -s bench --", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu, or cuda for full-size models in bf16 (default: cpu)")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs per row (default: 5)")
    parser.add_argument("--only", default="", help="only models whose name contains this text")
    parser.add_argument("--rows", default="", help="only time rows whose name contains one of these comma-separated "
                        "texts; CFG is always timed")
    parser.add_argument("--compiled", action="store_true",
                        help="also time the models under torch.compile (inductor), which takes minutes to compile")
    parser.add_argument("--peer", type=Path, metavar="FOLDER", help="also time the PAG node of sd-perturbed-attention, "
                        "from this folder")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--flops-only", action="store_true", help="count FLOPs and memory, but time nothing")
    part.add_argument("--times-only", action="store_true", help="time sampling steps, but count nothing")
    parser.add_argument("--json", type=Path, help="also write the figures to this JSON file, which must not exist yet")
    arguments = parser.parse_args()
    if arguments.json and arguments.json.exists():
        parser.error(f"--json {arguments.json}: the file exists; name a new one")
    if arguments.peer and not (arguments.peer / "pag_nodes.py").is_file():
        parser.error(f"--peer {arguments.peer}: not a folder of sd-perturbed-attention; it has no pag_nodes.py")
    if arguments.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {arguments.repeats}")
    on_cpu = arguments.device == "cpu"
    start_host(os.environ["COMFYUI_PATH"], *(["--cpu"] if on_cpu else []), "--use-pytorch-cross-attention")
    import torch

    if not on_cpu and not torch.cuda.is_available():
        parser.error(f"--device {arguments.device}: no CUDA device was found on this machine")
    import_pack()
    report = {"device": "CPU" if on_cpu else torch.cuda.get_device_name(), "threads": torch.get_num_threads(),
              "torch": torch.__version__, "flops": [], "times": []}
    from benchmark import beside, gradient, networks

    if arguments.peer:
        from neighbours import hosted

        hosted.load(arguments.peer, {})
    if not arguments.times_only:
        for shape in networks.FULL:
            if arguments.only.lower() in shape.name.lower():
                report["flops"].append(count(shape))
        report["beside"] = beside.report(arguments.only)
    if not arguments.flops_only:
        for shape in networks.SCALED if on_cpu else networks.FULL:
            if arguments.only.lower() in shape.name.lower():
                with torch.inference_mode():
                    report["times"].append(measure(shape, arguments.device, arguments.repeats, arguments.rows,
                                                   arguments.compiled, arguments.peer is not None))
        torch.set_num_threads(1)  # operations this small only lose by a second one
        with torch.inference_mode():
            seconds = measure(networks.NARROW, arguments.device, 4 * arguments.repeats, "shared prefix")["seconds"]
        report["overhead"] = seconds["CFG + PAG, shared prefix"] - seconds["CFG"]
    print_tables(report)
    if not arguments.times_only:
        report["gradients"] = gradient.report(arguments.only, 0 if arguments.flops_only else arguments.repeats,
                                              arguments.device)
        print(beside.table(report["beside"]))
        print(gradient.table(report["gradients"]))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def count(shape, perturbation: str = "identity", memory: bool = True) -> dict:
    """A step at full size in half precision: {"model", "layers", "flops", "bytes" and "operations": {row: number},
    "negative": FLOPs of CFG with its own negative weak}, where bytes are the most that tensors hold at once, weights
    aside, with fused attention; without `memory` the FLOPs alone."""
    import torch
    from pag_pack.nodes.host.hooks.attention import LayerPerturbation
    from pag_pack.nodes.host.hooks.joint import JointPrefix
    from pag_pack.nodes.host.hooks.ways import way_in
    from pag_pack.nodes.host.models.layers import model_layers
    from pag_pack.pag_core.cost import relative_cost
    from pag_pack.pag_core.perturbation import Perturbation
    from pag_pack.pag_core.selection import select
    from torch.utils.flop_counter import FlopCounterMode

    from benchmark.counting import FusedAttention, LiveBytes, Operations

    network = shape.build("meta", torch.bfloat16)
    found = model_layers(_Holder(network))
    layers = {found.layers[layer]: LayerPerturbation(layer.name, Perturbation(perturbation), heads)
              for layer, heads in select(shape.layers, tuple(found.layers), found.auto).items()}
    patch, units = way_in(found, layers), found.units(network)
    first = min(units.places[key] for key in layers)

    def run(rows: list[str], share: bool, *modes: AbstractContextManager) -> None:
        options = {"uuids": rows, "cond_or_uncond": ["cup".index(row) for row in rows], "sigmas": torch.ones(1)}
        inputs = shape.inputs(len(rows), "meta", torch.bfloat16)
        prefix = JointPrefix(units, first if share else 0, {"p": "c"}, print)
        with prefix.around(options, len(rows)), ExitStack() as stack:
            options = stack.enter_context(patch.around(network, options, "p".__eq__, print, ()))
            for mode in modes:
                stack.enter_context(mode)
            network(inputs.pop("x"), inputs.pop("t"), **inputs, control=None, transformer_options=options)

    def forward(rows: list[str], share: bool = True) -> dict[str, int]:
        """Of one with these rows: "c" the conditional, "u" the unconditional, "p" the perturbed one."""
        flops, live, operations = FlopCounterMode(display=False), LiveBytes(), Operations()
        run(rows, share, torch.no_grad(), flops)  # which knows attention by its matrix products
        if not memory:
            return {"flops": flops.get_total_flops()}
        run(rows, share, torch.inference_mode(), FusedAttention(), live, operations)
        return {"flops": flops.get_total_flops(), "bytes": live.peak, "operations": operations.number}

    rows = {"no guidance": forward(["c"]), "CFG": forward(["u", "c"]),
            "CFG + PAG, full batch": forward(["p", "u", "c"], False),
            "CFG + PAG, shared prefix": forward(["p", "u", "c"]), "PAG without CFG": forward(["p", "c"])}
    counts = {key: {name: row[key] for name, row in rows.items()} for key in rows["CFG"]}
    flops = counts["flops"]
    extra = (flops["CFG + PAG, shared prefix"] - flops["CFG"]) / flops["no guidance"]
    flops["CFG + PAG, scheduled"] = flops["CFG"] * relative_cost(extra, CFG_END, 1 - PAG_START)
    return {"model": shape.name, "layers": found.auto if shape.layers == "auto" else shape.layers, **counts,
            "negative": forward(["p", "c"], False)["flops"]}


class _Holder:
    """Stands for a ModelPatcher where only its network is asked for."""

    def __init__(self, network) -> None:
        self.network = network

    def get_model_object(self, name: str):
        return self.network


def measure(shape, device: str, repeats: int, only: str = "", compiled: bool = False, peer: bool = False) -> dict:
    """Seconds per step and peak memory by row.

    {"model", "seconds": {row: median}, "ratios": {row: [median, least, most of the rounds' ratios to CFG]}, "bytes" and
    "live": {row: number}}, where the last are the most that a run's tensors hold at once, weights aside, with fused
    attention; they are counted on a CPU only.

    Args:
        compiled, peer: whether there are rows under torch.compile, and one for the PAG node of sd-perturbed-attention,
            which is loaded.
    """
    from benchmark.timing import duration

    rows = {name: run for name, run in build_rows(shape, device, compiled, peer).items()
            if name == "CFG" or any(text in name for text in only.split(","))}
    for run in rows.values():
        run()  # lazy initialisation is not what is measured
    peaks = {name: peak(run, device) for name, run in rows.items()}
    live = {name: live_peak(run) for name, run in rows.items()} if device == "cpu" else {}
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for _ in tqdm(range(repeats), desc=shape.name, unit="round", disable=not sys.stderr.isatty()):
        for name, run in rows.items():
            seconds[name].append(duration(run, device) / STEPS)
    ratios = {name: [value / cfg for value, cfg in zip(values, seconds["CFG"], strict=True)]
              for name, values in seconds.items()}
    return {"model": shape.name, "seconds": {name: statistics.median(values) for name, values in seconds.items()},
            "ratios": {name: [statistics.median(values), min(values), max(values)] for name, values in ratios.items()},
            "bytes": peaks, "live": live}


def live_peak(run: Callable[[], object]) -> int:
    """The most bytes that the tensors of a run hold at once."""
    from benchmark.counting import FusedAttention, LiveBytes

    with FusedAttention(), LiveBytes() as memory:
        run()
    return memory.peak


def build_rows(shape, device: str, compiled: bool = False, peer: bool = False) -> dict[str, Callable[[], object]]:
    """{row: a run of STEPS steps}; see `measure`."""
    import comfy.samplers
    import torch
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance
    from pag_pack.nodes.sampling import PAGKSampler
    from pag_pack.pag_core.settings import PAGOptions

    import nodes
    from benchmark.model import as_model, conditioning

    model = as_model(shape, device)
    host_pag = PerturbedAttentionGuidance.execute(model, SCALE).result[0]
    latent = {"samples": torch.zeros(shape.batch, *shape.latent)}
    positive, negative = conditioning(shape, 1), conditioning(shape, 2)

    def stock(model, cfg: float):
        return lambda: nodes.common_ksampler(model, 0, STEPS, cfg, "euler", "normal", positive, negative, latent)

    def ours(cfg: float, cfg_end: float = 1.0, model=model, **options):
        return lambda: PAGKSampler.execute(model, 0, STEPS, cfg, SCALE, shape.layers, "euler", "normal", positive,
                                           negative, latent, cfg_end_percent=cfg_end, options=PAGOptions(**options))

    rows = {"no guidance": stock(model, 1.0), "CFG": stock(model, CFG)}
    if shape.has_host_pag:
        rows["CFG + PAG, ComfyUI's node"] = stock(host_pag, CFG)
        if peer:
            from neighbours import hosted

            rows["CFG + PAG, sd-perturbed-attention"] = stock(
                hosted.call("PerturbedAttention", model=model, scale=SCALE)[0], CFG)
    # Another node holds the slot of the joint call, as SLG does; then the perturbed pass is a call of its own.
    apart = model.clone()
    apart.set_model_sampler_calc_cond_batch_function(lambda args: comfy.samplers.calc_cond_batch(
        args["model"], args["conds"], args["input"], args["sigma"], args["model_options"]))
    # Another node acts on the calls, though it changes nothing: the host's call stays as it is, and the perturbed rows
    # run behind it, from where they begin to differ.
    beside = model.clone()
    beside.model_options["transformer_options"]["optimized_attention_override"] = (
        lambda function, *args, **kwargs: function(*args, **kwargs))
    if compiled:
        from comfy_api.torch_helpers import set_torch_compile_wrapper

        graphs = model.clone()
        set_torch_compile_wrapper(graphs, backend="inductor")
        rows |= {"CFG, compiled": stock(graphs, CFG), "CFG + PAG, compiled": ours(CFG, model=graphs)}
    return rows | {
        "CFG, beside another node": stock(beside, CFG), "CFG + PAG, beside another node": ours(CFG, model=beside),
        "CFG + PAG, two calls": ours(CFG, model=apart),
        "CFG + PAG, full batch": ours(CFG, share_prefix=False), "CFG + PAG, shared prefix": ours(CFG),
        "CFG + PAG, scheduled": ours(CFG, CFG_END, start_percent=PAG_START), "PAG without CFG": ours(1.0)}


def peak(run: Callable[[], object], device: str) -> int | None:
    """Bytes that a run holds at most, in all of the process; None where the system does not tell."""
    import torch

    if device != "cpu":
        gpu = torch.get_device_module(device)
        gpu.synchronize()
        gpu.reset_peak_memory_stats()
        run()
        return gpu.max_memory_allocated()
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not clear.exists():
        return None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)  # else what glibc keeps of earlier runs would count
    clear.write_text("5")  # the peak of the resident memory starts anew
    run()
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def print_tables(report: dict) -> None:
    """The pack's own work is what it adds to a step of SD 1.5's blocks at a width that needs hardly any arithmetic.
    Activations are counted, in half precision and with fused attention; peaks are measured, weights and all."""
    print(f"\nDevice: {report['device']}, torch {report['torch']}. Ratios are relative to a CFG step.")
    for table in report["flops"]:
        print(f"\nOne step at full size: {table['model']}, layers {table['layers']}\n\n"
              f"| row | TFLOP | ratio | activations MiB | operations |\n|---|---:|---:|---:|---:|")
        for row, value in table["flops"].items():
            memory, operations = table["bytes"].get(row), table["operations"].get(row, "")
            shown = "" if memory is None else f"{memory / 2**20:.0f}"
            print(f"| {row} | {value / 1e12:.3f} | {value / table['flops']['CFG']:.3f} | {shown} | {operations} |")
    for table in report["times"]:
        print(f"\nSeconds per step: {table['model']}\n\n| row | s | ratio | min | max | peak GiB | "
              f"tensors MiB |\n|---|---:|---:|---:|---:|---:|---:|")
        for row, value in table["seconds"].items():
            memory, tensors = (table["bytes"][row] or 0) / 2**30, table["live"].get(row)
            ratio, low, high = table["ratios"][row]
            shown = "" if tensors is None else f"{tensors / 2**20:.1f}"
            print(f"| {row} | {value:.4f} | {ratio:.3f} | {low:.3f} | {high:.3f} | {memory:.2f} | {shown} |")
        share = report["overhead"] / table["seconds"]["CFG"]
        print(f"| this pack's own overhead (Python, hooks) | {report['overhead']:.4f} | {share:.4f} | | | | |")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tools"))
    main()
