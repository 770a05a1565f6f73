"""Metadata of saved pictures: the versions and the checkpoints that made them.

ComfyUI writes prompt and workflow into its pictures, which hold every setting, but neither the version of a pack nor
which weights the name of a checkpoint stood for. Both are added under a key of their own. That happens when a prompt is
queued and not when a node runs: a cached result of an earlier prompt does not run again, but is saved all the same.
"""

from __future__ import annotations

from typing import Any

from ..dimoo_core.provenance import KEY, identified, versions
from .loader import chosen


def metadata(prompt: Any) -> dict[str, Any] | None:
    """Versions, and per node the checkpoint that it names, for a prompt in API form; None where no node is ours."""
    nodes = prompt.items() if isinstance(prompt, dict) else ()
    ours = {key: one for key, one in nodes if isinstance(one, dict) and str(one.get("class_type")).startswith("Dimoo")}
    if not ours:
        return None
    named = {key: one["inputs"].get("checkpoint") for key, one in ours.items() if isinstance(one.get("inputs"), dict)}
    checkpoints = {key: _identified(name) for key, name in named.items() if isinstance(name, str)}
    return {**versions(), "checkpoints": {key: one for key, one in checkpoints.items() if one is not None}}


def _identified(name: str) -> dict[str, str] | None:
    """The checkpoint of a name of the loader's list; None where it is gone or broken, which the loader will report."""
    try:
        found = chosen(name)
        return None if found is None else identified(name, found.files)
    except (ValueError, OSError):
        return None


def add_note(request: dict[str, Any]) -> dict[str, Any]:
    """A request that queues a prompt, with our metadata beside the workflow in what ComfyUI writes into pictures."""
    found = metadata(request.get("prompt"))
    if found is not None:
        extra = request.get("extra_data") or {}
        info = {**(extra.get("extra_pnginfo") or {}), KEY: found}
        request["extra_data"] = {**extra, "extra_pnginfo": info}
    return request
