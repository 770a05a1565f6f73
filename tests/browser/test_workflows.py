"""The example workflows, opened in the real page."""

from __future__ import annotations

from typing import Any

import pytest

from ..comfyhost import workflow
from ..comfyhost.client import Workflow
from ..comfyhost.page import built_by_page


def known_inputs(prompt: Workflow, object_info: dict[str, Any]) -> Workflow:
    """The prompt without values of widgets that the page alone has, such as the text that Preview Any shows."""
    found = {}
    for node, content in prompt.items():
        declared = [name for group in object_info[content["class_type"]]["input_order"].values() for name in group]
        inputs = {name: value for name, value in content["inputs"].items() if name in declared}
        found[node] = {**content, "inputs": inputs}
    return found


@pytest.mark.parametrize("name", workflow.names())
def test_page_and_converter_build_the_same_prompt(page: Any, object_info: dict[str, Any], name: str) -> None:
    saved = workflow.load(name)
    built = known_inputs(built_by_page(page, saved)["output"], object_info)
    assert workflow.to_api(saved, object_info) == built
