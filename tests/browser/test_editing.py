"""What an editor does with nodes: undo, copies, subgraphs, collapsing, zoom, models that change, themes."""

import json

import pytest
from harness.host import ROOT

from .conftest import RENDERERS, one_renderer

FILE = ROOT / "workflows" / "Example model with CFG and PAG.json"


def model_name(desk, node) -> str:
    return desk.panel(node).locator(".pag-row").first.inner_text()


def undo(desk) -> None:
    desk.page.evaluate("app.extensionManager.command.execute('Comfy.Undo')")
    desk.settle(800)


def test_undo_takes_a_click_back(desk, sampler):
    desk.cell(sampler, "d0").click()
    desk.wait_for_text(sampler, "d0,u0-3")
    desk.settle()
    undo(desk)
    desk.wait_for_text(sampler, "u0-3")
    desk.wait_for_lit(sampler, {"u0", "u1", "u2", "u3"})


def test_a_copy_has_a_picture_of_its_own(desk, sampler):
    desk.cell(sampler, "d0").click()
    desk.wait_for_text(sampler, "d0,u0-3")
    desk.on(sampler, "{ app.canvas.selectNode(node); app.canvas.copyToClipboard();"
                     " app.canvas.pasteFromClipboard({ connectInputs: true }); }")
    desk.settle()
    copy = desk.find("PAGKSampler", 1)
    desk.on(copy, "{ node.pos = [node.pos[0] + 500, node.pos[1]]; app.canvas.centerOnNode(node); }")
    desk.settle(800)
    desk.wait_for_lit(copy, {"d0", "u0", "u1", "u2", "u3"})
    desk.cell(copy, "d0").click()
    desk.wait_for_text(copy, "u0-3")
    assert desk.value(sampler, "layers") == "d0,u0-3"


@one_renderer
def test_a_saved_workflow_holds_nothing_of_ours_but_which_view_is_open(desk):
    desk.workflow("Example model with CFG and PAG")
    saved = desk.page.evaluate("app.graph.serialize()")
    for before, after in zip(json.loads(FILE.read_text())["nodes"], saved["nodes"], strict=True):
        values = after.get("widgets_values", [])
        assert len(values) == len(before["widgets_values"])
        assert None not in values
        assert [slot["name"] for slot in after["inputs"]] == [slot["name"] for slot in before["inputs"]]
        assert set(after["properties"]) - set(before["properties"]) <= {"pag_panel"}


def test_it_opens_again_as_it_was_saved(desk, sampler):
    saved = desk.page.evaluate("app.graph.serialize()")
    height = desk.on(sampler, "node.size[1]")
    desk.load(saved)
    desk.settle(800)
    assert desk.tab(sampler, "Layers").get_attribute("aria-expanded") == "true"
    desk.until(lambda: desk.on(sampler, "node.size[1]") == pytest.approx(height, abs=2))
    desk.tab(sampler, "Layers", opened=False)
    desk.until(lambda: desk.on(sampler, "node.size[1]") < height - 100)


def test_opening_and_closing_leaves_the_size_as_it_was(desk):
    desk.workflow("Example model with CFG and PAG")
    node = desk.find("PAGKSampler")
    desk.centre(node)
    desk.tab(node, "Layers", opened=False)
    before = desk.on(node, "[...node.size]")
    for title in ("Layers", "Schedule"):
        desk.tab(node, title)
    desk.tab(node, "Schedule", opened=False)
    desk.until(lambda: desk.on(node, "[...node.size]") == pytest.approx(before, abs=1))


def test_collapsed_and_zoomed_out_nodes_hide_it(desk, sampler):
    panel = desk.panel(sampler)
    desk.on(sampler, "node.collapse()")
    desk.until(lambda: not panel.is_visible())
    desk.on(sampler, "node.collapse()")
    desk.until(panel.is_visible)
    desk.centre(sampler, scale=0.75)
    wide = panel.bounding_box()["width"]
    desk.centre(sampler, scale=1.5)
    assert panel.bounding_box()["width"] == pytest.approx(2 * wide, rel=0.05)
    desk.cell(sampler, "u3").click()  # a zoomed node takes clicks where it shows them
    desk.wait_for_text(sampler, "u0-2")


def test_the_wheel_zooms_over_it(desk, sampler):
    box = desk.cell(sampler, "d0").bounding_box()
    before = desk.page.evaluate("app.canvas.ds.scale")
    desk.page.mouse.move(box["x"] + 5, box["y"] + 5)
    desk.page.mouse.wheel(0, 200)
    desk.until(lambda: desk.page.evaluate("app.canvas.ds.scale") < before)


