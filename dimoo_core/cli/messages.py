"""What the program says: on any console, to a closed pipe too, and never at endless length. Imports nothing heavy."""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
from typing import TextIO

_REFUSED = re.compile(
    r"(invalid (?:choice|\w+ value): )(['\"])(.{80}).*?\2(?= \(choose from|$)", re.DOTALL
)  # by argparse
_WORD = re.compile(r"(\S{240})\S{60,}")
_LONGEST = 1200  # characters


def spell_anything() -> None:
    """A character that the console's encoding does not have is written as an escape and raises nothing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line to stdout or `stream`. A reader that has gone (`| head`) ends the output, not the work."""
    stream = sys.stdout if stream is None else stream
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        silence(stream)


def silence(stream: TextIO) -> None:
    """What is written to `stream` from now on goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, stream.fileno())
    finally:
        os.close(nowhere)


def flush() -> None:
    """Write out what is left, here rather than at the interpreter's end, where a closed pipe would be an error."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except BrokenPipeError:
            silence(stream)


def shortened(message: str) -> str:
    """A message in which nothing that the user typed is repeated at length."""
    message = _WORD.sub(r"\1...", _REFUSED.sub(r"\1\2\3...\2", message))
    half = _LONGEST // 2
    return message if len(message) <= _LONGEST else f"{message[:half]} ... {message[-half:]}"


def sentence(error: Exception, args: argparse.Namespace) -> str:
    """What went wrong, in one line and in the words of the command line: settings as the flags that set them."""
    message = str(error)
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        message = f"{error.filename}: {error.strerror}"
    name, _, rest = message.partition(" ")
    name = {"mask_w_ratio": "mask_width", "mask_h_ratio": "mask_height"}.get(name, name)
    if rest.startswith("is ") and isinstance(getattr(args, name, None), (int, float)):
        message = f"--{name.replace('_', '-')} {rest}"
    return " ".join(shortened(message).splitlines())
