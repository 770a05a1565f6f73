"""Several pages on one server: each hears of its own runs, and a cancel ends those of nobody else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from ..comfyhost import workflow
from ..comfyhost.client import Client, Event, Workflow
from ..comfyhost.server import Server
from ..conftest import TINY
from .test_runs import SAMPLER, changed, pictures

FOR_ALL = {"status", "feature_flags"}  # what the server tells every page: how much is queued, what it can do
STEPS = 4


@pytest.fixture
def prompt(object_info: dict[str, Any]) -> Workflow:
    """A picture and what the model says of it."""
    prompt = workflow.to_api(workflow.load("text-to-image"), object_info)
    prompt = changed(prompt, DimooLoader={"checkpoint": TINY}, DimooSampler={"steps": STEPS, "cfg": 1.0})
    loader, picture = workflow.node_of(prompt, "DimooLoader"), workflow.node_of(prompt, "DimooVQDecode")
    links = {"model": [loader, 0], "vq": [loader, 1], "image": [picture, 0]}
    asked = {"question": "x", "max_tokens": 8, "steps": 8, "block_length": 8, "temperature": 0.0, "cfg": 0.0, "seed": 0}
    return {**prompt, "asked": {"class_type": "DimooDescribe", "inputs": {**links, **asked}}}


@contextmanager
def overheard(page: Client) -> Iterator[Callable[[], list[Event]]]:
    """A page that looks on; gives a function to what it was told until nothing was queued any more."""
    with page.listen() as events:
        heard: list[Event] = []

        def told() -> list[Event]:
            for event in events(60):
                heard.append(event)
                busy = [one.data["status"]["exec_info"]["queue_remaining"] for one in heard if one.name == "status"]
                if any(busy) and not busy[-1]:
                    return heard
            return heard

        yield told


def test_previews_progress_and_words_go_to_the_page_that_asked(
    server: Server, client: Client, prompt: Workflow
) -> None:
    with overheard(Client(server.url)) as other:
        result = client.run(changed(prompt, DimooSampler={"seed": 301}))
        assert result.status == "success", result.error()
        assert len(result.named("preview")) == STEPS and result.named("text") and result.named("progress")
        assert {event.name for event in other()} <= FOR_ALL


def test_words_of_a_prompt_without_a_page_are_shown_on_none(server: Server, client: Client, prompt: Workflow) -> None:
    """What ComfyUI itself tells of such prompts, progress and previews, every page hears."""
    payload = {"prompt": changed(prompt, DimooSampler={"seed": 302})}
    with overheard(client) as page:
        queued = client.post("prompt", payload).json()["prompt_id"]
        assert not [event for event in page() if event.name in ("text", "executed")]
    outputs = client.settled(queued)["outputs"]
    assert outputs["asked"]["text"], "the answer is in the history all the same"


def test_a_cancel_ends_the_run_of_the_page_that_asked_for_it(server: Server, client: Client, prompt: Workflow) -> None:
    mine = changed(prompt, DimooSampler={"seed": 303})
    alone = pictures(client, client.run(mine, targets=[workflow.node_of(mine, "SaveImage")]))
    client.free(unload_models=False, free_memory=True)
    other, queued = Client(server.url), list[str]()
    slow = changed(prompt, DimooEmptyCanvas={"width": 512, "height": 512}, DimooSampler={"seed": 304, "steps": 500})

    def join_and_cancel(event: Event) -> None:
        if event.name == "progress" and event.data["value"] == 2:
            queued.append(client.submit(mine))
            client.post("interrupt", {"prompt_id": queued[0]}).raise_for_status()  # which does not run yet
        elif event.name == "progress" and event.data["value"] == 5:
            other.interrupt()

    stopped = other.run(slow, on_event=join_and_cancel)
    assert stopped.status == "interrupted" and max(stopped.steps(workflow.node_of(slow, SAMPLER))) in (5, 6)
    entry = client.settled(queued[0], timeout=60)
    assert entry["status"]["status_str"] == "success"
    image = entry["outputs"][workflow.node_of(mine, "SaveImage")]["images"][0]
    assert np.array_equal(np.asarray(client.picture(image)), alone[0])
