"""One process at a time in a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process alone. It is made if it is missing, and gone again if nothing was put into it.

    Raises ValueError where another process holds it, and where something else has its name. It is the folder itself
    that is locked, so no file is left in it; on Windows, where folders cannot be locked, a file `.lock` stands in it
    meanwhile.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    with _held_by_file(folder) if fcntl is None else _held(folder):
        try:
            yield
        finally:
            for path in missing:  # while it is ours: nobody else relies on it
                with suppress(OSError):  # there is something in it
                    path.rmdir()


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    held = _opened(folder)
    try:
        while True:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(_busy(folder)) from None
            except OSError:  # some network drives lock nothing; there the files are still written whole or not at all
                break
            if folder.exists() and os.path.samestat(os.fstat(held), folder.stat()):
                break
            os.close(held)  # who held it before us has removed it again
            held = _opened(folder)
        yield
    finally:
        os.close(held)


def _opened(folder: Path) -> int:
    while True:
        _make(folder)
        with suppress(FileNotFoundError):  # removed between the two lines
            return os.open(folder, os.O_RDONLY)


@contextmanager
def _held_by_file(folder: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout  # comes with torch

    _make(folder)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(_busy(folder)) from None
    try:
        yield
    finally:
        lock.release()


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ValueError(f"{folder} is in the way: it has the name of a folder that is needed; rename it.") from None


def _busy(folder: Path) -> str:
    return f"Another process is working in {folder}: wait until it has finished, or name another folder."
