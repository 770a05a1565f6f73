"""The example workflows, opened in the real page."""

from __future__ import annotations

from typing import Any

import pytest

from ..comfyhost import workflow
from ..comfyhost.page import built_by_page


@pytest.mark.parametrize("name", workflow.names())
def test_page_and_converter_build_the_same_prompt(page: Any, object_info: dict[str, Any], name: str) -> None:
    saved = workflow.load(name)
    assert workflow.to_api(saved, object_info) == built_by_page(page, saved)["output"]