@pytest.mark.parametrize("page", RENDERERS[:1], indirect=True)
def test_the_menu_on_it_is_that_of_its_node(desk, sampler):
    desk.on(desk.find("SaveImage"), "app.canvas.selectNode(node)")
    desk.cell(sampler, "d1").click(button="right")
    menu = desk.page.locator(".litecontextmenu")
    menu.get_by_text("Remove", exact=True).click()
    desk.until(lambda: desk.find("PAGKSampler") is None)
    assert desk.find("SaveImage")


def test_a_wider_node_has_a_wider_plot(desk, sampler):
    desk.tab(sampler, "Schedule")
    before = desk.panel(sampler).locator(".pag-chart").bounding_box()["width"]
    desk.on(sampler, "{ node.setSize([node.size[0] + 200, node.size[1]]); app.canvas.setDirty(true, true); }")
    desk.settle()
    assert desk.panel(sampler).locator(".pag-chart").bounding_box()["width"] == pytest.approx(before + 200, abs=5)


def test_inside_a_subgraph_it_finds_the_model_outside(desk, sampler):
    desk.on(sampler, "{ app.canvas.openSubgraph(app.graph.convertToSubgraph(new Set([node])).subgraph); }")
    desk.settle(800)
    inner = desk.find("PAGKSampler")
    desk.centre(inner)
    desk.wait_for_lit(inner, {"u0", "u1", "u2", "u3"})
    desk.cell(inner, "m0").click()
    desk.wait_for_text(inner, "m0,u0-3")
    desk.keep("subgraph")
    desk.page.evaluate("app.canvas.setGraph(app.rootGraph)")
    desk.settle()
    prompt = desk.run()
    assert [node["inputs"]["layers"] for node in prompt.values() if node["class_type"] == "PAGKSampler"] == ["m0,u0-3"]


@one_renderer
def test_inside_two_subgraphs_it_shows_the_model_and_what_a_run_said(desk, sampler):
    outer = desk.on(sampler, """[1, 2].reduce(
        to => app.graph.convertToSubgraph(new Set([app.graph.getNodeById(to)])).node.id, node.id)""")
    enter = "app.canvas.openSubgraph(node.subgraph, node)"
    for _ in range(2):
        desk.on(outer if desk.page.evaluate("app.canvas.graph === app.rootGraph") else
                desk.page.evaluate("app.canvas.graph.nodes[0].id"), enter)
        desk.settle(500)
    inner = desk.find("PAGKSampler")
    desk.centre(inner)
    desk.wait_for_lit(inner, {"u0", "u1", "u2", "u3"})
    desk.put(inner, "layers", "m7")
    desk.tab(inner, "Layers", opened=False)
    desk.run()
    desk.panel(inner).locator(".pag-result .pag-error", has_text="m7").wait_for()
    desk.page.keyboard.press("Escape")
    desk.page.evaluate("app.canvas.setGraph(app.rootGraph)")


@one_renderer
def test_a_value_that_lives_elsewhere_is_followed_and_changed_there(desk, sampler):
    text = desk.on(sampler, """(() => {
        const text = LiteGraph.createNode("PrimitiveString");
        app.graph.add(text);
        text.widgets[0].value = "d0";
        text.connect(0, node, node.inputs.findIndex(slot => slot.name === "layers"));
        return text.id;
    })()""")
    desk.wait_for_lit(sampler, {"d0"})
    desk.cell(sampler, "d1").click()
    desk.until(lambda: desk.value(text, "value") == "d0-1")
    # ... and the same through the edge of a subgraph, where the value stands on the subgraph's node
    host = desk.on(sampler, "app.graph.convertToSubgraph(new Set([node])).node.id")
    desk.on(text, "app.graph.remove(node)")
    desk.on(host, "{ node.widgets.find(w => w.name === 'layers').value = 'u0';"
                  " app.canvas.openSubgraph(node.subgraph, node); }")
    desk.settle(800)
    inner = desk.find("PAGKSampler")
    desk.centre(inner)
    desk.wait_for_lit(inner, {"u0"})
    desk.cell(inner, "u1").click()
    desk.wait_for_lit(inner, {"u0", "u1"})
    desk.page.evaluate("app.canvas.setGraph(app.rootGraph)")
    desk.until(lambda: desk.value(host, "layers") == "u0-1")


@one_renderer
def test_a_computed_value_cannot_be_followed_and_it_says_so(desk, sampler):
    desk.on(sampler, """{
        const computed = LiteGraph.createNode("StringConcatenate");
        app.graph.add(computed);
        computed.connect(0, node, node.inputs.findIndex(slot => slot.name === "layers"));
    }""")
    desk.wait_for_lit(sampler, set())
    assert "another node" in desk.panel(sampler).locator(".pag-view .pag-message").inner_text()
    desk.cell(sampler, "d0").click()
    desk.settle()
    assert desk.lit(sampler) == {}


