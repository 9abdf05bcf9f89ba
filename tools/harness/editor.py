"""The real editor in a real browser: Debian's Chromium or Google Chrome, driven by Playwright."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from .errors import HarnessError
from .server import Server

VUE = "Comfy.VueNodes.Enabled"  # the editor's name for Nodes 2.0
READY = "() => window.app?.extensionManager?.workflow?.activeWorkflow && LiteGraph.registered_node_types.PAGKSampler"
# The graph alone, without the panels around it.
BARE = {"Comfy.Minimap.Visible": False, "Comfy.Graph.CanvasMenu": False, "Comfy.Canvas.SelectionToolbox": False}


@contextlib.contextmanager
def launch() -> Iterator:
    """A browser of Playwright's; HarnessError, which says what to install, where there is none."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise HarnessError("Playwright is missing. Install it with: pip install playwright") from None
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise HarnessError("No Chromium found on PATH. On Debian, install it with: apt install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


class Editor:
    """The editor on a page of Playwright's; nodes are called by their ids in the graph that is shown."""

    def __init__(self, page, server: Server):
        self.page, self.server = page, server

    def open(self, settings: dict[str, object] | None = None) -> None:
        """Loads the page, and returns when the editor's own first workflow and its greeting are out of the way."""
        self.page.goto(self.server.url, wait_until="domcontentloaded")
        self.page.wait_for_function(READY, timeout=180_000)
        self.page.wait_for_timeout(1000)  # the first workflow comes after the node types
        self.page.keyboard.press("Escape")
        for name, value in (settings or {}).items():
            self.set(name, value)

    def reopen(self) -> None:
        """Loads the page again, as a person does; settings stay."""
        self.page.reload(wait_until="domcontentloaded")
        self.page.wait_for_function(READY, timeout=180_000)
        self.page.wait_for_timeout(1000)

    def set(self, setting: str, value: object) -> None:
        self.page.evaluate("([name, value]) => app.extensionManager.setting.set(name, value)", [setting, value])

    def load(self, workflow: Path | dict) -> None:
        content = workflow if isinstance(workflow, dict) else json.loads(workflow.read_text(encoding="utf-8"))
        self.page.evaluate("workflow => app.loadGraphData(workflow, true, true)", content)

    def show(self, left: float, top: float, scale: float) -> None:
        """Puts a point of the graph into the upper left corner."""
        self.page.evaluate("""([x, y, scale]) => {
            Object.assign(app.canvas.ds, { scale, offset: [-x, -y] });
            app.canvas.setDirty(true, true);
        }""", [left, top, scale])
