"""The templates of the pack as the page asks for them: each under short names that stay, whatever its file is called,
and in the language of the page; and the pictures that they begin with. Nothing in this file needs ComfyUI."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

PACK = Path(__file__).parent.parent
FOLDER = PACK / "workflows"
# Not a name such as `examples`: ComfyUI takes those for folders of templates, and serves one of them only.
EXAMPLES = PACK / "example_pictures"
NOTES = ("Note", "MarkdownNote")
BREAK = "\n\n"  # between the paragraphs of a note

# The name that a template has always opened under -> its file without .json, which is the title that the page shows.
SLUGS = {
    "text-to-image": "01 Text to image",
    "variations": "02 Variations on one sheet",
    "edit": "03 Edit a picture",
    "inpaint": "04 Inpaint",
    "outpaint": "05 Outpaint",
    "describe": "06 Describe a picture",
    "control": "07 Control, maps and pictures from maps",
    "crop-and-stitch": "08 Inpaint in a large picture",
    "describe-and-regenerate": "09 Describe and regenerate",
    "best-of": "10 Best of a batch",
    "caption": "11 Caption a batch",
    "caption-folder": "12 Caption a folder",
    "two-jobs": "13 Two jobs from one model",
    "text-to-image-ml-cache": "14 Text to image, faster with ML-Cache",
    "train-lora": "15 Train a LoRA",
    "lora": "16 Use a LoRA",
}


def slug(stem: str) -> str:
    """A title as addresses have it: "04 Inpaint, large" -> "inpaint-large"."""
    return "-".join(stem.lower().replace(",", "").split()[1:])


def addresses() -> Iterator[tuple[str, Callable[[str], bytes]]]:
    """Paths on the server, with a function from a language to the JSON that is there; three paths per template.

    The page's own addresses (?template=NAME) take letters, digits, dots and hyphens only, and no title has these alone.
    """
    for key, stem in SLUGS.items():
        for name in dict.fromkeys((stem, slug(stem), key)):
            yield f"/workflow_templates/{PACK.name}/{name}.json", partial(content, stem)


def content(stem: str, language: str) -> bytes:
    """A template's file with the texts that a language has. Raises FileNotFoundError where it is gone."""
    saved = (FOLDER / f"{stem}.json").read_bytes()
    words = PACK / "locales" / language / "templates.json"
    if not language.isalpha() or not words.is_file():
        return saved
    told = translated(json.loads(saved), json.loads(words.read_text(encoding="utf-8")))
    return json.dumps(told, ensure_ascii=False).encode()


def translated(workflow: dict[str, Any], words: dict[str, str]) -> dict[str, Any]:
    """A saved workflow with the paragraphs of its texts replaced by `words`; one that is not among them stays."""
    for holder, name in texts(workflow):
        holder[name] = BREAK.join(words.get(part.strip(), part) for part in holder[name].split(BREAK))
    return workflow


def texts(workflow: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Where a saved workflow has words for its reader, as (holder, key): titles of groups and nodes, notes, and names
    that it gives to inputs; not prompts, which the model reads."""
    for part in (workflow, *workflow.get("definitions", {}).get("subgraphs", [])):
        yield from ((group, "title") for group in part["groups"])
        yield from ((node, "title") for node in part["nodes"] if "title" in node)
        yield from ((node["widgets_values"], 0) for node in part["nodes"] if node["type"] in NOTES)
        yield from ((slot, "label") for node in part["nodes"] for slot in node.get("inputs", ()) if "label" in slot)
