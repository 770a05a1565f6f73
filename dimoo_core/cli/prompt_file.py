"""Reading a list of prompts from a file: what each entry asks for, all of it checked before anything is made.

    .txt           a prompt per line; blank lines and lines that begin with # are skipped, \\# begins a prompt with #
    .json          an array of prompts, or of objects with "prompt" and other fields of `Job`
    .jsonl .ndjson such a prompt or object per line
    .csv .tsv      a table whose first line names the columns: prompt, and any other fields of `Job`; an empty cell is
                   left to the command line; a size is written WIDTHxHEIGHT

A file without a suffix is read as .txt.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..checks import number_in, whole_number
from ..files import decoded
from ..pictures.sizes import check_size
from ..sampling.guidance import MAX_SCALE
from ..sampling.image import ImageSettings
from ..sampling.noise import SEEDS
from ..sequence.prompt import check_text

MAX_BYTES = 64 << 20
Entry = tuple[str, Any]  # where it stands in the file ("Line 3"), and what stands there


@dataclass(frozen=True)
class Job:
    """One picture of a list: what it should show and how it is sampled. size: (width, height) px."""

    prompt: str
    negative: str = ""
    size: tuple[int, int] = (1024, 1024)
    seed: int = 0
    steps: int = 64
    cfg: float = 4.0
    temperature: float = 1.0
    corrections: int = 0
    polish: int = 0
    order: str = "confidence"
    shared_noise: float = 0.0

    def check(self, scale: int) -> None:
        """Raises ValueError for what could not be sampled at `scale` px per cell."""
        check_text("prompt", self.prompt)
        check_text("negative", self.negative)
        if not isinstance(self.size, (list, tuple)) or len(self.size) != 2:
            raise ValueError(f"size is {self.size!r:.60}; expected [width, height] in px.")
        for side in self.size:
            whole_number("size", side, 1)
        check_size(*self.size, scale)
        number_in("cfg", self.cfg, 0, MAX_SCALE)
        ImageSettings(
            self.steps,
            self.temperature,
            self.seed,
            corrections=self.corrections,
            polish=self.polish,
            order=self.order,
            shared_noise=self.shared_noise,
        )

    def to_dict(self) -> dict[str, Any]:
        """The job as JSON fields."""
        return {**asdict(self), "size": list(self.size)}


_FIELDS = [field.name for field in fields(Job)]
_KINDS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("seed", "steps", "corrections", "polish"), int),
    **dict.fromkeys(("cfg", "temperature", "shared_noise"), float),
}


def read_jobs(path: str | Path, usual: Job, scale: int) -> list[Job]:
    """The jobs of a list. What an entry leaves out is as `usual`, except the seed: entry i, from 0, has the usual
    seed + i. `scale`: px per cell. Raises ValueError, naming the line or entry, for what cannot be sampled."""
    jobs: list[Job] = []
    for name, entry in _entries(Path(path)):
        try:
            job = _job(entry, replace(usual, seed=(usual.seed + len(jobs)) % SEEDS))
            job.check(scale)
        except ValueError as error:
            raise ValueError(f"{name} of {path}: {error}") from None
        jobs.append(job)
    if not jobs:
        raise ValueError(f"{path} holds no prompts; write one per line.")
    return jobs


def _entries(path: Path) -> Iterator[Entry]:
    if path.suffix.lower() not in _READERS:
        known = ", ".join(suffix for suffix in _READERS if suffix)
        raise ValueError(f"{path} is not a list of prompts by its name; expected one of {known}: rename it.")
    return _READERS[path.suffix.lower()](path, _text(path))


def _text(path: Path) -> str:
    """What stands in a file, in UTF-8 with or without a byte order mark, or in UTF-16 with one."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(f"The list {path} cannot be read ({error.strerror}): check the path.") from None
    if len(content) > MAX_BYTES:
        raise ValueError(f"{path} has more than {MAX_BYTES >> 20} MB; split the list.")
    try:
        return decoded(content)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"Line {line} of {path} is not UTF-8 text; save the file as UTF-8.") from None


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1. Only a line feed ends one: JSON may hold other signs."""
    return ((number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def _prompts(_path: Path, text: str) -> Iterator[Entry]:
    for number, line in _lines(text):
        if not line.startswith("#"):
            yield f"Line {number}", line[1:] if line.startswith("\\#") else line


def _array(path: Path, text: str) -> Iterator[Entry]:
    listed = _parsed(str(path), text)
    if not isinstance(listed, list):
        raise ValueError(f"{path} holds a JSON {type(listed).__name__}; expected an array of prompts.")
    return ((f"Entry {number}", entry) for number, entry in enumerate(listed, 1))


def _json_lines(path: Path, text: str) -> Iterator[Entry]:
    for number, line in _lines(text):
        yield f"Line {number}", _parsed(f"Line {number} of {path}", line)


def _parsed(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"{name} is not valid JSON ({error.msg} at {place}); fix it.") from None
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits; brackets in brackets in brackets
        raise ValueError(f"{name} is not usable JSON ({error}); fix it.") from None


def _table(path: Path, text: str) -> Iterator[Entry]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    header = next(iter(_lines(text)), (0, ""))[1]
    if delimiter == "," and "," not in header and ";" in header:
        delimiter = ";"  # as Excel saves .csv where the comma is the decimal sign
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns: list[str] = []
    while True:
        before = reader.line_num
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(f"Line {before + 1} of {path} is not a row of a table ({error}); fix it.") from None
        if not any(cell.strip() for cell in row):
            continue
        if len(row) > len(columns) > 0:
            raise ValueError(
                f"Line {before + 1} of {path} has {len(row)} cells, but there are {len(columns)} columns; put a prompt "
                'that has a comma in it between quotes: "a circle, red".'
            )
        if columns:
            yield f"Line {before + 1}", _row(columns, row)
        else:
            columns = _columns(path, row)


def _columns(path: Path, row: list[str]) -> list[str]:
    columns = [cell.strip().lower() for cell in row]
    if "prompt" not in columns:
        raise ValueError(
            f"The first line of {path} names no column prompt (got {', '.join(row)!r:.60}); begin it with a header "
            "such as prompt,seed."
        )
    unknown = [column for column in columns if column not in _FIELDS]
    if unknown or len(set(columns)) < len(columns):
        wrong = f"an unknown column {unknown[0]!r:.60}" if unknown else "a column twice"
        raise ValueError(f"The first line of {path} has {wrong}; the columns can be {', '.join(_FIELDS)}.")
    return columns


def _row(columns: list[str], row: list[str]) -> dict[str, Any]:
    cells = {column: cell.strip() for column, cell in zip(columns, row, strict=False) if cell.strip()}
    return {column: _value(column, cell) for column, cell in cells.items()}


def _value(column: str, cell: str) -> Any:
    """A cell as the value of its field; any other stays text, which `Job.check` refuses."""
    try:
        if column == "size":
            return [int(part) for part in cell.lower().split("x")]
        return _KINDS.get(column, str)(cell)
    except ValueError:
        return cell


_READERS: dict[str, Callable[[Path, str], Iterator[Entry]]] = {
    ".txt": _prompts,
    "": _prompts,
    ".json": _array,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".csv": _table,
    ".tsv": _table,
}


def _job(entry: Any, usual: Job) -> Job:
    if isinstance(entry, str):
        return replace(usual, prompt=entry)
    if not isinstance(entry, Mapping) or "prompt" not in entry:
        raise ValueError(f'got {entry!r:.60}; expected a prompt, or an object with "prompt" in it.')
    unknown = sorted(set(entry) - set(_FIELDS))
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r:.60}; the fields are {', '.join(_FIELDS)}.")
    given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()}
    return replace(usual, **given)
