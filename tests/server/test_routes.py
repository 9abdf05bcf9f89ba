"""The layer picker's routes: what they answer, and everything that they refuse."""

import json
import os
import re
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request

import pytest
from support.safetensors_files import write_sparse

from .prompts import adm, with_options

ADM = {"loader": {"node": "PAGADMLoader", "input": "ckpt_name", "file": "adm-emoji-64.safetensors"}}
SD = {"family": "SD 1.5"}
SD3 = {"family": "SD3 medium"}
posix = pytest.mark.skipif(os.name == "nt", reason="links need rights there")


def checkpoint(name: str, node: str = "CheckpointLoaderSimple") -> dict:
    return {"loader": {"node": node, "input": "ckpt_name", "file": name}}


@pytest.fixture
def ask(client):
    """(path, body as JSON or as bytes) -> (status, answer)."""
    def post(path: str, body) -> tuple[int, dict]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            with client.open(Request(client.url + path, data), timeout=60) as response:
                return response.status, json.loads(response.read())
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
    expected = {"selected": {"d0": None, "d1": None, "m0": [0, 2]}, "share": pytest.approx(0.818, abs=1e-3),
                "text": "d0-1,m0:h0+2", "whole": None}
    assert ask("/pag/select", {"model": ADM, "layers": " d1,d0, m0:h2+h0"}) == (200, expected)
    assert ask("/pag/select", {"model": ADM, "selected": expected["selected"]}) == (200, expected)


def test_a_family_whose_blocks_alone_can_be_skipped(ask):
    body = {"model": {"family": "ACE-Step 1"}, "layers": "auto"}
    _, refused = ask("/pag/select", body)
    assert "skip_block" in refused["error"]
    assert refused["selected"]  # what is lit is right, all the same
    _, skipped = ask("/pag/select", body | {"options": {"perturbation": "skip_block"}})
    assert "error" not in skipped
    assert skipped["whole"] == "skip_block"


def test_a_selection_costs_what_the_options_make_of_it(ask):
    def answer(**options):
        status, answer = ask("/pag/select", {"model": SD, "layers": "u0-2", "options": options})
        assert status == 200
        return answer

    plain, skipped = answer(), answer(perturbation="skip_block", preset="custom")
    assert (plain["whole"], skipped["whole"]) == (None, "skip_block")
    assert skipped["share"] < plain["share"]
    assert answer(perturbation="shuffle")["whole"] == "shuffle"
    assert answer(row="negative", perturbation="skip_block")["share"] == 0
    assert answer(schedule="adaptive_diffusers") == plain  # which the plot refuses, in its place
    assert ask("/pag/select", {"model": SD, "layers": "u0", "options": {"nonsense": 1}})[0] == 400


def test_a_grammar_error_is_an_answer_in_the_nodes_words(ask):
    status, answer = ask("/pag/select", {"model": SD, "layers": "m7"})
    assert status == 200
    assert "'m7'" in answer["error"]
    assert "This model has: d0-5, m0, u0-8" in answer["error"]


def test_plot(ask):
    status, answer = ask("/pag/plot", {"model": SD3, "layers": "13", "steps": 25, "cfg": 5.0, "scale": 3.0,
                                       "cfg_end_percent": 0.6, "options": {"start_percent": 0.4}})
    assert status == 200
    assert answer["cost"] == pytest.approx(0.934, abs=1e-3)
    assert len(answer["points"]) == 25
    assert answer["points"][0] == {"percent": 0.0, "cfg": 5.0, "pag": 0.0, "runs_uncond": True,
                                   "runs_perturbed": False}


def test_plot_of_video_and_sound_apart(ask):
    run = {"model": {"family": "LTX-2"}, "layers": "28,audio.28", "steps": 8, "cfg": 3.0, "scale": 1.0}
    alone = ask("/pag/plot", run)[1]["cost"]
    status, answer = ask("/pag/plot", {**run, "audio": {"cfg": 7.0, "scale": 0.5}, "exchange": True})
    assert status == 200
    assert answer["cost"] == pytest.approx(alone + 0.5)  # a forward more, of the two that CFG takes
    assert {(point["cfg"], point["audio_cfg"], point["pag"], point["audio_pag"]) for point in answer["points"]} == {
        (3.0, 7.0, 1.0, 0.5)}
    # What one of the two needs is computed.
    silent = ask("/pag/plot", {**run, "cfg": 1.0, "scale": 0.0, "audio": {"cfg": 7.0, "scale": 0.5}})[1]
    assert silent["cost"] == pytest.approx(alone)
    assert all(point["runs_uncond"] and point["runs_perturbed"] for point in silent["points"])


def test_plot_follows_the_scheduler(ask):
    run = {"model": SD, "steps": 20, "cfg": 5.0, "options": {"end_percent": 0.5}}
    normal, karras = (ask("/pag/plot", {**run, "scheduler": name})[1] for name in ("normal", "karras"))
    assert sum(point["runs_perturbed"] for point in normal["points"]) == 10
    assert sum(point["runs_perturbed"] for point in karras["points"]) < 10
    assert karras["cost"] < normal["cost"]


