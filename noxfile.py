"""The commands: pip install nox uv, then nox -s demo, serve, tests, lint, bench, evaluate, soak, train
or switch.

They run in an environment of their own with a real ComfyUI; tools/harness/host.py says which one, and how to choose.
"""

import sys
from pathlib import Path

import nox

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT / "tools"))

from harness import host as hosts  # noqa: E402
from harness.errors import readable  # noqa: E402

nox.needs_version = ">=2024.3.2"
nox.options.sessions = ["tests"]
nox.options.default_venv_backend = "none"


def run(session: nox.Session, *arguments: str, without_host: bool = False, comfyui: str | None = None,
        group: str | None = None, **variables: str) -> None:
    """Runs the environment's Python with the host's variables, and lets it clean up after Ctrl-C.

    With `comfyui`, a version, the host is that one. With `group`, that dependency group is installed too.
    """
    try:
        host = hosts.prepare(comfyui)
    except Exception as error:
        message = readable(error)
        if message is None:
            raise
        session.error(message.rstrip("."))  # nox adds a full stop
    if group:
        session.run(*hosts.uv(), "pip", "install", "--quiet", "--python", str(host.python), "--group", group,
                    external=True)
    environment = {**host.environment(), **variables}
    if without_host:
        environment["COMFYUI_PATH"] = ""
    session.run(str(host.python), *arguments, env=environment, external=True, interrupt_timeout=30,
                terminate_timeout=30)


@nox.session
def demo(session: nox.Session) -> None:
    """Runs the example workflows on the shipped model and leaves one comparison picture in demo/."""
    run(session, "-m", "commands.demo", *session.posargs)


@nox.session
def serve(session: nox.Session) -> None:
    """Starts ComfyUI with this pack and opens the editor; -- --port N for another port than 8188."""
    run(session, "-m", "commands.serve", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Checks style and likely mistakes with ruff, and types with basedpyright."""
    run(session, "-m", "ruff", "check", ".")
    run(session, "-m", "basedpyright", without_host=True)


@nox.session
def tests(session: nox.Session) -> None:
    """Runs ruff and every test; what follows -- goes to pytest."""
    lint(session)
    if session.posargs:
        run(session, "-m", "pytest", *session.posargs)
        return
    # The core alone, with no ComfyUI in reach; the nodes in a ComfyUI process; a server over its API; a browser.
    run(session, "-m", "pytest", "tests/unit", without_host=True)
    run(session, "-m", "pytest", "tests/host")
    run(session, "-m", "pytest", "tests/server", "tests/training")
    run(session, "-m", "pytest", "tests/browser")  # skips itself, and says so, where there is no chromium
    run(session, "-m", "pytest", "tests/evaluation")


@nox.session
def coverage(session: nox.Session) -> None:
    """Runs the tests of the code that users run, and lists the lines of it that none of them reaches."""
    report = ("--cov", "--cov-append", "--cov-report=", "--cov-fail-under=0")  # the limit holds for both together
    run(session, "-m", "coverage", "erase", group="coverage")
    run(session, "-m", "pytest", "tests/unit", *report, without_host=True)
    run(session, "-m", "pytest", "tests/host", *report)
    run(session, "-m", "coverage", "report")


@nox.session(name="hosts")
def other_hosts(session: nox.Session) -> None:
    """Runs the tests on older ComfyUIs too; -- 0.16.3 0.24.1 for some of them. Each takes an environment of its own."""
    for version in session.posargs or hosts.ARCHIVES:
        session.log(f"ComfyUI {version}")
        run(session, "-m", "commands.internals", comfyui=version)
        run(session, "-m", "pytest", "tests/host", comfyui=version)
        run(session, "-m", "pytest", "tests/server", comfyui=version)


@nox.session
def internals(session: nox.Session) -> None:
    """Lists what the nodes rely on inside ComfyUI, and whether it is there."""
    run(session, "-m", "commands.internals", *session.posargs)


@nox.session
def package(session: nox.Session) -> None:
    """Validates and packs for the Comfy Registry, and installs the result and a clone as users do."""
    run(session, "-m", "pytest", "tests/distribution", *session.posargs, group="package")


@nox.session
def bench(session: nox.Session) -> None:
    """Measures what PAG costs; -- --device cuda, --json FILE and the like go to the benchmark."""
    run(session, "-m", "benchmark.bench", *session.posargs)


@nox.session
def evaluate(session: nox.Session) -> None:
    """Repeats the paper's tables on the shipped model; -- --quick, --full, --only table1, --json FILE and the like."""
    run(session, "-m", "evaluation.evaluate", *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """Plies a server with mixed prompts for an hour and looks for leaks; -- --minutes 5, --json FILE and the like."""
    run(session, "-m", "soak.soak", *session.posargs)


@nox.session
def train(session: nox.Session) -> None:
    """Trains the shipped model; -- --minutes 60 and the like go to the trainer."""
    run(session, "-m", "training.train", *session.posargs)


@nox.session
def switch(session: nox.Session) -> None:
    """Fine-tunes the shipped model on its perturbed attention and compares; -- --steps 600 and the like."""
    run(session, "-m", "training.switch", *session.posargs)
