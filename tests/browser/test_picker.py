"""The layer picker: one state with the text, whoever changes it."""

import pytest
from harness import workflow
from harness.client import WorkflowError
from harness.host import ROOT

from .conftest import one_renderer

CLASS_CONDITIONAL = "Example model with CFG and PAG"


def test_clicks_become_text(desk, sampler):
    desk.keep("picker", sampler)
    desk.cell(sampler, "u3").click()
    desk.wait_for_text(sampler, "u0-2")
    desk.cell(sampler, "m0").click()
    desk.wait_for_text(sampler, "m0,u0-2")


PLAIN = {"position": "static", "overflow": "visible", "transform": "none", "filter": "none", "opacity": "1",
         "contain": "none", "containerType": "normal", "willChange": "auto", "isolation": "auto"}


@one_renderer
def test_nothing_in_it_is_a_layer_or_a_clip_of_its_own(desk, sampler):
    """32 open SDXL pickers have 2240 cells, and a browser goes through every layer and clip when the graph is moved."""
    odd = desk.panel(sampler).evaluate("""(panel, plain) => [...panel.querySelectorAll("*")].flatMap(one =>
        Object.entries(plain).filter(([name, value]) => getComputedStyle(one)[name] !== value)
            .map(([name]) => `${one.className}: ${name}`))""", PLAIN)
    assert odd == []


@one_renderer
def test_nodes_with_pickers_are_as_few_layers_as_others(desk):
    found = {}
    for kind in ("KSampler", "PAGModelPatch"):
        desk.page.evaluate("""kind => { app.graph.clear();
            for (let index = 0; index < 8; index++) {
                const node = LiteGraph.createNode(kind);
                node.pos = [340 * index, 0];
                app.graph.add(node);
                node.properties.pag_family = "SDXL";
            } }""", kind)
        if kind == "PAGModelPatch":
            desk.page.locator(".pag-drawing [data-cell='u0.9']").nth(7).wait_for()
        desk.show(0, -40, 0.5)
        desk.settle(800)
        found[kind] = layers(desk.page)
    assert found["PAGModelPatch"] <= found["KSampler"] + 2


def layers(page) -> int:
    """How many layers the browser puts together to draw the page."""
    session = page.context.new_cdp_session(page)
    seen = []
    session.on("LayerTree.layerTreeDidChange", lambda event: seen.append(len(event.get("layers", []))))
    session.send("DOM.enable")
    session.send("LayerTree.enable")
    for x in range(5):
        page.evaluate("x => { app.canvas.ds.offset[0] = 2 * x; app.canvas.setDirty(true, true); }", x)
        page.wait_for_timeout(100)
    session.detach()
    return seen[-1]


def test_what_is_picked_is_what_runs(desk, sampler):
    desk.cell(sampler, "u0").click()
    desk.wait_for_text(sampler, "u1-3")
    prompt = desk.run()
    assert prompt[str(sampler)]["inputs"]["layers"] == "u1-3"
    known = desk.server.client.object_info()["PAGKSampler"]["input"]
    assert prompt[str(sampler)]["inputs"].keys() <= known["required"].keys() | known["optional"].keys()
    saved = desk.find("SaveImage")
    desk.centre(saved)
    desk.wait_for_picture(saved)
    desk.keep("run")


@one_renderer
def test_shift_click_takes_a_range(desk, sampler):
    desk.cell(sampler, "u1").click()
    desk.cell(sampler, "u3").click(modifiers=["Shift"])
    desk.wait_for_text(sampler, "u0")
    desk.cell(sampler, "d1").click()
    desk.cell(sampler, "m0").click(modifiers=["Shift"])
    desk.wait_for_text(sampler, "d1,m0,u0")


def test_double_click_opens_the_heads(desk, sampler):
    desk.cell(sampler, "u1").dblclick()
    heads = desk.panel(sampler).locator(".pag-heads .pag-cell")
    heads.nth(1).click()
    desk.until(lambda: desk.value(sampler, "layers").startswith("u0,u1:h0"))
    assert desk.lit(sampler) == {"u0": "true", "u1": "mixed", "u2": "true", "u3": "true"}
    desk.keep("heads", sampler)
    desk.panel(sampler).locator(".pag-close").click()
    assert heads.count() == 0


