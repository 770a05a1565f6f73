"""The pack in this process, for tests of the nodes.

Importing this module skips the importing tests where there is no ComfyUI; under nox there always is one.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.comfyui import PACK, comfyui_folder, load, part

__all__ = ["PACK", "part"]

try:
    COMFYUI = comfyui_folder()
except FileNotFoundError as missing:
    if "NOX_CURRENT_SESSION" in os.environ:
        raise
    pytest.skip(str(missing), allow_module_level=True)

ENTRYPOINT = load().comfy_entrypoint


def nodes() -> dict[str, type]:
    """Node id to class, as ComfyUI asks for them."""

    async def ask() -> list[type]:
        return await (await ENTRYPOINT()).get_node_list()

    return {node.GET_SCHEMA().node_id: node for node in asyncio.run(ask())}


def run(node: type, /, **inputs: Any) -> Any:
    """Execute a node as ComfyUI does: on a locked clone, in inference mode, with the defaults of missing widgets."""
    schema = node.FINALIZE_SCHEMA()
    given = {one.id: one.default for one in schema.inputs if getattr(one, "default", None) is not None} | inputs
    hidden = dict.fromkeys(schema.hidden or [], "7")
    newer = "v3_data" in inspect.signature(node.PREPARE_CLASS_CLONE).parameters
    with torch.inference_mode():
        clone = node.PREPARE_CLASS_CLONE({"hidden_inputs": hidden} if newer else hidden)
        return clone.EXECUTE_NORMALIZED(**given)


def put_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `folder` the only place where the loader looks."""
    import folder_paths

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "dimoo", ([str(folder)], {".safetensors"}))
