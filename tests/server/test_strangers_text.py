"""What strangers wrote, as the server sends it: harmless to the page that shows it, untouched everywhere else."""

from __future__ import annotations

import html
from collections.abc import Iterator
from html.parser import HTMLParser

import pytest

from .. import strangers
from ..comfyhost.client import Client
from ..comfyhost.server import Server


@pytest.fixture(autouse=True)
def given(server: Server) -> Iterator[None]:
    with strangers.gifts(server.folder):
        yield


class Tags(HTMLParser):
    """Collects the tags and comments that a page finds in text which it takes for HTML."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=False)
        self.found: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, _: object) -> None:
        self.found.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self.found.append(tag)

    def handle_comment(self, data: str) -> None:
        self.found.append(data)


def test_text_on_nodes_holds_no_html_and_reads_as_written(client: Client) -> None:
    result = client.run(strangers.prompt())
    assert result.status == "success", result.error()
    sent = {event.data["node"]: event.data["text"] for event in result.named("text")}
    expected = {
        "describe": strangers.SAYS,
        "best": f"picture 1: 50.0%  {strangers.SAYS}",
        "folder": f"{strangers.FOLDER}/{strangers.FILE}: {strangers.SAYS}",
    }
    assert {node: text.replace("\u200b", "") for node, text in sent.items()} == expected
    assert Tags(strangers.SAYS).found[:3] == ["img", "b", "b"], "this test would notice nothing"
    assert not any(Tags(text).found or html.unescape(text) != text for text in sent.values())
    assert not any(mark in text for text in sent.values() for mark in ("[[", "](", "__LNK"))


def test_what_flows_on_and_is_saved_is_exact(server: Server, client: Client) -> None:
    before = set((server.folder / "output").glob("said_*.txt"))
    result = client.run(strangers.prompt())
    assert result.outputs["describe"]["text"] == result.outputs["save"]["text"] == [strangers.SAYS]
    assert result.outputs["folder"]["text"] == [f"{strangers.FOLDER}/{strangers.FILE}: {strangers.SAYS}"]
    (file,) = set((server.folder / "output").glob("said_*.txt")) - before
    assert file.read_text(encoding="utf-8") == strangers.SAYS + "\n"


def test_lists_hold_no_html_and_both_spellings_of_a_name_are_taken(client: Client) -> None:
    lists = [
        client.object_info("DimooLoader")["DimooLoader"]["input"]["required"]["checkpoint"][1]["options"],
        client.object_info("DimooCaptionFolder")["DimooCaptionFolder"]["input"]["required"]["folder"][1]["options"],
    ]
    assert not any(Tags(name).found for names in lists for name in names)
    (listed,) = {name for names in lists for name in names if name.replace("\u200b", "") == strangers.FOLDER}
    for name in (strangers.FOLDER, listed):
        assert client.run(strangers.prompt(name)).status == "success"
