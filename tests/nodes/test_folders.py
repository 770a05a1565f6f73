"""Where checkpoints may lie: names of all kinds, links, other disks, read-only folders, drives that are away."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dimoo_core.hub.download import download

from .. import nodepack
from ..fake_hub import Hub
from ..readonly import read_only
from ..tiny import TABLE, write_checkpoint

LOADER = nodepack.nodes()["DimooLoader"]
ODD = "mod\u00e8le \u5199\u771f (v2) 100% & 'more'"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), shards=2)


def listed() -> list[str]:
    """What the loader shows beside what it always shows."""
    return LOADER.define_schema().inputs[0].options[1:-1]


def loads(name: str) -> bool:
    """Whether a listed name gives networks with weights."""
    model, vq = nodepack.run(LOADER, checkpoint=name).args
    weights = [*model.core.transformer.parameters(), *vq.patcher.model.parameters()]
    LOADER.fingerprint_inputs(checkpoint=name, weight_dtype="auto")
    return model.core.table.mask == TABLE.mask and all(bool(torch.isfinite(one).all()) for one in weights)


def link(place: Path, target: Path) -> None:
    try:
        place.symlink_to(target, target_is_directory=target.is_dir())
    except OSError:
        pytest.skip("links are not allowed here")


def copied(models: Path, checkpoint: Path) -> str:
    shutil.copytree(checkpoint, models / "mine")
    return "mine"


def odd_names(models: Path, checkpoint: Path) -> str:
    shutil.copytree(checkpoint, models / ODD / "in a folder")
    for file in (models / ODD / "in a folder").glob("*.index.json"):
        file.rename(file.with_name(f"\u00fc ber.{file.name}"))
    return f"{ODD}/in a folder"


def linked_folder(models: Path, checkpoint: Path) -> str:
    models.mkdir()
    link(models / "linked", checkpoint)
    return "linked"


def linked_files(models: Path, checkpoint: Path) -> str:
    """As the hub's cache has them: names that point to files called by their hash."""
    inside = Path("models--a--b") / "snapshots" / "0123"
    blobs = models / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    for file in [path for path in checkpoint.rglob("*") if path.is_file()]:
        place = models / inside / file.relative_to(checkpoint)
        place.parent.mkdir(parents=True, exist_ok=True)
        blob = blobs / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copyfile(file, blob)
        link(place, Path(os.path.relpath(blob, place.parent)))
    return inside.as_posix()


def linked_root(models: Path, checkpoint: Path) -> str:
    shutil.copytree(checkpoint, models.parent / "other disk" / "mine")
    link(models, models.parent / "other disk")
    return "mine"


def circles(models: Path, checkpoint: Path) -> str:
    shutil.copytree(checkpoint, models / "deep" / "mine")
    link(models / "deep" / "again", models)
    link(models / "nowhere", models / "gone")
    return "deep/mine"


def the_root_itself(models: Path, checkpoint: Path) -> str:
    shutil.copytree(checkpoint, models)
    return models.name


@pytest.mark.parametrize("lay", [copied, odd_names, linked_folder, linked_files, linked_root, circles, the_root_itself])
@pytest.mark.parametrize("root", ["dimoo", f"{ODD} models"])
def test_it_is_listed_and_loads(
    lay: Callable[[Path, Path], str], root: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodepack.put_checkpoint(tmp_path / root, monkeypatch)
    name = lay(tmp_path / root, checkpoint)
    assert listed() == [name] and loads(name)


def test_a_read_only_folder_is_enough_to_load(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with read_only(lambda folder: shutil.copytree(checkpoint, folder / "mine")) as folder:
        nodepack.put_checkpoint(folder, monkeypatch)
        with pytest.raises(PermissionError):
            (folder / "mine" / "new").write_text("x")
        assert listed() == ["mine"] and loads("mine")


def test_folders_of_extra_model_paths_are_read_as_comfyui_reads_them(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import folder_paths

    # by its path: ComfyUI's own nodes, once imported, put another module called `utils` before this package
    place = nodepack.COMFYUI / "utils" / "extra_config.py"
    spec = importlib.util.spec_from_file_location("comfyui_extra_config", place)
    extra_config = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(extra_config)
    shutil.copytree(checkpoint, tmp_path / ODD / "a" / "first")
    shutil.copytree(checkpoint, tmp_path / ODD / "b" / "second")
    settings = tmp_path / "extra_model_paths.yaml"
    base = str(tmp_path / ODD).replace("'", "''")
    settings.write_text(f"mine:\n  base_path: '{base}'\n  dimoo: |\n    a\n    b\n    away\n", encoding="utf-8")
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", dict(folder_paths.folder_names_and_paths))
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    folder_paths.folder_names_and_paths.pop("dimoo", None)
    extra_config.load_extra_path_config(str(settings))
    nodepack.part("nodes.host").register_folder()
    assert listed() == ["first", "second"] and loads("second")


def test_a_drive_that_is_away_hides_only_what_lies_on_it(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network share that is gone answers every question about it with an error."""
    import folder_paths

    nodepack.put_checkpoint(tmp_path / "away", monkeypatch)
    folder_paths.folder_names_and_paths["dimoo"][0].append(str(tmp_path / "here"))
    for place in ("away/gone", "here/share", "here/mine"):
        shutil.copytree(checkpoint, tmp_path / place)
    lost, stat, scandir, listdir = [tmp_path / "away", tmp_path / "here" / "share"], os.stat, os.scandir, os.listdir

    def but_for_the_lost(really: Callable) -> Callable:
        def ask(path=".", *rest, **options):
            place = Path(os.fsdecode(path)) if not isinstance(path, int) else Path()
            if any(one == place or one in place.parents for one in lost):
                raise OSError(errno.ESTALE, "Stale file handle", str(place))
            return really(path, *rest, **options)

        return ask

    assert listed() == ["gone", "mine", "share"]
    for name, really in (("stat", stat), ("scandir", scandir), ("listdir", listdir)):
        monkeypatch.setattr(os, name, but_for_the_lost(really))
    assert listed() == ["mine"] and loads("mine")
    with pytest.raises(ValueError, match="There is no checkpoint 'share' any more"):
        loads("share")


@pytest.mark.parametrize("linked", [False, True])
def test_downloads_go_into_such_folders_too(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linked: bool
) -> None:
    root = tmp_path / ODD
    if linked:
        (tmp_path / "other disk").mkdir()
        link(root, tmp_path / "other disk")
    nodepack.put_checkpoint(root, monkeypatch)
    with Hub(checkpoint) as hub:
        download(folder=root, endpoint=hub.url)
    assert listed() == ["Lumina-DiMOO"] and loads("Lumina-DiMOO")
    assert root.is_symlink() == linked


@pytest.mark.parametrize("value", ["x" * 10**5, "a\nb", "\ud800"])
def test_an_unknown_choice_is_not_repeated_whole(value: str) -> None:
    for inputs in ({"checkpoint": value}, {"checkpoint": "DiMOO-nano (built in)", "weight_dtype": value}):
        with pytest.raises(ValueError, match=r"There is no checkpoint|Got weight_dtype") as caught:
            nodepack.run(LOADER, **inputs)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 200


def test_what_macos_leaves_beside_files_is_passed_over(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodepack.put_checkpoint(tmp_path, monkeypatch)
    shutil.copytree(checkpoint, tmp_path / "mine")
    for path in [*tmp_path.rglob("*")]:
        if path.is_file():
            path.with_name(f"._{path.name}").write_bytes(b"\0\5\26\7" + bytes(4092))
    assert listed() == ["mine"] and loads("mine")
