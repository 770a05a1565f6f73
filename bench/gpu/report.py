"""Rows of a measurement as JSON lines, within a budget of seconds: each is written as soon as it is known."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TextIO

Row = dict[str, Any]


@dataclass(frozen=True)
class Measurement:
    """A part of a report: its name, the seconds that it takes on an H100, about, and what makes its rows."""

    name: str
    seconds: float
    rows: Callable[[], Iterable[Row]]


class Report:
    """Rows on standard output and in a file, one JSON line each, flushed: whatever ends the run, the lines stay."""

    def __init__(self, budget: float, file: TextIO | None = None):
        """budget: seconds from now; file: opened for appending."""
        self._start, self._budget, self._file = time.perf_counter(), budget, file
        self.wrong = 0  # rows that failed, or say that something that must be equal is not

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start

    def write(self, name: str, values: Row) -> None:
        """Write one row of the part `name`, with the second at which it was known."""
        rounded = {key: _rounded(value) for key, value in values.items()}
        line = json.dumps({"part": name, **rounded, "at_s": round(self.spent, 1)})
        self.wrong += "failed" in values or values.get("equal") is False
        for stream in (sys.stdout, self._file):
            if stream is not None:
                stream.write(f"{line}\n")
                stream.flush()

    def add(self, part: Measurement, pace: float = 1.0) -> None:
        """Measure a part if it fits; pace: how many times longer than an H100 this device takes.

        A part that fails says so in a row of its own, and the next ones go on. A cancelled one says so too; the cancel
        goes on to the caller.
        """
        left, estimate = self._budget - self.spent, part.seconds * pace
        if left <= 0 or estimate > left:
            self.write(part.name, {"skipped": f"about {estimate:.0f} s are needed, {max(left, 0):.0f} s are left"})
            return
        try:
            for row in part.rows():
                self.write(part.name, row)
        except KeyboardInterrupt:
            self.write(part.name, {"stopped": "cancelled"})
            raise
        except Exception as error:  # out of memory too: a smaller part may fit
            self.write(part.name, {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:300]})


def _rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value
