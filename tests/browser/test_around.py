"""What the editor has around the graph: the properties panel, App mode, the search box."""

import pytest

from .conftest import one_renderer

FIRST = {"pag": 1, "anatomy": 1, "structure": 1, "stg": 3, "sag": 3, "扰动": 3, "注意力": 3, "引导": 3, "가이던스": 3}


def width(desk, node) -> float:
    return desk.panel(node).bounding_box()["width"]


def test_the_properties_panel_leaves_the_picker_where_it_is(desk, sampler):
    before = width(desk, sampler)
    desk.on(sampler, "app.canvas.selectNode(node)")
    desk.page.get_by_label("Toggle properties panel").first.click()
    properties = desk.page.get_by_test_id("properties-panel")
    properties.get_by_text("pag_scale").wait_for()
    assert properties.get_by_text("pag_panel").count() == 0
    assert properties.get_by_text("PAG", exact=True).count() == 0
    assert desk.panel(sampler).count() == 1
    assert width(desk, sampler) == pytest.approx(before, abs=1)
    desk.keep("properties")
    # What is entered there is followed here.
    field = properties.locator("input[aria-label='layers']")
    field.fill("m0")
    field.press("Tab")
    desk.wait_for_lit(sampler, {"m0"})
    desk.page.get_by_label("Toggle properties panel").first.click()
    properties.wait_for(state="hidden")
    desk.on(sampler, "app.canvas.deselectAll()")
    desk.until(lambda: width(desk, sampler) == pytest.approx(before, abs=1))
    desk.cell(sampler, "u3").click()
    desk.wait_for_text(sampler, "m0,u3")


def test_app_mode_shows_the_picker_and_gives_it_back(desk, sampler):
    before = width(desk, sampler)
    saved = desk.page.evaluate("app.graph.serialize()")
    chosen = [[sampler, name] for name in ("pag_scale", "layers", "pag_panel")]
    saved.setdefault("extra", {}).update(linearMode=True, linearData={
        "inputs": chosen, "outputs": [desk.find("SaveImage")]})
    desk.load(saved)
    coach = desk.page.get_by_test_id("coach-landing-overlay")  # the newest editor greets who comes here first
    desk.page.add_locator_handler(coach, lambda: desk.page.keyboard.press("Escape"))
    panel = desk.page.locator(".pag-panel", has=desk.page.locator(".pag-cell"))
    panel.wait_for()
    desk.page.get_by_text("PAG", exact=True).wait_for()
    assert panel.bounding_box()["width"] > 200
    desk.keep("app")
    panel.locator("[data-cell='m0']").click()
    desk.wait_for_text(sampler, "m0,u0-3")
    desk.page.evaluate("app.extensionManager.command.execute('Comfy.ToggleLinear')")
    desk.settle(1500)
    desk.centre(sampler)
    desk.wait_for_lit(sampler, {"m0", "u0", "u1", "u2", "u3"})
    desk.until(lambda: width(desk, sampler) == pytest.approx(before, abs=1))


@one_renderer
@pytest.mark.parametrize("words", FIRST)
def test_searching_finds_the_patch(desk, words):
    desk.page.evaluate("app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    desk.page.locator("[role=dialog] input").first.fill(words)
    found = desk.page.locator("[role=option]")
    shown = desk.page.locator("[role=option]", has_text="PAG Model Patch")
    try:
        shown.first.wait_for()
        desk.until(lambda: any("PAG Model Patch" in text for text in found.all_inner_texts()[:FIRST[words]]))
    finally:
        desk.page.keyboard.press("Escape")
        desk.page.keyboard.press("Escape")
