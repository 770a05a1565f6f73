"""The addresses under which the page finds the pack's templates."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from ..comfyhost.client import Client
from ..comfyhost.page import PACK
from ..comfyhost.server import Server
from ..comfyhost.templates import SLUGS, TEMPLATES

KEY = "describe-and-regenerate"


def template(client: Client, name: str, **headers: str) -> Any:
    return client.session.get(f"{client.url}/api/workflow_templates/{PACK}/{name}", headers=headers, timeout=60)


def words(answer: Any) -> list[str]:
    return [holder[key] for holder, key in TEMPLATES.texts(answer.json())]


@pytest.fixture
def in_chinese(client: Client) -> Iterator[None]:
    """The server's user has chosen Chinese."""
    before = client.get("settings").json()
    client.post("settings", {"Comfy.Locale": "zh"}).raise_for_status()
    yield
    client.post("settings", {"Comfy.Locale": before.get("Comfy.Locale", "en")}).raise_for_status()


def test_the_page_lists_every_template_once(client: Client) -> None:
    assert sorted(client.get("workflow_templates").json()[PACK]) == sorted(SLUGS.values())


@pytest.mark.parametrize("key", SLUGS)
def test_a_template_opens_under_its_title_its_short_title_and_its_old_name(client: Client, key: str) -> None:
    stem = SLUGS[key]
    saved = json.loads((TEMPLATES.FOLDER / f"{stem}.json").read_text(encoding="utf-8"))
    for name in (stem, TEMPLATES.slug(stem), key):
        answer = template(client, f"{name}.json", **{"Accept-Language": "en"})
        assert answer.status_code == 200, name
        assert answer.json() == saved
        assert answer.headers["Content-Type"].startswith("application/json")


def test_thumbnails_are_served_beside_the_templates(client: Client) -> None:
    for stem in SLUGS.values():
        assert template(client, f"{stem}.jpg").content == (TEMPLATES.FOLDER / f"{stem}.jpg").read_bytes()


def test_an_unknown_template_is_not_found(client: Client) -> None:
    assert template(client, "never-shipped.json").status_code == 404


@pytest.mark.usefixtures("in_chinese")
def test_a_chinese_user_gets_chinese_texts_and_the_same_prompts(client: Client) -> None:
    name = f"{SLUGS[KEY]}.json"
    chinese = template(client, name, **{"Accept-Language": "en"})
    assert words(chinese) == words(template(client, f"{KEY}.json"))
    assert any("\u4e00" <= letter <= "\u9fff" for letter in "".join(words(chinese)))
    prompts = [node["widgets_values"] for node in chinese.json()["nodes"] if node["type"] == "DimooTextEncode"]
    saved = json.loads((TEMPLATES.FOLDER / name).read_text(encoding="utf-8"))
    assert prompts == [node["widgets_values"] for node in saved["nodes"] if node["type"] == "DimooTextEncode"]


def test_example_pictures_lie_in_the_input_folder_of_a_new_comfyui(server: Server, client: Client) -> None:
    listed = client.object_info()["LoadImage"]["input"]["required"]["image"]
    options = listed[0] if isinstance(listed[0], list) else listed[1]["options"]
    assert {"dimoo-circle.png", "dimoo-inpaint.png", "dimoo-large.png"} <= set(options)
    assert len(list((server.folder / "input" / "dimoo-examples").glob("*.png"))) == 3
