"""Records: what is to be taught, in a file of one JSON object per line, or in the JSON that the released code reads.

Our own records are lines of a .jsonl file. Paths are relative to that file and may have slashes of either kind; a line
says nothing of other lines.

    {"picture": "fox.jpg", "prompt": "a red fox"}                                               a picture from words
    {"picture": "night.png", "sources": ["day.png"], "prompt": "make it night"}                 an edit
    {"sources": ["a.png", "b.png"], "turns": [{"question": "Which is red?", "answer": "a"}]}    a conversation

    picture  the picture that is the answer; without one the answers are words
    sources  the pictures that are shown, in order
    prompt   the words or the instruction; not needed by an edit type that has its own
    edit     the edit type, such as "canny_pred"; without it the prompt is an instruction about any number of sources
    mask     a picture of the shape of `picture`, white (or transparent) where its loss counts
    turns    questions about the sources, with their answers; each is taught by itself
    system   a system prompt in place of the task's own

A file that ends in .pkl is taken for the codes of a picture, as the released preparation stores them.

Released records are an array in a .json file, or lines of a .jsonl file, and are told by their fields: `user_prompt`,
`user_image` and `answer_image` (paths, "" for none; a list where several pictures are shown), `answer_text` and
`system_prompt`. Which of the pictures is empty tells the task. Their system prompts are kept, without the released
misspelling unless that is asked for. Records in a pickle are refused.

Files are UTF-8. They are read piece by piece, a million records are never held together.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TextIO

from ..checkpoint.headers import refuse_pickle
from ..checks import printable, shown
from ..sequence.prompt import DESCRIBE, EDITS, GENERATE, Task, check_text, edit_task
from .dataset import INSTRUCTION

CODES_SUFFIX = ".pkl"
MAX_RECORD = 4 << 20  # bytes or characters

_CHUNK = 1 << 20  # characters that an array is read by
_BLANK = re.compile(r"[ \t\r\n]*")
_scan = json.JSONDecoder().raw_decode
_TASKS = {GENERATE.name: GENERATE, DESCRIBE.name: DESCRIBE} | EDITS
_MISSPELT, _RIGHT = "accroding", "according"  # in the released records; the released inference has it right


@dataclass(frozen=True)
class Item:
    """A record as its file has it: the text of a JSON value, and where it stands ("a.jsonl line 3")."""

    where: str
    text: str


@dataclass(frozen=True)
class Turn:
    """A question about pictures and its answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Record:
    """One record, its paths as they are opened; the fields are those of a line."""

    where: str
    picture: Path | None = None
    sources: tuple[Path, ...] = ()
    prompt: str = ""
    edit: str | None = None
    mask: Path | None = None
    turns: tuple[Turn, ...] = ()
    system: str | None = None

    @property
    def files(self) -> list[Path]:
        """Every file that the record names."""
        return [path for path in (self.picture, *self.sources, self.mask) if path is not None]

    @property
    def task(self) -> Task:
        """The task, with as many pictures as there are sources. Raises ValueError where its type takes others."""
        count = len(self.sources)
        if self.picture is None:
            return task_named(DESCRIBE.name, self.system, count)
        if not count and self.edit is None:
            return task_named(GENERATE.name, self.system, 0)
        if self.edit is not None and edit_task(self.edit).images != count:
            raise ValueError(
                f"{self.edit} takes {edit_task(self.edit).images} in sources, not {count}: give it as many pictures."
            )
        return task_named(self.edit or INSTRUCTION.name, self.system, count)


def task_named(name: str, system: str | None, images: int) -> Task:
    """The task of that name for so many images, with its own system prompt or another one. Raises ValueError for an
    unknown name."""
    if name not in _TASKS:
        raise ValueError(f"There is no task {shown(name)}; expected one of {', '.join(_TASKS)}.")
    task = _TASKS[name]
    if task is not DESCRIBE and images != task.images:
        task = replace(task, images=images)
    return task if system in (None, task.system) else replace(task, system=system, images=images)


