"""Pictures of a folder, the text files beside them, and files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


def pictures_below(folder: str | Path) -> list[Path]:
    """Picture files at and below `folder`, sorted, hidden ones left out. Raises ValueError where there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; name one that holds pictures.")
    found = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
    found = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not found:
        raise ValueError(f"{folder} holds no pictures ({', '.join(sorted(SUFFIXES))}); put some there.")
    return sorted(found)


def caption_file(picture: Path) -> Path:
    """Where a picture's caption is kept, as trainers of image models expect it: NAME.txt beside it."""
    return picture.with_suffix(".txt")


@contextmanager
def whole(path: str | Path, *, sync: bool = False) -> Iterator[Path]:
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


def write_whole(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")
