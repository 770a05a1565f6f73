"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: str | Path, *, sync: bool = False) -> Iterator[Path]:
    """Gives the path to write to, PATH.part; at the end of the `with` the file there takes the place of `path`.

    A kill, a full disk or an error inside leaves the old file or none under the name, never half of one. `sync`: the
    content is on the disk before the name is.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
        if sync:
            with part.open("rb+") as file:
                os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def atomic_write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")
