"""What the server says about our nodes. Saved workflows keep widget values by position: nodes only grow at the end."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

SNAPSHOT = Path(__file__).parents[1] / "snapshots" / "nodes.json"
KEPT_OPTIONS = ("default", "min", "max", "step", "options", "multiline", "control_after_generate")


def summary(declaration: dict[str, Any]) -> dict[str, Any]:
    """What saved workflows depend on, in the order in which it counts."""
    inputs = []
    for group, names in declaration["input_order"].items():
        for name in names:
            kind, options = (*declaration["input"].get(group, {}).get(name, [""]), {})[:2]
            kept = {key: options[key] for key in KEPT_OPTIONS if key in options}
            if isinstance(kind, list):
                kind, kept["options"] = "COMBO", kind
            if name in ("checkpoint", "folder", "lora"):
                kept.pop("options")  # depends on the files in the model or input folders
            if group != "hidden":
                inputs.append({"name": name, "group": group, "type": kind, **kept})
    outputs = zip(declaration["output_name"], declaration["output"], declaration["output_is_list"], strict=True)
    return {
        "category": declaration["category"],
        "output_node": declaration["output_node"],
        "inputs": inputs,
        "outputs": [{"name": name, "type": kind, "list": is_list} for name, kind, is_list in outputs],
    }


@pytest.fixture(scope="module")
def nodes(object_info: dict[str, Any]) -> dict[str, Any]:
    """Our nodes as the server describes them now."""
    return {name: summary(entry) for name, entry in object_info.items() if name.startswith("Dimoo")}


@pytest.fixture(scope="module")
def snapshot(nodes: dict[str, Any]) -> dict[str, Any]:
    """Our nodes as recorded; with DIMOO_UPDATE_SNAPSHOT set they are recorded again."""
    if os.environ.get("DIMOO_UPDATE_SNAPSHOT"):
        SNAPSHOT.parent.mkdir(exist_ok=True)
        SNAPSHOT.write_text(json.dumps(nodes, indent=1) + "\n", encoding="utf-8")
    return json.loads(SNAPSHOT.read_text(encoding="utf-8"))


def test_nodes_are_as_recorded(nodes: dict[str, Any], snapshot: dict[str, Any]) -> None:
    assert nodes == snapshot, "If this change is intended and only adds, run once with DIMOO_UPDATE_SNAPSHOT=1."


def test_the_pack_has_the_nodes_of_the_design(nodes: dict[str, Any]) -> None:
    assert set(nodes) >= {
        *("DimooLoader", "DimooTextEncode", "DimooEmptyCanvas", "DimooImageEdit", "DimooMaskPaint"),
        *("DimooCacheSettings", "DimooSampler", "DimooVQEncode", "DimooVQDecode", "DimooDescribe"),
    }


def test_every_input_and_output_has_a_tooltip(object_info: dict[str, Any]) -> None:
    silent = []
    for name, entry in object_info.items():
        if name.startswith("Dimoo"):
            for group in ("required", "optional"):
                for key, (_, *options) in entry["input"].get(group, {}).items():
                    if not (options and options[0].get("tooltip")):
                        silent.append(f"{name}.{key}")
            tips = entry.get("output_tooltips") or [None] * len(entry["output"])
            silent += [f"{name} -> {output}" for output, tip in zip(entry["output_name"], tips, strict=True) if not tip]
    assert not silent


def test_checkpoints_in_the_model_folder_are_listed(object_info: dict[str, Any]) -> None:
    kind, *options = object_info["DimooLoader"]["input"]["required"]["checkpoint"]
    assert "tiny" in (kind if isinstance(kind, list) else options[0]["options"])
