"""The editor as people with a browser in another language get it."""

import json

import pytest
from harness.editor import BARE, VUE, Editor
from harness.host import ROOT

MAKE = """() => {
    const node = LiteGraph.createNode("PAGKSampler");
    app.graph.clear();
    app.graph.add(node);
    node.pos = [60, 60];
    const named = (slots) => Object.fromEntries(slots.map(slot => [slot.name, slot.label ?? slot.localized_name]));
    return { title: node.title, inputs: { ...named(node.inputs), ...named(node.widgets) } };
}"""


@pytest.fixture(params=["zh", "ko"])
def language(request) -> str:
    return request.param


@pytest.fixture
def page(browser, language):
    page = browser.new_page(viewport={"width": 1000, "height": 800}, locale=language)
    yield page
    page.close()


def test_nodes_and_panel_speak_it(page, server, language):
    nodes, editor = (json.loads((ROOT / "locales" / language / f"{name}.json").read_text(encoding="utf-8"))
                     for name in ("nodeDefs", "main"))
    Editor(page, server).open({**BARE, VUE: False})
    shown = page.evaluate(MAKE)
    given = nodes["PAGKSampler"]
    assert shown["title"] == given["display_name"]
    assert {name: shown["inputs"][name] for name in given["inputs"]} == {
        name: texts["name"] for name, texts in given["inputs"].items()}

    page.get_by_text(editor["pag"]["No model loader is connected."]).wait_for()
    for title in ("Layers", "Schedule"):
        assert page.locator(".pag-tab", has_text=editor["pag"][title]).count() == 1
    picture = ROOT / "build" / "browser" / language / "sampler.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=picture)
