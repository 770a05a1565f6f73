"""Talks to a running ComfyUI as its page does: HTTP for requests, a websocket for progress and previews."""

from __future__ import annotations

import io
import json
import struct
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import requests
import websocket
from PIL import Image

PREVIEW, TEXT, PREVIEW_WITH_METADATA = 1, 3, 4  # ComfyUI's protocol.py: kinds of binary frames
END_OF_PROMPT = {"execution_success": "success", "execution_error": "error", "execution_interrupted": "interrupted"}

Workflow = dict[str, dict[str, Any]]


class Refused(Exception):
    """The server did not take the prompt; `errors` is what it said, per node."""

    def __init__(self, message: str, errors: dict[str, Any]) -> None:
        super().__init__(message)
        self.errors = errors


@dataclass
class Event:
    """One message of the websocket: its name, its data, and for previews the picture's bytes."""

    name: str
    data: dict[str, Any]
    picture: bytes | None = None

    def image(self) -> Image.Image:
        return Image.open(io.BytesIO(self.picture or b""))


@dataclass
class Result:
    """What became of one prompt. `outputs` is the history's: node id to its `images`, `text` and so on."""

    prompt_id: str
    status: str = ""
    seconds: float = 0.0
    events: list[Event] = field(default_factory=list)
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)

    def named(self, name: str) -> list[Event]:
        return [event for event in self.events if event.name == name]

    def steps(self, node: str) -> list[int]:
        """Progress values that a node reported, in order."""
        return [event.data["value"] for event in self.named("progress") if event.data.get("node") == node]

    def executed(self) -> list[str]:
        """Ids of the nodes that ran (not those taken from ComfyUI's cache), in order."""
        return [event.data["node"] for event in self.named("executing") if event.data.get("node")]

    def error(self) -> str:
        return " ".join(event.data.get("exception_message", "").strip() for event in self.named("execution_error"))


