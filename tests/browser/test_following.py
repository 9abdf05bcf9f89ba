"""Values and models that come from elsewhere: followed where the graph tells them, and else called unknown."""

import pytest

from .conftest import one_renderer

# Nodes as other packs make them, whose code is not here: what matters is their class, inputs, outputs and widgets.
MAKE = """([type, inputs, outputs, widgets, isVirtual]) => {
    class Made extends LiteGraph.LGraphNode {
        constructor() {
            super(type);
            inputs.forEach(([name, kind]) => this.addInput(name, kind));
            outputs.forEach(kind => this.addOutput(kind, kind));
            widgets.forEach(([name, value]) => this.addWidget(
                typeof value === "boolean" ? "toggle" : typeof value === "number" ? "number" : "text", name, value,
                () => {}, { min: 0, max: 100, values: [value] }));
            this.isVirtualNode = isVirtual;
            this.comfyClass = type;
        }
    }
    Made.title = Made.comfyClass = type;
    LiteGraph.registerNodeType(type, Made);
    const made = LiteGraph.createNode(type);
    app.graph.add(made);
    return made.id;
}"""


@pytest.fixture
def sampler(desk):
    desk.workflow("Example model with CFG and PAG")
    node = desk.find("PAGKSampler")
    desk.put(node, "steps", 20)
    desk.centre(node)
    desk.tab(node, "Schedule")
    desk.until(lambda: "×" in summary(desk, node))
    return node


def make(desk, kind: str, inputs=(), outputs=(), widgets=(), *, is_virtual: bool = False):
    return desk.page.evaluate(MAKE, [kind, inputs, outputs, widgets, is_virtual])


def connect(desk, origin, slot: int, target, name: str) -> None:
    desk.on(origin, """(() => { const to = app.graph.getNodeById(argument[1]);
        node.connect(argument[0], to, to.inputs.findIndex(slot => slot.name === argument[2])); })()""",
            [slot, target, name])
    desk.settle(400)


def link_model(desk, origin, target, name: str = "model") -> None:
    connect(desk, origin, 0, target, name)


def summary(desk, node) -> str:
    return desk.tab(node, "Schedule").locator(".pag-summary").inner_text()


def legend(desk, node) -> str:
    return desk.panel(node).locator(".pag-legend").inner_text()


def messages(desk, node) -> str:
    return desk.panel(node).locator(".pag-view .pag-message").inner_text()


def head(desk, node) -> str:
    return desk.panel(node).locator(".pag-head").inner_text()


def primitive(desk):
    return desk.page.evaluate("""() => { const made = LiteGraph.createNode("PrimitiveNode");
        app.graph.add(made); return made.id; }""")


def test_a_primitive(desk, sampler):
    node = primitive(desk)
    connect(desk, node, 0, sampler, "cfg")
    desk.on(node, "{ node.widgets[0].value = 1; node.widgets[0].callback?.(1); }")
    desk.until(lambda: "CFG 1" in legend(desk, sampler))
    assert messages(desk, sampler) == ""
    desk.on(node, "{ node.widgets[0].value = 4; node.widgets[0].callback?.(4); }")
    desk.until(lambda: "CFG 4" in legend(desk, sampler))


@one_renderer
@pytest.mark.parametrize(("value", "shown"), [(True, "CFG 2"), (False, "CFG 6")])
def test_a_switch_that_the_graph_sets(desk, sampler, value, shown):
    switch = make(desk, "ComfySwitchNode", [["on_false", "FLOAT"], ["on_true", "FLOAT"]], ["FLOAT"],
                  [["switch", value]])
    for name, number in (("on_true", 2.0), ("on_false", 6.0)):
        connect(desk, make(desk, f"PrimitiveFloat{name}", [], ["FLOAT"], [["value", number]]), 0, switch, name)
    connect(desk, switch, 0, sampler, "cfg")
    desk.until(lambda: shown in legend(desk, sampler))


@one_renderer
def test_a_constant_that_shows_its_type(desk, sampler):
    node = make(desk, "Power Primitive (rgthree)", [], ["FLOAT"], [["type", "FLOAT"], ["value", 2.0]])
    connect(desk, node, 0, sampler, "cfg")
    desk.until(lambda: "CFG 2" in legend(desk, sampler))


@one_renderer
def test_what_another_node_computes_is_unknown(desk, sampler):
    maths = make(desk, "SomeMath", [["a", "FLOAT"]], ["FLOAT"], [["b", 3.0]])
    connect(desk, make(desk, "PrimitiveFloatA", [], ["FLOAT"], [["value", 2.0]]), 0, maths, "a")
    connect(desk, maths, 0, sampler, "cfg")
    desk.until(lambda: summary(desk, sampler) == "?")
    assert "cfg" in messages(desk, sampler)
    assert "CFG" not in legend(desk, sampler)
    connect(desk, make(desk, "PrimitiveFloatB", [], ["FLOAT"], [["value", 2.0]]), 0, sampler, "cfg")
    desk.until(lambda: "CFG 2" in legend(desk, sampler))
    assert messages(desk, sampler) == ""


