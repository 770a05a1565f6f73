"""Names in workflows that were saved on another system: between folders they have slashes, or backslashes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dimoo_core.checkpoint.find import find

from .. import nodepack
from ..lora_files import random_lora, write_lora
from ..tiny import write_checkpoint

NODES = nodepack.nodes()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, a LoRA and a picture, each two folders deep."""
    place = tmp_path_factory.mktemp("place")
    folder = write_checkpoint(place / "dimoo" / "my styles" / "mine")
    write_lora(place / "loras" / "my styles" / "mine.safetensors", random_lora(find(folder)))
    (place / "input" / "my styles" / "mine").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(place / "input" / "my styles" / "mine" / "a.png")
    return place


@pytest.fixture(autouse=True)
def only_these_folders(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import folder_paths

    nodepack.put_checkpoint(place / "dimoo", monkeypatch)
    entry = ([str(place / "loras")], folder_paths.folder_names_and_paths["loras"][1])
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", entry)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    monkeypatch.setattr(folder_paths, "input_directory", str(place / "input"))


@pytest.mark.parametrize(
    ("node", "widget", "found"),
    [
        ("DimooLoader", "checkpoint", lambda name: nodepack.part("nodes.checkpoints").resolve(name).path),
        ("DimooLora", "lora", lambda name: nodepack.part("nodes.lora").resolve(name)),
        ("DimooCaptionFolder", "folder", lambda name: nodepack.part("nodes.captions").chosen_folder(name)),
    ],
)
def test_either_separator_names_the_same_place(node: str, widget: str, found: Any) -> None:
    options = next(one.options for one in NODES[node].define_schema().inputs if one.id == widget)
    (name,) = [option for option in options if "mine" in option]
    assert name.startswith("my styles/mine"), "lists have slashes on every system"
    elsewhere = name.replace("/", "\\")
    for spelling in (name, elsewhere):
        assert NODES[node].validate_inputs(**{widget: spelling}) is True
    assert found(elsewhere) == found(name) and found(name).exists()
    asked = [NODES[node].fingerprint_inputs(**{widget: spelling}) for spelling in (name, elsewhere)]
    assert asked[0] == asked[1] != "[]"
    for wrong in ("mine\\my styles", "..\\my styles\\mine", 3):
        assert NODES[node].validate_inputs(**{widget: wrong}) is not True


def test_so_do_folders_to_train_from() -> None:
    node = NODES["DimooTrainLora"]
    for spelling in ("my styles/mine", "my styles\\mine"):
        assert node.validate_inputs(folder=[spelling]) is True
    asked = [node.fingerprint_inputs(folder=[spelling]) for spelling in ("my styles/mine", "my styles\\mine")]
    assert asked[0] == asked[1]
    assert node.validate_inputs(folder=["mine\\my styles"]) is not True
