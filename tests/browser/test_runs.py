"""What a run had to say: there when it is done, there when the page is loaded again, and gone with the next run."""

import pytest
from harness.host import ROOT

from .conftest import SIZE, Desk, one_renderer
from .running import (
    NO_STEP,
    limited_options,
    listed,
    loaded,
    notes,
    ran_without_effect,
    reload,
    run,
    sheets,
    start,
    stock_sampler,
    wait_until_done,
)


def test_a_warning_stays_until_the_next_run(desk):
    desk.workflow("Example model with CFG and PAG")
    sampler = desk.find("PAGKSampler")
    options = limited_options(desk, sampler)
    desk.centre(sampler)
    desk.wait_for_lit(sampler, {"u0", "u1", "u2", "u3"})
    desk.settle()
    before = desk.on(sampler, "node.size[1]")
    run(desk)
    notes(desk, sampler, NO_STEP).wait_for()
    desk.settle(1500)  # frontends that clear progress texts do so in this time
    assert notes(desk, sampler).count() == 1
    assert notes(desk, sampler).bounding_box()["width"] > 100
    desk.keep("warning", sampler)
    reload(desk)
    notes(desk, sampler, NO_STEP).wait_for()
    desk.put(options, "end_percent", 1.0)
    run(desk)
    notes(desk, sampler).wait_for(state="detached")
    desk.until(lambda: desk.on(sampler, "node.size[1]") == pytest.approx(before, abs=3))


@one_renderer
def test_what_a_stock_sampler_says_of_our_patch_stands_on_the_patch(desk):
    desk.workflow("Example model with CFG and PAG")
    patch, sampler = stock_sampler(desk)
    limited_options(desk, patch)
    desk.centre(patch)
    run(desk)
    notes(desk, patch, NO_STEP).wait_for()
    # The sampler alone runs again, and now there is a step in the range.
    desk.put(sampler, "steps", 40)
    run(desk)
    notes(desk, patch).wait_for(state="detached")
    # Nothing runs again: nothing is said again, and what was said holds.
    desk.put(sampler, "steps", 2)
    desk.on(sampler, "{ node.widgets.find(w => w.name === 'control_after_generate').value = 'fixed'; }")
    run(desk)
    notes(desk, patch, NO_STEP).wait_for()
    run(desk)
    assert notes(desk, patch).count() == 1


@one_renderer
def test_words_go_to_the_workflow_that_ran_whichever_is_shown(desk):
    desk.workflow("Example model restoring an image")
    desk.workflow("Example model with CFG and PAG")
    sampler = desk.find("PAGKSampler")
    limited_options(desk, sampler)
    desk.settle()
    start(desk)
    desk.page.evaluate("app.extensionManager.command.execute('Workspace.PreviousOpenedWorkflow')")
    desk.until(lambda: desk.find("PAGDPSSampler"))
    wait_until_done(desk)
    assert desk.page.locator(".pag-result .pag-note").count() == 0
    desk.page.evaluate("app.extensionManager.command.execute('Workspace.NextOpenedWorkflow')")
    desk.until(lambda: desk.find("PAGKSampler"))
    desk.centre(sampler)
    notes(desk, sampler, NO_STEP).wait_for()


@one_renderer
def test_tabs_made_from_one_file_do_not_share_their_words(desk):
    ids = []
    for _ in range(2):
        desk.workflow("Example model with CFG and PAG")
        ids.append(desk.page.evaluate("app.rootGraph.id"))
        sampler = desk.find("PAGKSampler")
        desk.centre(sampler)
        if len(ids) == 1:
            desk.put(sampler, "seed", 77)  # else the server may hold the run of another test, and says nothing
            limited_options(desk, sampler)
            run(desk)
            notes(desk, sampler, NO_STEP).wait_for()
    assert ids[0] == ids[1]
    desk.settle(800)
    assert notes(desk, sampler).count() == 0
    desk.page.evaluate("app.extensionManager.command.execute('Workspace.PreviousOpenedWorkflow')")
    desk.until(lambda: desk.find("PAGOptions"))
    desk.centre(sampler)
    notes(desk, sampler, NO_STEP).wait_for()


