"""What a running node says reaches the editor that asked for the run, and nobody else."""

import base64
import io
import sys
from types import SimpleNamespace

import pytest
from comfy_execution.utils import CurrentNodeContext
from pag_pack.nodes.host.messages import begin, said_in, show, tell
from PIL import Image


@pytest.fixture
def sent(monkeypatch):
    """The events that a server has sent to the editor "me"."""
    events, running = [], []
    queue = SimpleNamespace(get_current_queue_volatile=lambda: (running, []), get_history=lambda prompt_id: {})
    server = SimpleNamespace(client_id="me", send_sync=lambda event, data, sid: events.append((event, data, sid)),
                             prompt_queue=queue)
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=server)))
    return SimpleNamespace(events=events, server=server, running=running)


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


def test_what_was_said_is_kept_for_who_computes_the_same(sent):
    """Until it is computed again, and for as long as what feeds the node is the same."""
    def run(name: str, scale: float) -> None:
        sent.running[:] = [(0, name, {"1": {"class_type": "Loader", "inputs": {"scale": scale}},
                                      "2": {"class_type": "Sampler", "inputs": {"model": ["1", 0]}}})]
    run("first", 1.0)
    with CurrentNodeContext("first", "2"):
        begin()
        tell("One.")
        tell("Two.")
    both = [{"node": "2", "kind": "warning", "text": text} for text in ("One.", "Two.")]
    assert said_in("first") == both
    run("other", 2.0)
    assert said_in("other") == []
    run("again", 1.0)
    assert said_in("again") == both
    with CurrentNodeContext("again", "2"):
        begin()
    assert said_in("again") == []
