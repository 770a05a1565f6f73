"""Files that `convert` made, in a real ComfyUI: listed where a user puts them, and good for what the judge passes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ..comfyhost import demo, expect, workflow
from ..comfyhost.client import Client
from ..comfyhost.server import Server


@pytest.fixture(params=["fp8", "int8"])
def checkpoint(server: Server, request: pytest.FixtureRequest) -> Iterator[str]:
    """DiMOO-nano as one file in the server's model folder, beside a file of another kind."""
    folder = server.folder / "models" / "dimoo"
    save_file({"model.diffusion_model.weight": torch.zeros(2)}, folder / "foreign.safetensors")
    name = demo.converted(request.param, folder)
    yield name
    for made in (name, "foreign.safetensors"):
        (folder / made).unlink()


def test_a_converted_file_draws_what_was_asked(client: Client, object_info: dict[str, Any], checkpoint: str) -> None:
    declared = client.object_info("DimooLoader")["DimooLoader"]["input"]["required"]["checkpoint"]
    assert checkpoint in str(declared) and "foreign" not in str(declared)
    prompt = workflow.to_api(workflow.load("text-to-image"), object_info)
    demo.use(prompt, checkpoint)
    result = client.run(prompt)
    assert result.status == "success", result.error()
    findings = expect.inspect("text-to-image", expect.collect(client, prompt, result))
    assert findings and all(finding.right for finding in findings), findings


def test_other_weights_need_a_loader() -> None:
    with pytest.raises(ValueError, match="has no DimooLoader"):
        demo.use({"1": {"class_type": "LoadImage", "inputs": {}}}, "x.safetensors")
