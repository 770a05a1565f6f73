"""Help pages, their pictures and the translations, as a running ComfyUI gives them to its page."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ..comfyhost.client import Client

LANGUAGES = {"en": "{}.md", "zh": "{}/zh.md"}  # where ComfyUI's page looks; English last, for every language


@pytest.fixture
def ours(object_info: dict[str, Any]) -> dict[str, Any]:
    return {name: entry for name, entry in object_info.items() if name.startswith("Dimoo")}


def test_the_page_finds_help_and_its_picture_for_every_node(client: Client, ours: dict[str, Any]) -> None:
    for name, entry in ours.items():
        folder = entry["python_module"].split(".")[1]
        for path in LANGUAGES.values():
            text = client.get(f"extensions/{folder}/docs/{path.format(name)}").content.decode("utf-8")
            (picture,) = re.findall(r"!\[.*?\]\((\S+)\)", text)
            # the page puts docs/ before what a link names, in whatever folder below it the text lies
            assert client.get(f"extensions/{folder}/docs/{picture}").headers["Content-Type"] == "image/jpeg"


def test_the_page_is_given_no_script_to_run(client: Client, ours: dict[str, Any]) -> None:
    folder = next(iter(ours.values()))["python_module"].split(".")[1]
    assert not [path for path in client.get("extensions").json() if path.startswith(f"/extensions/{folder}/")]


def test_the_page_is_given_the_translations_of_every_node(client: Client, ours: dict[str, Any]) -> None:
    known = client.get("i18n").json()
    for language in LANGUAGES:
        assert ours.keys() <= known[language]["nodeDefs"].keys()
    for name, entry in ours.items():
        english = known["en"]["nodeDefs"][name]
        assert (english["display_name"], english["description"]) == (entry["display_name"], entry["description"])
