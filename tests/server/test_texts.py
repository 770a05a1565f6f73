"""Save Text beside Save Image, in a real ComfyUI: a text has its picture's number, whichever is saved first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ..comfyhost.client import Client
from ..comfyhost.server import Server

COLOUR = iter(range(1, 10**6))


def pictures(batch: int, prefix: str, key: str = "9") -> dict[str, Any]:
    """Save Image of a batch that has not been there yet."""
    inputs = {"width": 64, "height": 48, "batch_size": batch, "color": next(COLOUR)}
    return {
        f"e{key}": {"class_type": "EmptyImage", "inputs": inputs},
        key: {"class_type": "SaveImage", "inputs": {"images": [f"e{key}", 0], "filename_prefix": prefix}},
    }


def texts(number: int, prefix: str, key: str = "5") -> dict[str, Any]:
    """As many Save Text nodes."""
    inputs = {"filename_prefix": prefix}
    return {
        f"{key}{item}": {"class_type": "DimooSaveText", "inputs": {"text": f"text {item} {next(COLOUR)}", **inputs}}
        for item in range(number)
    }


def saved(server: Server, folder: str, suffix: str) -> list[str]:
    return sorted(path.stem for path in Path(server.folder, "output", folder).rglob(f"*.{suffix}"))


def run(client: Client, *parts: dict[str, Any]) -> None:
    prompt = {key: node for part in parts for key, node in part.items()}
    result = client.run(prompt)
    assert result.status == "success", result.error()


@pytest.mark.parametrize("first", ["pictures", "texts"])
def test_texts_have_the_numbers_of_the_pictures_of_their_prompt(server: Server, client: Client, first: str) -> None:
    folder = f"numbers-{first}"
    prefix = f"{folder}/a"
    run(client, pictures(3, prefix))
    for _ in range(6):  # ComfyUI runs nodes that save in an order of its own
        before = saved(server, folder, "png")
        parts = [pictures(2, prefix, "9" if first == "pictures" else "1"), texts(2, prefix)]
        run(client, *(parts if first == "pictures" else reversed(parts)))
        new = sorted(set(saved(server, folder, "png")) - set(before))
        assert len(new) == 2 and saved(server, folder, "txt")[-2:] == new
    assert saved(server, folder, "txt") == [f"a_{number:05}_" for number in range(4, 16)]


def test_width_height_and_time_in_the_name_are_those_of_the_picture(server: Server, client: Client) -> None:
    prefix = "sizes/%width%x%height%-%year%%month%%day%-%hour%%minute%%second%"
    run(client, pictures(2, prefix), texts(2, prefix))
    names = saved(server, "sizes", "png")
    assert names == saved(server, "sizes", "txt") and names[0].startswith("64x48-")


def test_texts_alone_go_on_behind_all_that_is_there(server: Server, client: Client) -> None:
    run(client, pictures(3, "alone/a"))
    run(client, texts(2, "alone/a"))
    assert saved(server, "alone", "txt") == ["a_00004_", "a_00005_"]


def test_only_the_text_runs_where_only_it_was_asked_for(server: Server, client: Client) -> None:
    from ..nodepack import part

    request = {"prompt": {**pictures(1, "part/a"), **texts(1, "part/a")}, "partial_execution_targets": ["50"]}
    assert part("nodes.captions").pictures_first(request) is request