# Reading ------------------------------------------------------------------------------------------------------------


def read_items(path: Path) -> Iterator[Item]:
    """The records of a .jsonl or .json file, one after the other, not yet understood.

    Raises ValueError for a file of another kind, for one that cannot be read, and where an array is broken, so that
    nobody can tell where its next record begins.
    """
    refuse_pickle(path)
    suffix = path.suffix.lower()
    if suffix not in (".json", ".jsonl", ".ndjson"):
        raise ValueError(f"{path} is not a file of records by its name; expected .jsonl, or .json as released.")
    if path.exists() and not path.is_file():  # nobody may ever write to a pipe
        raise ValueError(f"{path} is not a file; expected one of records: write them to a file first.")
    try:
        yield from _array(path) if suffix == ".json" else _lines(path)
    except OSError as error:
        raise ValueError(f"The records {path} cannot be read ({error.strerror}); check the path.") from None
    except UnicodeDecodeError:
        raise _not_utf8(path) from None


def _not_utf8(path: Path) -> ValueError:
    return ValueError(f"{path} is not UTF-8 text; save it as UTF-8.")


def _lines(path: Path) -> Iterator[Item]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_RECORD + 1):
            number += 1
            if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise _not_utf8(path)
            where = f"{path.name} line {number}"
            if len(line) > MAX_RECORD:
                raise ValueError(f"{where} has more than {MAX_RECORD} bytes; break it into records, one a line.")
            text = line.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape").strip()
            if text:
                yield Item(where, text)


def _array(path: Path) -> Iterator[Item]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        stream = _Stream(file)
        number, before = 0, "["
        while True:
            where = f"{path.name} record {number + 1}"
            stream.expect(before, where)
            if not (stream.sign() == "]" and not number):
                yield Item(where, stream.object(where))
                number, before = number + 1, ","
            if stream.sign() == "]":
                stream.at += 1
                break
        if stream.sign():
            raise ValueError(f"Behind the array of {path} stands {shown(stream.sign())}; expected one array alone.")


class _Stream:
    """The JSON values of a text, which is read by and by."""

    def __init__(self, file: TextIO):
        self.file, self.text, self.at = file, "", 0

    def sign(self) -> str:
        """The next character that is not blank, which stays; "" at the end."""
        while True:
            blank = _BLANK.match(self.text, self.at)
            self.at = blank.end() if blank else self.at
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._read_on():
                return ""

    def expect(self, sign: str, where: str) -> None:
        if self.sign() != sign:
            found = shown(self.sign()) if self.sign() else "the end"
            raise ValueError(f"Before {where} stands {found} instead of {sign!r}; expected a JSON array of records.")
        self.at += 1

    def object(self, where: str) -> str:
        """The text of the next value. Raises ValueError where it is no whole JSON object."""
        if self.sign() != "{":
            raise ValueError(f"{where} is not a JSON object; expected an array of records: fix it.")
        while True:
            try:
                end = _scan(self.text, self.at)[1]
            except (ValueError, RecursionError) as error:
                if len(self.text) - self.at <= MAX_RECORD and self._read_on():
                    continue
                raise _not_json(where, error) from None
            text, self.at = self.text[self.at : end], end
            return text

    def _read_on(self) -> bool:
        """One more piece, twice as long as what is left, so that long records are not scanned many times."""
        more = self.file.read(max(_CHUNK, 2 * (len(self.text) - self.at)))
        self.text, self.at = self.text[self.at :] + more, 0
        return bool(more)


def _not_json(where: str, error: Exception) -> ValueError:
    return ValueError(f"{where} is not valid JSON ({printable(str(error), 100)}); fix it.")


# Understanding ------------------------------------------------------------------------------------------------------


