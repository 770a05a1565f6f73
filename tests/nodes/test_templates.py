"""The templates' names, their Chinese, and the example pictures, as files and as the host hands them out."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import folder_paths
import pytest
from aiohttp import web
from PIL import Image, ImageChops

from .. import nodepack
from ..comfyhost.examples import EXAMPLES
from ..comfyhost.templates import SLUGS, TEMPLATES
from ..readonly import read_only

RELEASED = (
    *("best-of", "caption", "control", "crop-and-stitch", "describe", "describe-and-regenerate", "edit", "inpaint"),
    *("lora", "outpaint", "text-to-image", "text-to-image-ml-cache", "train-lora"),
)
CHINESE = TEMPLATES.PACK / "locales" / "zh" / "templates.json"
host = nodepack.part("nodes.host")


def saved(stem: str) -> dict[str, Any]:
    return json.loads((TEMPLATES.FOLDER / f"{stem}.json").read_text(encoding="utf-8"))


def words(workflow: dict[str, Any]) -> list[str]:
    """Titles and the paragraphs of notes."""
    return [part.strip() for holder, key in TEMPLATES.texts(workflow) for part in holder[key].split(TEMPLATES.BREAK)]


def test_every_template_has_a_name_and_every_name_a_template() -> None:
    assert sorted(path.stem for path in TEMPLATES.FOLDER.glob("*.json")) == sorted(SLUGS.values())


def test_released_names_stay() -> None:
    assert set(RELEASED) <= SLUGS.keys()


def test_titles_are_numbered_in_order_from_the_simplest() -> None:
    numbers = [int(stem[:2]) for stem in SLUGS.values()]
    assert numbers == list(range(1, len(SLUGS) + 1))
    assert all(re.fullmatch(r"\d\d [A-Z].*[^ ]", stem) for stem in SLUGS.values())


def test_names_can_stand_in_an_address_and_no_two_templates_share_one() -> None:
    paths = [path for path, _ in TEMPLATES.addresses()]
    assert len(set(paths)) == len(paths)
    short = {TEMPLATES.slug(stem) for stem in SLUGS.values()} | SLUGS.keys()
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+", name) for name in short)
    assert {f"/workflow_templates/{TEMPLATES.PACK.name}/{name}.json" for name in short} <= set(paths)


def test_every_text_of_every_template_has_a_chinese_one_and_none_is_left_over() -> None:
    chinese = json.loads(CHINESE.read_text(encoding="utf-8"))
    english = {text for stem in SLUGS.values() for text in words(saved(stem))}
    assert not english - chinese.keys()
    assert not chinese.keys() - english
    assert all(re.search("[\u4e00-\u9fff]", text) for text in chinese.values())


@pytest.mark.parametrize("stem", SLUGS.values())
def test_a_chinese_template_differs_in_its_texts_alone(stem: str) -> None:
    english, chinese = saved(stem), json.loads(TEMPLATES.content(stem, "zh"))
    assert all(first != second for first, second in zip(words(english), words(chinese), strict=True))
    for holder, key in (*TEMPLATES.texts(english), *TEMPLATES.texts(chinese)):
        holder[key] = ""
    assert chinese == english


@pytest.mark.parametrize("language", ["en", "fr", "", "..", "../zh", "zh/../zh"])
def test_other_languages_get_the_file_as_it_is(language: str) -> None:
    stem = SLUGS["describe"]
    assert TEMPLATES.content(stem, language) == (TEMPLATES.FOLDER / f"{stem}.json").read_bytes()


def test_titles_and_notes_inside_a_subgraph_are_texts_too() -> None:
    inside = {"groups": [{"title": "G"}], "nodes": [{"type": "Note", "title": "N", "widgets_values": ["words"]}]}
    workflow = {"groups": [], "nodes": [{"type": "x"}], "definitions": {"subgraphs": [inside]}}
    assert words(workflow) == ["G", "N", "words"]


def test_a_name_that_a_template_gives_to_an_input_is_a_text_too() -> None:
    inputs = [{"name": "vq"}, {"name": "seed", "widget": {"name": "seed"}, "label": "map seed"}]
    assert words({"groups": [], "nodes": [{"type": "DimooSampler", "inputs": inputs}]}) == ["map seed"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_pictures_are_those_that_are_drawn(name: str) -> None:
    with Image.open(TEMPLATES.EXAMPLES / name) as picture:
        assert ImageChops.difference(picture.convert("RGBA"), EXAMPLES[name].draw().convert("RGBA")).getbbox() is None
        assert picture.mode == ("RGB" if EXAMPLES[name].hole is None else "RGBA")


def test_example_pictures_are_few_and_small() -> None:
    files = [path for path in TEMPLATES.EXAMPLES.rglob("*") if path.is_file()]
    assert sorted(path.relative_to(TEMPLATES.EXAMPLES).as_posix() for path in files) == sorted(EXAMPLES)
    assert sum(path.stat().st_size for path in files) < 20_000


@pytest.fixture
def fake_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server that is not running, with ComfyUI's own settings of its users."""
    server = SimpleNamespace(routes=web.RouteTableDef(), client_id=None)
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=server)))
    yield server


