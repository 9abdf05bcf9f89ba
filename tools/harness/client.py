"""A client for ComfyUI's API: queue a prompt, follow its progress, fetch the results."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPException
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, Request, build_opener

from .errors import HarnessError

Progress = Callable[[str, int, int], None]  # (node id, steps done, steps in all)
Preview = Callable[[bytes], None]  # (the picture's file)
PREVIEW_IMAGE = b"\0\0\0\1"  # how the host marks a binary message that holds one
PATIENCE = 120.0  # seconds for one answer: a server on a busy machine may be silent while it loads a model
POLL = 1.0  # seconds between two looks at whether the server still lives


class WorkflowError(HarnessError):
    """A prompt that the server refused, or that failed or was interrupted while it ran."""


class UnreachableError(HarnessError):
    """No answer from the server, or half of one."""


@dataclass
class Result:
    outputs: dict[str, dict]  # node id -> what it showed, such as {"images": [{"filename", "subfolder", "type"}]}
    seconds: dict[str, float] = field(default_factory=dict)  # node id -> time it ran; cached nodes are absent

    @property
    def images(self) -> list[dict]:
        return [image for output in self.outputs.values() for image in output.get("images", [])]


class Client:
    """Talks to the server at `url`; `check_alive` raises HarnessError when it has ended, or ends in so many seconds."""

    def __init__(self, url: str, check_alive: Callable[[float], None]):
        self.url, self.check_alive = url, check_alive
        self.id = uuid.uuid4().hex
        self.open = build_opener(ProxyHandler({})).open  # the server is local, whatever proxy is set

    def get(self, path: str, timeout: float | None = None) -> bytes:
        return self.ask(Request(self.url + path), timeout)

    def post(self, path: str, body: dict, timeout: float | None = None) -> bytes:
        headers = {"Content-Type": "application/json"}
        return self.ask(Request(self.url + path, json.dumps(body).encode(), headers), timeout)

    def ask(self, request: Request, timeout: float | None) -> bytes:
        """The answer's body. HTTPError for an answer that is an error, UnreachableError where there is none."""
        timeout = PATIENCE if timeout is None else timeout
        with network_errors(self.url, timeout), self.open(request, timeout=timeout) as response:
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
        with contextlib.closing(self.connect()) as channel:
            prompt_id = self.submit(prompt, preview_method="latent2rgb" if preview else "none")
            seconds = self.follow(channel, prompt_id, progress, timeout, preview)
        return Result(json.loads(self.get(f"/history/{prompt_id}"))[prompt_id]["outputs"], seconds)

    def connect(self):
        """A websocket on which the server says what becomes of this client's prompts; its recv() waits for `POLL`."""
        import websocket

        address = self.url.replace("http", "ws", 1) + f"/ws?clientId={self.id}"
        with network_errors(self.url, PATIENCE):
            try:
                channel = websocket.create_connection(address, timeout=PATIENCE)
            except websocket.WebSocketTimeoutException as error:
                raise TimeoutError(error) from None
            except websocket.WebSocketException as error:
                raise ConnectionError(error) from None
        channel.settimeout(POLL)
        return channel

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
                self.check_alive(5.0)  # a server that dies closes the channel first
                raise UnreachableError(f"The connection to ComfyUI broke: {error}") from None
            if isinstance(message, str) and message:
                content = json.loads(message)
                yield content["type"], content["data"]
            elif message[:4] == PREVIEW_IMAGE:
                yield "preview", {"image": message[8:]}  # after the picture's format
            self.check_alive(0.0)
            if time.monotonic() > deadline:
                self.interrupt()
                raise WorkflowError("The workflow did not end in time and was interrupted.")


@contextlib.contextmanager
def network_errors(url: str, timeout: float) -> Iterator[None]:
    """Turns whatever the network raises into an UnreachableError that says what happened."""
    try:
        yield
    except HTTPError:
        raise
    except (OSError, HTTPException) as error:
        cause = error.reason if isinstance(error, URLError) else error
        what = f"did not answer within {timeout:g} s" if isinstance(cause, TimeoutError) else f"gave no answer: {cause}"
        raise UnreachableError(f"ComfyUI at {url} {what}.") from None


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
