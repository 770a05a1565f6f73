"""The loader's fp8 and int8: a checkpoint is converted once, and what was converted is loaded from then on."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dimoo_core.checkpoint.find import find
from dimoo_core.locks import folder_lock
from dimoo_core.nano.judge import judge, matches
from dimoo_core.provenance import VERSION, fingerprint

from .. import nodepack
from ..comfyhost import workflow
from ..comfyhost.client import Client
from ..comfyhost.server import Server
from ..conftest import TINY
from ..fake_hub import Hub
from ..readonly import read_only
from ..server.test_runs import changed, pictures
from ..tiny import write_checkpoint

NODES = nodepack.nodes()
LOADER = NODES["DimooLoader"]
checkpoints = nodepack.part("nodes.checkpoints")
provenance = nodepack.part("nodes.provenance")
DOWNLOAD = "download: Lumina-DiMOO (16 GB)"
KINDS = ("fp8", "int8")


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder with a tiny checkpoint in a folder of its own."""
    import comfy.ldm.modules.attention as attention

    monkeypatch.setattr(attention, "optimized_attention", attention.attention_pytorch)
    nodepack.put_checkpoint(tmp_path / "dimoo", monkeypatch)
    write_checkpoint(tmp_path / "dimoo" / "mine")
    return tmp_path / "dimoo"


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What `convert` is called for."""
    called: list[Path] = []
    convert = checkpoints.convert
    monkeypatch.setattr(
        checkpoints, "convert", lambda found, *rest, **more: called.append(found.path) or convert(found, *rest, **more)
    )
    return called


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(done, total) as the progress bar shows them."""
    import comfy.utils

    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda done, total, *_, **__: seen.append((done, total)))
    return seen


def load(checkpoint: str = "mine", weight_dtype: str = "int8") -> Any:
    return nodepack.run(LOADER, checkpoint=checkpoint, weight_dtype=weight_dtype).args[0]


def asked(checkpoint: str = "mine", weight_dtype: str = "int8") -> str:
    return LOADER.fingerprint_inputs(checkpoint=checkpoint, weight_dtype=weight_dtype)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def listed() -> list[str]:
    return LOADER.define_schema().inputs[0].options


def drawn(model: Any, vq: Any, text: str) -> Any:
    """What the judge says of nano's picture of a text."""
    prompt = nodepack.run(NODES["DimooTextEncode"], text=text).args[0]
    canvas = nodepack.run(NODES["DimooEmptyCanvas"], width=128, height=128).args[0]
    ask = {"seed": 1, "steps": 16, "cfg": 0.0, "temperature": 0.6}
    filled = nodepack.run(NODES["DimooSampler"], model=model, prompt=prompt, canvas=canvas, **ask).args[0]
    return judge(nodepack.run(NODES["DimooVQDecode"], vq=vq, canvas=filled).args[0][0].movedim(-1, 0))


# Once ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_nano_is_converted_and_draws_what_was_asked(models: Path, kind: str) -> None:
    model, vq = nodepack.run(LOADER, checkpoint="DiMOO-nano (built in)", weight_dtype=kind).args
    assert model.found.path == models / f"DiMOO-nano-{kind}.safetensors" and vq.found is model.found
    assert {one.name for one in model.core.formats} == {checkpoints.QUANTISED[kind].name}
    text = "a large red circle on the left on a white background"
    verdict = drawn(model, vq, text)
    assert verdict.clean and matches(verdict.scene, text), verdict


@pytest.mark.parametrize("kind", KINDS)
def test_the_next_run_only_loads_and_the_file_is_listed(
    models: Path, conversions: list[Path], steps: list[tuple[int, int]], kind: str
) -> None:
    first, name = load(weight_dtype=kind), f"mine-{kind}.safetensors"
    size = (models / name).stat().st_size
    assert steps[-1] == (size, size) != steps[0] and steps == sorted(steps)
    assert names(models) == {"mine", name} and listed()[1:3] == ["mine", name]
    written, steps[:] = (models / name).stat(), []
    again, by_name = load(weight_dtype=kind), load(name, "auto")
    assert conversions == [models / "mine"] and steps == []
    assert (models / name).stat().st_mtime_ns == written.st_mtime_ns
    assert first.found.path == again.found.path == by_name.found.path == models / name


