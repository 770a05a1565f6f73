"""What someone reads who starts a ComfyUI with the pack in it, as the demo does: nothing that looks broken."""

from __future__ import annotations

import os
import re
from typing import Any

import pytest

from ..comfyhost import workflow
from ..comfyhost.client import Client
from ..comfyhost.server import Server

STARTED = "To see the GUI go to"  # ComfyUI's last line before it waits for work
WORDS = "error|warning|traceback|exception|failed|missing|not found|not installed|deprecated|outdated|please"


def complaints(log: str) -> list[str]:
    """The lines that name something wrong. ComfyUI 0.3.75 writes no levels, so words have to tell."""
    return [line for line in log.splitlines() if re.search(WORDS, line, re.IGNORECASE)]


@pytest.mark.skipif("COMFYUI_PATH" in os.environ, reason="what another ComfyUI asks for is for its owner to install")
def test_a_start_complains_of_nothing(server: Server) -> None:
    start, waits, _ = server.text().partition(STARTED)
    assert waits and "Import times for custom nodes" in start
    assert not complaints(start), start


def test_a_run_says_that_it_ended_and_complains_of_nothing(
    server: Server, client: Client, object_info: dict[str, Any]
) -> None:
    before = len(server.text())
    client.free(unload_models=True, free_memory=True)
    result = client.run(workflow.to_api(workflow.load("text-to-image"), object_info))
    assert result.status == "success", result.error()
    said = server.text()[before:]
    assert "Prompt executed in" in said
    assert not complaints(said), said


@pytest.mark.parametrize(
    "line",
    [
        "WARNING: some comfy_extras/ nodes did not import correctly.",
        "IMPORT FAILED: nodes_canny.py",
        "comfyui-embedded-docs package not found",
        "torchaudio missing, ACE model will be broken",
        "Traceback (most recent call last):",
    ],
)
def test_a_complaint_is_seen(line: str) -> None:
    assert complaints(f"Starting server\n{line}\nGot prompt\n") == [line]
