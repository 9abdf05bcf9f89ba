"""The check of the host's internals: it passes here, and it sees what is taken away."""

import comfy.ldm.modules.attention
import comfy.samplers
import pytest
from comfy.model_patcher import ModelPatcher
from commands import internals


@pytest.fixture(scope="module")
def needed():
    return internals.needed_names()


def test_this_host_has_all_that_the_nodes_rely_on(needed):
    assert internals.missing_names(needed) == []
    assert internals.missing_keys() == []


@pytest.mark.parametrize(("owner", "name", "place"), [
    (comfy.samplers, "get_area_and_mult", "nodes/host/run/calls.py"),
    (comfy.samplers.CFGGuider, "set_conds", "nodes/host/sampling/guider.py"),
    (ModelPatcher, "add_wrapper_with_key", "nodes/host/run/patching.py")])
def test_what_a_later_host_drops_is_named_with_its_place(monkeypatch, needed, owner, name, place):
    monkeypatch.delattr(owner, name)
    (missing,) = internals.missing_names(needed)
    assert missing.endswith(f".{name}")
    assert place in needed[missing]


def test_a_key_that_the_host_no_longer_reads_is_named(monkeypatch):
    monkeypatch.setattr(internals, "PROTOCOL", {"comfy.samplers": ("uuids", "no_such_key")})
    assert internals.missing_keys() == ["the key 'no_such_key' in comfy.samplers"]
