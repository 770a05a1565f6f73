"""Help in the real page: a node's own text and picture, in the language that is set."""

from __future__ import annotations

from typing import Any

import pytest

from ..comfyhost import workflow
from ..comfyhost.page import begin
from ..comfyhost.server import PACK, Server

HELP = PACK / "web" / "docs"
SELECT = "type => app.canvas.selectNodes([app.graph.nodes.find(node => node.type === type)])"
PICTURE = "() => document.querySelector('.node-help-content img')?.naturalWidth > 0"


@pytest.mark.parametrize(("language", "file"), [("en", "DimooSampler.md"), ("zh", "DimooSampler/zh.md")])
def test_the_sampler_explains_itself_with_a_picture(page: Any, server: Server, language: str, file: str) -> None:
    begin(page, server.url, **{"Comfy.Locale": language})
    page.evaluate("saved => app.loadGraphData(saved)", workflow.load("text-to-image"))
    page.evaluate(SELECT, "DimooSampler")
    page.locator("[data-testid='info-button']").first.dispatch_event("click")
    page.wait_for_function(PICTURE)
    first = (HELP / file).read_text(encoding="utf-8").splitlines()[2]
    assert first in page.locator(".node-help-content").inner_text()
