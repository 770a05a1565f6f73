"""The pack's templates in a Chinese page."""

from __future__ import annotations

import json
from typing import Any

from ..comfyhost.page import PACK, READY, begin
from ..comfyhost.server import Server
from ..comfyhost.templates import SLUGS, TEMPLATES

KEY = "describe-and-regenerate"
TEXTS = """() => [...app.graph.groups, ...app.graph.nodes].map(({ title }) => title)
    .concat(app.graph.nodes.filter(({ type }) => type === 'MarkdownNote').map(({ widgets }) => widgets[0].value))"""
OPENED = "app.graph.nodes.some(({ type }) => type === 'DimooDescribe')"


def test_titles_and_notes_of_a_template_are_chinese_in_a_chinese_page(window: Any, server: Server) -> None:
    begin(window, server.url, **{"Comfy.Locale": "zh"})
    window.goto(f"{server.url}/?template={KEY}&source={PACK}")
    window.wait_for_function(READY)
    window.wait_for_function(OPENED)
    texts = TEMPLATES.texts(json.loads(TEMPLATES.content(SLUGS[KEY], "zh")))
    assert {holder[key] for holder, key in texts} <= set(window.evaluate(TEXTS))
    begin(window, server.url)  # in English again
