"""The schedule plot: what it shows, what its handles do."""

import json

import pytest

from .conftest import one_renderer


@pytest.fixture
def sampler(desk):
    desk.workflow("Example model with CFG and PAG")
    node = desk.find("PAGKSampler")
    desk.put(node, "steps", 20)
    desk.put(node, "pag_scale", 1)
    desk.centre(node)
    desk.tab(node, "Schedule")
    desk.settle()
    return node


def cost(desk, node) -> float:
    shown = desk.panel(node).locator(".pag-legend .pag-share")
    desk.until(lambda: shown.count() and "×" in shown.inner_text())
    return float(shown.inner_text().split("×")[0])


def legend(desk, node) -> str:
    return desk.panel(node).locator(".pag-legend").inner_text()


def handle(desk, node, name: str):
    return desk.panel(node).locator(f".pag-handle[data-input='{name}']")


def test_it_shows_both_weights_and_the_servers_cost(desk, sampler):
    desk.until(lambda: "×" in legend(desk, sampler))
    desk.keep("schedule", sampler)
    assert "CFG 3" in legend(desk, sampler)
    assert "PAG 1" in legend(desk, sampler)
    question = {"model": {"loader": {"node": "PAGADMLoader", "input": "ckpt_name",
                                     "file": "adm-emoji-64.safetensors"}},
                "layers": "u0-3", "steps": 20, "cfg": 3, "scale": 1}
    answer = json.loads(desk.server.client.post("/pag/plot", question))
    assert cost(desk, sampler) == pytest.approx(answer["cost"], abs=0.005)
    assert f"{answer['cost']:.2f}×" in desk.tab(sampler, "Schedule").inner_text()


def test_dragging_a_handle_moves_the_range(desk, sampler):
    before = cost(desk, sampler)
    box = handle(desk, sampler, "cfg_end_percent").locator(".pag-grip").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    width = desk.panel(sampler).locator(".pag-chart").bounding_box()["width"]
    desk.page.mouse.move(x, y)
    desk.page.mouse.down()
    desk.page.mouse.move(x - width / 4, y, steps=5)
    desk.page.mouse.move(x - width / 3, y, steps=5)
    desk.page.mouse.up()
    desk.settle()
    end = desk.value(sampler, "cfg_end_percent")
    assert 0.5 < end < 0.75
    desk.until(lambda: cost(desk, sampler) < before)
    desk.keep("range", sampler)
    assert desk.run()[str(sampler)]["inputs"]["cfg_end_percent"] == end


def test_dragging_a_handle_with_a_finger(desk, sampler):
    box = handle(desk, sampler, "cfg_end_percent").locator(".pag-grip").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    width = desk.panel(sampler).locator(".pag-chart").bounding_box()["width"]
    finger = desk.page.context.new_cdp_session(desk.page)
    finger.send("Emulation.setTouchEmulationEnabled", {"enabled": True})
    try:
        for kind, share in [("Start", 0), *(("Move", step / 20) for step in range(1, 7)), ("End", None)]:
            points = [] if share is None else [{"x": x - share * width, "y": y}]
            finger.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})
            desk.settle(60)
    finally:
        finger.send("Emulation.setTouchEmulationEnabled", {"enabled": False})
    assert 0.6 < desk.value(sampler, "cfg_end_percent") < 0.75


def test_the_steps_lie_where_the_scheduler_puts_them(desk, sampler):
    """Another share of karras' steps than of those at even distances lies before the middle of the run."""
    desk.put(sampler, "cfg_end_percent", 0.5)
    desk.settle()
    before = cost(desk, sampler)
    desk.put(sampler, "scheduler", "normal")
    desk.settle()
    desk.until(lambda: cost(desk, sampler) != before)


@one_renderer
def test_the_ends_stay_in_order(desk, sampler):
    desk.put(sampler, "cfg_end_percent", 0.4)
    desk.settle()
    start = handle(desk, sampler, "cfg_start_percent")
    start.focus()
    desk.page.keyboard.press("End")
    desk.until(lambda: desk.value(sampler, "cfg_start_percent") == 0.4)


def test_handles_by_keyboard(desk, sampler):
    end = handle(desk, sampler, "cfg_end_percent")
    end.focus()
    for key, value in {"ArrowLeft": 0.99, "Shift+ArrowLeft": 0.89, "PageUp": 0.99, "Home": 0, "End": 1}.items():
        desk.page.keyboard.press(key)
        desk.until(lambda value=value: desk.value(sampler, "cfg_end_percent") == value)
    assert end.get_attribute("aria-valuetext") == "100% of the run"


@one_renderer
def test_it_follows_the_values(desk, sampler):
    def path():
        return desk.panel(sampler).locator(".pag-pag .pag-line").get_attribute("d")
    desk.until(lambda: "PAG 1" in legend(desk, sampler))
    before = path()
    desk.put(sampler, "pag_scale", 2.5)
    desk.until(lambda: "PAG 2.5" in legend(desk, sampler))
    assert path() != before
    desk.put(sampler, "cfg_start_percent", 0.8)
    desk.put(sampler, "cfg_end_percent", 0.2)
    desk.until(lambda: "0.8" in desk.panel(sampler).locator(".pag-message").inner_text())


def test_options_and_the_node_that_takes_them(desk):
    desk.workflow("Example model with PAG Guider")
    guider, options = desk.find("PAGGuider"), desk.find("PAGOptions")
    desk.centre(options)
    desk.tab(options, "Schedule")
    before = cost(desk, options)
    handle(desk, options, "start_percent").focus()
    for _ in range(5):
        desk.page.keyboard.press("Shift+ArrowRight")
    desk.until(lambda: desk.value(options, "start_percent") == 0.5)
    desk.until(lambda: cost(desk, options) < before)
    desk.keep("options", options)
    desk.centre(guider)
    desk.tab(guider, "Schedule")
    desk.until(lambda: cost(desk, guider) == cost(desk, options))
    desk.keep("guider", guider)
