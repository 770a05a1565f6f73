"""A ComfyUI as others set it up: several users, and the pack there twice, one of them read-only under another name."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ..comfyhost import workflow
from ..comfyhost.client import Client
from ..comfyhost.server import NOT_PART_OF_A_COPY, PACK, Server, comfyui_folder

COPY = "DiMOO-nodes-0.9(1)"  # as an archive that was downloaded twice may be called
PARTS = ("__init__.py", "pyproject.toml", "nodes", "dimoo_core", "web", "locales", "workflows", "example_pictures")


def contents(folder: Path) -> dict[Path, tuple[int, int]]:
    """Files and folders but for what Python itself compiles, and when each has last changed."""
    found = [path for path in folder.rglob("*") if "__pycache__" not in path.parts]
    return {path.relative_to(folder): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The pack as its users have it, read-only. Who may write all the same, the administrator, is found out by what has
    changed."""
    folder = tmp_path_factory.mktemp("packs") / COPY
    for part in PARTS:
        if (PACK / part).is_dir():
            shutil.copytree(PACK / part, folder / part, ignore=NOT_PART_OF_A_COPY)
        else:
            folder.mkdir(exist_ok=True)
            shutil.copy2(PACK / part, folder / part)
    everything = [folder, *folder.rglob("*")]
    for path in everything:
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield folder
    for path in everything:
        path.chmod(0o755)


@pytest.fixture(scope="module")
def unusual(
    tmp_path_factory: pytest.TempPathFactory, copied: Path, object_info: dict[str, Any]
) -> Iterator[tuple[Server, dict[Path, Any]]]:
    """The server, and what was in the copy before it started."""
    assert comfyui_folder() and object_info, "skipped where there is no ComfyUI"
    server = Server(tmp_path_factory.mktemp("unusual"), pack=copied, name=COPY, arguments=("--multi-user",))
    server.add_pack(PACK, "dimoo-nodes")
    before = contents(copied)
    with server:
        yield server, before


@pytest.fixture
def users(unusual: tuple[Server, Any]) -> list[Client]:
    """Two users of it, logged in."""
    return [logged_in(Client(unusual[0].url), name) for name in ("ann", "bob")]


def logged_in(client: Client, name: str) -> Client:
    known = {user: key for key, user in client.get("users").json()["users"].items()}
    user = known.get(name) or client.post("users", {"username": name}).json()
    client.session.headers["Comfy-User"] = user
    return client


def painted(client: Client, object_info: dict[str, Any], seed: int) -> Image.Image:
    """The picture of the first template, as it is saved."""
    prompt = workflow.to_api(workflow.load("text-to-image"), object_info)
    prompt[workflow.node_of(prompt, "DimooSampler")]["inputs"] |= {"seed": seed, "steps": 2}
    result = client.run(prompt)
    assert result.status == "success", result.error()
    return client.picture(result.outputs[workflow.node_of(prompt, "SaveImage")]["images"][0])


def test_every_user_runs_a_template_and_gets_the_picture(users: list[Client], object_info: dict[str, Any]) -> None:
    for seed, client in enumerate(users):
        picture = painted(client, object_info, seed)
        assert f'"seed": {seed}' in picture.info["prompt"] and '"fingerprint"' in picture.info["dimoo"]


def test_every_user_finds_the_templates_and_the_help(users: list[Client], object_info: dict[str, Any]) -> None:
    for client in users:
        packs = client.get("workflow_templates").json()
        assert packs[COPY] and sorted(packs[COPY]) == sorted(packs["dimoo-nodes"])
        for name in packs[COPY]:
            assert client.get(f"api/workflow_templates/{COPY}/{name}.json").json()["nodes"]
        for name in [name for name in object_info if name.startswith("Dimoo")]:
            assert client.get(f"extensions/{COPY}/docs/{name}.md").text.strip()


def test_a_user_brings_what_a_node_reads_from_the_input_folder(users: list[Client]) -> None:
    """ComfyUI has one input folder for all its users."""
    for client in users:
        assert client.upload("mine.png", Image.new("RGB", (64, 64), "red")) == "mine.png"
        folders = client.object_info("DimooCaptionFolder")["DimooCaptionFolder"]["input"]["required"]["folder"]
        assert "." in folders[1]["options"]


def test_a_pack_that_is_there_twice_is_told_of_once(unusual: tuple[Server, Any], users: list[Client]) -> None:
    told = [line for line in unusual[0].text().splitlines() if "installed twice" in line]
    assert len(told) == 1 and COPY in told[0] and "dimoo-nodes" in told[0] and "remove one" in told[0]


def test_nothing_is_written_into_the_folder_of_the_pack(
    unusual: tuple[Server, dict[Path, Any]], copied: Path, users: list[Client], object_info: dict[str, Any]
) -> None:
    painted(users[0], object_info, seed=7)
    assert contents(copied) == unusual[1]
    failed = [line for line in unusual[0].text().splitlines() if "Cannot import" in line or "IMPORT FAILED" in line]
    assert not [line for line in failed if "dimoo" in line.lower()]