@one_renderer
def test_whole_blocks_look_other_than_layers_and_have_no_heads(desk, sampler):
    options = desk.on(sampler, """(() => {
        const made = LiteGraph.createNode("PAGOptions");
        app.graph.add(made);
        made.connect(0, node, node.inputs.findIndex(slot => slot.name === "options"));
        return made.id; })()""")
    share = desk.panel(sampler).locator(".pag-share").first
    before = share.inner_text()
    desk.put(options, "perturbation", "skip_block")
    drawing = desk.panel(sampler).locator(".pag-drawing")
    desk.until(lambda: drawing.get_attribute("data-whole") == "skip_block")
    desk.until(lambda: share.inner_text() != before)  # what is skipped is not computed
    assert "block" in desk.cell(sampler, "u0").get_attribute("aria-label")
    desk.keep("blocks", sampler)
    desk.cell(sampler, "u0").dblclick()
    desk.settle()
    assert desk.panel(sampler).locator(".pag-heads .pag-cell").count() == 0
    assert desk.value(sampler, "layers") == "u0-3"
    desk.put(options, "perturbation", "identity")
    desk.until(lambda: share.inner_text() == before)
    assert "head" in desk.cell(sampler, "u0").get_attribute("aria-label")


@one_renderer
def test_presets(desk, sampler):
    desk.panel(sampler).locator(".pag-preset[data-layers='all']").click()
    desk.wait_for_text(sampler, "all")
    everything = desk.panel(sampler).locator(".pag-drawing .pag-cell").count()
    desk.until(lambda: len(desk.lit(sampler)) == everything)
    desk.panel(sampler).locator(".pag-preset[data-layers='auto']").click()
    desk.wait_for_lit(sampler, {"u1"})
    assert desk.value(sampler, "layers") == "auto"


def test_typed_text_lights_the_picture(desk, sampler):
    desk.type_layers(sampler, " d0-1,m0 , !d1 ")
    desk.wait_for_lit(sampler, {"d0", "m0"})
    assert desk.value(sampler, "layers").strip() == "d0-1,m0 , !d1"  # what was typed stays


def test_errors_appear_in_place_in_the_servers_words(desk, sampler):
    desk.type_layers(sampler, "d0,q9")
    message = desk.panel(sampler).locator(".pag-view .pag-message")
    message.get_by_text("q9").wait_for()
    desk.keep("error", sampler)
    prompt = workflow.load(ROOT / "workflows" / f"{CLASS_CONDITIONAL}.json", desk.server.client.object_info())
    prompt = workflow.set_inputs(prompt, "PAGKSampler", layers="d0,q9", steps=2)
    with pytest.raises(WorkflowError) as refusal:
        desk.server.client.run(prompt)
    assert message.inner_text() in str(refusal.value)
    desk.type_layers(sampler, "m0")
    desk.wait_for_lit(sampler, {"m0"})
    desk.until(lambda: message.inner_text() == "")


@one_renderer
def test_nothing_selected_is_an_error_too(desk, sampler):
    desk.type_layers(sampler, "m0")
    desk.wait_for_lit(sampler, {"m0"})
    desk.cell(sampler, "m0").click()
    desk.wait_for_text(sampler, "")
    desk.until(lambda: "layers" in desk.panel(sampler).locator(".pag-view .pag-message").inner_text())


def test_keyboard_alone(desk, sampler):
    tab = desk.tab(sampler, "Layers", opened=False)
    tab.focus()
    desk.page.keyboard.press("Enter")
    desk.settle()
    desk.cell(sampler, "d0").focus()
    for key, focused in {"ArrowRight": "u2", "ArrowDown": "u0", "ArrowUp": "u2", "Home": "d0", "End": "u3"}.items():
        desk.page.keyboard.press(key)
        assert desk.page.evaluate("document.activeElement.dataset.cell") == focused, key
    ring = desk.cell(sampler, "u3").evaluate("cell => getComputedStyle(cell).outlineStyle")
    assert ring == "solid"
    desk.page.keyboard.press("Space")
    desk.wait_for_text(sampler, "u0-2")
    desk.page.keyboard.press("ArrowDown")
    desk.page.keyboard.press("Enter")
    assert desk.page.evaluate("document.activeElement.ariaLabel") == "head 0 of u1"
    desk.page.keyboard.press("Space")
    desk.until(lambda: desk.lit(sampler).get("u1") == "mixed")
    desk.keep("keyboard", sampler)
    desk.page.keyboard.press("Escape")
    assert desk.page.evaluate("document.activeElement.dataset.cell") == "u1"
    names = desk.panel(sampler).locator("button, select").evaluate_all(
        "all => all.map(one => one.ariaLabel || one.innerText.trim())")
    assert all(names)
