"""Workflows of released versions still open and run: `released/VERSION/` holds them as they were shipped."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .comfyhost import workflow
from .comfyhost.client import Client

RELEASED = Path(__file__).parent / "released"
FILES = sorted(RELEASED.glob("*/*.json"))
RUN = ("text-to-image", "edit")  # the others are judged as they are now; these tell that what is accepted also runs


def name(path: Path) -> str:
    return path.relative_to(RELEASED).with_suffix("").as_posix()


@pytest.fixture
def idle(client: Client) -> Iterator[Client]:
    """A client of the server; what was queued only to be accepted is gone afterwards."""
    yield client
    client.post("queue", {"clear": True}).raise_for_status()
    while client.queue_length():
        client.interrupt()
        time.sleep(0.05)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_the_server_takes_every_released_workflow(path: Path, idle: Client, object_info: dict[str, Any]) -> None:
    """An input, a choice or a socket that is gone is an error of a node, even where other nodes could still run."""
    prompt = workflow.to_api(json.loads(path.read_text(encoding="utf-8")), object_info)
    answer = idle.post("prompt", {"prompt": prompt, "client_id": idle.id})
    assert answer.status_code == 200 and not answer.json()["node_errors"], answer.json()


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_kept_value_reaches_the_input_it_was_saved_for(path: Path, object_info: dict[str, Any]) -> None:
    """By position: an input that is not appended at the end would shift all values behind it."""
    saved = json.loads(path.read_text(encoding="utf-8"))
    for node in saved["nodes"]:
        if node["type"].startswith("Dimoo"):
            declared = [default for _, default in workflow.widgets(object_info[node["type"]])]
            assert len(node["widgets_values"]) <= len(declared), node["type"]
            for value, default in zip(node["widgets_values"], declared, strict=False):
                both_numbers = isinstance(value, int | float) and isinstance(default, int | float)
                assert both_numbers or isinstance(value, type(default)), (node["type"], value, default)


@pytest.mark.parametrize("path", [path for path in FILES if path.stem in RUN], ids=name)
def test_released_workflow_runs(path: Path, client: Client, object_info: dict[str, Any]) -> None:
    result = client.run(workflow.to_api(json.loads(path.read_text(encoding="utf-8")), object_info))
    assert result.status == "success", result.error()


def test_there_is_a_released_version() -> None:
    assert FILES
