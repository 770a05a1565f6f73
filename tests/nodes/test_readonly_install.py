"""The pack where nothing may be written: an administrator's install, a read-only image of a container."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from .. import nodepack
from ..readonly import read_only

NAME = "/elsewhere/custom_nodes/dimoo-nodes"
NODES = nodepack.nodes()
ANSWER = {"question": "describe the picture", "max_tokens": 32, "steps": 2, "block_length": 32}


def put_pack(folder: Path) -> None:
    """What ComfyUI loads of the pack; nothing that Python has compiled comes along, and it cannot be compiled anew."""
    for part in ("nodes", "dimoo_core", "locales", "web", "workflows"):
        shutil.copytree(nodepack.PACK / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(nodepack.PACK / "__init__.py", folder)


def test_the_pack_loads_and_paints_from_a_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    with read_only(put_pack) as folder:
        with pytest.raises(PermissionError):
            (folder / "new").write_text("x")
        spec = importlib.util.spec_from_file_location(
            NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        pack = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, NAME, pack)
        spec.loader.exec_module(pack)

        async def ask() -> list[type]:
            return await (await pack.comfy_entrypoint()).get_node_list()

        nodes = {node.GET_SCHEMA().node_id: node for node in asyncio.run(ask())}
        assert nodes.keys() == NODES.keys() and nodes["DimooLoader"] is not NODES["DimooLoader"]
        model, vq = nodepack.run(nodes["DimooLoader"]).args
        prompt = nodepack.run(nodes["DimooTextEncode"], text="a red circle")[0]
        canvas = nodepack.run(nodes["DimooEmptyCanvas"], width=128, height=128)[0]
        filled = nodepack.run(nodes["DimooSampler"], model=model, prompt=prompt, canvas=canvas, seed=1, steps=2)[0]
        picture = nodepack.run(nodes["DimooVQDecode"], vq=vq, canvas=filled)[0]
        assert picture.shape == (1, 128, 128, 3)
    for module in [name for name in sys.modules if name.startswith(f"{NAME}.")]:
        del sys.modules[module]


def put_places(folder: Path) -> None:
    """ComfyUI's folders: of the pictures in one, the first has its words."""
    for place in ("input/set", "output"):
        (folder / place).mkdir(parents=True)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (128, 128), "red").save(folder / "input" / "set" / name)
    (folder / "input" / "set" / "a.txt").write_text("mine")


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """ComfyUI's input and output folders, which cannot be written."""
    import folder_paths

    with read_only(put_places) as folder:
        for kind in ("input", "output"):
            monkeypatch.setattr(folder_paths, f"{kind}_directory", str(folder / kind))
        yield folder


def test_examples_that_cannot_be_copied_are_one_line_of_the_log(
    places: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    host, templates = nodepack.part("nodes.host"), nodepack.part("nodes.templates")
    monkeypatch.setattr(host, "_server", SimpleNamespace)
    with caplog.at_level(logging.INFO):
        host.give_examples(templates.EXAMPLES)
    (line,) = caplog.messages
    assert "could not be copied" in line and str(places / "input") in line and "Permission denied" in line


def test_captions_that_are_there_are_read_and_the_others_told_of(places: Path, vq: Any) -> None:
    model = nodepack.run(NODES["DimooLoader"]).args[0]
    done = nodepack.run(NODES["DimooCaptionFolder"], model=model, vq=vq, folder="set", **ANSWER)
    assert done.args == (["mine"], ["set/a.png"])
    (problem,) = [line for line in done.ui["text"] if line.startswith("set/b.png")]
    assert "b.txt cannot be written (Permission denied)" in problem


@pytest.mark.parametrize("prefix", ["words", "dimoo/words"])
def test_a_text_that_cannot_be_saved_is_one_sentence(places: Path, prefix: str) -> None:
    with pytest.raises(ValueError, match=rf"output/{prefix} cannot be written \(Permission denied\): name another"):
        nodepack.run(NODES["DimooSaveText"], text="x", filename_prefix=prefix)


def test_a_training_that_could_not_be_saved_is_refused_before_it_begins(places: Path, vq: Any) -> None:
    model = nodepack.run(NODES["DimooLoader"]).args[0]
    widgets = NODES["DimooTrainLora"].FINALIZE_SCHEMA().inputs
    given = {one.id: [one.default] for one in widgets if getattr(one, "default", None) is not None}
    given |= {"model": [model], "vq": [vq], "images": [torch.zeros(1, 128, 128, 3)], "texts": ["black"], "steps": [1]}
    with pytest.raises(ValueError, match=r"train cannot be written \(Permission denied\): name another place"):
        nodepack.run(NODES["DimooTrainLora"], **given)