@one_renderer
def test_a_second_page_gets_the_words_of_what_the_server_had_computed(desk):
    sampler = ran_without_effect(desk, seed=78)
    context = desk.page.context.browser.new_context(viewport=SIZE)
    try:
        page = context.new_page()
        page.renderer = desk.page.renderer
        second = Desk(page, desk.server)
        second.open({})
        second.load(desk.page.evaluate("app.graph.serialize()"))
        second.put(sampler, "seed", 78)  # the editor may have chosen another for the next run
        second.centre(sampler)
        assert notes(second, sampler).count() == 0
        run(second)
        notes(second, sampler, NO_STEP).wait_for()
    finally:
        context.close()


def test_the_list_of_layers(desk):
    desk.workflow("Example model with CFG and PAG")
    layers = desk.page.evaluate("""() => {
        const made = LiteGraph.createNode("PAGLayers");
        app.graph.add(made);
        made.pos = [0, 900];
        made.widgets.find(w => w.name === "layers").value = "m0";
        app.graph.nodes.find(n => n.type === "PAGADMLoader").connect(0, made, 0);
        return made.id; }""")
    desk.centre(layers)
    run(desk)
    shown = "self-attention layers, {} selected"
    listed(desk, layers, shown.format(1)).wait_for()
    assert "all heads" in listed(desk, layers, "").inner_text()
    desk.keep("list", layers)
    reload(desk)
    listed(desk, layers, shown.format(1)).wait_for()
    desk.put(layers, "layers", "d0-1")
    run(desk)
    listed(desk, layers, shown.format(2)).wait_for()
    assert listed(desk, layers, "").count() == 1


@pytest.mark.parametrize(("example", "kind", "quick", "changed"), [
    ("Example model in PAG Grid", "PAGGrid", {"scales": "0, 2", "layer_selections": "auto", "perturbations": ""},
     {"scales": "0, 1"}),
    ("Example model in PAG Inspect", "PAGInspect", {"shown_steps": 2}, {"panels": "deltas"}),
])
def test_a_sheet_takes_the_place_of_the_live_preview(desk, previews, example, kind, quick, changed):
    desk.workflow(example)
    node = desk.find(kind)
    for name, value in quick.items():
        desk.put(node, name, value)
    desk.page.evaluate("""() => { window.seen = 0;
        app.api.addEventListener("pag.preview", () => { window.seen++; }); }""")
    desk.centre(node)
    run(desk)
    desk.until(lambda: loaded(sheets(desk, node)))
    assert desk.page.evaluate("window.seen") > 0
    assert desk.astray() == []
    assert desk.panel(node).locator("img").count() == 1  # the preview is gone
    if desk.vue:
        assert desk.page.locator(f"[data-node-id='{node}'] img").count() == 1
    desk.keep(kind, node)
    reload(desk)
    desk.until(lambda: loaded(sheets(desk, node)))
    first = sheets(desk, node).get_attribute("src")
    for name, value in changed.items():
        desk.put(node, name, value)
    run(desk)
    desk.until(lambda: loaded(sheets(desk, node)) and sheets(desk, node).get_attribute("src") != first)
    assert desk.panel(node).locator("img").count() == 1


def test_a_batch_of_small_pictures_stands_in_rows(desk):
    desk.load(ROOT / "workflows" / "Example model restoring an image.json")
    desk.page.evaluate("""() => app.graph.nodes.forEach(node => node.widgets?.forEach(
        widget => { if (widget.name === "steps") widget.value = 1; }))""")
    node = desk.find("PAGMeasure")
    desk.centre(node)
    run(desk)
    desk.until(lambda: sheets(desk, node).count() == 4)
    first, second, third = (sheets(desk, node).nth(index).bounding_box() for index in range(3))
    assert first["y"] == second["y"] < third["y"]
    assert first["x"] == third["x"] < second["x"]
    desk.settle()
    assert desk.astray() == []
    desk.keep("batch", node)


@one_renderer
def test_an_error_of_ours_is_told_in_place(desk):
    desk.workflow("Example model with CFG and PAG")
    sampler = desk.find("PAGKSampler")
    desk.put(sampler, "layers", "m7")
    desk.centre(sampler)
    desk.tab(sampler, "Layers", opened=False)
    desk.run()
    desk.panel(sampler).locator(".pag-result .pag-error", has_text="m7").wait_for()
    desk.tab(sampler, "Layers")  # which says it too
    desk.until(lambda: desk.panel(sampler).locator(".pag-error", has_text="m7").count() == 1)
    desk.page.keyboard.press("Escape")
