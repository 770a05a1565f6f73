"""Files: written in full or not at all, and whether they can be; texts read in whatever encoding they have."""

from __future__ import annotations

import codecs
import errno
import logging
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MAX_TEXT = 64 << 20  # bytes of a text file that are read

_WIDE = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"))  # before UTF-16, whose mark they begin with
_MARKS = (*_WIDE, (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_NAME_HEAD = 30  # characters of the target's name in that of its temporary file, which stays short for any target

_log = logging.getLogger(__name__)


def decoded(content: bytes) -> str:
    """Text that says itself if it is UTF-16, and is else UTF-8, with or without a byte order mark. Raises
    UnicodeDecodeError for any other."""
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if utf16 else "utf-8-sig")


@contextmanager
def atomic_write(path: str | Path, *, sync: bool = False) -> Iterator[Path]:
    """Gives the path of a temporary file to write to; at the end of the `with` that file replaces `path`.

    A kill, a full disk or an error inside leaves the old file or none under the name, never half of one. The temporary
    file, NAME.RANDOM.part in the same folder, is made here and now, so that a folder without write permission is
    found before the work, and belongs to this call alone: two writers of one target do not meet, and no link is
    followed. A link at `path` is itself replaced; what it points to stays. The file gets the mode of the umask,
    whatever the writer gave it. `sync`: the content is on the disk before the name is.

    Raises OSError where no such file can be made.
    """
    path = Path(path)
    _check_target(path)
    part, mode = _temporary_file(path)
    try:
        yield part
        if stat.S_IMODE(part.stat().st_mode) != mode:  # safetensors puts a file of its own there, with mode 0600
            part.chmod(mode)
        if sync:
            with part.open("rb+") as file:
                os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _check_target(path: Path) -> None:
    """Raises OSError for a name that no file can have: too long, or that of a folder."""
    with suppress(FileNotFoundError):
        if stat.S_ISDIR(path.lstat().st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))


def _temporary_file(path: Path) -> tuple[Path, int]:
    """A new file beside `path`, and the mode that the umask gives to files."""
    while True:
        part = path.with_name(f"{path.name[:_NAME_HEAD]}.{secrets.token_hex(5)}.part")
        with suppress(FileExistsError):
            descriptor = os.open(part, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
            try:
                return part, stat.S_IMODE(os.fstat(descriptor).st_mode)
            finally:
                os.close(descriptor)


def atomic_write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, in full or not at all; half a character (a lone surrogate) becomes a question mark."""
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8", errors="replace", newline="\n")


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Put around what writes to `path`: where the system refuses that, a ValueError says why in one sentence."""
    _check_spelling(os.fspath(path))
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written ({error.strerror or error}): name another place, or make it writable."
        ) from None


def _check_spelling(path: str) -> None:
    """Raises ValueError for a character that no name can have: NUL, and half a character where names are UTF-8."""
    try:
        os.fsencode(path)
        wrong = "\0" if "\0" in path else ""
    except UnicodeEncodeError as error:
        wrong = path[error.start]
    if wrong:
        raise ValueError(f"The file name has {wrong!a}, which no file name can have: type it again.")


def check_writable(folder: Path, names: Iterable[str] = ()) -> None:
    """Raises ValueError unless files of these `names` can be written into `folder`, which need not exist.

    Tried in a folder of our own, which is removed: another process may be at work under the real names just now.
    """
    existing = next((path for path in (folder, *folder.parents) if os.path.exists(path)), Path())
    if not os.path.isdir(existing):
        raise ValueError(f"{existing} is a file, expected a folder: name another place.")
    with writing(folder), tempfile.TemporaryDirectory(prefix=".dimoo-", dir=existing) as probe:
        inside = Path(probe, folder.relative_to(existing))
        inside.mkdir(parents=True, exist_ok=True)
        for name in names:
            target = folder / name
            if os.path.isdir(target):
                raise ValueError(f"{target} is a folder, expected the name of a file: name another file.")
            with writing(target):
                (inside / name).touch()


def check_room(folder: Path, needed: int, name: str) -> None:
    """Raises ValueError where the disk of `folder`, which exists, has less than `needed` bytes left for `name`."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"{name} needs {size_in_words(needed)} more in {folder}, where {size_in_words(free)} are free; make room "
            "there or choose another folder."
        )


def size_in_words(size: float) -> str:
    """Bytes as people read them, such as 16.2 GB."""
    for unit, least in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= least:
            return f"{size / least:.1f} {unit}"
    return f"{size:.0f} bytes"


def read_text(path: str | Path, *, most: int = MAX_TEXT, report: Callable[[str], None] | None = None) -> str:
    """The text of a file in UTF-8 or, if it begins with a byte order mark, UTF-16 or 32; the mark is left out.

    Anything else is read as Windows-1252, as older editors wrote it, with a question mark in a diamond (U+FFFD) for
    bytes that mean nothing there; `report` (None: the log) gets one sentence that names the file. Raises OSError where
    it cannot be read, and ValueError where it has more than `most` bytes.
    """
    with open(path, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"The text file {path} has more than {most} bytes; split it, or check that it is a text.")
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8-sig")
    with suppress(UnicodeDecodeError):
        return _one_newline(content.decode(encoding))
    remedy = f"{path} is not UTF-8 and was read as Windows-1252; save it as UTF-8 if characters look wrong."
    (report or _log.warning)(remedy)
    return _one_newline(content.decode("cp1252", errors="replace"))


def _one_newline(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def shown_path(path: str | Path) -> str:
    """A path with forward slashes to show to people: bytes of its name that are not UTF-8 become U+FFFD."""
    return Path(path).as_posix().encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def is_hidden(name: str) -> bool:
    """Whether a file name begins with a dot: .DS_Store, and the ._NAME that macOS puts beside every NAME."""
    return name.startswith(".")
