"""nox -s serve: runs ComfyUI with this pack until Ctrl-C."""

from __future__ import annotations

import argparse
import os
import sys
import time
import webbrowser

from harness.errors import command
from harness.host import CACHE, get_comfyui
from harness.server import Server


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="nox -s serve --", description="Runs ComfyUI with this pack until Ctrl-C.")
    parser.add_argument("--port", type=int, default=8188, help="port of the server (default: 8188)")
    parser.add_argument("--no-browser", action="store_true", help="print the editor's URL without opening it")
    options = parser.parse_args(arguments)

    base = CACHE / f"serve-{options.port}"  # servers side by side must not share temporary files and a database
    with Server(get_comfyui(), base, options.port) as server:
        print(f"\nEditor: {server.url}\nImages are saved to {base / 'output'}. Press Ctrl-C to stop the server.",
              flush=True)
        if not options.no_browser and has_display():
            webbrowser.open(server.url)
        while True:
            server.check_alive()
            time.sleep(0.5)


def has_display() -> bool:
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


if __name__ == "__main__":
    command(main)
