"""Questions that the server did not answer are asked again, and what is gone asks and observes nothing."""

import contextlib

import pytest

from .conftest import one_renderer

pytestmark = one_renderer
WATCH = """() => {
    const { observe, disconnect } = ResizeObserver.prototype;
    window.observed = new Map();
    window.stopWatching = () => Object.assign(ResizeObserver.prototype, { observe, disconnect });
    ResizeObserver.prototype.observe = function (element, ...rest) {
        if (/^pag-/.test(element.className)) window.observed.set(this, element);
        return observe.call(this, element, ...rest);
    };
    ResizeObserver.prototype.disconnect = function () {
        window.observed.delete(this);
        return disconnect.call(this);
    };
}"""
SERVER_IS_BACK = "app.api.dispatchCustomEvent('reconnected')"


@contextlib.contextmanager
def no_answer(desk, path: str):
    """The server cannot be reached for one kind of question."""
    address = f"**/pag/{path}"
    desk.page.route(address, lambda route: route.abort())
    try:
        yield
    finally:
        desk.page.unroute(address)


def test_the_chooser_of_families_fills(desk):
    with no_answer(desk, "families"):
        node = desk.page.evaluate("""() => { app.graph.clear(); const made = LiteGraph.createNode("PAGModelPatch");
            app.graph.add(made); return made.id; }""")
        desk.centre(node)
        chooser = desk.panel(node).locator("select option")
        desk.until(lambda: chooser.count() == 1)
        desk.settle(500)
        assert chooser.count() == 1
    desk.until(lambda: chooser.count() > 10, 20)  # by itself


@pytest.mark.parametrize("path", ["model", "select", "plot"])
def test_what_failed_is_asked_again_as_soon_as_the_server_is_back(desk, path):
    with no_answer(desk, path):
        desk.page.evaluate("app.refreshComboInNodes()")  # else the page may know the model already
        desk.workflow("Example model with CFG and PAG")
        node = desk.find("PAGKSampler")
        desk.centre(node)
        desk.tab(node, "Schedule" if path == "plot" else "Layers")
        unanswered = desk.panel(node).locator(".pag-note", has_text="cannot be reached")
        unanswered.wait_for()
    desk.page.evaluate(SERVER_IS_BACK)
    if path == "plot":
        desk.until(lambda: "×" in desk.tab(node, "Schedule").inner_text(), 20)
    else:
        desk.until(lambda: set(desk.lit(node)) == {"u0", "u1", "u2", "u3"}, 20)
    desk.until(lambda: unanswered.count() == 0)


def test_a_preset_without_an_answer_says_so(desk):
    with no_answer(desk, "presets"):
        desk.reopen()
        node = desk.page.evaluate("""() => { app.graph.clear(); const made = LiteGraph.createNode("PAGOptions");
            app.graph.add(made); return made.id; }""")
        desk.put(node, "preset", "sd3.5_slg")
        desk.page.get_by_text("The server cannot be reached.").first.wait_for()
        assert desk.value(node, "preset") == "custom"
    desk.put(node, "preset", "sd3.5_slg")
    desk.until(lambda: desk.value(node, "perturbation") == "skip_block")


def test_what_is_removed_observes_nothing(desk):
    desk.page.evaluate(WATCH)
    try:
        desk.workflow("SD 1.5 with PAG Model Patch")
        before = desk.page.evaluate("window.observed.size")
        desk.workflow("Example model with CFG and PAG")
        desk.on(desk.find("PAGKSampler"), "app.graph.convertToSubgraph(new Set([node]))")
        desk.settle(500)
        desk.page.evaluate("LiteGraph.createNode('PAGKSampler')")  # which no graph takes
        desk.workflow("SD 1.5 with PAG Model Patch")
        desk.until(lambda: desk.page.evaluate("window.observed.size") == before, 5)
        assert before > 0
    finally:
        desk.page.evaluate("window.stopWatching()")
