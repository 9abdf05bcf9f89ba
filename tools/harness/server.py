"""A real ComfyUI server with this pack installed, as a context manager that leaves no process behind.

The server uses a separate base directory for its outputs, inputs, temporary files, user settings, database and
custom_nodes (only a link to this pack). The ComfyUI it runs from stays unchanged, and other packs cannot interfere. Its
models folder is a link to that ComfyUI's, so that the user's checkpoints are available.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from .client import Client, UnreachableError
from .errors import HarnessError
from .host import ROOT

PACK_NAME = "perturbed-attention-guidance"  # the folder's name as ComfyUI-Manager would make it
ADDRESS = "127.0.0.1"
# Seconds for the start. It takes some ten where nothing else runs, and minutes on a machine that is busy or that loads
# torch for the first time; a server that ends is noticed at once.
READY_TIMEOUT, STILL_STARTING = 1200.0, 60.0
STOP_TIMEOUT = 15.0  # seconds; longer than the keeper's own grace
LAST_PORT = 65535
LOG_TAIL = 40  # lines shown when the server dies


class Server:
    """A running server between `with` and the end of its block.

    comfyui   the folder with main.py; this interpreter has its requirements
    base      the server's base directory; made if missing
    port      a port, or None for a free one; HarnessError if it is taken
    log       a file for the server's output, or None for the terminal
    pack      the pack's folder: this checkout, or a copy of it that was installed
    """

    def __init__(self, comfyui: Path, base: Path, port: int | None = None, log: Path | None = None,
                 ready_timeout: float = READY_TIMEOUT, arguments: tuple[str, ...] = (), pack: Path = ROOT):
        self.comfyui, self.base, self.log = comfyui, base, log
        self.ready_timeout, self.arguments, self.pack = ready_timeout, arguments, pack
        self.port = claim_port(port)
        self.url = f"http://{ADDRESS}:{self.port}"
        self.client = Client(self.url, self.check_alive)
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> Server:
        lay_base(self.base, self.comfyui, self.pack)
        database = (self.base / "user" / "comfyui.db").as_posix()
        command = [sys.executable, str(Path(__file__).with_name("keeper.py")), sys.executable, "main.py",
                   "--port", str(self.port), "--base-directory", str(self.base), "--disable-auto-launch",
                   "--disable-api-nodes", "--database-url", f"sqlite:///{database}", *device_arguments(),
                   *self.arguments]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        # Threads that wait give way at once: spinning slows a CPU run down manyfold while other programs are busy.
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        with self.log.open("wb") if self.log else contextlib.nullcontext() as output:
            self.process = subprocess.Popen(command, cwd=self.comfyui, env=environment, stdin=subprocess.PIPE,
                                            stdout=output, stderr=output and subprocess.STDOUT,
                                            start_new_session=True)
        try:
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def wait_until_ready(self) -> None:
        begun = said = time.monotonic()
        while True:
            self.check_alive()
            with contextlib.suppress(UnreachableError):
                nodes = self.client.object_info()
                break
            now = time.monotonic()
            if now - begun > self.ready_timeout:
                raise HarnessError(f"ComfyUI did not respond within {self.ready_timeout:.0f} s.{self.log_tail()}")
            if now - said > STILL_STARTING:
                print(f"ComfyUI is still starting after {now - begun:.0f} s ...", flush=True)
                said = now
            time.sleep(0.2)
        if "PAGKSampler" not in nodes:
            raise HarnessError(f"ComfyUI started but could not import this pack.{self.log_tail()}")

    def check_alive(self, patience: float = 0.0) -> None:
        """HarnessError, with the end of the log, when the server has ended or ends within `patience` seconds."""
        try:
            code = self.process.wait(patience)
        except subprocess.TimeoutExpired:
            return
        cause = f"exit code {code}"
        if code > 128:
            with contextlib.suppress(ValueError):
                cause = signal.Signals(code - 128).name
        raise HarnessError(f"ComfyUI exited unexpectedly ({cause}).{self.log_tail()}")

    def log_tail(self) -> str:
        if self.log is None:
            return " Its output is above."
        text = re.sub(r"\x1b\[\d*m", "", self.log.read_text(encoding="utf-8", errors="replace"))  # without colours
        lines = text.splitlines()[-LOG_TAIL:]
        return "\n".join([f" The last lines of {self.log}:", *(f"  {line}" for line in lines)])

    def stop(self) -> None:
        """Ends the server and its children, and returns when they are gone."""
        if self.process is None:
            return
        with contextlib.suppress(OSError):
            self.process.stdin.close()  # the keeper's sign to end
        try:
            self.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def claim_port(port: int | None) -> int:
    """The port asked for, or a free one. HarnessError if there is no such port, or another program listens there."""
    if port is not None and not 1 <= port <= LAST_PORT:
        raise HarnessError(f"Port {port} does not exist: ports range from 1 to {LAST_PORT}. Set one with: -- --port N")
    with socket.socket() as probe:
        if os.name == "posix":  # as the server does, so that a port just left counts as free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, port or 0))
        except PermissionError:
            raise HarnessError(f"Port {port} is reserved for the system. Choose one above 1023 with: -- --port N"
                               ) from None
        except OSError as error:
            raise HarnessError(f"Port {port} cannot be used ({error.strerror or error}). Stop the program that uses "
                               "it, or choose another port with: -- --port N") from None
        return probe.getsockname()[1]


def lay_base(base: Path, comfyui: Path, pack: Path) -> None:
    """Makes the server's base directory: the pack as its only custom node, the host's models and example picture."""
    for name in ("custom_nodes", "user", "input"):
        (base / name).mkdir(parents=True, exist_ok=True)
    link_folder(base / "custom_nodes" / PACK_NAME, pack)
    if (comfyui / "models").is_dir():
        link_folder(base / "models", comfyui / "models")
    picture = comfyui / "input" / "example.png"  # of the examples that begin with a picture
    if picture.is_file() and not (base / "input" / picture.name).exists():
        shutil.copyfile(picture, base / "input" / picture.name)


def link_folder(link: Path, target: Path) -> None:
    if link.exists() and link.resolve() == target.resolve():
        return
    link.unlink(missing_ok=True)
    if os.name == "nt":  # a junction needs no administrator
        import _winapi

        _winapi.CreateJunction(str(target), str(link))
    else:
        link.symlink_to(target, target_is_directory=True)


def device_arguments() -> tuple[str, ...]:
    """The host's options for a machine whose torch finds no accelerator; none for one that has one."""
    import torch

    if torch.accelerator.is_available():
        return ()
    # On the CPU the host would take its memory-saving attention; torch's own is faster there.
    return ("--cpu", "--use-pytorch-cross-attention")
