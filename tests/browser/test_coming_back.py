"""Nodes that were out of sight, or gone, while or since they ran: they come back with what belongs to them."""

import json

import pytest
from harness.host import ROOT

from .conftest import PATIENCE, one_renderer
from .running import NO_STEP, limited_options, loaded, notes, ran_without_effect, reload, run, sheets, start

SHOWN = "app.extensionManager.workflow.activeWorkflow"


def test_a_collapsed_node_opens_with_the_sheet_of_its_latest_run(desk):
    desk.workflow("Example model in PAG Inspect")
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


@one_renderer
def test_an_interrupted_run_leaves_no_preview(desk, previews):
    desk.load(ROOT / "workflows" / "Example model in PAG Inspect.json")
    node = desk.find("PAGInspect")
    desk.put(node, "steps", 100)
    desk.centre(node)
    start(desk)
    desk.until(lambda: desk.panel(node).locator("img").count() == 1)
    desk.page.evaluate("app.api.interrupt()")
    desk.until(lambda: desk.panel(node).locator("img").count() == 0)


@one_renderer
def test_a_deleted_node_comes_back_with_its_words(desk):
    sampler = ran_without_effect(desk, seed=83)
    height = desk.on(sampler, "node.size[1]")
    desk.on(sampler, "app.canvas.selectNode(node)")
    desk.page.keyboard.press("Delete")
    desk.until(lambda: desk.find("PAGKSampler") is None)
    desk.settle(800)
    desk.page.evaluate("app.extensionManager.command.execute('Comfy.Undo')")
    desk.until(lambda: desk.find("PAGKSampler"))
    desk.centre(sampler)
    notes(desk, sampler, NO_STEP).wait_for()
    desk.until(lambda: desk.on(sampler, "node.size[1]") == pytest.approx(height, abs=3))


@one_renderer
def test_a_saved_picture_brings_its_workflow_back(desk):
    desk.workflow("Example model with CFG and PAG")
    sampler = desk.find("PAGKSampler")
    desk.put(sampler, "seed", 84)
    desk.centre(sampler)
    desk.tab(sampler, "Layers")
    run(desk)
    desk.page.evaluate("""async () => {
        const { images: [image] } = Object.values(app.nodeOutputs).find(({ images }) => images);
        const answer = await fetch(app.api.apiURL(`/view?${new URLSearchParams(image)}`));
        app.graph.clear();
        await app.handleFile(new File([await answer.blob()], image.filename, { type: "image/png" }));
    }""")
    desk.until(lambda: desk.find("PAGKSampler"))
    desk.centre(sampler)
    desk.wait_for_lit(sampler, {"u0", "u1", "u2", "u3"})
    assert desk.astray() == []


@one_renderer
@pytest.mark.parametrize("moment", ["before", "during", "after"])
def test_a_page_loaded_again_has_the_sheet_of_its_run(desk, moment):
    desk.workflow("Example model in PAG Inspect")
    node = desk.find("PAGInspect")
    steps = {"before": [400, 2], "during": [20], "after": [2]}[moment]  # before: while another one runs
    desk.put(node, "shown_steps", 2)
    desk.put(node, "seed", 85)
    limited_options(desk, node)
    desk.centre(node)
    for number in steps:
        desk.put(node, "steps", number)
        with desk.page.expect_response(lambda one: one.url.endswith("/prompt") and one.request.method == "POST"):
            desk.run()
    desk.settle(1500)  # the time that the editor takes to keep it
    desk.page.goto("about:blank")
    if moment == "after":
        desk.until(lambda: not remaining(desk))
    desk.open()
    if moment == "before":
        desk.page.evaluate("app.api.interrupt()")
    desk.until(lambda: desk.find("PAGInspect"))
    desk.centre(node)
    desk.until(lambda: loaded(sheets(desk, node)), 2 * PATIENCE)
    if moment != "during":  # of its steps one may lie in the range
        notes(desk, node, NO_STEP).wait_for()
    first = sheets(desk, node).get_attribute("src")
    desk.put(node, "steps", 2)
    desk.put(node, "panels", "deltas")
    run(desk)
    desk.until(lambda: loaded(sheets(desk, node)) and sheets(desk, node).get_attribute("src") != first)


@one_renderer
def test_a_page_left_before_the_server_has_answered_knows_its_run(desk):
    desk.workflow("Example model in PAG Inspect")
    node = desk.find("PAGInspect")
    limited_options(desk, node)
    desk.put(node, "shown_steps", 2)
    desk.put(node, "seed", 88)
    desk.settle(1500)  # the time that the editor takes to keep it
    answers = []  # which the page does not get

    def held(route) -> None:
        if route.request.method == "POST":
            answers.append(route.fetch())
        else:
            route.continue_()

    desk.page.route("**/prompt", held)
    desk.run()
    desk.until(lambda: answers and not remaining(desk))
    desk.page.goto("about:blank")
    desk.page.unroute("**/prompt", held)
    desk.open()
    desk.until(lambda: desk.find("PAGInspect"))
    desk.centre(node)
    notes(desk, node, NO_STEP).wait_for()


def remaining(desk) -> int:
    """Runs that have not ended."""
    return json.loads(desk.server.client.get("/prompt"))["exec_info"]["queue_remaining"]


@one_renderer
def test_a_workflow_opened_again_has_no_words_of_the_closed_tab(desk):
    sampler = ran_without_effect(desk, seed=86)
    close(desk)
    desk.workflow("Example model with CFG and PAG")
    desk.centre(sampler)
    desk.settle(800)
    assert notes(desk, sampler).count() == 0


@one_renderer
def test_a_saved_workflow_keeps_its_words_until_it_is_closed(desk):
    sampler = ran_without_effect(desk, seed=87)
    desk.page.evaluate("void app.extensionManager.command.execute('Comfy.SaveWorkflow')")
    name = desk.page.locator("[role=dialog] input").first
    name.fill("kept words")
    name.press("Enter")
    desk.until(lambda: desk.page.evaluate(f"{SHOWN}.path") == "workflows/kept words.json")
    assert notes(desk, sampler, NO_STEP).count() == 1
    reload(desk)
    desk.centre(sampler)
    notes(desk, sampler, NO_STEP).wait_for()
    close(desk)
    desk.page.evaluate("""async () => {
        const file = app.extensionManager.workflow.getWorkflowByPath("workflows/kept words.json");
        await file.load();
        await app.loadGraphData(file.activeState, true, true, file);
    }""")
    desk.until(lambda: desk.find("PAGKSampler"))
    desk.centre(sampler)
    desk.settle(800)
    assert notes(desk, sampler).count() == 0


def close(desk) -> None:
    """Closes the shown workflow, which holds a PAG KSampler, without saving it."""
    desk.page.evaluate(f"""() => {{
        {SHOWN}.isModified = false;  // else it asks whether to save
        void app.extensionManager.command.execute("Workspace.CloseWorkflow");
    }}""")
    desk.until(lambda: desk.find("PAGKSampler") is None)
