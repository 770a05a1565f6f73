"""Start-up flags in a real ComfyUI: pictures, answers, previews and metadata are what the flags say, and no warning is
ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ..comfyhost import expect, workflow
from ..comfyhost.client import Client, Result, Workflow
from ..comfyhost.server import Server

WORKFLOWS = ("text-to-image", "inpaint", "describe")
FRUGAL = ("--cpu-vae", "--reserve-vram", "1", "--deterministic", "--cache-none", "--preview-method", "none")
FRUGAL += ("--disable-metadata",)
OTHERS = ("--force-fp32", "--fp8_e4m3fn-unet", "--disable-smart-memory", "--cache-lru", "3")
OTHERS += ("--preview-method", "taesd")


@pytest.fixture(scope="module", params=[FRUGAL, OTHERS], ids=["frugal", "others"])
def started(request: pytest.FixtureRequest, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Flags that do not contradict each other, and a server that was started with them; `server` says whether there is
    one to be had."""
    with Server(tmp_path_factory.mktemp("flags"), arguments=request.param) as flagged:
        yield request.param, flagged


def ran(client: Client, name: str, **inputs: Any) -> tuple[Workflow, Result]:
    prompt = workflow.to_api(workflow.load(name), client.object_info())
    for node in prompt.values():
        node["inputs"] |= {key: value for key, value in inputs.items() if key in node["inputs"]}
    result = client.run(prompt)
    assert result.status == "success", result.error()
    return prompt, result


def of_kind(prompt: Workflow, kind: str) -> set[str]:
    return {key for key, node in prompt.items() if node["class_type"] == kind}


def saved(client: Client, prompt: Workflow, result: Result) -> Any:
    (node,) = of_kind(prompt, "SaveImage")
    return client.picture(result.outputs[node]["images"][0])


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflows_show_what_was_asked(started: Any, name: str) -> None:
    flags, server = started
    client = Client(server.url)
    prompt, result = ran(client, name)
    findings = expect.inspect(name, expect.collect(client, prompt, result))
    assert findings and all(finding.right for finding in findings), findings
    shown = {event.data["node_id"] for event in result.named("preview")}
    assert shown == (set() if "none" in flags else of_kind(prompt, "DimooSampler"))
    working = of_kind(prompt, "DimooSampler") | of_kind(prompt, "DimooDescribe")
    assert all(result.steps(node) for node in working), "progress is shown with and without pictures"
    if name == "describe":
        assert len(result.named("text")) > 1, "the answer forms on the node"


def test_a_picture_carries_metadata_unless_that_is_off(started: Any) -> None:
    flags, server = started
    client = Client(server.url)
    info = saved(client, *ran(client, "text-to-image", filename_prefix="told")).info
    assert info.keys() & {"prompt", "dimoo"} == (set() if "--disable-metadata" in flags else {"prompt", "dimoo"})


def test_what_is_kept_of_a_run_is_what_the_flag_says(started: Any) -> None:
    flags, server = started
    client = Client(server.url)
    first, again = (ran(client, "text-to-image", filename_prefix=prefix) for prefix in ("one", "two"))
    loaded = [of_kind(prompt, "DimooLoader") <= set(result.executed()) for prompt, result in (first, again)]
    assert loaded[1] == ("--cache-none" in flags)
    assert saved(client, *first).tobytes() == saved(client, *again).tobytes()


def test_the_log_has_no_complaint_of_ours_but_for_the_dtype_that_was_refused(started: Any) -> None:
    flags, server = started
    ran(Client(server.url), "text-to-image", seed=77, steps=2)
    complaints = [line for line in server.text().splitlines() if "was started with" in line]
    assert len(complaints) == ("--fp8_e4m3fn-unet" in flags)
    assert "Traceback" not in server.text() and "WARNING: DiMOO" not in server.text()
