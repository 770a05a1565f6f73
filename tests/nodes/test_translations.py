"""English and Chinese say the same: a Chinese text whose English changed after it is found.

tests/snapshots/translations.json says of every text which English and which Chinese belonged together when a translator
last looked. With DIMOO_UPDATE_SNAPSHOT set, every text whose Chinese has changed, or that the record does not have, is
recorded as it is now. So to confirm a Chinese text that needs no change, delete its line and update.
"""

from __future__ import annotations

import hashlib
import json
import os

from .. import texts

RECORD = texts.ROOT / "tests" / "snapshots" / "translations.json"


def fingerprint(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:12]


def pairs() -> dict[str, tuple[str, str]]:
    """Name of every text to the English and the Chinese."""
    english = texts.leaves(texts.described()) | texts.pages("en")
    chinese = texts.leaves(texts.locale("zh")) | texts.pages("zh")
    return {name: (english[name], chinese[name]) for name in english if name in chinese}


def recorded(found: dict[str, tuple[str, str]]) -> dict[str, str]:
    return {name: " ".join(map(fingerprint, pair)) for name, pair in found.items()}


def outdated(record: dict[str, str], now: dict[str, str]) -> list[str]:
    """Texts whose English is not the one that their Chinese was translated from."""
    return [name for name, both in now.items() if record.get(name, "").split()[:1] != both.split()[:1]]


def updated(record: dict[str, str], now: dict[str, str]) -> dict[str, str]:
    """The record with all texts that were translated since; a text whose Chinese is as before keeps its entry."""
    kept = {name: both for name, both in record.items() if name in now and both.split()[1:] == now[name].split()[1:]}
    return {name: kept.get(name, both) for name, both in now.items()}


def test_no_chinese_text_is_older_than_its_english() -> None:
    now = recorded(pairs())
    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    if os.environ.get("DIMOO_UPDATE_SNAPSHOT"):
        record = updated(record, now)
        RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    stale = outdated(record, now)
    assert not stale, (
        "The English changed after the Chinese of " + ", ".join(stale) + ": translate again, then run once with "
        "DIMOO_UPDATE_SNAPSHOT=1."
    )
    assert record.keys() == now.keys(), f"gone: {', '.join(record.keys() - now.keys())}"


def test_every_text_takes_part() -> None:
    assert set(pairs()) == texts.shown("en").keys() - texts.notes().keys()


def test_a_changed_english_text_is_found_until_its_chinese_changes_too() -> None:
    first = recorded({"a.tooltip": ("A seed.", "\u79cd\u5b50\u3002"), "docs/A.md": ("Help", "\u5e2e\u52a9")})
    assert outdated(first, first) == []
    english_changed = recorded(
        {"a.tooltip": ("The seed.", "\u79cd\u5b50\u3002"), "docs/A.md": ("Help", "\u5e2e\u52a9")}
    )
    assert outdated(first, english_changed) == ["a.tooltip"]
    assert updated(first, english_changed) == first, "an update of other snapshots does not hide it"
    translated = recorded(
        {"a.tooltip": ("The seed.", "\u8fd9\u4e2a\u79cd\u5b50\u3002"), "docs/A.md": ("Help", "\u5e2e\u52a9")}
    )
    assert updated(first, translated) == translated
    assert updated({"docs/A.md": first["docs/A.md"]}, english_changed) == english_changed, "confirmed as it is"


def test_a_new_text_is_found_and_one_that_is_gone_is_forgotten() -> None:
    now = recorded({"new": ("New.", "\u65b0\u3002")})
    assert outdated({}, now) == ["new"]
    assert updated({"gone": "1 2"}, now) == now
