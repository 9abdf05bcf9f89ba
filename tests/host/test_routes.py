"""The routes are registered once, and only where there is a server; tests/server asks them."""

import sys
from types import SimpleNamespace

from aiohttp import web
from pag_pack.nodes.host.editor import routes


def test_registered_once_however_often_the_pack_is_installed(monkeypatch):
    table = web.RouteTableDef()
    server = SimpleNamespace(PromptServer=SimpleNamespace(instance=SimpleNamespace(routes=table)))
    monkeypatch.setitem(sys.modules, "server", server)
    routes.register()
    routes.register()
    assert [(route.method, route.path) for route in table] == [
        ("GET", "/pag/families"), ("POST", "/pag/model"), ("POST", "/pag/select"), ("POST", "/pag/plot"),
        ("POST", "/pag/presets"), ("POST", "/pag/said")]


def test_without_a_server_nothing_happens(monkeypatch):
    monkeypatch.delitem(sys.modules, "server", raising=False)
    routes.register()
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=type("PromptServer", (), {})))
    routes.register()


def test_ten_thousand_steps_are_drawn_as_a_thousand():
    answer = routes.plot_answer({"model": {"family": "SD 1.5"}, "steps": 10000, "cfg": 5.0,
                                 "options": {"schedule": "linear", "end_percent": 0.5}})
    assert len(answer["points"]) == 1000
    assert 1.0 < answer["cost"] <= 1.25  # half the run, and at most a whole pass more: older hosts share no prefix
