"""Files are written in full or not at all, by whoever writes them; texts are read whatever their encoding."""

from __future__ import annotations

import codecs
import os
import stat
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dimoo_core.files import atomic_write, atomic_write_text, read_text, shown_path, size_in_words


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_files_have_the_mode_of_the_umask_whoever_writes_them(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with atomic_write(tmp_path / "a.safetensors") as part:
            save_file({"x": torch.ones(2)}, part)
        atomic_write_text(tmp_path / "a.txt", "x")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {0o666 & ~umask} and len(list(tmp_path.iterdir())) == 2


def test_a_link_with_the_old_temporary_name_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    victim = tmp_path / "outside" / "victim"
    victim.write_text("precious")
    folder = tmp_path / "input"
    folder.mkdir()
    (folder / "a.txt.part").symlink_to(victim)
    atomic_write_text(folder / "a.txt", "new")
    assert victim.read_text() == "precious" and (folder / "a.txt").read_text() == "new"


def test_a_link_at_the_target_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "a.txt").symlink_to(victim)
    (tmp_path / "b.txt").symlink_to(tmp_path / "nowhere")
    for name in ("a.txt", "b.txt"):
        atomic_write_text(tmp_path / name, "new")
        assert not (tmp_path / name).is_symlink() and (tmp_path / name).read_text() == "new"
    assert victim.read_text() == "precious" and not (tmp_path / "nowhere").exists()


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    target, together, problems = tmp_path / "a.txt", threading.Barrier(4), []

    def write(word: str) -> None:
        try:
            for _ in range(20):
                with atomic_write(target) as part:
                    together.wait(timeout=30)
                    part.write_text(word * 1000)
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=write, args=(word,)) for word in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems and list(tmp_path.iterdir()) == [target]
    assert target.read_text() in [word * 1000 for word in "abcd"]


@pytest.mark.parametrize("name", ["a" * 251 + ".txt", "\u4e00" * 83 + ".txt", "\U0001f600" * 62 + ".txt"])
def test_any_name_that_fits_can_be_written(tmp_path: Path, name: str) -> None:
    atomic_write_text(tmp_path / name, "x")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_name_that_no_file_can_have_is_found_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "c.txt").mkdir()
    for name in ("c.txt", "a" * 300, "absent/a.txt"):
        with pytest.raises(OSError), atomic_write(tmp_path / name):
            pytest.fail("the work must not begin")
    assert [path.name for path in tmp_path.iterdir()] == ["c.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, MemoryError])
def test_whatever_is_raised_leaves_the_old_file_alone(tmp_path: Path, error: type[BaseException]) -> None:
    atomic_write_text(tmp_path / "a.txt", "old")
    with pytest.raises(error), atomic_write(tmp_path / "a.txt") as part:
        assert part.name.startswith("a.txt.") and part.name.endswith(".part"), "known by its name if it is left over"
        part.write_text("half")
        raise error
    assert (tmp_path / "a.txt").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"plain", "plain"),
        ("caf\xe9 \u4e00".encode(), "caf\xe9 \u4e00"),
        (codecs.BOM_UTF8 + "caf\xe9".encode(), "caf\xe9"),
        ("caf\xe9 \u4e00".encode("utf-16"), "caf\xe9 \u4e00"),
        (codecs.BOM_UTF16_BE + "caf\xe9".encode("utf-16-be"), "caf\xe9"),
        ("caf\xe9".encode("utf-32"), "caf\xe9"),
        (b"one\r\ntwo\rthree\n", "one\ntwo\nthree\n"),
        (b"", ""),
    ],
)
def test_texts_are_read_in_the_encoding_that_they_have(
    tmp_path: Path, content: bytes, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    assert read_text(tmp_path / "a.txt") == text and not caplog.records


@pytest.mark.parametrize(
    ("content", "text"),
    [(b"caf\xe9 \x80", "caf\xe9 \u20ac"), (b"\x81\xff", "\ufffd\xff"), (codecs.BOM_UTF16_LE + b"x", "\xff\xfex")],
)
def test_what_is_not_utf_8_is_read_all_the_same_and_named(
    tmp_path: Path, content: bytes, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    path, lines = tmp_path / "old.txt", list[str]()
    path.write_bytes(content)
    assert read_text(path) == text and "old.txt is not UTF-8" in caplog.text
    assert read_text(path, report=lines.append) == text and len(lines) == 1 and str(path) in lines[0]


def test_a_text_of_any_length_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(bytes(1001))
    assert len(read_text(tmp_path / "a.txt", most=1001)) == 1001
    with pytest.raises(ValueError, match=r"a\.txt has more than 1000 bytes"):
        read_text(tmp_path / "a.txt", most=1000)


def test_half_a_character_is_written_as_a_question_mark(tmp_path: Path) -> None:
    atomic_write_text(tmp_path / "a.txt", "a \ud83d b")
    assert (tmp_path / "a.txt").read_text() == "a ? b"


def test_a_name_of_any_bytes_can_be_shown() -> None:
    assert shown_path(Path(os.fsdecode(b"a/\xff\xc3\xa9.png"))) == "a/\ufffd\xe9.png"


def test_bytes_are_told_in_units_that_people_read() -> None:
    sizes = {0: "0 bytes", 999: "999 bytes", 1000: "1.0 kB", 402_912: "402.9 kB", 16_170_000_000: "16.2 GB"}
    assert {size: size_in_words(size) for size in sizes} == sizes
