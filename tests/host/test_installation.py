"""What the log says of a folder that the editor cannot be served from, and of a second copy of the pack."""

from pathlib import Path

import pytest
from pag_pack.nodes.guidance import PAGModelPatch
from pag_pack.nodes.host import installation

import nodes

HERE = Path("/comfyui/custom_nodes/perturbed-attention-guidance")


@pytest.mark.parametrize("name", ["perturbed-attention-guidance", "PAG_2.0~main", "pag+guidance(1)"])
def test_an_ordinary_folder_is_nothing_to_speak_of(name):
    assert not list(installation.problems(HERE.with_name(name), None))


@pytest.mark.parametrize("name", ["perturbed attention", "pag (1)", "引导", "50%", "a#b"])
def test_a_name_under_which_no_javascript_is_served_is_quoted_with_the_remedy(name):
    (problem,) = installation.problems(HERE.with_name(name), None)
    assert repr(name) in problem
    assert "Rename the folder to perturbed-attention-guidance" in problem


def test_two_copies_are_both_named():
    other = HERE.with_name("pag")
    (problem,) = installation.problems(HERE, other)
    assert str(HERE) in problem
    assert f"{other} and" in problem
    assert "Remove one" in problem


def test_another_copy_is_found_by_the_node_it_gave(monkeypatch):
    assert installation.already_loaded() is None
    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "PAGModelPatch", PAGModelPatch)
    assert installation.already_loaded() == installation.FOLDER
    assert not list(installation.problems(installation.FOLDER, installation.already_loaded()))
