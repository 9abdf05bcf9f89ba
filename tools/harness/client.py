"""A client for ComfyUI's API: queue a prompt, follow it, fetch what it made."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, Request, build_opener

from .errors import HarnessError

if TYPE_CHECKING:
    from .server import Server

Progress = Callable[[str, int, int], None]  # (node id, steps done, steps in all)
Preview = Callable[[bytes], None]  # (the picture's file)
PREVIEW_IMAGE = b"\0\0\0\1"  # how the host marks a binary message that holds one


class WorkflowError(HarnessError):
    """A prompt that the server refused, or that failed or was interrupted while it ran."""


@dataclass
class Result:
    outputs: dict[str, dict]  # node id -> what it showed, such as {"images": [{"filename", "subfolder", "type"}]}
    seconds: dict[str, float] = field(default_factory=dict)  # node id -> time it ran; cached nodes are absent

    @property
    def images(self) -> list[dict]:
        return [image for output in self.outputs.values() for image in output.get("images", [])]


class Client:
    def __init__(self, server: Server):
        self.server = server
        self.id = uuid.uuid4().hex
        self.open = build_opener(ProxyHandler({})).open  # the server is local, whatever proxy is set

    def get(self, path: str, timeout: float = 60.0) -> bytes:
        with self.open(self.server.url + path, timeout=timeout) as response:
            return response.read()

    def post(self, path: str, body: dict, timeout: float = 60.0) -> bytes:
        request = Request(self.server.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with self.open(request, timeout=timeout) as response:
            return response.read()

    def object_info(self) -> dict[str, dict]:
        """Node id -> its schema, as the editor gets it."""
        return json.loads(self.get("/object_info"))

    def submit(self, prompt: dict[str, dict], **extra) -> str:
        """Queues an API-format prompt and gives its id. WorkflowError when the server refuses it.

        extra   what the editor sends along, such as preview_method
        """
        body = {"prompt": prompt, "client_id": self.id, "extra_data": extra}
        try:
            return json.loads(self.post("/prompt", body))["prompt_id"]
        except HTTPError as error:
            raise WorkflowError(refusal(error)) from None

    def interrupt(self) -> None:
        self.post("/interrupt", {})

    def image(self, entry: dict) -> bytes:
        """The file behind one of Result.images."""
        return self.get("/view?" + urlencode({name: entry[name] for name in ("filename", "subfolder", "type")}))

    def run(self, prompt: dict[str, dict], progress: Progress | None = None, timeout: float = 600.0,
            preview: Preview | None = None) -> Result:
        """Queues a prompt and waits for its end; with `preview`, it gets the pictures that the server sends meanwhile.

        WorkflowError when it is refused, fails, is interrupted or takes longer than `timeout` seconds; HarnessError
        when the server dies.
        """
        import websocket

        address = self.server.url.replace("http", "ws", 1) + f"/ws?clientId={self.id}"
        with contextlib.closing(websocket.create_connection(address, timeout=1.0)) as channel:
            prompt_id = self.submit(prompt, preview_method="latent2rgb" if preview else "none")
            seconds = self.follow(channel, prompt_id, progress, timeout, preview)
        return Result(json.loads(self.get(f"/history/{prompt_id}"))[prompt_id]["outputs"], seconds)

    def follow(self, channel, prompt_id: str, progress: Progress | None, timeout: float,
               preview: Preview | None = None) -> dict[str, float]:
        """Reads the server's messages until the prompt has ended; the seconds that each node took."""
        deadline = time.monotonic() + timeout
        seconds: dict[str, float] = {}
        running, since = None, 0.0
        failure = None
        for kind, data in self.messages(channel, deadline):
            if kind == "preview" and preview:
                preview(data["image"])
            if data.get("prompt_id") != prompt_id:
                continue
            now = time.perf_counter()
            if kind == "progress" and progress:
                progress(data["node"], data["value"], data["max"])
            elif kind == "execution_error":
                failure = f"{data['node_type']} (node {data['node_id']}): {data['exception_message'].strip()}"
            elif kind == "execution_interrupted":
                failure = f"{data['node_type']} (node {data['node_id']}) was interrupted."
            elif kind == "executing":  # a node begins, or with None: the prompt has ended and its history is written
                if running is not None:
                    seconds[running] = seconds.get(running, 0.0) + now - since
                running, since = data["node"], now
                if running is None:
                    break
        if failure:
            raise WorkflowError(failure)
        return seconds

    def messages(self, channel, deadline: float):
        import websocket

        while True:
            try:
                message = channel.recv()
            except websocket.WebSocketTimeoutException:
                message = b""
            except (websocket.WebSocketException, OSError) as error:
                self.server.check_alive(patience=5.0)  # a server that dies closes the channel first
                raise HarnessError(f"The connection to ComfyUI broke: {error}") from None
            if isinstance(message, str) and message:
                content = json.loads(message)
                yield content["type"], content["data"]
            elif message[:4] == PREVIEW_IMAGE:
                yield "preview", {"image": message[8:]}  # after the picture's format
            self.server.check_alive()
            if time.monotonic() > deadline:
                self.interrupt()
                raise WorkflowError("The workflow did not end in time and was interrupted.")


def refusal(error: HTTPError) -> str:
    """The server's answer to a bad prompt, in lines a person can read."""
    try:
        answer = json.loads(error.read())
        lines = [f"ComfyUI refused the workflow: {answer['error']['message']}"]
        for node_id, node in answer["node_errors"].items():
            for problem in node["errors"]:
                lines.append(f"  {node['class_type']} (node {node_id}): {problem['message']}: {problem['details']}")
        return "\n".join(lines)
    except (ValueError, KeyError, TypeError):
        return f"ComfyUI refused the workflow: HTTP {error.code} {error.reason}"