class Client:
    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.id = uuid.uuid4().hex
        self.session = requests.Session()

    def get(self, path: str, **query: Any) -> requests.Response:
        answer = self.session.get(f"{self.url}/{path}", params=query, timeout=60)
        answer.raise_for_status()
        return answer

    def post(self, path: str, payload: dict[str, Any]) -> requests.Response:
        body = json.dumps(payload)  # with NaN as Python's own JSON has it
        return self.session.post(
            f"{self.url}/{path}", data=body, headers={"Content-Type": "application/json"}, timeout=60
        )

    def object_info(self, node: str = "") -> dict[str, Any]:
        return self.get(f"object_info/{node}".rstrip("/")).json()

    def history(self, prompt_id: str) -> dict[str, Any]:
        return self.get(f"history/{prompt_id}").json().get(prompt_id, {})

    def queue_length(self) -> int:
        return self.get("prompt").json()["exec_info"]["queue_remaining"]

    def interrupt(self) -> None:
        self.post("interrupt", {}).raise_for_status()

    def free(self, *, unload_models: bool = True, free_memory: bool = False, timeout: float = 60.0) -> None:
        """Ask for memory, of a server with the probe, and wait until it is being freed: a prompt that is queued before
        would run first, and be forgotten right after."""
        deadline, asked = time.monotonic() + timeout, 0.0
        while not asked or self.get("dimoo-probe").json()["freeing"]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"The server has freed nothing for {timeout:.0f} s.")
            if time.monotonic() - asked > 1:  # asked while it collected garbage ComfyUI does not wake up: ask again
                wanted = {"unload_models": unload_models, "free_memory": free_memory}
                self.post("free", wanted).raise_for_status()
                asked = time.monotonic()
            time.sleep(0.01)

    def view(self, image: dict[str, str]) -> bytes:
        """The file behind an entry of a node's `images` output, as saved."""
        return self.get("view", **{key: image[key] for key in ("filename", "subfolder", "type")}).content

    def picture(self, image: dict[str, str]) -> Image.Image:
        return Image.open(io.BytesIO(self.view(image)))

    def upload(self, name: str, picture: Image.Image) -> str:
        """Put a picture into the input folder, as the page's upload button does; returns the name LoadImage knows."""
        data = io.BytesIO()
        picture.save(data, "PNG")
        answer = self.session.post(
            f"{self.url}/upload/image",
            files={"image": (name, data.getvalue(), "image/png")},
            data={"overwrite": "true"},
            timeout=60,
        )
        answer.raise_for_status()
        return answer.json()["name"]

    def submit(self, prompt: Workflow, extra: dict[str, Any] | None = None, targets: Sequence[str] = ()) -> str:
        """Queue a prompt in API form, or those of its output nodes that are `targets`; returns its id. Raises Refused
        when validation fails."""
        payload = {"prompt": prompt, "client_id": self.id, "extra_data": extra or {}}
        if targets:
            payload["partial_execution_targets"] = list(targets)
        answer = self.post("prompt", payload)
        body = answer.json()
        if answer.status_code != 200:
            errors = body.get("node_errors") or {}
            found = [error for node in errors.values() for error in node["errors"]]
            details = "; ".join(f"{error['message']}: {error['details']}" for error in found)
            raise Refused(f"{body['error']['message']}. {details}", errors)
        return body["prompt_id"]

    def run(
        self,
        prompt: Workflow,
        *,
        extra: dict[str, Any] | None = None,
        targets: Sequence[str] = (),
        timeout: float = 300.0,
        on_event: Callable[[Event], None] | None = None,
    ) -> Result:
        """Queue a prompt, as `submit` does, and follow it to its end. `on_event` sees every message as it arrives.

        Raises Refused when validation fails and TimeoutError when the prompt takes longer than `timeout` seconds; a
        prompt that fails or is cancelled while running is a Result with that status.
        """
        with self.listen() as events:
            began = time.monotonic()
            result = Result(self.submit(prompt, extra, targets))
            for event in events(timeout):
                if event.data.get("prompt_id", result.prompt_id) != result.prompt_id:
                    continue
                result.events.append(event)
                if on_event:
                    on_event(event)
                if event.name in END_OF_PROMPT:
                    result.status = END_OF_PROMPT[event.name]
                    break
            result.seconds = time.monotonic() - began
        result.outputs = self.settled(result.prompt_id).get("outputs", {})
        return result

    def settled(self, prompt_id: str, timeout: float = 10.0) -> dict[str, Any]:
        """The history entry, which the server writes a moment after it has announced the end."""
        deadline = time.monotonic() + timeout
        while not (entry := self.history(prompt_id)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"Prompt {prompt_id} has ended but is not in the history.")
            time.sleep(0.02)
        return entry

    @contextmanager
    def listen(self) -> Iterator[Callable[[float], Iterator[Event]]]:
        """A websocket for the time of the block; gives a function from a timeout in seconds to the events."""
        address = self.url.replace("http", "ws", 1)
        connection = websocket.create_connection(f"{address}/ws?clientId={self.id}", timeout=60)
        try:
            connection.send(json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}}))

            def events(timeout: float) -> Iterator[Event]:
                deadline = time.monotonic() + timeout
                while True:
                    connection.settimeout(max(0.01, deadline - time.monotonic()))
                    try:
                        message = connection.recv()
                    except websocket.WebSocketTimeoutException as stale:
                        raise TimeoutError(f"The prompt did not end within {timeout:.0f} s.") from stale
                    yield decode(message)

            yield events
        finally:
            connection.close()


def decode(message: str | bytes) -> Event:
    """One websocket message. Binary ones are previews: big-endian kind, then image type or JSON length, the rest."""
    if isinstance(message, str):
        content = json.loads(message)
        return Event(content["type"], content.get("data") or {})
    kind, second = struct.unpack(">II", message[:8])
    if kind == PREVIEW_WITH_METADATA:
        return Event("preview", json.loads(message[8 : 8 + second]), message[8 + second :])
    if kind == TEXT:  # `second` is the length of the node's id
        return Event("text", {"node": message[8 : 8 + second].decode(), "text": message[8 + second :].decode()})
    if kind == PREVIEW:
        return Event("preview", {}, message[8:])
    return Event(f"binary {kind}", {}, message[8:])
