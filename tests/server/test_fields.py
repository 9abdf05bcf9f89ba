"""Before a release: what the registry requires and only the owner can fill in is named, with what belongs there."""

import pytest
from harness import packaging

FILLED = {"tool": {"comfy": {"PublisherId": "someone"}}, "project": {"urls": {"Repository": "https://example.org/pag"}}}


def test_a_project_that_has_both_lacks_nothing():
    assert packaging.empty_fields(FILLED) == {}


@pytest.mark.parametrize(("project", "named"), [
    ({}, ["tool.comfy.PublisherId", "project.urls.Repository"]),
    (FILLED | {"tool": {"comfy": {"PublisherId": ""}}}, ["tool.comfy.PublisherId"]),
    (FILLED | {"project": {"urls": {}}}, ["project.urls.Repository"])])
def test_what_is_empty_is_named(project, named):
    empty = packaging.empty_fields(project)
    assert list(empty) == named
    message = packaging.what_is_missing(empty)
    assert all(name in message for name in named)
    assert "--dry-run" in message
