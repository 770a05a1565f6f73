"""The pack's blueprints: whole jobs as one node, as files and as the server lists them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ..comfyhost import workflow
from ..comfyhost.client import Client
from ..comfyhost.page import PACK
from ..comfyhost.server import PACK as ROOT

FILES = sorted((ROOT / "subgraphs").glob("*.json"))
NAMES = ["DiMOO describe", "DiMOO edit", "DiMOO inpaint", "DiMOO text to picture"]
WORDS = {"DiMOO describe": {"question"}}
SIZE = {"DiMOO text to picture": {"width", "height"}, "DiMOO describe": {"max_tokens"}}
INPUT, OUTPUT = -10, -20  # the ends of a subgraph, as links name them


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="ascii"))  # 0.3.75 reads them in the system's own encoding


def inner(path: Path) -> dict[str, Any]:
    (subgraph,) = load(path)["definitions"]["subgraphs"]
    return subgraph


def outside(path: Path) -> set[str]:
    """The widgets on the outside of the one node."""
    (node,) = load(path)["nodes"]
    return {name for _, name in node["properties"]["proxyWidgets"]}


def test_there_is_a_blueprint_for_each_job() -> None:
    assert [path.stem for path in FILES] == NAMES


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_server_lists_the_blueprint_under_the_pack(client: Client, path: Path) -> None:
    listed = client.get("global_subgraphs").json()
    (key,) = [key for key, entry in listed.items() if entry["name"] == path.stem]
    assert listed[key]["info"]["node_pack"] == f"custom_nodes.{PACK}"
    assert json.loads(client.get(f"global_subgraphs/{key}").json()["data"]) == load(path)


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_its_node_bears_its_name_and_shows_words_size_seed_and_checkpoint(path: Path) -> None:
    (node,) = load(path)["nodes"]
    subgraph = inner(path)
    assert node["type"] == subgraph["id"]
    assert node.get("title", subgraph["name"]) == path.stem
    words, size = WORDS.get(path.stem, {"text", "negative"}), SIZE.get(path.stem, {"side"})
    assert words | size | {"seed", "control_after_generate", "checkpoint"} <= outside(path)


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_every_inner_node_and_every_widget_is_one_that_the_server_has(path: Path, object_info: dict[str, Any]) -> None:
    for node in inner(path)["nodes"]:
        known = workflow.declared(node, object_info)
        values = [name for name, _ in workflow.widgets(known)]
        assert len(node["widgets_values"]) == len(values), node["type"]
        declared = {name for group in known["input_order"].values() for name in group}
        assert {slot["name"] for slot in node["inputs"]} <= declared
        assert [slot["name"] for slot in node["outputs"]] == known["output_name"]


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_inner_nodes_hold_what_the_nodes_themselves_begin_with(path: Path, object_info: dict[str, Any]) -> None:
    """So that every number is the checkpoint's own, and choosing another checkpoint is enough."""
    for node in inner(path)["nodes"]:
        pairs = zip(workflow.widgets(workflow.declared(node, object_info)), node["widgets_values"], strict=True)
        assert all(value == default for (name, default), value in pairs if name not in ("", "edit_type")), node["type"]


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_no_inner_node_has_the_number_of_the_one_outside(path: Path) -> None:
    """Newer pages would give it another number, and not find the widgets any more that are shown outside."""
    (node,) = load(path)["nodes"]
    assert node["id"] not in [one["id"] for one in inner(path)["nodes"]]


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_every_link_joins_slots_that_are_there_and_of_one_type(path: Path) -> None:
    subgraph = inner(path)
    nodes = {node["id"]: node for node in subgraph["nodes"]}
    for link in subgraph["links"]:
        begins = subgraph if link["origin_id"] == INPUT else nodes[link["origin_id"]]
        ends = subgraph if link["target_id"] == OUTPUT else nodes[link["target_id"]]
        source = begins["inputs" if begins is subgraph else "outputs"][link["origin_slot"]]
        target = ends["outputs" if ends is subgraph else "inputs"][link["target_slot"]]
        assert source["type"] == target["type"] == link["type"]
        assert link["id"] in (source.get("linkIds") or source["links"])
        assert link["id"] in (target.get("linkIds") or [target["link"]])


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_what_is_shown_outside_is_there_inside(path: Path, object_info: dict[str, Any]) -> None:
    (node,) = load(path)["nodes"]
    subgraph = inner(path)
    there = {("-1", slot["name"]) for slot in subgraph["inputs"]}
    for one in subgraph["nodes"]:
        names = [name for name, _ in workflow.widgets(workflow.declared(one, object_info))]
        names = [name or "control_after_generate" for name in names]  # which the page puts behind a seed
        there |= {(str(one["id"]), name) for name in names}
    assert {tuple(one) for one in node["properties"]["proxyWidgets"]} <= there
