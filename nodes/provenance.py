"""What saved pictures say of the pack and the checkpoint that made them.

ComfyUI writes prompt and workflow into its pictures, which hold every setting, but neither the version of a pack nor
which weights the name of a checkpoint stood for. A note of both joins them. It is made when a prompt is queued and not
when a node runs: what ComfyUI remembers of an earlier prompt does not run again, and is saved all the same.
"""

from __future__ import annotations

from typing import Any

from ..dimoo_core.provenance import KEY, identified, versions
from .loader import chosen


def note(prompt: Any) -> dict[str, Any] | None:
    """Versions, and per node the checkpoint that it names, for a prompt in API form; None where no node is ours."""
    nodes = prompt.items() if isinstance(prompt, dict) else ()
    ours = {key: one for key, one in nodes if isinstance(one, dict) and str(one.get("class_type")).startswith("Dimoo")}
    if not ours:
        return None
    named = {key: one["inputs"].get("checkpoint") for key, one in ours.items() if isinstance(one.get("inputs"), dict)}
    checkpoints = {key: _identified(name) for key, name in named.items() if isinstance(name, str)}
    return {**versions(), "checkpoints": {key: one for key, one in checkpoints.items() if one is not None}}


def _identified(name: str) -> dict[str, str] | None:
    """The checkpoint of a name of the loader's list; of one that is gone or broken the loader itself will speak."""
    try:
        found = chosen(name)
        return None if found is None else identified(name, found.files)
    except (ValueError, OSError):
        return None


def add_note(request: dict[str, Any]) -> dict[str, Any]:
    """A request that queues a prompt, with the note beside the workflow in what ComfyUI writes into pictures."""
    found = note(request.get("prompt"))
    if found is not None:
        extra = request.get("extra_data") or {}
        info = {**(extra.get("extra_pnginfo") or {}), KEY: found}
        request["extra_data"] = {**extra, "extra_pnginfo": info}
    return request