def given_to(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_paths, "input_directory", str(folder))
    host.give_examples(TEMPLATES.EXAMPLES)


@pytest.mark.usefixtures("fake_server")
def test_missing_examples_come_into_the_input_folder_and_what_is_there_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "dimoo-circle.png"
    own.write_bytes(b"the user's own")
    given_to(tmp_path, monkeypatch)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")) == sorted(EXAMPLES)
    assert own.read_bytes() == b"the user's own"
    given = tmp_path / "dimoo-examples" / "star.png"
    assert given.read_bytes() == (TEMPLATES.EXAMPLES / "dimoo-examples" / "star.png").read_bytes()


@pytest.mark.usefixtures("fake_server")
def test_a_read_only_input_folder_is_one_line_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    host._logged.clear()
    with read_only(lambda folder: None) as folder, caplog.at_level(logging.INFO):
        given_to(folder, monkeypatch)
        given_to(folder, monkeypatch)
    assert len(caplog.messages) == 1 and str(folder) in caplog.text


def test_a_program_without_a_server_gets_no_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given_to(tmp_path, monkeypatch)
    assert not list(tmp_path.iterdir())


def language(server: Any, **headers: str) -> str:
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return host._language(server, SimpleNamespace(headers=named))


@pytest.fixture
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_server: Any) -> Any:
    """ComfyUI with --multi-user; one has chosen Chinese, two nothing."""
    import comfy.cli_args
    from app.user_manager import UserManager

    monkeypatch.setattr(comfy.cli_args.args, "multi_user", True)
    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path))
    fake_server.user_manager = UserManager()
    fake_server.user_manager.users = {"one": "One", "two": "Two"}
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "comfy.settings.json").write_text('{"Comfy.Locale": "zh"}')
    return fake_server


def test_the_language_is_that_of_the_user_who_asks(users: Any) -> None:
    assert language(users, comfy_user="one", Accept_Language="en-GB,en") == "zh"
    assert language(users, comfy_user="two", Accept_Language="zh-CN,zh;q=0.9,en;q=0.8") == "zh"
    assert language(users, comfy_user="two", Accept_Language="en-GB,zh;q=0.9") == "en"
    assert language(users, comfy_user="two") == ""


def test_a_user_whom_nobody_knows_is_answered_in_the_browsers_language(users: Any) -> None:
    assert language(users, comfy_user="nobody", Accept_Language="zh") == "zh"
    assert language(users) == ""


def test_answers_in_words_are_a_file_too_which_app_mode_can_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_server: Any
) -> None:
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    shown = host.said(["\u4e00 star", "a circle"])
    assert shown["text"] == ["\u4e00 star", "a circle"]
    (file,) = shown["files"]
    assert (file["type"], file["subfolder"]) == ("temp", "")
    assert (tmp_path / "temp" / file["filename"]).read_text(encoding="utf-8") == "\u4e00 star\n\na circle"


def test_without_a_server_words_are_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    assert host.said(["a star"]) == {"text": ["a star"]}
    assert not list(tmp_path.iterdir())


def test_a_temporary_folder_that_cannot_be_written_costs_the_file_alone(
    monkeypatch: pytest.MonkeyPatch, fake_server: Any
) -> None:
    with read_only(lambda folder: None) as folder:
        monkeypatch.setattr(folder_paths, "temp_directory", str(folder))
        assert host.said(["a star"]) == {"text": ["a star"]}


def test_a_folder_name_that_would_be_a_pattern_gets_no_routes(fake_server: Any) -> None:
    host.serve_json("/workflow_templates/{any}/edit.json", lambda language: b"{}")
    assert not list(fake_server.routes)
