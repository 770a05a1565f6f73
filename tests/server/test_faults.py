"""What goes wrong in a running ComfyUI, and that the next prompt works as if nothing had been."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ..comfyhost import workflow
from ..comfyhost.client import Client, Event, Refused, Result, Workflow
from ..comfyhost.server import Server
from ..conftest import TINY
from ..tiny import write_checkpoint
from .test_runs import SAMPLER, changed, fresh, pictures

STEPS = 4


@pytest.fixture(scope="module")
def prompt(object_info: dict[str, Any]) -> Workflow:
    """Text to image as the pack ships it, with the tiny checkpoint."""
    prompt = workflow.to_api(workflow.load("text-to-image"), object_info)
    sampling = {"steps": STEPS, "cfg": 1.0, "seed": 100}
    return changed(prompt, DimooLoader={"checkpoint": TINY}, DimooSampler=sampling)


@pytest.fixture(scope="module")
def expected(server: Server, prompt: Workflow) -> list[np.ndarray]:
    """The picture of the prompt when nothing goes wrong."""
    return fresh(Client(server.url), prompt)


@pytest.fixture
def mended(client: Client) -> Iterator[Client]:
    yield client
    client.post("dimoo-probe/mend", {}).raise_for_status()


def broken(client: Client, where: str, prompt: Workflow, after: int = 0) -> Result:
    """The prompt, really run, while something fails from its (after + 1)th use on."""
    client.free(unload_models=True, free_memory=True)
    client.post("dimoo-probe/break", {"where": where, "after": after}).raise_for_status()
    result = client.run(prompt)
    client.post("dimoo-probe/mend", {}).raise_for_status()
    return result


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_a_cancel_at_any_step_ends_the_run_and_nothing_else(
    client: Client, prompt: Workflow, expected: list[np.ndarray], step: int
) -> None:
    def cancel(event: Event) -> None:
        if event.name == "progress" and event.data["value"] == step:
            client.interrupt()

    client.free(unload_models=False, free_memory=True)
    # a canvas on which a step takes longer than a cancel takes to arrive
    slow = changed(prompt, DimooEmptyCanvas={"width": 512, "height": 512}, DimooSampler={"seed": 100 + step})
    result = client.run(slow, on_event=cancel)
    if step < STEPS:
        assert result.status == "interrupted" and result.error() == ""
        assert max(result.steps(workflow.node_of(prompt, SAMPLER))) <= step + 1
    assert np.array_equal(fresh(client, prompt), expected)


@pytest.mark.parametrize(("where", "after"), [("sampler", 0), ("sampler", 3), ("decode", 0), ("loading", 0)])
def test_running_out_of_memory_is_comfyuis_own_error_and_the_next_prompt_works(
    mended: Client, prompt: Workflow, expected: list[np.ndarray], where: str, after: int
) -> None:
    result = broken(mended, where, prompt, after)
    assert result.status == "error"
    said = result.named("execution_error")[0].data
    assert "OutOfMemory" in said["exception_type"] and "ran out of memory" in said["exception_message"]
    assert mended.get("dimoo-probe").json()["models"] == [], "ComfyUI unloads everything then"
    assert np.array_equal(fresh(mended, prompt), expected)


def test_a_full_disk_is_told_and_the_next_prompt_works(
    mended: Client, prompt: Workflow, expected: list[np.ndarray]
) -> None:
    result = broken(mended, "disk", prompt)
    assert result.status == "error" and "No space left on device" in result.error()
    assert np.array_equal(pictures(mended, mended.run(prompt)), expected)


def test_weights_that_are_gone_or_others_are_noticed_between_prompts(
    server: Server, client: Client, prompt: Workflow
) -> None:
    folder = server.folder / "models" / "dimoo" / "changing"
    chosen = changed(prompt, DimooLoader={"checkpoint": "changing"})
    try:
        write_checkpoint(folder)
        first = pictures(client, client.run(chosen))
        shutil.rmtree(folder)
        assert re.search("refresh the page and choose one|Value not in list", refusal(client, chosen))
        write_checkpoint(folder, seed=5)
        second = pictures(client, client.run(chosen))
        assert not np.array_equal(first, second), "other weights under the same name are loaded anew"
        cut(folder / "model.safetensors")
        assert "cut short" in client.run(chosen).error()
        write_checkpoint(folder)
        assert np.array_equal(pictures(client, client.run(chosen)), first)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def refusal(client: Client, prompt: Workflow) -> str:
    """What is said of a prompt that cannot work: by the node, or, on newer cores, before it runs."""
    try:
        return client.run(prompt).error()
    except Refused as refused:
        return str(refused)


def cut(path: Path) -> None:
    whole = path.read_bytes()
    path.unlink()  # what is mapped into memory keeps its pages
    path.write_bytes(whole[: len(whole) // 2])


def test_two_pages_that_queue_at_once_get_each_its_own(server: Server, prompt: Workflow) -> None:
    pages = [Client(server.url), Client(server.url)]
    wanted = [changed(prompt, DimooSampler={"seed": 200 + page}) for page in (0, 1)]
    alone = [fresh(pages[0], one) for one in wanted]
    pages[0].free(unload_models=False, free_memory=True)
    results: dict[int, Result] = {}

    def queue(page: int) -> None:
        results[page] = pages[page].run(wanted[page])

    threads = [threading.Thread(target=queue, args=(page,)) for page in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    node = workflow.node_of(prompt, SAMPLER)
    for page in (0, 1):
        assert np.array_equal(pictures(pages[page], results[page]), alone[page])
        assert results[page].steps(node) == list(range(1, STEPS + 1))
        assert len(results[page].named("preview")) == STEPS, "previews go to the page that queued the prompt"