def test_plot_without_a_model_has_no_cost(ask):
    status, answer = ask("/pag/plot", {"model": None, "layers": "auto", "steps": 4})
    assert status == 200
    assert answer["cost"] is None
    assert [point["percent"] for point in answer["points"]] == [0.0, 0.333333, 0.666667, 1.0]
    assert {point["cfg"] for point in answer["points"]} == {None}


@pytest.mark.parametrize(("body", "quoted"), [
    ({"model": SD, "layers": ""}, "empty term"),
    ({"model": SD, "selected": {}}, "nothing is selected"),
    ({"model": SD, "selected": {"m0": [8]}}, "from 0 to 7"),
    ({"model": SD, "selected": {"m0": ["h0"]}}, "'h0'"),
])
def test_a_wrong_selection_is_an_answer(ask, body, quoted):
    status, answer = ask("/pag/select", body)
    assert status == 200
    assert quoted in answer["error"]


@pytest.mark.parametrize(("body", "quoted"), [
    ({"steps": 0}, "steps must be"), ({"steps": "25"}, "'25'"), ({"cfg": "a lot"}, "'a lot'"), ({"scale": -1}, "-1"),
    ({"options": {"start_percent": 0.6, "end_percent": 0.4}}, "start_percent (0.6)"),
    ({"options": {"schedule": "never"}}, "'never'"), ({"cfg_end_percent": 2}, "cfg_end_percent"),
    ({"model": SD, "scheduler": "no such"}, "'no such'"), ({"model": SD, "layers": "m9"}, "'m9'"),
    ({"denoise": None}, "denoise must be"),
])
def test_a_wrong_setting_is_an_answer(ask, body, quoted):
    status, answer = ask("/pag/plot", body)
    assert status == 200
    assert quoted in answer["error"]


# --- refusals ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("path", "body", "quoted"), [
    ("/pag/model", b"{", "not JSON"),
    ("/pag/model", b"\xff", "not JSON"),
    ("/pag/model", b"", "not JSON"),
    ("/pag/model", b"[" * 60_000, "not JSON"),
    ("/pag/model", b"[" + b"1," * 40_000 + b"1]", "larger than 65536"),
    ("/pag/model", [], "body must be of type dict, got list"),
    ("/pag/model", {}, "loader must be of type dict"),
    ("/pag/model", {"family": 15}, "family must be of type str, got int"),
    ("/pag/model", {"family": "SD 9"}, "The families are SD 1.5"),
    ("/pag/model", {"loader": "CheckpointLoaderSimple"}, "loader must be of type dict, got str"),
    ("/pag/model", {"loader": {"node": "UNETLoader", "input": "unet_name"}}, "loader.file must be of type str"),
    ("/pag/model", {"loader": {"node": ["x"], "input": "unet_name", "file": "x"}}, "loader.node"),
    ("/pag/model", {"loader": {"node": "x", "input": "unet_name", "file": {}}}, "loader.file"),
    ("/pag/select", {"layers": "m0"}, "model must be of type dict"),
    ("/pag/select", {"model": SD, "layers": 3}, "layers must be of type str, got int"),
    ("/pag/select", {"model": SD, "selected": ["m0"]}, "selected must be of type dict"),
    ("/pag/select", {"model": SD, "selected": {"m0": "h0"}}, "selected.m0 must be of type list"),
    ("/pag/select", {"model": SD, "selected": {"m9": None}}, "no layer 'm9'"),
    ("/pag/plot", {"options": []}, "options must be of type dict"),
    ("/pag/plot", {"options": {"strenght": 1}}, "'strenght'"),
    ("/pag/plot", {"model": "SD 1.5"}, "model must be of type dict"),
    ("/pag/plot", {"audio": 3}, "audio must be of type dict"),
])
def test_a_body_of_the_wrong_kind_is_refused(ask, path, body, quoted):
    status, answer = ask(path, body)
    assert status == 400
    assert quoted in answer["error"]


@pytest.mark.parametrize("name", ["../secret.safetensors", "sub/../../secret.safetensors", "/etc/passwd", "{secret}",
                                  "..%2fsecret.safetensors", "..\\secret.safetensors", "missing.safetensors", ""])
def test_a_file_that_the_loader_does_not_list_is_refused(ask, checkpoints, name):
    secret = write_sparse(checkpoints.parent / "secret.safetensors", {"a": [1]})
    status, answer = ask("/pag/model", checkpoint(name.replace("{secret}", str(secret))))
    assert status == 422
    assert "There is no model" in answer["error"]


@posix
def test_a_link_out_of_the_model_folders_is_refused(ask, checkpoints, tmp_path):
    (checkpoints / "link.safetensors").symlink_to(write_sparse(tmp_path / "secret.safetensors", {"a": [1]}))
    status, answer = ask("/pag/model", checkpoint("link.safetensors"))
    assert status == 422
    assert "outside the model folders" in answer["error"]


