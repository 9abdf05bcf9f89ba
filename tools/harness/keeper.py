"""Runs a command and stops it, with all its children, as soon as standard input closes.

The caller holds the other end of that pipe. However the caller ends (return, exception, Ctrl-C, SIGTERM or SIGKILL),
the system closes the pipe and nothing is left behind. Start it in a session of its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

GRACE = 5.0  # seconds between the request to end and the kill


def end_with_input(process: subprocess.Popen, ending: threading.Event) -> None:
    while os.read(0, 1):  # not sys.stdin, whose lock this thread would hold while the interpreter shuts down
        pass
    ending.set()
    if os.name == "nt":
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(process.pid)], capture_output=True)
        return
    os.killpg(0, signal.SIGTERM)
    try:
        process.wait(GRACE)
    finally:
        os.killpg(0, signal.SIGKILL)  # whatever is left of the group, this process included


def main() -> int:
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    if os.name != "nt":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # end_with_input signals the group; this process goes last
    ending = threading.Event()
    thread = threading.Thread(target=end_with_input, args=(process, ending), daemon=True)
    thread.start()
    code = process.wait()
    if ending.is_set():
        thread.join()
    return code if code >= 0 else 128 - code  # as a shell tells a death by signal


if __name__ == "__main__":
    sys.exit(main())
