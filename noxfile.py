"""The project's commands: pip install nox uv, then nox -s demo, serve, tests and so on; nox --list shows them all.

They run in a separate environment with a real ComfyUI; tools/harness/host.py says which one, and how to choose it.
"""

from __future__ import annotations  # the Python that comes with macOS is 3.9

import os
import signal
import sys
from pathlib import Path

import nox

ROOT = Path(__file__).parent
# Seconds that a command may take to end by itself after Ctrl-C, which it gets too; after a SIGTERM, which it does not,
# they pass before nox ends it.
INTERRUPT_TIMEOUT = 2
TESTS = ("lint", "test", "train")
COVERAGE = ("test", "train", "coverage")
# One process for each core, for small tensors leave all cores but one idle. What the tests of a file share, they share.
# In their own order: the files of few tests, which xdist would take last, hold the longest ones.
AT_ONCE = ("-n", "auto", "--maxprocesses", "4", "--dist", "loadfile", "--no-loadscope-reorder")
QUICK = ("-m", "not slow")
sys.path.insert(0, str(ROOT / "tools"))

from harness import host as hosts  # noqa: E402
from harness import packaging, requirements  # noqa: E402
from harness.errors import readable  # noqa: E402

# SIGTERM as Ctrl-C: nox then passes it on to what it runs, and waits for that to clean up.
signal.signal(signal.SIGTERM, signal.default_int_handler)
nox.needs_version = ">=2024.4.15"  # the first with nox.project
nox.options.sessions = ["tests"]
nox.options.default_venv_backend = "none"


def run(session: nox.Session, *arguments: str, groups: tuple[str, ...] = ("demo",), without_host: bool = False,
        comfyui: str | None = None, success_codes: tuple[int, ...] = (0,), packs: Path | None = None,
        with_packs: bool = False) -> None:
    """Runs the environment's Python with the host's variables, and lets it clean up after Ctrl-C and SIGTERM.

    groups    the dependency groups that it needs
    comfyui   a version, where the host has to be that one
    success_codes   the exit codes that do not end the session
    packs     a folder of other people's packs, what they require to be installed first
    with_packs   whether what was installed for them is in reach
    """
    try:
        host = hosts.prepare(comfyui, groups)
        if packs:
            requirements.install(host, packs)
    except Exception as error:
        message = readable(error)
        if message is None:
            raise
        session.error(message.rstrip("."))  # nox adds a full stop
    environment = host.environment()
    if with_packs and requirements.PACKAGES.is_dir():
        environment["PYTHONPATH"] += f"{os.pathsep}{requirements.PACKAGES}"
    if without_host:
        environment["COMFYUI_PATH"] = ""
    session.run(str(host.python), *arguments, env=environment, external=True, interrupt_timeout=INTERRUPT_TIMEOUT,
                terminate_timeout=30, success_codes=success_codes)


@nox.session
def demo(session: nox.Session) -> None:
    """Run the example workflows on the shipped model and save a comparison image in demo/."""
    run(session, "-m", "commands.demo", *session.posargs)