@one_renderer
def test_it_looks_past_nodes_that_pass_a_model_on(desk, sampler):
    between = desk.on(sampler, """(() => {
        const [loader] = app.graph.nodes.filter(n => n.type === "PAGADMLoader");
        const nodes = ["FreeU", "Reroute", "PAGModelPatch"].map(type => {
            const made = LiteGraph.createNode(type);
            app.graph.add(made);
            return made;
        });
        let from = loader;
        for (const to of [...nodes, node]) { from.connect(0, to, 0); from = to; }
        return nodes.map(n => n.id);
    })()""")
    desk.settle()
    desk.until(lambda: "ADM" in model_name(desk, sampler))
    for passed in between[:2]:
        desk.on(passed, "node.mode = 4")
        desk.settle()
        desk.wait_for_lit(sampler, {"u0", "u1", "u2", "u3"})
    desk.on(between[0], "node.mode = 2")
    desk.until(lambda: "No model loader" in model_name(desk, sampler))


@one_renderer
def test_it_follows_the_loader(desk, sampler):
    loader = desk.find("PAGADMLoader")
    desk.put(loader, "ckpt_name", "gone.safetensors")
    desk.until(lambda: "gone.safetensors" in model_name(desk, sampler))
    desk.panel(sampler).locator("select").select_option("SDXL")
    desk.panel(sampler).locator(".pag-drawing [data-cell='u0.9']").wait_for()
    desk.keep("sdxl", sampler)
    desk.put(loader, "ckpt_name", "adm-emoji-64.safetensors")
    desk.settle()
    desk.wait_for_lit(sampler, {"u0", "u1", "u2", "u3"})


def test_a_new_node_shows_what_it_has(desk):
    desk.page.evaluate("""() => { app.graph.clear();
        ["PAGModelPatch", "PAGLayers", "PAGGuider", "PAGOptions"].forEach((type, index) => {
            const node = LiteGraph.createNode(type);
            node.pos = [360 * index, 0];
            app.graph.add(node);
        });
        app.graph.nodes[0].properties.pag_family = "Flux"; app.graph.nodes[2].properties.pag_family = "SD 1.5"; }""")
    desk.show(-60, -80, 1)
    node = desk.find("PAGModelPatch")
    desk.until(lambda: desk.panel(node).locator("[data-title='double'] .pag-cell").count() == 19)
    assert desk.panel(node).locator("[data-title='single'] .pag-cell").count() == 38
    desk.panel(desk.find("PAGLayers")).locator("select").wait_for()
    desk.panel(desk.find("PAGGuider")).locator("[data-cell='u8']").wait_for()
    desk.settle(800)
    if desk.vue:  # no room for the advanced inputs, which are not shown
        spare = "panel => panel.offsetHeight - panel.firstElementChild.offsetHeight"
        assert desk.panel(desk.find("PAGOptions")).evaluate(spare) < 20
    desk.keep("families")


def test_themes(desk, sampler):
    text = "panel => getComputedStyle(panel).color"
    dark = desk.panel(sampler).evaluate(text)
    desk.set("Comfy.ColorPalette", "light")
    desk.settle(800)
    try:
        desk.keep("light", sampler)
        assert desk.panel(sampler).evaluate(text) != dark
    finally:
        desk.set("Comfy.ColorPalette", "dark")


LEAST_CONTRAST = """() => {
    const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const luminance = colour => {
        context.fillStyle = colour;
        context.fillRect(0, 0, 1, 1);
        const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].map(value => value / 255)
            .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const texts = [...document.querySelectorAll(".pag-panel :is(span, button, div)")].filter(
        one => one.offsetParent && [...one.childNodes].some(node => node.nodeType === 3 && node.data.trim()));
    return Math.min(...texts.map(one => {
        let behind = one;
        while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
        const [low, high] = [getComputedStyle(one).color, getComputedStyle(behind).backgroundColor].map(luminance)
            .sort((a, b) => a - b);
        return (high + 0.05) / (low + 0.05);
    }));
}"""


@one_renderer
@pytest.mark.parametrize(("field", "text"), [("#ffff00", "#000"), ("#000", "#fff"), ("#767676", "#777")])
def test_its_words_can_be_read_in_palettes_of_ones_own(desk, sampler, field, text):
    desk.type_layers(sampler, "d0,q9")
    desk.panel(sampler).locator(".pag-error").wait_for()
    names = {"--comfy-input-bg": field, "--component-node-widget-background": field, "--input-text": text}
    desk.page.evaluate("""names => Object.entries(names).forEach(
        ([name, value]) => document.documentElement.style.setProperty(name, value))""", names)
    try:
        desk.until(lambda: desk.page.evaluate(LEAST_CONTRAST) >= 4.5, 5)
    finally:
        desk.page.evaluate("""names => Object.keys(names).forEach(
            name => document.documentElement.style.removeProperty(name))""", names)
