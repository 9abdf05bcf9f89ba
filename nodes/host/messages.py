"""Messages of a running node to the editor. web/ shows them in the node's panel until the node runs again."""

from __future__ import annotations

import base64
import io
import sys
from typing import Any

from comfy_execution.utils import get_executing_context
from PIL import Image

from . import said

MESSAGE = "pag.message"  # {"node": id, "prompt_id": the run's, "kind": "warning" | "info", "text": a sentence}
PREVIEW = "pag.preview"  # {"node": id, "prompt_id": the run's, "image": a data URL}
KINDS = ("warning", "info")


def tell(text: str, kind: str = "warning") -> None:
    """Show a sentence in the panel of the running node.

    For a node of another pack, this is the panel of the nearest PAG node upstream. Without an editor nothing is shown,
    so callers write it to the log as well.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    server, context = _place()
    if server is not None:
        said.keep(server, context.prompt_id, context.node_id, {"kind": kind, "text": text})
    _send(MESSAGE, kind=kind, text=text)


def begin() -> None:
    """Forget what the running node said when it last computed the same."""
    server, context = _place()
    if server is not None:
        said.keep(server, context.prompt_id, context.node_id)


def said_in(prompt_id: str) -> list[dict]:
    """What the nodes of a run had to say when they were computed: [{"node": id, "kind", "text"}]."""
    server = _server()
    return [] if server is None else said.of_run(server, prompt_id)


def show(image: Image.Image, max_size: int) -> None:
    """Show an intermediate image where the result will appear."""
    small = image.convert("RGB")
    small.thumbnail((max_size, max_size))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    _send(PREVIEW, image=f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}")


def _send(event: str, **content: str) -> None:
    server, context = _place()
    if server is None or server.client_id is None:
        return
    run = {"node": context.node_id, "prompt_id": context.prompt_id}
    server.send_sync(event, {**run, **content}, server.client_id)


def _place() -> tuple[Any, Any]:
    """(the server, the running node's context); None for both where there is no server or nothing runs."""
    context, server = get_executing_context(), _server()
    return (None, None) if context is None or server is None else (server, context)


def _server() -> Any:
    module = sys.modules.get("server")  # absent where the host runs without one
    return getattr(getattr(module, "PromptServer", None), "instance", None)
