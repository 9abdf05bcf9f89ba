"""What a running node says reaches the editor that asked for the run, and nobody else."""

import base64
import io
import sys
from types import SimpleNamespace

import pytest
from comfy_execution.utils import CurrentNodeContext
from pag_pack.nodes.host.messages import show, tell
from PIL import Image


@pytest.fixture
def sent(monkeypatch):
    """The events that a server has sent to the editor "me"."""
    events = []
    server = SimpleNamespace(client_id="me", send_sync=lambda event, data, sid: events.append((event, data, sid)))
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=server)))
    return SimpleNamespace(events=events, server=server)


def test_a_sentence_goes_to_the_running_node(sent):
    with CurrentNodeContext("prompt", "5:3"):
        tell("PAG had no effect.")
        tell("Something else.", "info")
    run = {"node": "5:3", "prompt_id": "prompt"}
    assert sent.events == [
        ("pag.message", {**run, "kind": "warning", "text": "PAG had no effect."}, "me"),
        ("pag.message", {**run, "kind": "info", "text": "Something else."}, "me")]


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="'shout'"):
        tell("PAG had no effect.", "shout")


def test_a_picture_fits_the_size_asked_for(sent):
    with CurrentNodeContext("prompt", "5"):
        show(Image.new("RGB", (1024, 512)), 256)
    ((event, data, _),) = sent.events
    assert event == "pag.preview"
    head, _, content = data["image"].partition(",")
    assert head == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(content))).size == (256, 128)


def test_without_an_editor_nothing_is_sent(sent):
    tell("No node runs.")
    sent.server.client_id = None
    with CurrentNodeContext("prompt", "5"):
        tell("Nobody asked for this run.")
    assert sent.events == []
