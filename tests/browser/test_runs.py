"""What a run had to say: there when it is done, there when the page is loaded again, and gone with the next run."""

import pytest
from harness.host import ROOT

from .conftest import PATIENCE, SIZE, Desk, one_renderer

NO_STEP = "no sampled step lies between"
DONE = ("execution_success", "execution_error", "execution_interrupted")


@pytest.fixture
def previews(desk):
    """Live previews on."""
    desk.set("Comfy.Execution.PreviewMethod", "latent2rgb")
    yield
    desk.set("Comfy.Execution.PreviewMethod", "default")


def start(desk) -> None:
    """Presses Run."""
    desk.page.evaluate("""ends => { window.end = null; ends.forEach(name => app.api.addEventListener(
        name, () => { window.end ??= name; }, { once: true })); }""", DONE)
    desk.run()


def wait_until_done(desk) -> None:
    desk.page.wait_for_function("window.end", timeout=2000 * PATIENCE)
    assert desk.page.evaluate("window.end") == "execution_success"
    desk.settle()


def run(desk) -> None:
    """Presses Run, and returns when all is done."""
    start(desk)
    wait_until_done(desk)


def reload(desk) -> None:
    """Loads the page again; the editor brings back what was on it."""
    desk.settle(1500)  # the time that the editor takes to keep it
    before = desk.page.evaluate("app.graph.nodes.length")
    desk.reopen()
    desk.until(lambda: desk.page.evaluate("app.graph.nodes.length") == before)
    desk.settle(800)


def sheets(desk, node):
    return desk.panel(node).locator(".pag-sheet img")


def notes(desk, node, text: str = ""):
    return desk.panel(node).locator(".pag-result .pag-note", has_text=text)


def listed(desk, node, text: str):
    return desk.panel(node).locator(".pag-list", has_text=text)


def loaded(image) -> bool:
    return image.count() == 1 and image.evaluate("image => image.naturalWidth > 0")


def limited_options(desk, node) -> int | str:
    """PAG Options whose range holds none of two steps, connected to a node."""
    return desk.on(node, """(() => {
        const made = LiteGraph.createNode("PAGOptions");
        app.graph.add(made);
        made.widgets.find(w => w.name === "start_percent").value = 0.3;
        made.widgets.find(w => w.name === "end_percent").value = 0.31;
        made.connect(0, node, node.inputs.findIndex(slot => slot.name === "options"));
        return made.id; })()""")


def stock_sampler(desk) -> tuple[int | str, int | str]:
    """PAG Model Patch and the host's KSampler in the place of PAG KSampler."""
    return desk.on(desk.find("PAGKSampler"), """(() => {
        const [loader] = app.graph.nodes.filter(n => n.type === "PAGADMLoader");
        const [patch, sampler] = ["PAGModelPatch", "KSampler"].map(type => {
            const made = LiteGraph.createNode(type);
            app.graph.add(made);
            return made;
        });
        sampler.widgets.find(w => w.name === "steps").value = 2;
        loader.connect(0, patch, 0);
        patch.connect(0, sampler, 0);
        for (const name of ["positive", "negative", "latent_image"]) {
            const from = node.getInputLink(node.inputs.findIndex(slot => slot.name === name));
            app.graph.getNodeById(from.origin_id).connect(from.origin_slot, sampler,
                sampler.inputs.findIndex(slot => slot.name === name));
        }
        for (const to of node.getOutputNodes(0)) sampler.connect(0, to, 0);
        app.graph.remove(node);
        return [patch.id, sampler.id]; })()""")


def test_a_warning_stays_until_the_next_run(desk):
    desk.workflow("adm_class_conditional_cfg_pag")
    sampler = desk.find("PAGKSampler")
    options = limited_options(desk, sampler)
    desk.centre(sampler)
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
    desk.workflow("adm_class_conditional_cfg_pag")
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
    desk.workflow("adm_restoration_dps")
    desk.workflow("adm_class_conditional_cfg_pag")
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
        desk.workflow("adm_class_conditional_cfg_pag")
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
    desk.workflow("adm_class_conditional_cfg_pag")
    sampler = desk.find("PAGKSampler")
    limited_options(desk, sampler)
    desk.put(sampler, "seed", 78)
    desk.centre(sampler)
    run(desk)
    notes(desk, sampler, NO_STEP).wait_for()
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
    desk.workflow("adm_class_conditional_cfg_pag")
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
    ("adm_compare_scales_and_layers", "PAGGrid", {"scales": "0, 2", "layer_selections": "auto", "perturbations": ""},
     {"scales": "0, 1"}),
    ("adm_inspect_steps", "PAGInspect", {"shown_steps": 2}, {"panels": "deltas"}),
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


def test_a_collapsed_node_opens_with_the_sheet_of_its_latest_run(desk):
    desk.workflow("adm_inspect_steps")
    node = desk.find("PAGInspect")
    desk.put(node, "shown_steps", 2)
    desk.centre(node)
    run(desk)
    desk.until(lambda: loaded(sheets(desk, node)))
    first = sheets(desk, node).get_attribute("src")
    desk.on(node, "node.collapse()")
    desk.settle()
    desk.put(node, "panels", "deltas")
    run(desk)
    desk.on(node, "node.collapse()")
    desk.until(lambda: loaded(sheets(desk, node)) and sheets(desk, node).get_attribute("src") != first, 20)


def test_a_batch_of_small_pictures_stands_in_rows(desk):
    desk.load(ROOT / "workflows" / "adm_restoration_dps.json")
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
    desk.workflow("adm_class_conditional_cfg_pag")
    sampler = desk.find("PAGKSampler")
    desk.put(sampler, "layers", "m7")
    desk.centre(sampler)
    desk.tab(sampler, "Layers", opened=False)
    desk.run()
    desk.panel(sampler).locator(".pag-result .pag-error", has_text="m7").wait_for()
    desk.tab(sampler, "Layers")  # which says it too
    desk.until(lambda: desk.panel(sampler).locator(".pag-error", has_text="m7").count() == 1)
    desk.page.keyboard.press("Escape")