def huge_header(path: Path) -> None:
    path.write_bytes((2**40).to_bytes(8, "little"))
    with path.open("r+b") as file:
        file.truncate(2**41)


def lying_length(path: Path) -> None:
    path.write_bytes((90_000_000).to_bytes(8, "little") + b"{}")


def lying_shape(path: Path) -> None:
    text = json.dumps({"a": {"dtype": "F16", "shape": [2**40, 2**7], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))


def cut_off(path: Path) -> None:
    write_sparse(path, {"a": [100]})
    path.write_bytes(path.read_bytes()[:-1])


def no_model(path: Path) -> None:
    write_sparse(path, {"a": [100]})


@pytest.mark.parametrize(("make", "quoted"), [
    (huge_header, "claims 1099511627776 bytes"), (lying_length, "claims 90000000 bytes"),
    (lying_shape, "cannot be read"), (cut_off, "Download or copy it again"), (no_model, "does not recognize"),
], ids=lambda value: getattr(value, "__name__", ""))
def test_a_header_that_lies_is_refused(ask, checkpoints, make, quoted):
    make(checkpoints / f"{make.__name__}.safetensors")
    status, answer = ask("/pag/model", checkpoint(f"{make.__name__}.safetensors"))
    assert status == 422
    assert f"{make.__name__}.safetensors" in answer["error"]
    assert quoted in answer["error"]


@pytest.mark.parametrize(("name", "node", "quoted"), [
    ("old.ckpt", "CheckpointLoaderSimple", "neither a .safetensors"),
    ("m.safetensors", "LoaderOfAnotherPack", "Download or copy it again"),
])
def test_what_cannot_be_looked_into_says_what_to_do(ask, checkpoints, name, node, quoted):
    (checkpoints / name).write_bytes(b"\x80\x04")
    status, answer = ask("/pag/model", checkpoint(name, node))
    assert status == 422
    assert quoted in answer["error"]


def test_only_post_asks_about_models(client):
    with pytest.raises(HTTPError) as caught:
        client.get("/pag/model")
    assert caught.value.code in (404, 405)


def test_presets_hold_every_widget_of_pag_options_but_the_preset_itself(ask):
    status, answer = ask("/pag/presets", {})
    assert status == 200
    assert answer["presets"]["s2"]["random_share"] == 0.1
    assert answer["presets"]["paper"]["perturbation"] == "identity"
    assert len({frozenset(values) for values in answer["presets"].values()}) == 1


def test_the_plot_takes_options_with_a_preset_and_a_skipped_block_costs_less(ask):
    question = {"model": SD3, "layers": "7-9", "steps": 20, "cfg": 4.0, "scale": 2.5}
    costs = [ask("/pag/plot", {**question, "options": {"perturbation": kind, "preset": "custom"}})[1]["cost"]
             for kind in ("identity", "skip_block")]
    assert costs[1] < costs[0] - 0.03
    negative = ask("/pag/plot", {**question, "options": {"perturbation": "skip_block", "row": "negative"}})[1]["cost"]
    assert negative == pytest.approx(1 - 3 / 24 / 2, abs=1e-6)
    assert "no negative" in ask("/pag/plot", {**question, "cfg": 1.0, "options": {"row": "negative"}})[1]["error"]


def test_the_plot_counts_each_stage_by_the_steps_in_which_pag_acts(ask):
    question = {"model": SD3, "steps": 20, "cfg": 4.0}
    late = {"options": {"start_percent": 0.6}}
    staged, plain = (ask("/pag/plot", {**question, **late, "layers": layers})[1]["cost"]
                     for layers in ("50%: 0; 100%: 20", "20"))
    assert staged == plain


def test_what_a_cached_node_had_to_say(client, ask):
    """Another page that runs the same gets the result from the host's cache, and the words from here."""
    limited = with_options(adm(seed=4711), start_percent=0.3, end_percent=0.31)

    def said(prompt: dict) -> list[tuple[str, str]]:
        run = client.submit(prompt)
        deadline = time.monotonic() + 120
        while run not in json.loads(client.get(f"/history/{run}")):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        answer = ask("/pag/said", {"prompt_id": run})[1]
        return [(one["node"], one["kind"], one["text"].split(",")[0]) for one in answer["messages"]]

    sentence = "PAG: no sampled step lies between start_percent and end_percent (or start_sigma and end_sigma)"
    assert said(limited) == [("5", "warning", sentence)]
    assert said(limited) == [("5", "warning", sentence)]
    renamed = json.loads(re.sub(r'"(\d)"', r'"1\1"', json.dumps(limited)))
    assert said(renamed) == [("15", "warning", sentence)]
    assert said(with_options(adm(seed=4711), end_percent=0.9)) == []
    assert ask("/pag/said", {"prompt_id": "none"}) == (200, {"messages": []})
