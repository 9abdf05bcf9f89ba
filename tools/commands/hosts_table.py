"""Writes the table of test results by ComfyUI version in CONTRIBUTING, for nox -s hosts -- --table.

    python -m commands.hosts_table VERSION FOLDER       FOLDER contains pytest's JUnit XML reports, one per test folder
"""

from __future__ import annotations

import datetime
import platform
import re
from pathlib import Path
from xml.etree import ElementTree

from harness.errors import HarnessError, command
from harness.host import ROOT
from harness.whole_files import written_whole

CONTRIBUTING = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- nox -s hosts -- --table -->", "<!-- end of the table -->"
HEAD = ("| ComfyUI | Python | `tests/host` | `tests/server` | run on |", "|---|---|---:|---:|---|")
FOLDERS = ("host", "server")


def main(arguments: list[str]) -> None:
    if len(arguments) != 2:
        raise HarnessError("Usage: nox -s hosts -- --table, or python -m commands.hosts_table VERSION FOLDER")
    version, folder = arguments
    counts = [count(Path(folder, f"{name}.xml")) for name in FOLDERS]
    python = ".".join(platform.python_version_tuple()[:2])
    row = f"| {version} | {python} | {' | '.join(counts)} | {datetime.date.today().isoformat()} |"
    text = CONTRIBUTING.read_text(encoding="utf-8")
    with written_whole(CONTRIBUTING) as partial:
        partial.write_text(with_row(text, version, row), encoding="utf-8")
    print(row)


def count(report: Path) -> str:
    """"passed / skipped", and what failed, of pytest's report."""
    try:
        suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
    except (OSError, ElementTree.ParseError) as error:
        raise HarnessError(f"{report} is not a pytest report ({error}).") from None
    tests, skipped, failed = (sum(int(suite.get(name, 0)) for suite in suites for name in names)
                              for names in (("tests",), ("skipped",), ("failures", "errors")))
    return f"{tests - skipped - failed:,} / {skipped:,}" + (f", **{failed:,} failed**" if failed else "")


def with_row(text: str, version: str, row: str) -> str:
    """The file's text, with this row in the place of the version's last one; rows are in the order of the versions."""
    if BEGIN not in text or END not in text:
        raise HarnessError(f"{CONTRIBUTING.name} lacks the markers of the table, {BEGIN} and {END}.")
    before, _, rest = text.partition(BEGIN)
    table, _, after = rest.partition(END)
    rows = {line.split("|")[1].strip(): line for line in table.splitlines() if re.match(r"\| \d", line)}
    rows[version] = row
    ordered = sorted(rows.values(), key=lambda line: [int(number) for number in line.split("|")[1].split(".")])
    return "\n".join([before + BEGIN, *HEAD, *ordered, END]) + after


if __name__ == "__main__":
    command(main)
