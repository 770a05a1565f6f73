"""Metadata of saved pictures: the versions, the checkpoints and the LoRAs that made them.

ComfyUI writes prompt and workflow into its pictures, which hold every setting, but neither the version of a pack nor
which weights the name of a checkpoint or a LoRA stood for. Both are added under a key of their own. That happens when a
prompt is queued and not when a node runs: a cached result of an earlier prompt does not run again, but is saved all the
same. Only a run can tell how the branches of guidance went through a model; it is kept for the prompts that follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ..dimoo_core.checkpoint.adapter_file import adapter_files
from ..dimoo_core.jobs import Placement
from ..dimoo_core.provenance import KEY, fingerprint, identified, versions
from .checkpoints import QUANTISED, chosen
from .lora import Lora, resolve
from .sockets import LoadedModel

_branches: dict[str, str] = {}  # how they went through a checkpoint's layers, by its fingerprint


def metadata(prompt: Any) -> dict[str, Any] | None:
    """Versions, and per node the checkpoint or the LoRA that it names, for a prompt in API form; None where no node is
    ours. What is gone or broken is left out: the node that names it will say so."""
    nodes = prompt.items() if isinstance(prompt, dict) else ()
    ours = {key: one for key, one in nodes if isinstance(one, dict) and str(one.get("class_type")).startswith("Dimoo")}
    if not ours:
        return None
    inputs = {key: one["inputs"] for key, one in ours.items() if isinstance(one.get("inputs"), dict)}
    checkpoints = {key: _checkpoint(one) for key, one in inputs.items()}
    loras = {key: _lora(one) for key, one in inputs.items() if ours[key]["class_type"] == Lora.GET_SCHEMA().node_id}
    told = {**versions(), "checkpoints": _with_branches(_known(checkpoints))}
    return told | {"loras": _known(loras)} if _known(loras) else told


def note_checkpoints(info: Any, prompt: Any) -> None:
    """Adds checkpoints that were downloaded or converted since the prompt was queued to what ComfyUI writes into its
    pictures. `info` and `prompt` are what a node gets as `extra_pnginfo` and `prompt`."""
    told, now = _told(info), metadata(prompt)
    if told is not None and now is not None:
        told["checkpoints"] = now["checkpoints"]


def note_branches(info: Any, model: LoadedModel, placement: Placement) -> None:
    """Adds how the branches of guidance go through a model that was placed to what ComfyUI writes into the pictures of
    the prompt that runs: it decides how bf16 rounds. `info` is what a node gets as `extra_pnginfo`."""
    try:
        _branches[fingerprint(model.found.files)] = "together" if placement.packed else "one by one"
    except OSError:  # the files are gone; the weights are loaded
        return
    told = _told(info)
    if told is not None:
        told["checkpoints"] = _with_branches(told["checkpoints"])


def _told(info: Any) -> dict[str, Any] | None:
    """What `add_note` wrote for a prompt; a client may send the key itself."""
    told = info.get(KEY) if isinstance(info, dict) else None
    return told if isinstance(told, dict) and told.keys() >= {*versions(), "checkpoints"} else None


def _with_branches(checkpoints: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    ways = {key: _branches.get(one["fingerprint"]) for key, one in checkpoints.items()}
    return {key: one if ways[key] is None else one | {"branches": ways[key]} for key, one in checkpoints.items()}


def _known(found: Mapping[str, dict[str, Any] | None]) -> dict[str, dict[str, Any]]:
    return {key: one for key, one in found.items() if one is not None}


def _identified(name: Any, files: Callable[[str], Iterable[Path] | None]) -> dict[str, str] | None:
    try:
        found = files(name) if isinstance(name, str) else None
        return None if found is None else identified(name, found)
    except (ValueError, OSError):
        return None


def _checkpoint(inputs: Mapping[str, Any]) -> dict[str, str] | None:
    """Name and fingerprint of what a loader loads; None where it is still to be downloaded or converted."""
    name, weight_dtype = inputs.get("checkpoint"), inputs.get("weight_dtype", "auto")
    if not isinstance(name, str) or not isinstance(weight_dtype, str):  # it comes from another node
        return None
    try:
        found = chosen(name, weight_dtype)
        shown = found.path.name if found is not None and weight_dtype in QUANTISED else name
        return None if found is None else identified(shown, found.files)
    except (ValueError, OSError):
        return None


def _lora(inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Name, fingerprint and strength of a LoRA that acts; one that a node trained has that node's key instead, whose
    settings stand in the prompt."""
    strength = {"strength": inputs.get("strength")}
    if strength["strength"] == 0:
        return None
    trained = inputs.get("lora_model")
    if isinstance(trained, list) and trained:
        return {"trained_by": trained[0], **strength}
    found = _identified(inputs.get("lora"), lambda name: adapter_files(resolve(name)))
    return None if found is None else found | strength


def add_note(request: dict[str, Any]) -> dict[str, Any]:
    """A request that queues a prompt, with our metadata beside the workflow in what ComfyUI writes into pictures."""
    found = metadata(request.get("prompt"))
    if found is not None:
        extra = request.get("extra_data") or {}
        info = {**(extra.get("extra_pnginfo") or {}), KEY: found}
        request["extra_data"] = {**extra, "extra_pnginfo": info}
    return request
