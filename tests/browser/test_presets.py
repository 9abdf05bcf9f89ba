"""PAG Options' presets: choosing one fills the other inputs, changing an input leaves it, and values are saved."""

import json

import pytest

SLG = {"perturbation": "skip_block", "start_percent": 0.01, "end_percent": 0.2}
NOT_VALUES = ("preset", "pag_panel")


@pytest.fixture
def options(desk):
    """PAG Options, connected to the sampler of an example."""
    desk.workflow("Example model with CFG and PAG")
    made = desk.on(desk.find("PAGKSampler"), """(() => {
        const made = LiteGraph.createNode("PAGOptions");
        app.graph.add(made);
        made.pos = [node.pos[0], node.pos[1] - 900];
        made.connect(0, node, node.inputs.findIndex(slot => slot.name === "options"));
        return made.id; })()""")
    desk.centre(made, scale=0.75)
    desk.page.evaluate("app.extensionManager.workflow.activeWorkflow.changeTracker.checkState?.()")
    return made


def values(desk, node) -> dict[str, object]:
    found = desk.on(node, "Object.fromEntries(node.widgets.map(w => [w.name, w.value]))")
    return {name: value for name, value in found.items() if name not in NOT_VALUES}


def choose(desk, node, name: str) -> None:
    """Chooses a preset, as a person does in this renderer."""
    if desk.vue:
        field = desk.page.locator(f"[data-node-id='{node}']").get_by_role("combobox", name="preset")
        field.click()
        desk.page.get_by_role("option", name=name, exact=True).click()
    else:
        at = desk.on(node, """(() => { const w = node.widgets.find(w => w.name === "preset");
            const [x, y] = app.canvas.ds.convertOffsetToCanvas(
                [node.pos[0] + node.size[0] / 2, node.pos[1] + w.y + 10]);
            const box = app.canvas.canvas.getBoundingClientRect();
            return [box.left + x, box.top + y]; })()""")
        desk.page.mouse.click(*at)
        desk.page.locator(".litecontextmenu .litemenu-entry", has_text=name).click()
    desk.settle()


def test_choosing_fills_and_changing_leaves(desk, options):
    neutral = values(desk, options)
    choose(desk, options, "sd3.5_slg")
    desk.until(lambda: values(desk, options) == {**neutral, **SLG})
    assert desk.value(options, "preset") == "sd3.5_slg"
    desk.keep("preset", options)
    # Another one replaces it: what it does not name goes back.
    choose(desk, options, "hires_repair")
    desk.until(lambda: values(desk, options) == {**neutral, "strength": 0.5, "rescale": 0.5})
    desk.put(options, "rescale", 0.7)
    assert desk.value(options, "preset") == "custom"
    assert values(desk, options) == {**neutral, "strength": 0.5, "rescale": 0.7}


def test_choosing_is_one_step_of_undo(desk, options):
    neutral = values(desk, options)
    choose(desk, options, "sd3.5_slg")
    desk.until(lambda: values(desk, options) == {**neutral, **SLG})
    desk.settle()
    desk.page.evaluate("app.extensionManager.command.execute('Comfy.Undo')")
    desk.until(lambda: desk.value(options, "preset") == "custom")
    assert values(desk, options) == neutral


def test_what_is_saved_and_sent_are_plain_values(desk, options):
    choose(desk, options, "sd3.5_slg")
    desk.until(lambda: desk.value(options, "perturbation") == "skip_block")
    saved = desk.page.evaluate("app.graph.serialize()")
    (node,) = (node for node in saved["nodes"] if str(node["id"]) == str(options))
    assert {"sd3.5_slg", *SLG.values()} <= {value for value in node["widgets_values"] if not isinstance(value, dict)}
    assert "preset" not in json.dumps(node["properties"])
    # Opened again it is as it was; loading does not fill anew, so what was written by hand stays as well.
    desk.load(saved)
    desk.settle(800)
    assert {name: value for name, value in values(desk, options).items() if name in SLG} == SLG
    sent = desk.run()[str(options)]["inputs"]
    assert {name: sent[name] for name in SLG} == SLG
