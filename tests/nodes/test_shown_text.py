"""Text for the page: what HTML, links and odd bytes would make of it does not happen, and all else stays as it is."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from .. import nodepack

host = nodepack.part("nodes.host")


@pytest.mark.parametrize("text", ["1 < 2", "1<2", "a <= b", "<3", "AT&T", "a & b", "?a=1&b=2", "x > y", "", "<", "a&"])
def test_what_is_no_html_stays_untouched(text: str) -> None:
    assert host.without_html(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<b>", "<|b>"),
        ("a<b", "a<|b"),
        ("</b>", "<|/b>"),
        ("<!-- x", "<|!-- x"),
        ("<?x", "<|?x"),
        ("<<b", "<<|b"),
        ("&lt;", "&|lt;"),
        ("&ltb", "&|ltb"),
        ("&#60;", "&|#60;"),
        ("&#x3c;", "&|#x3c;"),
        ("?a&copy=1", "?a&|copy=1"),
    ],
)
def test_tags_and_entities_are_broken_by_something_invisible(text: str, shown: str) -> None:
    assert host.without_html(text) == shown.replace("|", "\u200b")
    assert host.without_html(host.without_html(text)) == host.without_html(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<b>", "<|b>"),
        ("[[x|y]]", "[|[x/y]]".replace("/", "\x7c")),
        ("[[[x", "[|[|[x"),
        ("![x](y)", "![x]|(y)"),
        ("[x][y] [y]: z", "[x]|[y] [y]|: z"),
        ("__LNK0__", "_|_LNK0__"),
        ("a \udcff.png", "a ?.png"),
        ("", " "),
    ],
)
def test_links_are_broken_too_on_nodes(monkeypatch: pytest.MonkeyPatch, text: str, shown: str) -> None:
    sent: list[tuple] = []
    server = SimpleNamespace(client_id="page", send_progress_text=lambda *message: sent.append(message))
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=server)))
    host.show_text(text, "7")
    assert sent == [(shown.replace("|", "\u200b").replace("x\u200by", "x|y"), "7", "page")]
