"""A browser that gets none of our files, or those of another copy: the nodes are complete, and the same prompt runs."""

import pytest
from harness.editor import BARE, VUE, Editor
from harness.host import ROOT

from .conftest import OURS, RENDERERS, SIZE, Desk


@pytest.fixture(scope="module", params=RENDERERS)
def plain(request, browser, server):
    page = browser.new_page(viewport=SIZE)
    page.renderer = request.param
    page.route(f"**/{OURS}/**/*.js", lambda route: route.abort())
    page.route(f"**/{OURS}/*.js", lambda route: route.abort())
    desk = Desk(page, server)
    desk.open({**BARE, VUE: desk.vue})
    yield desk
    page.close()


def test_nodes_are_complete_and_run(plain):
    plain.workflow("Example model with CFG and PAG")
    node = plain.find("PAGKSampler")
    assert plain.on(node, "node.widgets.every(w => w.name !== 'pag_panel')")
    plain.centre(node)
    plain.type_layers(node, "u1-3")
    prompt = plain.run()
    assert prompt[str(node)]["inputs"]["layers"] == "u1-3"
    saved = plain.find("SaveImage")
    plain.centre(saved)
    plain.wait_for_picture(saved)
    plain.centre(node)
    plain.keep("without_javascript", node)


def test_a_workflow_with_an_open_view_opens(plain):
    path = ROOT / "workflows" / "Example model with CFG and PAG.json"
    plain.load(path)
    node = plain.find("PAGKSampler")
    layers = plain.value(node, "layers")
    assert layers
    plain.on(node, "{ node.properties.pag_panel = 'layers'; }")
    plain.load(plain.page.evaluate("app.graph.serialize()"))
    assert plain.value(plain.find("PAGKSampler"), "layers") == layers


def test_nodes_of_another_copy_say_why_they_have_no_picker(browser, server):
    def from_another_copy(route):
        nodes = route.fetch().json()
        for node in nodes.values():
            if node["python_module"].endswith("perturbed-attention-guidance"):
                node["python_module"] = "custom_nodes.pag"
        route.fulfill(json=nodes)

    page = browser.new_page(viewport=SIZE)
    page.route("**/object_info", from_another_copy)
    Editor(page, server).open({**BARE, VUE: False})
    try:
        page.get_by_text("custom_nodes/perturbed-attention-guidance and in custom_nodes/pag").first.wait_for()
    finally:
        page.close()
