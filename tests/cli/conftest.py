"""What tests of the command line share. A file may have a `model` or `here` of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..tiny import TRANSFORMER, write_checkpoint

DEFAULTS = {"size": [64, 48], "side": 64, "sides": [64, 64], "steps": 2, "max_tokens": 4, "text_steps": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint whose jobs take two steps."""
    settings = TRANSFORMER | {"dimoo_defaults": DEFAULTS | {"block_length": 4}}
    return write_checkpoint(tmp_path_factory.mktemp("model"), transformer=settings)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty folder that commands run in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