def test_what_has_the_format_already_is_loaded_as_it_is(models: Path, conversions: list[Path]) -> None:
    load()
    assert load("mine-int8.safetensors").found.path == models / "mine-int8.safetensors"
    assert conversions == [models / "mine"] and names(models) == {"mine", "mine-int8.safetensors"}


def test_the_other_format_is_not_made_of_a_rounded_checkpoint(models: Path) -> None:
    load()
    with pytest.raises(ValueError, match=r"mine-int8\.safetensors is quantised already; convert the checkpoint"):
        load("mine-int8.safetensors", "fp8")
    assert names(models) == {"mine", "mine-int8.safetensors"}


def test_checkpoints_in_folders_get_files_of_their_own(models: Path) -> None:
    for place, seed in (("style/mine", 1), ("other/mine", 2)):
        write_checkpoint(models / place, seed=seed)
    paths = {load(name).found.path.name for name in ("mine", "style/mine", "other/mine")}
    assert paths == {"mine-int8.safetensors", "style-mine-int8.safetensors", "other-mine-int8.safetensors"}


def test_where_no_model_folder_can_be_written_it_is_one_sentence(
    models: Path, conversions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with read_only(lambda folder: write_checkpoint(folder / "theirs")) as folder:
        nodepack.put_checkpoint(folder, monkeypatch)
        with pytest.raises(ValueError, match="cannot be written, and a converted checkpoint needs a place; make"):
            load("theirs")
        assert names(folder) == {"theirs"} and conversions == []


def test_the_first_model_folder_that_can_be_written_gets_it_and_each_is_looked_into(
    tmp_path: Path, models: Path, conversions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import folder_paths

    (tmp_path / "a file").touch()
    nodepack.put_checkpoint(tmp_path / "a file", monkeypatch)
    folder_paths.folder_names_and_paths["dimoo"][0].append(str(models))
    assert load().found.path == models / "mine-int8.safetensors"
    nodepack.put_checkpoint(tmp_path / "new", monkeypatch)
    folder_paths.folder_names_and_paths["dimoo"][0].append(str(models))
    assert load().found.path == models / "mine-int8.safetensors"
    assert len(conversions) == 1 and not (tmp_path / "new").exists()


def test_a_model_folder_that_is_a_checkpoint_gets_no_further_file(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import folder_paths

    root = write_checkpoint(tmp_path / "root")
    nodepack.put_checkpoint(root, monkeypatch)
    folder_paths.folder_names_and_paths["dimoo"][0].append(str(models))
    before = names(root)
    assert load("root").found.path == models / "root-int8.safetensors"
    assert names(root) == before


# Another source, half a file, another process -----------------------------------------------------------------------


def test_a_checkpoint_that_was_replaced_is_converted_again(models: Path, conversions: list[Path]) -> None:
    absent = asked()
    load()
    before, content = asked(), (models / "mine-int8.safetensors").read_bytes()
    assert absent != before == asked()
    write_checkpoint(models / "mine", seed=7)
    assert asked() == absent, "what is there is of another checkpoint"
    load()
    assert len(conversions) == 2 and (models / "mine-int8.safetensors").read_bytes() != content
    assert asked() not in (before, absent)


def test_half_a_file_is_made_again(models: Path, conversions: list[Path]) -> None:
    load()
    path = models / "mine-int8.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    load()
    assert len(conversions) == 2 and path.read_bytes() == whole


def test_a_file_of_the_command_line_is_taken_and_no_other_file_is_overwritten(
    models: Path, conversions: list[Path]
) -> None:
    path = models / "mine-int8.safetensors"
    checkpoints.convert(find(models / "mine"), path, "int8")
    before = path.read_bytes()
    conversions.clear()
    assert load().found.path == path and conversions == [] and path.read_bytes() == before
    checkpoints.convert(find(models / "mine"), path, "bf16")
    before = path.read_bytes()
    conversions.clear()
    with pytest.raises(ValueError, match="is in the way: this node did not make it; rename it or"):
        load()
    assert path.read_bytes() == before and conversions == [] and names(models) == {"mine", path.name}


@pytest.mark.parametrize("name", ["mine-int8.safetensors", ".converting"])
def test_what_has_the_name_of_a_file_or_folder_that_is_needed_is_told_before_the_work(
    models: Path, conversions: list[Path], name: str
) -> None:
    (models / name).touch() if name.startswith(".") else (models / name).mkdir()
    with pytest.raises(ValueError, match=rf"{re.escape(name)} is in the way: .*rename it"):
        load()
    assert conversions == [] and names(models) == {"mine", name}


def test_what_a_process_left_that_was_killed_is_removed(models: Path) -> None:
    place = models / ".converting"
    place.mkdir()
    (place / "mine-int8.safetensors.0123456789.part").write_bytes(b"x" * 1000)
    assert listed()[1:-1] == ["mine"]
    load()
    assert not place.exists() or names(place) == set()


def test_while_another_process_converts_it_says_so_and_then_takes_its_file(
    models: Path, conversions: list[Path], tmp_path: Path
) -> None:
    other = hold(models / ".converting")
    try:
        with pytest.raises(ValueError, match=r"Another process is working in .*converting: wait until it has finished"):
            load()
    finally:
        other.communicate(input="done\n")
    assert conversions == []
    load()
    assert len(conversions) == 1


def hold(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds a folder until it reads a line."""
    lines = "import sys; from pathlib import Path; from dimoo_core.locks import folder_lock\n"
    lines += "with folder_lock(Path(sys.argv[1])): print('held', flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", lines, str(folder)],
        cwd=nodepack.PACK,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_what_another_process_made_meanwhile_is_not_made_again(
    models: Path, conversions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = find(models / "mine")
    mark = fingerprint(source.files)

    def just_then(folder: Path):
        checkpoints.convert(source, models / "mine-int8.safetensors", "int8", source=mark)
        return folder_lock(folder)

    monkeypatch.setattr(checkpoints, "folder_lock", just_then)
    load()
    assert len(conversions) == 1 and names(models) == {"mine", "mine-int8.safetensors"}


# Cancel, room, errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_cancel_on_the_way_leaves_nothing_and_the_next_run_completes(
    models: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    import comfy.model_management
    import comfy.utils

    seen: list[tuple[int, int]] = []

    def hook(done: int, total: int, *_: Any, **__: Any) -> None:
        seen.append((done, total))
        comfy.model_management.interrupt_current_processing()

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        load(weight_dtype=kind)
    ((done, total),) = seen
    assert 0 < done < total and names(models) == {"mine"} and listed()[1:-1] == ["mine"]
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", None)
    load(weight_dtype=kind)
    assert names(models) == {"mine", f"mine-{kind}.safetensors"}


def test_without_room_nothing_is_written_and_the_sum_is_named(
    models: Path, steps: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ValueError, match=r"mine-int8\.safetensors needs \d+\.\d kB more in .*, where 1\.0 kB are free"):
        load()
    assert steps == [] and names(models) == {"mine"}


@pytest.mark.parametrize("where", ["replace", "write"])
def test_a_disk_that_fails_is_one_sentence_and_leaves_nothing(
    models: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    if where == "replace":
        monkeypatch.setattr(checkpoints.os, "replace", fail)
    else:
        monkeypatch.setattr(nodepack.part("dimoo_core.checkpoint.convert"), "_put", fail)
    said = r"mine-int8\.safetensors cannot be written \(No space left on device\); make room there"
    with pytest.raises(ValueError, match=said):
        load()
    assert names(models) == {"mine"}


# Downloaded first ---------------------------------------------------------------------------------------------------


def test_one_run_downloads_and_converts_and_the_large_files_may_go(
    models: Path, conversions: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Hub(write_checkpoint(tmp_path / "hub", shards=2)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        assert load(DOWNLOAD).found.path == models / "Lumina-DiMOO-int8.safetensors"
        hub.reset()
        load(DOWNLOAD), load("Lumina-DiMOO")
        assert hub.listings == 0 and len(conversions) == 1
        shutil.rmtree(models / "Lumina-DiMOO")
        load(DOWNLOAD)
        assert hub.listings == 0 and len(conversions) == 1
        load(DOWNLOAD, "auto")
        assert hub.listings == 1


@pytest.mark.parametrize("kind", KINDS)
def test_without_room_for_both_nothing_is_fetched(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with Hub(write_checkpoint(tmp_path / "hub")) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        enough = int(1.1 * sum(entry["size"] for entry in map(hub.entry, hub.files)))
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=enough))
        with pytest.raises(ValueError, match=r"Lumina-DiMOO, with what is made of it, needs \d+\.\d [kM]B more in"):
            load(DOWNLOAD, kind)
        assert hub.asked == []
        load(DOWNLOAD, "auto")


def test_a_download_that_nowhere_could_be_converted_does_not_begin(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "download", lambda *_, **__: pytest.fail("downloaded"))
    with read_only(lambda folder: None) as folder:
        nodepack.put_checkpoint(folder, monkeypatch)
        with pytest.raises(ValueError, match="cannot be written, and a converted checkpoint needs a place"):
            load(DOWNLOAD)


@pytest.mark.parametrize("kind", KINDS)
def test_the_room_that_is_asked_for_beside_the_download_is_that_of_the_published_model(kind: str) -> None:
    counted = json.loads((nodepack.PACK / "docs" / "performance.json").read_text())["cards"]
    whole, made = (counted["weights"][one] + counted["vq"] for one in ("bf16", kind))
    assert made < checkpoints._SHARES[kind] * whole < 1.02 * made


# Metadata -----------------------------------------------------------------------------------------------------------


def test_metadata_name_the_file_that_was_loaded_also_where_it_was_made_in_the_same_run(models: Path) -> None:
    prompt = {"4": {"class_type": "DimooLoader", "inputs": {"checkpoint": "mine", "weight_dtype": "int8"}}}
    info = provenance.add_note({"prompt": prompt})["extra_data"]["extra_pnginfo"]
    assert info["dimoo"]["version"] == VERSION and info["dimoo"]["checkpoints"] == {}
    clone = LOADER.PREPARE_CLASS_CLONE(None)
    clone.hidden = SimpleNamespace(prompt=prompt, extra_pnginfo=info)
    with torch.inference_mode():
        clone.execute(checkpoint="mine", weight_dtype="int8")
    path = models / "mine-int8.safetensors"
    told = {"4": {"name": path.name, "fingerprint": fingerprint([path])}}
    assert info["dimoo"]["checkpoints"] == told
    assert provenance.metadata(prompt)["checkpoints"] == told
    plain = {"4": {"class_type": "DimooLoader", "inputs": {"checkpoint": "mine", "weight_dtype": "bf16"}}}
    assert provenance.metadata(plain)["checkpoints"]["4"]["fingerprint"] == fingerprint(find(models / "mine").files)


def test_through_the_server_the_picture_of_the_first_run_names_the_file_too(
    client: Client, server: Server, object_info: dict[str, Any]
) -> None:
    prompt = workflow.to_api(workflow.load("text-to-image"), object_info)
    prompt = changed(prompt, DimooLoader={"checkpoint": TINY, "weight_dtype": "int8"}, DimooSampler={"steps": 2})
    path = server.folder / "models" / "dimoo" / f"{TINY}-int8.safetensors"
    try:
        result = client.run(prompt)
        first, (picture,) = path.stat(), pictures(client, result)
        assert result.steps(workflow.node_of(prompt, "DimooLoader"))[-1] == first.st_size
        (image,) = result.outputs[workflow.node_of(prompt, "SaveImage")]["images"]
        (told,) = json.loads(client.picture(image).info["dimoo"])["checkpoints"].values()
        assert told == {"name": path.name, "fingerprint": fingerprint([path]), "branches": "one by one"}
        again = client.run(changed(prompt, DimooLoader={"checkpoint": path.name, "weight_dtype": "auto"}))
        assert np.array_equal(pictures(client, again)[0], picture) and path.stat().st_mtime_ns == first.st_mtime_ns
    finally:
        path.unlink(missing_ok=True)