def parse_record(item: Item, folder: Path, *, misspelt: bool = False) -> Record:
    """The record of an item, ours or a released one; its paths are relative to `folder`.

    misspelt: keep "accroding" in released system prompts. Raises ValueError, one sentence that names the place, for a
    record that could not be taught; whether its files are there is not looked at.
    """
    try:
        value = json.loads(item.text)
    except (ValueError, RecursionError) as error:
        raise _not_json(item.where, error) from None
    try:
        if not isinstance(value, dict):
            raise ValueError(f"{shown(value)} stands there; expected a JSON object.")
        reader = _Fields(value, folder)
        record = _released(reader, item.where, misspelt) if "user_prompt" in value else _own(reader, item.where)
        _check(record)
    except ValueError as error:
        raise ValueError(f"{item.where}: {error}") from None
    return record


_FIELDS = [field.name for field in fields(Record) if field.name != "where"]


def _own(record: _Fields, where: str) -> Record:
    unknown = sorted(set(record.value) - set(_FIELDS))
    if unknown:
        raise ValueError(f"there is no field {shown(unknown[0])}; expected some of {', '.join(_FIELDS)}.")
    return Record(
        where,
        picture=record.path("picture"),
        sources=record.paths("sources"),
        prompt=record.text("prompt") or "",
        edit=record.text("edit"),
        mask=record.path("mask"),
        turns=tuple(record.turns("turns")),
        system=record.text("system"),
    )


def _released(record: _Fields, where: str, misspelt: bool) -> Record:
    picture, sources = record.path("answer_image"), record.paths("user_image")
    words, system = record.text("user_prompt") or "", record.text("system_prompt")
    if system is not None and not misspelt:
        system = system.replace(_MISSPELT, _RIGHT)
    if picture is not None:
        return Record(where, picture, sources, words, system=system)
    if not sources:
        raise ValueError("user_image and answer_image are both empty; expected a picture in one of them.")
    return Record(where, sources=sources, turns=(Turn(words, record.text("answer_text") or ""),), system=system)


@dataclass(frozen=True)
class _Fields:
    """The fields of a JSON object, each checked for its type; absent ones, null and empty texts are None."""

    value: Mapping[str, Any]
    folder: Path

    def text(self, name: str) -> str | None:
        text = self.value.get(name)
        if text is None or text == "":
            return None
        check_text(name, text)
        return text

    def path(self, name: str) -> Path | None:
        return self._path(name, self.value.get(name))

    def paths(self, name: str) -> tuple[Path, ...]:
        listed = self.value.get(name)
        listed = listed if isinstance(listed, list) else [listed]
        paths = [self._path(name, one) for one in listed]
        return tuple(path for path in paths if path is not None)

    def _path(self, name: str, path: Any) -> Path | None:
        if path is None or path == "":
            return None
        if not isinstance(path, str):
            raise ValueError(f"{name} is {shown(path)}; expected the path of a file.")
        return self.folder / path.replace("\\", "/")

    def turns(self, name: str) -> Iterator[Turn]:
        listed = self.value.get(name)
        if listed is None:
            return
        if not isinstance(listed, list):
            raise ValueError(f"{name} is {shown(listed)}; expected a list of questions with their answers.")
        for turn in listed:
            if not isinstance(turn, dict) or set(turn) != {"question", "answer"}:
                raise ValueError(f'{name} has {shown(turn)}; expected {{"question": ..., "answer": ...}}.')
            reader = _Fields(turn, self.folder)
            yield Turn(reader.text("question") or "", reader.text("answer") or "")


def _check(record: Record) -> None:
    """Raises ValueError for fields that do not go together."""
    if record.picture is None:
        if not record.sources or not record.turns:
            raise ValueError("there is no picture to make and no answer to give; add picture, or sources and turns.")
        if record.prompt or record.edit or record.mask:
            raise ValueError("prompt, edit and mask belong to a picture that is made; add picture, or leave them out.")
        if not all(turn.question and turn.answer for turn in record.turns):
            raise ValueError("a question or an answer is empty; write it, or leave the turn out.")
        return
    if record.turns:
        raise ValueError("there are picture and turns; expected one of them: make two records of it.")
    if record.task.text is None and not record.prompt:
        raise ValueError("the picture has no prompt; write its caption or the instruction there.")
