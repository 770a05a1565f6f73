"""The loader's choice that downloads, in this process and through the running server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from .. import nodepack
from ..comfyhost import workflow
from ..comfyhost.client import Client, Event, Workflow
from ..comfyhost.server import Server
from ..fake_hub import Hub
from ..server.test_runs import changed, pictures
from ..tiny import TABLE, write_checkpoint

LOADER = nodepack.nodes()["DimooLoader"]
DOWNLOAD = "download: Lumina-DiMOO (16 GB)"
NAME = "Lumina-DiMOO"
VQ = "vqvae/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with Hub(write_checkpoint(tmp_path_factory.mktemp("hub"), shards=2)) as hub:
        yield hub


@pytest.fixture
def hub(served: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    served.reset()
    monkeypatch.setenv("HF_ENDPOINT", served.url)
    return served


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the loader looks; not made yet, as after an installation."""
    nodepack.put_checkpoint(tmp_path / "models" / "dimoo", monkeypatch)
    return tmp_path / "models" / "dimoo"


def options() -> list[str]:
    return LOADER.define_schema().inputs[0].options


def load(checkpoint: str = DOWNLOAD):
    return nodepack.run(LOADER, checkpoint=checkpoint).args


def test_the_choice_downloads_loads_and_is_listed(hub: Hub, models: Path) -> None:
    assert options() == ["DiMOO-nano (built in)", DOWNLOAD]
    model, vq = load()
    assert model.core.table.mask == TABLE.mask and vq.scale == 16
    assert options() == ["DiMOO-nano (built in)", NAME, DOWNLOAD]
    assert {path.name for path in models.iterdir()} == {NAME}
    hub.reset()
    load(DOWNLOAD), load(NAME)
    assert hub.listings == 0 and hub.asked == [], "what is there is not asked for"


def test_looking_at_the_list_asks_nobody(hub: Hub, models: Path) -> None:
    options()
    LOADER.fingerprint_inputs(checkpoint=DOWNLOAD, weight_dtype="auto")
    assert hub.listings == 0 and not models.exists()


def test_what_lies_in_another_model_folder_is_taken(
    hub: Hub, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import folder_paths

    write_checkpoint(tmp_path / "other" / NAME)
    folder_paths.folder_names_and_paths["dimoo"][0].append(str(tmp_path / "other"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    load()
    assert not models.exists()


def test_what_is_broken_or_half_there_is_mended(hub: Hub, models: Path) -> None:
    folder = write_checkpoint(models / NAME, shards=2)
    (folder / VQ).write_bytes(hub.bytes_of(VQ)[:1000])
    load()
    assert {one.name for one in hub.asked} == {VQ} and (folder / VQ).read_bytes() == hub.bytes_of(VQ)


def test_a_change_of_the_files_is_noticed(hub: Hub, models: Path) -> None:
    def ask() -> str:
        return LOADER.fingerprint_inputs(checkpoint=DOWNLOAD, weight_dtype="auto")

    absent = ask()
    load()
    there = ask()
    assert ask() == there != absent
    shutil.rmtree(models / NAME)
    assert ask() == absent


def test_comfyuis_cancel_comes_out_untouched_and_what_came_is_kept(hub: Hub, models: Path, monkeypatch) -> None:
    import comfy.model_management
    import comfy.utils

    hub.faults.hang = {VQ: 40_000}
    seen: list[tuple[int, int]] = []

    def hook(done: int, total: int, *_, **__) -> None:
        seen.append((done, total))
        if VQ in hub.sent and done == sum(hub.sent.values()):
            comfy.model_management.interrupt_current_processing()

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        load()
    assert seen and hub.starts(VQ) == [0]
    assert options() == ["DiMOO-nano (built in)", DOWNLOAD], "half a checkpoint is not listed"
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda done, total, *_, **__: seen.append((done, total)))
    hub.reset()
    load()
    assert hub.starts(VQ) == [40_000] and [one.name for one in hub.asked] == [VQ]
    assert seen[-1][0] == seen[-1][1] == sum(len(content) for content in hub.files.values())


def test_offline_it_is_one_sentence(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(
        ValueError, match=r"cannot be reached \(.*\); try again later, .* by hand: config\.json"
    ) as said:
        load()
    assert str(models / NAME) in str(said.value)


# Through the server -------------------------------------------------------------------------------------------------


@pytest.fixture
def prompt(object_info: dict) -> Workflow:
    prompt = workflow.to_api(workflow.load("text-to-image"), object_info)
    return changed(prompt, DimooLoader={"checkpoint": DOWNLOAD}, DimooSampler={"steps": 2, "cfg": 0.0, "seed": 71})


def test_through_the_server_cancel_then_download_then_pictures(
    client: Client, server: Server, served_hub: Hub, prompt: Workflow
) -> None:
    served_hub.reset()
    node, folder = workflow.node_of(prompt, "DimooLoader"), server.folder / "models" / "dimoo" / NAME
    served_hub.faults.hang = {VQ: 50_000}

    def cancel(event: Event) -> None:
        here = event.name == "progress" and event.data["node"] == node
        if here and VQ in served_hub.sent and event.data["value"] == sum(served_hub.sent.values()):
            client.interrupt()

    try:
        result = client.run(prompt, on_event=cancel)
        assert result.status == "interrupted" and not (folder / "config.json").exists()
        served_hub.reset()
        result = client.run(prompt)
        first = pictures(client, result)
        total = sum(len(content) for content in served_hub.files.values())
        assert result.steps(node)[-1] == total and served_hub.starts(VQ) == [50_000]
        listed = client.object_info("DimooLoader")["DimooLoader"]["input"]["required"]["checkpoint"]
        assert NAME in str(listed)
        served_hub.reset()
        again = client.run(changed(prompt, DimooLoader={"checkpoint": NAME}))
        assert np.array_equal(pictures(client, again), first) and served_hub.listings == 0
    finally:
        shutil.rmtree(folder, ignore_errors=True)
