"""Turns a workflow as the page saves it into the form that ComfyUI's API takes, through the server's /object_info.

Saved workflows keep widget values by position, in the order in which a node declares its inputs, with one more value
behind each seed (what to do with it after a run) and behind each picture chooser (its upload button). Links win over
widgets, notes and muted nodes fall out. It is what the page does when one presses Run; a browser test compares the two.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .client import Client, Workflow
from .server import PACK
from .templates import SLUGS

FOLDER = PACK / "workflows"
AFTER = {"lora": "train-lora"}  # a workflow that uses what another has made
ONLY_ON_THE_CANVAS = {"Note", "MarkdownNote"}
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
SEEDS = {"seed", "noise_seed"}  # names that the page treats as seeds whether or not the node says so
ALWAYS, MUTED = 0, 2  # modes of a node
REWRITTEN = ("{", "%", "//", "/*")  # random choices, dates and comments, which the page resolves by itself

Saved = dict[str, Any]


def names() -> list[str]:
    """The short names of the workflows that the pack ships, in the order of their titles."""
    return list(SLUGS)


def path(name: str, suffix: str = ".json") -> Path:
    """The file of a workflow, or with ".jpg" its thumbnail, by its short name."""
    return FOLDER / f"{SLUGS[name]}{suffix}"


def load(name: str) -> Saved:
    return json.loads(path(name).read_text(encoding="utf-8"))


def make_ready(client: Client, name: str) -> None:
    """Run what a workflow uses the results of. Raises RuntimeError where that fails."""
    if name in AFTER:
        result = client.run(to_api(load(AFTER[name]), client.object_info()))
        if result.status != "success":
            raise RuntimeError(f"{AFTER[name]}, which {name} needs: {result.error()}")


def to_api(saved: Saved, object_info: dict[str, Any]) -> Workflow:
    """The API form. Raises ValueError for an unknown node type, a bypassed node, text that the page rewrites."""
    links = {link[0]: link for link in saved["links"]}
    kept = {node["id"] for node in saved["nodes"] if is_run(node)}
    return {
        str(node["id"]): {
            "inputs": {**widget_inputs(node, declared(node, object_info)), **linked_inputs(node, links, kept)},
            "class_type": node["type"],
            "_meta": {"title": node.get("title") or object_info[node["type"]]["display_name"] or node["type"]},
        }
        for node in saved["nodes"]
        if node["id"] in kept
    }


def is_run(node: Saved) -> bool:
    if node["mode"] not in (ALWAYS, MUTED):
        raise ValueError(f"Node {node['id']} ({node['type']}) is bypassed: its links would have to be rerouted.")
    return node["mode"] == ALWAYS and node["type"] not in ONLY_ON_THE_CANVAS


def declared(node: Saved, object_info: dict[str, Any]) -> dict[str, Any]:
    if node["type"] not in object_info:
        raise ValueError(f"Node {node['id']} is a {node['type']}, which this server does not have.")
    return object_info[node["type"]]


def linked_inputs(node: Saved, links: dict[int, list[Any]], kept: set[int]) -> dict[str, Any]:
    found = {}
    for slot in node.get("inputs", []):
        if slot.get("link") is not None:
            _, origin, origin_slot, *_ = links[slot["link"]]
            if origin in kept:
                found[slot["name"]] = [str(origin), origin_slot]
    return found


def widget_inputs(node: Saved, declaration: dict[str, Any]) -> dict[str, Any]:
    """A node's widget values by name; a value that an older file lacks is the declared default."""
    values = iter(node.get("widgets_values") or [])
    found = {name: next(values, default) for name, default in widgets(declaration)}
    for name, value in found.items():
        if isinstance(value, str) and any(mark in value for mark in REWRITTEN):
            raise ValueError(f"Node {node['id']} ({node['type']}): the page would rewrite the text of {name}.")
    return {name: value for name, value in found.items() if name}


def widgets(declaration: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Name and default of every value that a saved node keeps, in order; those that the API never sees have no name."""
    for group in ("required", "optional"):
        for name in declaration["input_order"].get(group, []):
            kind, options = (*declaration["input"][group][name], {})[:2]
            is_choice = isinstance(kind, list) or kind == "COMBO"
            if options.get("forceInput") or not (is_choice or kind in WIDGET_TYPES):
                continue
            yield name, options.get("default", first_choice(kind, options) if is_choice else None)
            if options.get("control_after_generate") or (kind == "INT" and name in SEEDS):
                yield "", "fixed"
            if options.get("image_upload"):
                yield "", "image"


def first_choice(kind: Any, options: dict[str, Any]) -> Any:
    choices = kind if isinstance(kind, list) else options.get("options", [])
    return choices[0] if choices else None


def node_of(prompt: Workflow, kind: str) -> str:
    """The id of the one node of a type in a prompt; raises ValueError unless there is exactly one."""
    found = [node for node, content in prompt.items() if content["class_type"] == kind]
    if len(found) != 1:
        raise ValueError(f"The prompt has {len(found)} nodes of type {kind}; exactly one was expected.")
    return found[0]
