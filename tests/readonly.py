"""A folder that cannot be written, for those too whom permissions do not bind."""

from __future__ import annotations

import codecs
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NOBODY = 65534


@contextmanager
def read_only(fill: Callable[[Path], object]) -> Iterator[Path]:
    """A folder that `fill` has filled and that is read-only then; the root user is somebody else for that time."""
    if os.name != "posix":
        pytest.skip("folders are made read-only by another means here")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "models"
        folder.mkdir()
        fill(folder)
        inside = [folder, *folder.rglob("*")]
        for path in inside:
            path.chmod(0o555 if path.is_dir() else 0o444)
        folder.parent.chmod(0o755)
        root = os.geteuid() == 0
        try:
            if root:
                codecs.lookup("utf-8-sig")  # imported on first use, and somebody else may not read root's Python
                os.seteuid(NOBODY)
            yield folder
        finally:
            if root:
                os.seteuid(0)
            for path in inside:
                path.chmod(0o755)
