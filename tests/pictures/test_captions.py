"""Folders of pictures and their texts: what is listed, at what cost, and that one odd file costs none of the others."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, features

from dimoo_core.pictures import captions
from dimoo_core.pictures.captions import (
    caption_file,
    folders_with_pictures,
    lacking_captions,
    pictures_below,
    read_caption,
    write_captions,
)


def put(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(path, "PNG")


def settle(root: Path) -> None:
    """Make folders look as if nothing had changed for a minute."""
    then = time.time() - 60
    for path in [root, *root.rglob("*")]:
        if path.is_dir():
            os.utime(path, (then, then))


def names(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in pictures_below(root)]


def test_pictures_of_every_usual_suffix_are_listed(tmp_path: Path) -> None:
    usual = ["a.png", "b.JPG", "c.jpeg", "d.jfif", "e.webp", "f.bmp", "g.gif", "h.tif", "i.tiff"]
    usual += ["j.avif"] if features.check("avif") else []
    put(*(tmp_path / name for name in usual))
    put(*(tmp_path / name for name in ("._a.png", ".DS_Store", ".x.gif", "a.txt", "a.svg")))
    assert names(tmp_path) == sorted(usual)


@pytest.mark.parametrize("suffix", ["gif", "tif", "tiff", "jfif"] + ["avif"] * features.check("avif"))
def test_they_are_captioned_too(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    many = {"save_all": True, "append_images": frames[1:]} if suffix in ("gif", "tif") else {}
    frames[0].save(tmp_path / f"a.{suffix}", **many)
    (done,) = write_captions(pictures_below(tmp_path), lambda pixels: str(int(pixels.mean(dim=(0, 2, 3)).argmax())))
    assert (done.words, done.problem) == ("0", None), "the first frame is red"


def test_links_to_folders_are_followed_and_circles_end(tmp_path: Path) -> None:
    put(tmp_path / "far" / "deep" / "a.png", tmp_path / "in" / "own" / "b.png")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "far")
    (tmp_path / "in" / "a_second_name").symlink_to(tmp_path / "in" / "own")
    (tmp_path / "far" / "deep" / "back").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "dangling").symlink_to(tmp_path / "nowhere")
    assert names(tmp_path / "in") == ["linked/deep/a.png", "own/b.png"]
    found = [path.relative_to(tmp_path / "in").as_posix() for path in folders_with_pictures(tmp_path / "in")]
    assert found == ["linked/deep", "own"], "each folder once, under its own name"


def test_a_link_to_itself_hides_no_picture(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    (tmp_path / "round.png").symlink_to("round.png")
    (tmp_path / "round").symlink_to("round")
    assert names(tmp_path) == ["a.png"]


def test_folders_that_did_not_change_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(*(tmp_path / "in" / f"{folder}" / "a.png" for folder in range(5)))
    for number in range(300):
        (tmp_path / "in" / "0" / f"{number}.png").touch()
    settle(tmp_path)
    read: list[str] = []
    scandir = os.scandir

    def counted(path: Any) -> Any:
        read.append(os.path.basename(path))
        return scandir(path)

    stats: list[Any] = []
    stat = os.stat
    monkeypatch.setattr(os, "scandir", counted)
    monkeypatch.setattr(os, "stat", lambda path, **rest: stats.append(path) or stat(path, **rest))
    before = folders_with_pictures(tmp_path / "in")
    assert len(before) == 5 and sorted(read) == ["0", "1", "2", "3", "4", "in"]
    read.clear(), stats.clear()
    assert folders_with_pictures(tmp_path / "in") == before
    assert not read and len(stats) < 30, "no folder is read, no picture looked at"
    (tmp_path / "in" / "new").mkdir()
    put(tmp_path / "in" / "new" / "a.png")
    assert len(folders_with_pictures(tmp_path / "in")) == 6
    assert sorted(read) == ["in", "new"], "only what has changed"


def test_a_change_within_one_tick_of_the_clock_is_noticed(tmp_path: Path) -> None:
    put(tmp_path / "a" / "x.png")
    assert len(folders_with_pictures(tmp_path)) == 1
    stat = tmp_path.stat()
    put(tmp_path / "b" / "x.png")
    os.utime(tmp_path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert len(folders_with_pictures(tmp_path)) == 2


def strange_files(folder: Path) -> dict[str, str]:
    """Files of many kinds that cannot be captioned, between two that can; name -> what is said of it."""
    put(folder / "a.png", folder / "z.png")
    (folder / "b.jpg").write_bytes(b"\0\0\0\x20ftypavif" + bytes(40))
    (folder / "d.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n" + b"0 0 9 9 rectfill\n" * 20)
    (folder / "e.gif").write_bytes(b"GIF89a")
    put(folder / "f.png")
    (folder / "f.txt").mkdir()
    return {
        "b.jpg": "not a readable picture",
        "d.png": "unknown format",
        "e.gif": "not a readable picture",
        "f.png": "f.txt cannot be written",
    }


def test_one_odd_file_costs_none_of_the_others(tmp_path: Path) -> None:
    expected = strange_files(tmp_path)
    long = "n" * 251 + ".png"
    put(tmp_path / long)
    pictures = lacking_captions(pictures_below(tmp_path))
    asked: list[torch.Tensor] = []
    done = list(write_captions(pictures, lambda pixels: asked.append(pixels) or "words"))
    problems = {one.path.name: one.problem for one in done if one.problem is not None}
    assert problems.keys() == expected.keys()
    for name, words in expected.items():
        assert words in problems[name] and name.split(".")[0] in problems[name]
    assert len(asked) == 3, "no work is done for a text that cannot be written"
    assert all(read_caption(tmp_path / name) == "words" for name in ("a.png", "z.png", long))
    assert not list(tmp_path.glob("*.part"))


def test_eps_in_a_png_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess

    strange_files(tmp_path)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    assert "unknown format" in next(iter(write_captions([tmp_path / "d.png"], str))).problem


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, RuntimeError, ValueError])
def test_what_the_model_raises_passes(tmp_path: Path, error: type[BaseException]) -> None:
    put(tmp_path / "a.png")

    def describe(_: torch.Tensor) -> str:
        raise error("out of memory, or a cancel")

    with pytest.raises(error):
        list(write_captions([tmp_path / "a.png"], describe))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_full_disk_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    put(tmp_path / "a.png", tmp_path / "b.png")

    def full(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError):
        list(write_captions(pictures_below(tmp_path), lambda _: "x"))


def test_captions_are_read_in_any_encoding(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    assert read_caption(tmp_path / "a.png") is None
    caption_file(tmp_path / "a.png").write_bytes(b"\xef\xbb\xbfa caf\xc3\xa9\r\n")
    assert read_caption(tmp_path / "a.png") == "a caf\xe9"
    caption_file(tmp_path / "a.png").write_bytes(b"a caf\xe9")
    lines: list[str] = []
    assert read_caption(tmp_path / "a.png", report=lines.append) == "a caf\xe9" and "a.txt is not UTF-8" in lines[0]
    caption_file(tmp_path / "a.png").write_bytes(bytes(captions.MAX_CAPTION + 1))
    with pytest.raises(ValueError, match=r"a\.txt has more than"):
        read_caption(tmp_path / "a.png")