@nox.session
def serve(session: nox.Session) -> None:
    """Start ComfyUI with this pack and open the editor; -- --port N for a port other than 8188."""
    run(session, "-m", "commands.serve", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Run ruff and basedpyright."""
    run(session, "-m", "ruff", "check", ".", groups=("lint",))
    run(session, "-m", "basedpyright", groups=("lint",), without_host=True)


@nox.session
def tests(session: nox.Session) -> None:
    """Run lint and the tests; -- --all adds slow, browser, evaluation and training tests. Other arguments after -- are
    passed to pytest."""
    lint(session)
    everything = session.posargs == ["--all"]
    if session.posargs and not everything:
        run(session, "-m", "pytest", *session.posargs, groups=TESTS)
        return
    parts = ["unit (the core, without ComfyUI)", "host (in a ComfyUI process)", "server (over the API)",
             *(["browser (the editor in chromium)", "training and evaluation"] if everything else [])]
    session.log(f"{len(parts)} parts, one after another: {', '.join(parts)}.")
    options = AT_ONCE if everything else (*AT_ONCE, *QUICK)
    run(session, "-m", "pytest", "tests/unit", *options, groups=TESTS, without_host=True)
    run(session, "-m", "pytest", "tests/host", *options, groups=TESTS)
    run(session, "-m", "pytest", "tests/server", *options, groups=TESTS)
    if everything:
        # It skips itself, and says so, without a chromium.
        run(session, "-m", "pytest", "tests/browser", *AT_ONCE, groups=TESTS)
        run(session, "-m", "pytest", "tests/training", "tests/evaluation", *AT_ONCE, groups=TESTS)


@nox.session
def coverage(session: nox.Session) -> None:
    """Measure line coverage of the code that users run, and list the lines that no test reaches."""
    report = ("--cov", "--cov-append", "--cov-report=", "--cov-fail-under=0")  # the limit holds for both together
    run(session, "-m", "coverage", "erase", groups=COVERAGE)
    run(session, "-m", "pytest", "tests/unit", *report, groups=COVERAGE, without_host=True)
    run(session, "-m", "pytest", "tests/host", *report, groups=COVERAGE)
    run(session, "-m", "coverage", "report", groups=COVERAGE)


@nox.session(name="hosts")
def other_hosts(session: nox.Session) -> None:
    """Run the tests on all supported ComfyUI versions; -- 0.16.3 0.24.1 selects some.

    Each version gets its own environment. --table writes the results into the table in CONTRIBUTING. Without it, other
    arguments are passed to pytest.
    """
    versions = [argument for argument in session.posargs if argument in hosts.ARCHIVES]
    with_table = "--table" in session.posargs
    if unknown := [argument for argument in session.posargs if argument.replace(".", "").isdigit()
                   and argument not in versions]:
        session.error(f"no archive of ComfyUI {', '.join(unknown)}; available: {', '.join(hosts.ARCHIVES)}")
    options = [argument for argument in session.posargs if argument not in (*versions, "--table")]
    if with_table and options:
        session.error(f"--table reports all tests and cannot be combined with {' '.join(options)}")
    for version in versions or hosts.ARCHIVES:
        session.log(f"ComfyUI {version}")
        reports = ROOT / "build" / "hosts" / version
        run(session, "-m", "commands.internals", comfyui=version)
        for folder in ("host", "server"):
            run(session, "-m", "pytest", f"tests/{folder}", *AT_ONCE, *QUICK, f"--junitxml={reports / folder}.xml",
                *options, comfyui=version, groups=TESTS,
                success_codes=(0, 1) if with_table else (0,))  # a row says what failed
        if with_table:
            run(session, "-m", "commands.hosts_table", version, str(reports), comfyui=version)


@nox.session
def internals(session: nox.Session) -> None:
    """List the ComfyUI internals that the nodes use, and mark missing ones."""
    run(session, "-m", "commands.internals", *session.posargs)


@nox.session
def package(session: nox.Session) -> None:
    """Validate and pack for the Comfy Registry, then install the archive and a clone as users do.

    Fails while a field that the registry requires is empty; -- --dry-run runs everything else.
    """
    empty = packaging.empty_fields(nox.project.load_toml("pyproject.toml"))
    if empty and "--dry-run" not in session.posargs:
        session.error(packaging.what_is_missing(empty).rstrip("."))
    options = [argument for argument in session.posargs if argument != "--dry-run"]
    run(session, "-m", "pytest", "tests/distribution", *options, groups=("test", "package"))


@nox.session
def bench(session: nox.Session) -> None:
    """Measure what PAG costs; arguments after -- go to the benchmark, for example --device cuda or --json FILE."""
    run(session, "-m", "benchmark.bench", *session.posargs)


@nox.session
def neighbours(session: nox.Session) -> None:
    """Test PAG together with the custom node packs in a folder, and write docs/neighbours.md; -- FOLDER.

    --install first installs their requirements into a separate folder.
    """
    options = [argument for argument in session.posargs if argument != "--install"]
    folder = Path(options[0]) if options else None
    packs = folder if folder and folder.is_dir() and "--install" in session.posargs else None
    run(session, "-m", "neighbours.neighbours", *options, packs=packs, with_packs=True)


@nox.session
def evaluate(session: nox.Session) -> None:
    """Repeat the paper's tables on the shipped model; -- --quick, --full, --only table1, --json FILE and more."""
    run(session, "-m", "evaluation.evaluate", *session.posargs, groups=("demo", "evaluate", "train"))


@nox.session
def soak(session: nox.Session) -> None:
    """Stress-test a server with mixed prompts for an hour and look for leaks; -- --minutes 5, --json FILE and more."""
    run(session, "-m", "soak.soak", *session.posargs, groups=("test",))


@nox.session
def train(session: nox.Session) -> None:
    """Train a model on emoji drawings; arguments after -- go to the trainer, for example --minutes 60."""
    run(session, "-m", "training.train", *session.posargs, groups=("evaluate", "train"))


@nox.session
def switch(session: nox.Session) -> None:
    """Fine-tune the shipped model with perturbed attention and compare the results; -- --steps 600 and more."""
    run(session, "-m", "training.switch", *session.posargs, groups=("demo", "evaluate", "train"))
