"""Every text of the pack that a user reads in the page: schemas, locales, help pages, notes of the workflows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from . import nodepack
from .comfyhost import workflow

ROOT = nodepack.PACK
LOCALES = ROOT / "locales"
HELP = ROOT / "web" / "docs"
NODES = {name: node.GET_NODE_INFO_V1() for name, node in nodepack.nodes().items()}
LANGUAGES = ("en", "zh")


def inputs(node: str) -> dict[str, dict[str, Any]]:
    """Name to options of every input."""
    found = {}
    for group in ("required", "optional"):
        for name, (_, *options) in NODES[node]["input"].get(group, {}).items():
            found[name] = options[0] if options else {}
    return found


def described() -> dict[str, Any]:
    """The schemas' own text in the shape of a nodeDefs.json."""
    found = {}
    for node, info in NODES.items():
        outputs = zip(info["output_name"], info["output_tooltips"], strict=True)
        found[node] = {
            "display_name": info["display_name"],
            "description": info["description"],
            "inputs": {name: {"name": name, "tooltip": one.get("tooltip")} for name, one in inputs(node).items()},
            "outputs": {str(index): {"name": name, "tooltip": tip} for index, (name, tip) in enumerate(outputs)},
        }
    return found


def locale(language: str) -> dict[str, Any]:
    return json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))


def leaves(tree: Any, path: str = "") -> dict[str, Any]:
    """Dotted path to text of every leaf of a nodeDefs.json."""
    if not isinstance(tree, dict):
        return {path: tree}
    return {
        name: text for key, value in tree.items() for name, text in leaves(value, f"{path}.{key}".strip(".")).items()
    }


def page(node: str, language: str) -> Path:
    """The help page of a node. ComfyUI shows the English one in every language that has no page of its own."""
    return HELP / f"{node}.md" if language == "en" else HELP / node / f"{language}.md"


def pages(language: str) -> dict[str, str]:
    """The English page's path, which names the page in every language, to the text in `language`."""
    return {
        page(node, "en").relative_to(ROOT).as_posix(): page(node, language).read_text(encoding="utf-8")
        for node in NODES
    }


def notes() -> dict[str, str]:
    """Path to text of the notes in the example workflows."""
    found = {}
    for name in workflow.names():
        texts = [node["widgets_values"][0] for node in workflow.load(name)["nodes"] if node["type"] == "MarkdownNote"]
        found[f"workflows/{name}.json"] = "\n\n".join(texts)
    return found


def shown(language: str) -> dict[str, str]:
    """All texts in a language; what stands in a schema by its dotted path in nodeDefs.json, the rest by file."""
    schemas = described() if language == "en" else locale(language)
    return {**leaves(schemas), **pages(language), **(notes() if language == "en" else {})}
