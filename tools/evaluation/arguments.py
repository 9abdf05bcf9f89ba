"""The command's arguments, checked before anything slow is loaded."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.in_process import ROOT

from .plan import Found, Table, quick, search_tables, tables
from .restoration.plan import EXPERIMENTS, Experiment

SEARCH_FIRST = 1_000_000  # ids of the held-out samples start here
SEARCH_KEYS = frozenset(table.key for table in search_tables(Found()))  # tables that show the search itself
QUICK, FULL = 50, 5000
LEAST = 50  # samples below which the distances say nothing


def parse(argv: list[str], description: str = "") -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="nox -s evaluate --", description=description)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true",
                      help=f"Table 1 and Fig. 12 with {QUICK} samples per row, without a search (default)")
    size.add_argument("--full", action="store_true",
                      help=f"everything, including the search, with {FULL} samples per row")
    parser.add_argument("--only", default="", metavar="KEYS",
                        help="comma-separated names of tables: " + ", ".join(known_keys()))
    parser.add_argument("--samples", type=int, help="samples per row of Table 1; other tables use half as many, "
                                                    "restoration a fifth")
    parser.add_argument("--search", type=int, metavar="SAMPLES",
                        help="held-out samples per setting in the search for layers and scales; 0 skips it and uses "
                             "the settings found earlier")
    parser.add_argument("--batch", type=int, help="batch size (default: 25; 250 with CUDA)")
    parser.add_argument("--model", default="", help="an ADM file listed by PAG ADM Loader (default: the shipped one)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--ranks", type=int, default=1,
                        help="processes that share the work on this machine (default: 1)")
    parser.add_argument("--data", type=Path, help="folder of nox -s train's drawings (default: the one that it uses)")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "evaluate",
                        help="folder for samples and results (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the figures to this JSON file, which must not exist yet")
    args = parser.parse_args(argv)

    if args.json and args.json.exists():
        parser.error(f"--json {args.json}: the file exists; name a new one")
    if args.json and not args.json.absolute().parent.is_dir():
        parser.error(f"--json {args.json}: the folder {args.json.parent} does not exist")
    if args.out.exists() and not args.out.is_dir():
        parser.error(f"--out {args.out} is not a folder")
    args.samples = (FULL if args.full else QUICK) if args.samples is None else args.samples
    if args.samples < LEAST:
        parser.error(f"--samples {args.samples}: too few for a meaningful distance; use {LEAST} or more")
    args.batch = (250 if args.device == "cuda" else 25) if args.batch is None else args.batch
    for name in ("batch", "ranks"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    known = known_keys()
    args.only = [key.strip() for key in args.only.split(",") if key.strip()]
    if unknown := [key for key in args.only if key not in known]:
        parser.error(f"--only {', '.join(unknown)}: expected names from {', '.join(known)}")
    needs_search = not SEARCH_KEYS.isdisjoint(args.only)
    if args.search is None:
        args.search = args.samples // 5 if args.full else QUICK if needs_search else 0
    if (args.search and args.search < LEAST) or (needs_search and not args.search):
        parser.error(f"--search {args.search}: use {LEAST} or more" + ("" if needs_search else ", or 0"))
    return args


def known_keys() -> list[str]:
    return [*(table.key for table in all_tables()), *EXPERIMENTS]


def chosen_restorations(args: argparse.Namespace) -> list[Experiment]:
    """They take too long for a quick look."""
    return [experiment for key, experiment in EXPERIMENTS.items()
            if key in args.only or (args.full and not args.only)]


def all_tables() -> list[Table]:
    return [*tables(Found()), *search_tables(Found())]


def chosen_tables(args: argparse.Namespace, found: Found, share: float) -> list[Table]:
    """See `plan.tables`."""
    plan = tables(found, share)
    if not args.only and not args.full:
        return quick(plan)
    plan += search_tables(found) if args.search else []
    return [table for table in plan if not args.only or table.key in args.only]


def ids_of(args: argparse.Namespace, table: Table) -> range:
    """Those of the search have its samples; all others have samples of their own."""
    if table.key in SEARCH_KEYS:
        return range(SEARCH_FIRST, SEARCH_FIRST + args.search)
    return range(round(args.samples * table.share))
