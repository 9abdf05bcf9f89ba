"""The real editor in a real browser: Debian's chromium or Google Chrome, driven by Playwright."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator

from .errors import HarnessError
from .server import Server

READY = "() => window.app?.extensionManager?.workflow?.activeWorkflow && LiteGraph.registered_node_types.PAGKSampler"


@contextlib.contextmanager
def launch() -> Iterator:
    """A browser; HarnessError, which says what to install, where there is none."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise HarnessError("Playwright is missing. Install it with: pip install playwright") from None
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise HarnessError("There is no chromium on the path. On Debian: apt install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def open_editor(page, server: Server) -> None:
    """Opens the editor, and returns when its own first workflow and its greeting are out of the way."""
    page.goto(server.url, wait_until="domcontentloaded")
    page.wait_for_function(READY, timeout=60_000)
    page.keyboard.press("Escape")


def load(page, workflow: dict) -> None:
    page.evaluate("workflow => app.loadGraphData(workflow, true, true)", workflow)
