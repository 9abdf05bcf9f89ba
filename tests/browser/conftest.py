"""Tests in a real browser against a real server, both started once. What they see is kept under build/browser/.

Without Playwright or a chromium they are skipped, and say so; with PAG_REQUIRE_BROWSER=1 they fail instead. The editor
is the one that the ComfyUI at hand brings; PAG_FRONTEND takes another: a version such as 1.58.1, "newest", or a folder.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness.editor import BARE, VUE, Editor, launch
from harness.errors import HarnessError
from harness.frontend import arguments
from harness.host import ROOT
from harness.server import Server

PICTURES = ROOT / "build" / "browser"
OURS = "extensions/perturbed-attention-guidance"
SIZE = {"width": 1500, "height": 950}
PATIENCE = 90.0  # seconds to wait for what has to come, on a machine that may be busy
RENDERERS = ["canvas", "nodes-2.0"]
# For what no renderer has a hand in, one is enough.
one_renderer = pytest.mark.parametrize("page", RENDERERS[-1:], indirect=True)


# [what lies on something else, or partly outside its group], titles of nodes included.
ASTRAY = """() => {
    const nodes = app.graph.nodes.map(node => {
        const [x, y] = node.pos, [width, height] = node.size;
        return { title: node.title, left: x, right: x + width, top: y - LiteGraph.NODE_TITLE_HEIGHT,
                 bottom: y + (node.flags.collapsed ? 0 : height) };
    });
    const meet = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
    const found = nodes.flatMap((a, index) => nodes.slice(index + 1).filter(b => meet(a, b))
        .map(b => `${a.title} on ${b.title}`));
    for (const group of app.graph.groups) {
        const [x, y, width, height] = group.boundingRect;
        const area = { left: x, right: x + width, top: y, bottom: y + height };
        found.push(...nodes.filter(node => meet(node, area) && (node.left < area.left || node.right > area.right
            || node.top < area.top || node.bottom > area.bottom)).map(node => `${node.title} out of ${group.title}`));
    }
    return found;
}"""


@pytest.fixture(scope="session")
def server(comfyui: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("comfyui")
    frontend = arguments(os.environ.get("PAG_FRONTEND"))
    with Server(comfyui, base, log=base / "server.log", arguments=frontend) as server:
        yield server


@pytest.fixture(scope="session")
def browser() -> Iterator:
    try:
        with launch() as browser:
            yield browser
    except HarnessError as error:
        if os.environ.get("PAG_REQUIRE_BROWSER") == "1":
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session", params=RENDERERS)
def page(request, browser, server) -> Iterator:
    """The editor, once in each renderer."""
    page = browser.new_page(viewport=SIZE)
    page.set_default_timeout(1000 * PATIENCE)
    page.complaints = []
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("console", lambda message: message.type in ("error", "warning") and page.complaints.append(
        f"{message.text} ({message.location.get('url')})"))
    page.renderer = request.param
    Desk(page, server).open({**BARE, VUE: request.param != "canvas"})
    yield page
    page.close()


@pytest.fixture
def sampler(desk):
    """The PAG KSampler of an example, with its picker open and lit."""
    desk.workflow("Example model with CFG and PAG")
    node = desk.find("PAGKSampler")
    desk.centre(node)
    desk.tab(node, "Layers")
    desk.wait_for_lit(node, {"u0", "u1", "u2", "u3"})
    return node


@pytest.fixture
def desk(page, server) -> Iterator[Desk]:
    """The editor with nothing in it yet; afterwards no script of ours has complained."""
    page.complaints.clear()
    yield Desk(page, server)
    assert not [complaint for complaint in page.complaints if OURS in complaint]


@pytest.fixture
def previews(desk):
    """Live previews on."""
    desk.set("Comfy.Execution.PreviewMethod", "latent2rgb")
    yield
    desk.set("Comfy.Execution.PreviewMethod", "default")


class Desk(Editor):
    """What a person does at the editor."""

    @property
    def vue(self) -> bool:
        return self.page.renderer != "canvas"

    def workflow(self, name: str) -> None:
        """Opens an example workflow, made quick: two steps, one picture; and with layers that the tests know."""
        content = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
        self.load(content)
        self.page.evaluate("""() => app.graph.nodes.forEach(node => node.widgets?.forEach(widget => {
            if (widget.name === "steps") widget.value = 2;
            if (widget.name === "batch_size") widget.value = 1;
            if (widget.name === "layers") widget.value = "u0-3";
        }))""")
        self.settle()

    def centre(self, node, scale: float = 1.0) -> None:
        self.on(node, "{ app.canvas.ds.scale = argument; app.canvas.centerOnNode(node); }", scale)
        self.settle()

    def settle(self, milliseconds: int = 250) -> None:
        """Time for the editor to draw, and for our files to look at the graph."""
        self.page.wait_for_timeout(milliseconds)

    def until(self, check: Callable[[], bool], seconds: float = PATIENCE) -> None:
        """Waits for what takes a question to the server, or a run."""
        end = time.monotonic() + seconds
        while not check():
            assert time.monotonic() < end, "it did not come true in time"
            self.page.wait_for_timeout(50)

    def find(self, kind: str, index: int = 0) -> int | str:
        """The id of a node in the graph that is shown."""
        return self.page.evaluate("([kind, index]) => app.canvas.graph.nodes.filter(n => n.type === kind)[index]?.id",
                                  [kind, index])

    def on(self, node, script: str, argument: object = None):
        """Evaluates `(node, argument) => script`."""
        return self.page.evaluate(f"([id, argument]) => ((node, argument) => {script})"
                                  "(app.canvas.graph.getNodeById(id), argument)", [node, argument])

    def astray(self) -> list[str]:
        """What lies on something else, or partly outside its group."""
        return self.page.evaluate(ASTRAY)

    def value(self, node, name: str):
        return self.on(node, "node.widgets.find(w => w.name === argument).value", name)

    def put(self, node, name: str, value: object) -> None:
        """What the editor does when a value is entered."""
        self.on(node, "{ const w = node.widgets.find(w => w.name === argument[0]); w.value = argument[1];"
                      " w.callback?.(argument[1]); }", [name, value])

    def panel(self, node):
        """Our part of a node, until the page is loaded again."""
        self.on(node, "{ node.widgets.find(w => w.name === 'pag_panel').element.dataset.node = node.id; }")
        return self.page.locator(f".pag-panel[data-node='{node}']")

    def tab(self, node, title: str, opened: bool = True):
        """Opens or closes Layers or Schedule."""
        button = self.panel(node).locator(".pag-tab", has_text=title)
        if (button.get_attribute("aria-expanded") == "true") != opened:
            button.click()
            self.settle()
        return button

    def cell(self, node, name: str):
        return self.panel(node).locator(f".pag-drawing [data-cell='{name}']")

    def lit(self, node) -> dict[str, str]:
        """The cells that are on: {name: "true", or "mixed" where only some heads are}."""
        return dict(self.panel(node).locator(".pag-drawing .pag-cell").evaluate_all(
            "cells => cells.map(c => [c.dataset.cell, c.ariaPressed]).filter(([, on]) => on !== 'false')"))

    def wait_for_text(self, node, text: str) -> None:
        self.until(lambda: self.value(node, "layers") == text)

    def wait_for_lit(self, node, names: set[str]) -> None:
        self.until(lambda: set(self.lit(node)) == names)

    def type_layers(self, node, text: str) -> None:
        """Types into the text field, as a person does in this renderer."""
        if self.vue:
            field = self.page.locator(f"[data-node-id='{node}'] input[aria-label='layers']")
            field.fill(text)
            field.press("Tab")
        else:
            at = self.on(node, """(() => { const w = node.widgets.find(w => w.name === 'layers');
                const [x, y] = app.canvas.ds.convertOffsetToCanvas(
                    [node.pos[0] + node.size[0] / 2, node.pos[1] + w.y + 10]);
                const box = app.canvas.canvas.getBoundingClientRect();
                return [box.left + x, box.top + y]; })()""")
            self.page.mouse.dblclick(*at)
            self.page.locator(".graphdialog input").fill(text)
            self.page.locator(".graphdialog input").press("Enter")
        self.settle()

    def run(self) -> dict[str, dict]:
        """Presses Run; the prompt that the editor sent."""
        with self.page.expect_request(lambda request: request.method == "POST"
                                      and request.url.endswith("/prompt")) as sent:
            self.page.get_by_test_id("queue-button").click()
        return sent.value.post_data_json["prompt"]

    def wait_for_picture(self, node, timeout: float = 1000 * PATIENCE) -> None:
        """Until a saved picture is shown on the node."""
        if self.vue:
            image = self.page.locator(f"[data-node-id='{node}'] img").first
            image.wait_for(timeout=timeout)
            self.page.wait_for_function("image => image.naturalWidth > 0", arg=image.element_handle())
        else:
            self.page.wait_for_function(
                "id => app.canvas.graph.getNodeById(id).imgs?.[0]?.naturalWidth > 0", arg=node, timeout=timeout)

    def keep(self, name: str, node=None) -> Path:
        """A screenshot, of the whole page or of a node with a little around it."""
        clip = None
        if node is not None:
            clip = self.on(node, """(() => { const [x, y] = app.canvas.ds.convertOffsetToCanvas(node.pos);
                const s = app.canvas.ds.scale, box = app.canvas.canvas.getBoundingClientRect();
                return { x: box.left + x - 14, y: box.top + y - 30 * s - 14, width: node.size[0] * s + 28,
                         height: (node.size[1] + 30) * s + 28 }; })()""")
        path = PICTURES / self.page.renderer / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=path, clip=clip)
        return path
