"""The example workflows as the editor opens them."""

import json
import re

import pytest
from harness.host import ROOT
from pictures.workflows import foreign_weights

FILES = sorted((ROOT / "workflows").glob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_opens_without_complaint(desk, path):
    desk.load(path)
    desk.settle(500)
    desk.page.evaluate("app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    desk.settle(500)
    desk.keep(f"template_{path.stem}")
    assert desk.page.evaluate("app.graph.nodes.every(node => LiteGraph.registered_node_types[node.type])")
    assert desk.astray() == []
    complaints = desk.page.get_by_text("is missing")
    installed = set(desk.server.client.object_info()["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"][0])
    lacking = foreign_weights(path) - installed
    if not lacking:
        assert complaints.count() == 0
    elif len(lacking) == 1:  # the editor says where to get it
        assert lacking.pop() in " ".join(complaints.all_inner_texts())
    else:  # of several it says how many
        assert desk.page.get_by_text(re.compile(f"{len(lacking)} (errors|issues) found")).count() == 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_reads_from_left_to_right(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    nodes = {node["id"]: node for node in content["nodes"]}
    assert any(node["type"] == "MarkdownNote" for node in nodes.values())
    for _, origin, _, target, *_ in content["links"]:
        assert nodes[origin]["pos"][0] <= nodes[target]["pos"][0]
