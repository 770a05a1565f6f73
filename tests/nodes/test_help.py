"""Tooltips, help pages and locales: all of every node is explained, in English and Chinese, and nothing that is gone.

The English locale is the schemas' own text: with DIMOO_UPDATE_SNAPSHOT set it is written again. All else is written by
hand; what is missing or too much is named, file by file.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from PIL import Image

from .. import nodepack
from ..texts import HELP, LOCALES, NODES, ROOT, described, leaves, locale, page

CHINESE = re.compile("[\u4e00-\u9fff]")
COLONS, BRACKETS = ":\uff1a", ("\uff08", "\uff09")  # the latter, and the second colon, as Chinese has them
PICTURE_BYTES = 30_000


def sections(path: Path) -> list[str]:
    """What comes before the first heading, and then each heading with what is below it."""
    return re.split(r"^(?=## )", path.read_text(encoding="utf-8"), flags=re.MULTILINE)


def explained(section: str) -> list[str]:
    """The heads of a section's entries: what stands before the colon of every `- ... :` at the margin."""
    return [head for line in section.splitlines() for head in re.findall(rf"^- ([^{COLONS}]*)[{COLONS}]", line)]


def all_are_named(path: Path, section: str, wanted: dict[str, str]) -> list[str]:
    """What is wrong with a list of inputs or outputs; `wanted`: name to the label that the page shows, if another."""
    heads, wrong = " ".join(explained(section)), []
    for name, label in wanted.items():
        entry = f"`{name}`" if label == name else f"**{label}**{BRACKETS[0]}`{name}`{BRACKETS[1]}"
        if entry not in heads:
            wrong.append(f"{path.relative_to(ROOT)}, {section.splitlines()[0]}: no entry for {entry}")
    gone = set(re.findall(r"`([^`]+)`", heads)) - set(wanted)
    return [
        *wrong,
        *(f"{path.relative_to(ROOT)}, {section.splitlines()[0]}: `{name}` is gone" for name in sorted(gone)),
    ]


def labels(node: str, kind: str, language: str) -> dict[str, str]:
    """Names of the inputs or outputs of a node, and what the page calls them in a language."""
    names, known = described()[node][kind], locale(language).get(node, {}).get(kind, {})
    return {one["name"]: known.get(key, {}).get("name", one["name"]) for key, one in names.items()}


def test_every_node_input_and_output_is_explained_in_its_schema() -> None:
    assert not [path for path, text in leaves(described()).items() if not text]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_node_has_a_help_page_that_names_all_inputs_and_outputs(language: str) -> None:
    wrong = []
    for node in NODES:
        path = page(node, language)
        if not path.is_file():
            wrong.append(f"{path.relative_to(ROOT)} is missing")
            continue
        parts = sections(path)
        if len(parts) != 4:
            wrong.append(
                f"{path.relative_to(ROOT)} has {len(parts) - 1} headings, not inputs, outputs, what to try next"
            )
            continue
        wrong += all_are_named(path, parts[1], labels(node, "inputs", language))
        wrong += all_are_named(path, parts[2], labels(node, "outputs", language))
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_help_page_begins_with_a_small_picture_and_words_for_it(language: str) -> None:
    wrong = []
    for node in NODES:
        path = page(node, language)
        found = re.match(r"!\[(.{10,})\]\((\S+)\)\n", path.read_text(encoding="utf-8"))
        # ComfyUI's page takes what a link names from docs/, in whatever folder below it the help page lies
        picture = HELP / found[2] if found else None
        if picture is None or not picture.is_file() or picture.stat().st_size > PICTURE_BYTES:
            wrong.append(f"{path.relative_to(ROOT)} shows no picture of at most {PICTURE_BYTES} bytes first")
        elif Image.open(picture).width > 720:
            wrong.append(f"{picture.relative_to(ROOT)} is wider than 720 px")
    assert not wrong, "\n" + "\n".join(wrong)


def test_there_is_no_help_for_nodes_that_are_gone_and_no_script_for_the_page_to_run() -> None:
    wanted = {page(node, language) for node in NODES for language in ("en", "zh")}
    pictures = {HELP / found for path in wanted for found in re.findall(r"!\[.*?\]\((\S+)\)", path.read_text("utf-8"))}
    assert {path for path in (ROOT / "web").rglob("*") if path.is_file()} == wanted | pictures


def test_the_english_locale_is_the_schemas_own_text() -> None:
    if os.environ.get("DIMOO_UPDATE_SNAPSHOT"):
        written = json.dumps(described(), indent=2, ensure_ascii=False) + "\n"
        (LOCALES / "en" / "nodeDefs.json").write_text(written, encoding="utf-8")
    wanted, there = leaves(described()), leaves(locale("en"))
    differ = sorted(path for path in wanted.keys() | there.keys() if wanted.get(path) != there.get(path))
    assert not differ, f"{', '.join(differ)}: if the schemas are right, run once with DIMOO_UPDATE_SNAPSHOT=1."


def test_the_chinese_locale_has_all_that_the_english_one_has_and_no_more() -> None:
    wanted, there = leaves(described()), leaves(locale("zh"))
    missing, gone = [path for path in wanted if not there.get(path)], sorted(there.keys() - wanted.keys())
    assert not missing, "locales/zh/nodeDefs.json lacks " + ", ".join(missing)
    assert not gone, "locales/zh/nodeDefs.json still has " + ", ".join(gone)
    sentences = [path for path in wanted if path.rpartition(".")[2] in ("description", "tooltip")]
    assert not [path for path in sentences if not CHINESE.search(there[path])], "not in Chinese"


def test_every_node_is_found_by_other_names_than_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """`search_aliases` reach ComfyUI where it knows them; here a schema that does."""
    host, given = nodepack.part("nodes.host"), {}
    monkeypatch.setattr(host, "schema", lambda **fields: given.update({fields["node_id"]: fields}))
    for node in nodepack.part("nodes").NODES:
        node.define_schema()
    assert list(given) == list(NODES)
    few = [name for name, fields in given.items() if len(set(fields.get("search_aliases", []))) < 2]
    assert not few, f"fewer than two search_aliases: {', '.join(few)}"
    for name, fields in given.items():
        own = fields["display_name"].lower()
        assert all(alias == alias.lower() and alias not in own for alias in fields["search_aliases"]), name


def test_the_registry_gets_help_and_locales() -> None:
    """A bare folder name in .comfyignore would match at any depth, and web/docs is a `docs` too."""
    lines = (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()
    assert all(line.startswith(("/", "#")) for line in lines if line)
    assert not {"/web/", "/locales/"} & set(lines)
