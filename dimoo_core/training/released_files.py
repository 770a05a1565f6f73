"""Pictures as the released preparation stores them: pickled codes.

A pickle can run anything, so none is ever given to Python's own reader. The small machine below knows only the
operations that build dicts of text, whole numbers and lists of whole numbers, and refuses all others unread: nothing
can be imported or called, lists cannot hold lists, and memory is bounded by the size of the file.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from ..checks import printable, shown
from ..pictures.sizes import CELL, MAX_CELLS
from ..sequence.token_table import TokenTable

MAX_CODES_FILE = 16 * MAX_CELLS  # bytes; an id takes ten at most, as protocol 0 writes it
_HIGHEST_PROTOCOL = 5
_MAX_DIGITS = 19  # of a number; more do not fit 64 bits
_MAX_WORDS = 4096  # bytes of a text; keys have ten
_NUMBER = re.compile(rb"-?[0-9]+")


def read_codes_file(path: str | Path, table: TokenTable) -> Tensor:
    """The codes [H,W] int64, 0..K-1, of a picture as the released preparation stores it.

    The file is a pickled dict of `input_ids` (code + code offset, row by row), `length`, `height` and `width`, where
    the last two, in px, are exchanged: `height` is the width. Raises ValueError, one sentence that names the file, for
    anything that cannot be read, is no such pickle, or is no whole picture of codes of `table`.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise ValueError("it is not a file")
        with open(path, "rb") as file:
            content = file.read(MAX_CODES_FILE + 1)
        if len(content) > MAX_CODES_FILE:
            raise ValueError(f"it has more than {MAX_CODES_FILE} bytes")
        return _grid(_Machine(content).run(), table)
    except OSError as error:
        raise ValueError(
            f"The codes {printable(str(path), 200)} cannot be read ({error.strerror}); check the path."
        ) from None
    except ValueError as error:
        raise ValueError(
            f"{printable(str(path), 200)} does not hold the codes of a picture ({error}); make it again with the "
            "released preparation, or encode the picture itself."
        ) from None


def _grid(picture: dict[str, object], table: TokenTable) -> Tensor:
    """The codes [H,W] of a dict as the released preparation makes it; ValueError for any other."""
    ids, length = picture.get("input_ids"), picture.get("length")
    if not isinstance(ids, list):
        raise ValueError("it has no list input_ids")
    width, height = _side(picture, "height"), _side(picture, "width")  # exchanged, as the released preparation has it
    rows, columns = height // CELL, width // CELL
    if not isinstance(length, int) or not length == len(ids) == rows * columns:
        raise ValueError(
            f"it has {len(ids)} codes and says {shown(length)}, for {columns}x{rows} cells of {CELL}x{CELL} px"
        )
    outside = next((id for id in ids if not table.codes.start <= id < table.codes.stop), None)
    if outside is not None:
        raise ValueError(
            f"id {outside} is not one of the image codes {table.codes.start}..{table.codes.stop - 1} of this checkpoint"
        )
    return torch.tensor(ids, dtype=torch.int64).view(rows, columns) - table.code_offset


def _side(picture: dict[str, object], key: str) -> int:
    side = picture.get(key)
    if not isinstance(side, int) or not 0 < side <= CELL * MAX_CELLS or side % CELL:
        raise ValueError(f"its {key} is {shown(side)}, not a multiple of {CELL} px")
    return side


