"""Measured figures as JSON: one file, one section for each command that measures, rendered by `bench.docs`."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent


def commit() -> str:
    """The commit that is checked out, "-dirty" if code differs from it; "unknown" without git."""
    found = _git("rev-parse", "--short=7", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs", ":!README.md")
    return f"{found}-dirty" if found and changed else found or "unknown"


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    except OSError:  # git is not installed
        return ""
    return done.stdout.strip()


def made_with(command: str) -> dict[str, str]:
    """How figures were made: command, commit, versions and date."""
    versions = {"torch": str(torch.__version__), "python": platform.python_version()}
    return {"command": command, "commit": commit(), **versions, "date": str(date.today())}


def write_section(path: Path, name: str, content: Mapping[str, Any]) -> None:
    """Replace one section of a JSON file; the others stay."""
    sections = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    sections[name] = content
    path.write_text(json.dumps(sections, indent=1) + "\n", encoding="utf-8")
