"""The layer picker's routes: what they answer, and everything that they refuse."""

import json
from urllib.error import HTTPError

import pytest

ADM = {"loader": {"node": "PAGADMLoader", "input": "ckpt_name", "file": "adm-fashion-32.safetensors"}}
SD = {"family": "SD 1.5"}


@pytest.fixture
def ask(client):
    """(path, body) -> (status, answer)."""
    def post(path: str, body) -> tuple[int, dict]:
        try:
            return 200, json.loads(client.post(path, body))
        except HTTPError as error:
            return error.code, json.loads(error.read())
    return post


@pytest.mark.parametrize("prefix", ["", "/api"])
def test_families_can_all_be_asked_for(client, ask, prefix):
    families = json.loads(client.get(f"{prefix}/pag/families"))["families"]
    assert {"SD 1.5", "SDXL", "SD3 medium", "Flux"} <= set(families)
    for family in families:
        status, answer = ask(f"{prefix}/pag/model", {"family": family})
        assert status == 200
        assert answer["name"] == family
        assert answer["id"] == {"family": family}
        assert answer["columns"]


def test_the_shipped_file(ask):
    status, answer = ask("/pag/model", ADM)
    assert status == 200
    assert answer["id"] == ADM
    assert answer["kind"] == "u-net"
    assert [column["title"] for column in answer["columns"]] == ["encoder", "middle", "decoder"]


def test_both_ways_of_a_selection(ask):
    expected = {"selected": {"d0": None, "d1": None, "m0": [0, 2]}, "share": pytest.approx(0.928, abs=1e-3),
                "text": "d0-1,m0:h0+2"}
    assert ask("/pag/select", {"model": SD, "layers": " d1,d0, m0:h2+h0"}) == (200, expected)
    assert ask("/pag/select", {"model": SD, "selected": expected["selected"]}) == (200, expected)


def test_a_grammar_error_is_an_answer_in_the_nodes_words(ask):
    status, answer = ask("/pag/select", {"model": SD, "layers": "m7"})
    assert status == 200
    assert "'m7'" in answer["error"]
    assert "This model has: d0-5, m0, u0-8" in answer["error"]


def test_plot(ask):
    status, answer = ask("/pag/plot", {"model": SD, "layers": "auto", "steps": 25, "cfg": 5.0, "scale": 3.0,
                                       "cfg_end_percent": 0.6, "options": {"start_percent": 0.4}})
    assert status == 200
    assert answer["cost"] == pytest.approx(1.005, abs=1e-3)
    assert len(answer["points"]) == 25
    assert answer["points"][0] == {"percent": 0.0, "cfg": 5.0, "pag": 0.0, "runs_uncond": True,
                                   "runs_perturbed": False}
