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

    Raises ValueError where another process holds it. It is the folder itself that is locked, so no file is left in it;
    on Windows, where folders cannot be locked, a file `.lock` stands in it meanwhile.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _held(folder):
            yield
    finally:
        for path in missing:
            with suppress(OSError):  # there is something in it
                path.rmdir()


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    busy = f"Another process is working in {folder}: wait until it has finished, or name another folder."
    if fcntl is None:
        from filelock import FileLock, Timeout  # comes with torch

        try:
            with FileLock(folder / ".lock", timeout=0):
                yield
        except Timeout:
            raise ValueError(busy) from None
        return
    held = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(busy) from None
        except OSError:  # some network drives lock nothing; there the files themselves are written whole or not at all
            pass
        yield
    finally:
        os.close(held)