def set_and_get(desk, sampler, name: str) -> tuple[int | str, int | str]:
    """A pair of nodes by which an input of the sampler gets a constant of 2.5."""
    setter = make(desk, "SetNode", [["FLOAT", "FLOAT"]], [], [["Constant", "strength"]], is_virtual=True)
    getter = make(desk, "GetNode", [], ["FLOAT"], [["Constant", "strength"]], is_virtual=True)
    connect(desk, make(desk, "FloatConstant", [], ["FLOAT"], [["value", 2.5]]), 0, setter, "FLOAT")
    connect(desk, getter, 0, sampler, name)
    desk.until(lambda: "CFG 2.5" in legend(desk, sampler))
    return setter, getter


@one_renderer
def test_a_get_node_is_not_asked_for_the_set_node_it_lacks(desk, sampler):
    setter, getter = set_and_get(desk, sampler, "cfg")
    # KJNodes' own shows a message each time.
    desk.on(getter, "{ window.asked = 0; node.getInputLink = () => { window.asked++; return null; }; }")
    desk.on(setter, "app.graph.remove(node)")
    desk.until(lambda: summary(desk, sampler) == "?")
    assert desk.page.evaluate("window.asked") == 0


@one_renderer
def test_a_get_node_in_a_subgraph_finds_the_set_node_outside(desk, sampler):
    _, getter = set_and_get(desk, sampler, "cfg")
    inner = desk.page.evaluate("""ids => {
        const { subgraph } = app.graph.convertToSubgraph(new Set(ids.map(id => app.graph.getNodeById(id))));
        app.canvas.setGraph(subgraph);
        return subgraph.nodes.find(node => node.type === "PAGKSampler").id;
    }""", [sampler, getter])
    desk.settle(800)
    desk.centre(inner)
    desk.until(lambda: "CFG 2.5" in legend(desk, inner))


@one_renderer
@pytest.mark.parametrize(("kind", "inputs", "widgets", "found"), [
    ("Some LoRA stack", [["model", "MODEL"], ["clip", "CLIP"]], [["lora_name", "x.safetensors"]], "ADM"),
    ("Any Switch (rgthree)", [["any_01", "*"], ["any_02", "*"]], [], "ADM"),
    ("Context (rgthree)", [["base_ctx", "RGTHREE_CONTEXT"], ["model", "MODEL"]], [], "ADM"),
    ("Checkpoint Selector", [], [["ckpt_name", "gone.safetensors"]], "'gone.safetensors'"),
    ("ModelSwitch", [["model1", "MODEL"], ["model", "MODEL"]], [["select", 1]], "No model loader"),
])
def test_nodes_that_pass_a_model_on(desk, sampler, kind, inputs, widgets, found):
    between = make(desk, kind, inputs, ["MODEL"], widgets)
    if inputs:
        link_model(desk, desk.find("PAGADMLoader"), between, "model" if ["model", "MODEL"] in inputs else "any_02")
    link_model(desk, between, sampler)
    desk.tab(sampler, "Layers")
    desk.until(lambda: found in head(desk, sampler))


@one_renderer
def test_a_switch_that_is_decided_later_is_unknown(desk, sampler):
    switch = make(desk, "ModelSwitchB", [["model1", "MODEL"], ["model2", "MODEL"], ["select", "INT"]], ["MODEL"])
    for name in ("model1", "model2"):
        link_model(desk, desk.find("PAGADMLoader"), switch, name)
    connect(desk, make(desk, "RandomIndex", [["seed", "INT"]], ["INT"], [["low", 0], ["high", 2]]), 0, switch, "select")
    link_model(desk, switch, sampler)
    desk.tab(sampler, "Layers")
    desk.until(lambda: "decided during the run" in head(desk, sampler))


@one_renderer
@pytest.mark.parametrize("kind", ["UnetLoaderGGUF", "UNETLoaderMultiGPU", "CheckpointLoader|pysssss"])
def test_loaders_of_other_packs(desk, sampler, kind):
    file = {"content": "adm-emoji-64.safetensors"} if "|" in kind else "adm-emoji-64.gguf"
    loader = make(desk, kind, [], ["MODEL"], [["unet_name", ""], ["device", "cpu"]])
    desk.on(loader, "{ node.widgets[0].value = argument; }", file)
    asked = []
    desk.page.on("request", lambda request: request.url.endswith("/pag/model") and asked.append(request.post_data_json))
    link_model(desk, loader, sampler)
    desk.tab(sampler, "Layers")
    desk.until(lambda: {"node": kind, "input": "unet_name", "file": file["content"] if "|" in kind else file}
               in [question.get("loader") for question in asked])
