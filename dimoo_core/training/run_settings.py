"""What a run was made with, beside its state: so that no run goes on as another, and what is changed is told."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..files import atomic_write_text

SETTINGS = "settings.json"


def settings_before(run: Path, report: Callable[[str], None]) -> dict[str, Any]:
    """The settings that lie in a folder that holds the state of a run; none where they are missing or cannot be
    read."""
    file = run / SETTINGS
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        report(f"{file} cannot be read, and is written anew")
        return {}


def check_same_run(run: Path, before: Mapping[str, Any], now: Mapping[str, Any], fixed: Collection[str]) -> None:
    """Raises ValueError where a folder holds a run that differs in what is `fixed`."""
    for name in fixed:
        if name in before and _told(before[name]) != _told(now[name]):
            raise ValueError(
                f"{run} holds a run with {name} {_told(before[name])}, and this one has {_told(now[name])}; name "
                "another folder for it, or train with the same."
            )


def write_settings(run: Path, before: Mapping[str, Any], now: Mapping[str, Any], report: Callable[[str], None]) -> None:
    """Writes the settings of a run down, and tells what is changed in those of a run that goes on."""
    changed = [f"{name} {old} -> {new}" for name, old, new in _differences(before, now)]
    if changed:
        report(f"other settings than before from here on: {', '.join(changed)}")
    run.mkdir(parents=True, exist_ok=True)
    atomic_write_text(run / SETTINGS, json.dumps(now, indent=1) + "\n")


def _told(value: Any) -> Any:
    return value.get("fingerprint") if isinstance(value, Mapping) else value


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name in [name for name in now if name in before]:
        old, new = before[name], now[name]
        if isinstance(new, Mapping) and isinstance(old, Mapping):
            yield from _differences(old, new)
        elif old != new and name != "name":
            yield name, old, new