class _Machine:
    """Runs a pickle that builds one dict of text to text, whole numbers and lists of whole numbers, nothing else.

    Values lie on `stack`, `marks` are places in it, and `memo` holds what the pickle wants to use again. Every
    operation takes at least one byte of the file and adds at most one value; numbers and texts are short.
    """

    def __init__(self, content: bytes):
        self.content, self.at = content, 0
        self.began = 0  # where the operation stands that is at work
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}

    def run(self) -> dict[str, object]:
        """The dict. Bytes after the end are not looked at. Raises ValueError, saying where, for any other pickle."""
        while (code := self.next()) != b".":
            operation = _OPERATIONS.get(code)
            if operation is None:
                self.fail(f"operation {shown(code)}, which makes something other than a dict, list, text or number,")
            operation(self)
        if self.marks or len(self.stack) != 1 or not isinstance(self.stack[0], dict):
            self.fail("the end, and no dict,")
        return self.stack[0]

    def fail(self, what: str) -> NoReturn:
        raise ValueError(f"{what} at byte {self.began}")

    def next(self) -> bytes:
        self.began = self.at
        return self.take(1)

    # Arguments ------------------------------------------------------------------------------------------------------

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        if count > len(self.content) - self.at:
            raise ValueError("it is cut short" if self.content else "it is empty")
        self.at += count
        return self.content[self.at - count : self.at]

    def line(self, most: int) -> bytes:
        """The bytes up to the end of the line, which are at most `most`."""
        end = self.content.find(b"\n", self.at, self.at + most + 1)
        if end < 0:
            self.fail(f"a line of more than {most} bytes")
        value, self.at = self.content[self.at : end], end + 1
        return value

    def unsigned(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def decimal(self) -> int:
        digits = self.line(_MAX_DIGITS + 2)
        number = digits.removesuffix(b"L")  # of the operation LONG
        if not _NUMBER.fullmatch(number) or len(number) > _MAX_DIGITS + 1 or digits in (b"00", b"01"):  # bools
            self.fail(f"{shown(digits)}, not a whole number,")
        return int(number)

    # Operations -----------------------------------------------------------------------------------------------------

    def protocol(self) -> None:
        version = self.unsigned(1)
        if version > _HIGHEST_PROTOCOL:
            self.fail(f"unknown protocol {version}")

    def frame(self) -> None:
        """A promise of how many bytes follow, for readers of streams; here it only must be true."""
        if self.unsigned(8) > len(self.content) - self.at:
            self.fail("a frame longer than the file")

    def push(self, value: object) -> None:
        self.stack.append(value)

    def long(self, size_bytes: int) -> None:
        size = self.unsigned(size_bytes)
        if size > 8:
            self.fail("a number of more than 64 bits")
        self.push(int.from_bytes(self.take(size), "little", signed=True))

    def text(self, size_bytes: int) -> None:
        size = self.unsigned(size_bytes)
        if size > _MAX_WORDS:
            self.fail(f"a text of more than {_MAX_WORDS} bytes")
        self.push(self.take(size).decode("utf-8", "replace"))

    def mark(self) -> None:
        self.marks.append(len(self.stack))

    def pop(self) -> object:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            self.fail("a value missing")
        return self.stack.pop()

    def since_mark(self) -> list[object]:
        if not self.marks:
            self.fail("a mark missing")
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def top(self) -> object:
        value = self.pop()
        self.push(value)
        return value

    def remember(self, index: int) -> None:
        self.memo[index] = self.top()

    def recall(self, index: int) -> None:
        if index not in self.memo:
            self.fail("a value that was never stored")
        self.push(self.memo[index])

    def append(self, values: list[object]) -> None:
        target = self.top()
        if not isinstance(target, list):
            self.fail("an item added to something other than a list")
        if not all(isinstance(value, int) for value in values):
            self.fail("a list of something other than whole numbers")
        target += values

    def set_items(self, values: list[object]) -> None:
        target = self.top()
        if not isinstance(target, dict):
            self.fail("a field added to something other than a dict")
        if len(values) % 2 or not all(isinstance(key, str) for key in values[::2]):
            self.fail("a field without a name")
        if any(isinstance(value, dict) for value in values[1::2]):
            self.fail("a dict inside a dict")
        target.update(zip(values[::2], values[1::2], strict=True))

    def new_list(self) -> None:
        values = self.since_mark()
        self.push([])
        self.append(values)

    def new_dict(self) -> None:
        values = self.since_mark()
        self.push({})
        self.set_items(values)


_OPERATIONS: dict[bytes, Callable[[_Machine], None]] = {
    b"\x80": _Machine.protocol,
    b"\x95": _Machine.frame,
    b"(": _Machine.mark,
    b"}": lambda machine: machine.push({}),
    b"]": lambda machine: machine.push([]),
    b"d": _Machine.new_dict,
    b"l": _Machine.new_list,
    b"a": lambda machine: machine.append([machine.pop()]),
    b"e": lambda machine: machine.append(machine.since_mark()),
    b"s": lambda machine: machine.set_items([machine.pop(), machine.pop()][::-1]),
    b"u": lambda machine: machine.set_items(machine.since_mark()),
    b"I": lambda machine: machine.push(machine.decimal()),
    b"L": lambda machine: machine.push(machine.decimal()),
    b"J": lambda machine: machine.push(struct.unpack("<i", machine.take(4))[0]),
    b"K": lambda machine: machine.push(machine.unsigned(1)),
    b"M": lambda machine: machine.push(machine.unsigned(2)),
    b"\x8a": lambda machine: machine.long(1),
    b"\x8b": lambda machine: machine.long(4),
    b"V": lambda machine: machine.push(machine.line(_MAX_WORDS).decode("latin-1")),  # escapes stay: keys have none
    b"\x8c": lambda machine: machine.text(1),
    b"X": lambda machine: machine.text(4),
    b"\x8d": lambda machine: machine.text(8),
    b"p": lambda machine: machine.remember(machine.decimal()),
    b"q": lambda machine: machine.remember(machine.unsigned(1)),
    b"r": lambda machine: machine.remember(machine.unsigned(4)),
    b"\x94": lambda machine: machine.remember(len(machine.memo)),
    b"g": lambda machine: machine.recall(machine.decimal()),
    b"h": lambda machine: machine.recall(machine.unsigned(1)),
    b"j": lambda machine: machine.recall(machine.unsigned(4)),
}
