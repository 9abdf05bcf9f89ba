"""How smoothly 32 nodes pan in Nodes 2.0: SDXL pickers beside KSamplers, and beside KSamplers as tall as the pickers.

PYTHONPATH=tools python -m commands.panning [--repeats N] [--frontend VERSION] [--pixel-ratio 1.5]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from harness.editor import BARE, VUE, Editor, launch
from harness.errors import command
from harness.frontend import arguments as frontend_arguments
from harness.host import get_comfyui
from harness.server import Server

SIZE = {"width": 1500, "height": 950}
SCALE = 0.5
SECONDS = 3
# What is panned: the node's class, its family, whether it is made as tall as a picker.
KINDS = {"picker": ("PAGModelPatch", "SDXL", False), "KSampler": ("KSampler", None, False),
         "tall KSampler": ("KSampler", None, True)}
MAKE = """([kind, family, height]) => {
    app.graph.clear();
    for (let index = 0; index < 32; index++) {
        const node = LiteGraph.createNode(kind);
        node.pos = [(index % 8) * 340, Math.floor(index / 8) * 760];
        app.graph.add(node);
        if (family) node.properties.pag_family = family;
        if (height) node.setSize([node.size[0], height]);
    }
}"""
# Two fingers on a trackpad, which move the graph by fractions of a pixel. The events have to arrive at the canvas:
# Nodes 2.0 keeps what it has drawn only while it sees a hand, and draws all anew where a script moves the graph.
PAN = """async seconds => {
    const end = performance.now() + 1000 * seconds;
    let frames = 0;
    while (performance.now() < end) {
        await new Promise(requestAnimationFrame);
        app.canvas.canvas.dispatchEvent(new WheelEvent("wheel", {
            bubbles: true, cancelable: true, clientX: 700, clientY: 500,
            deltaX: 6.3 * Math.cos(frames / 15), deltaY: 2.3 * Math.cos(frames / 20) }));
        frames++;
    }
    return frames;
}"""


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="commands.panning", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="how often each is panned, in turn (default: 5)")
    parser.add_argument("--frontend", help="another version of the editor, such as 1.58.1")
    parser.add_argument("--pixel-ratio", type=float, default=1.0, help="the screen's pixels to one of CSS (default: 1)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, launch() as browser:
        base = Path(folder)
        with Server(get_comfyui(), base, log=base / "server.log",
                    arguments=frontend_arguments(options.frontend)) as server:
            page = browser.new_page(viewport=SIZE, device_scale_factor=options.pixel_ratio)
            page.set_default_timeout(180_000)
            editor = Editor(page, server)
            editor.open({**BARE, VUE: True, "Comfy.Canvas.NavigationMode": "standard"})
            found = {name: [] for name in KINDS}
            for _ in range(options.repeats):
                for name in KINDS:
                    found[name].append(frames(editor, *KINDS[name]))
                    print(f"{name}: {found[name][-1]} frames in {SECONDS} s", flush=True)
    for name, all_frames in found.items():
        print(f"{name}: median {statistics.median(all_frames):.0f} ({', '.join(map(str, all_frames))})")


def frames(editor: Editor, kind: str, family: str | None, is_tall: bool) -> int:
    """Frames drawn while 32 nodes of a kind are moved for a while."""
    page = editor.page
    page.evaluate(MAKE, [kind, family, 505 if is_tall else None])
    if family:
        page.locator(".pag-drawing [data-cell='u0.9']").nth(31).wait_for()
    editor.show(0, 0, SCALE)
    page.wait_for_timeout(2500)  # until all is drawn, and nothing is looked at any more
    return page.evaluate(PAN, SECONDS)


if __name__ == "__main__":
    command(main)
