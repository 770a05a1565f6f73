"""Help in the real page: a node's own text and picture, in the language that is set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ..comfyhost import workflow
from ..comfyhost.client import Client
from ..comfyhost.page import open_page
from ..comfyhost.server import PACK, Server

HELP = PACK / "web" / "docs"
SELECT = "type => app.canvas.selectNodes([app.graph.nodes.find(node => node.type === type)])"
PICTURE = "() => document.querySelector('.node-help-content img')?.naturalWidth > 0"


@pytest.fixture(params=[("en", "DimooSampler.md"), ("zh", "DimooSampler/zh.md")], ids=["en", "zh"])
def page_and_text(request: pytest.FixtureRequest, chromium: Any, server: Server) -> Iterator[tuple[Any, str]]:
    """The page in a language, and a line of the help that it should show."""
    language, file = request.param
    client = Client(server.url)
    client.post("settings", {"Comfy.Locale": language})
    page = open_page(chromium, server.url)
    yield page, (HELP / file).read_text(encoding="utf-8").splitlines()[2]
    page.context.close()
    client.post("settings", {"Comfy.Locale": "en"})


def test_the_sampler_explains_itself_with_a_picture(page_and_text: tuple[Any, str]) -> None:
    page, first = page_and_text
    page.evaluate("saved => app.loadGraphData(saved)", workflow.load("text-to-image"))
    page.evaluate(SELECT, "DimooSampler")
    page.locator("[data-testid='info-button']").first.dispatch_event("click")
    page.wait_for_function(PICTURE)
    assert first in page.locator(".node-help-content").inner_text()
