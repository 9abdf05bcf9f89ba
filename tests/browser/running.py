"""Runs, and what the panel of a node shows of them."""

from .conftest import PATIENCE

NO_STEP = "no sampled step lies between"
DONE = ("execution_success", "execution_error", "execution_interrupted")


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


def ran_without_effect(desk, seed: int) -> int | str:
    """PAG KSampler after a run in which PAG had no effect, which its panel says. With a seed of its own, or the server
    takes the result of an earlier run."""
    desk.workflow("Example model with CFG and PAG")
    sampler = desk.find("PAGKSampler")
    limited_options(desk, sampler)
    desk.put(sampler, "seed", seed)
    desk.centre(sampler)
    run(desk)
    notes(desk, sampler, NO_STEP).wait_for()
    return sampler


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
