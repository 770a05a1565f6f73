"""Bad values and other libraries' errors, each turned into a ValueError of one sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

LONGEST = 80  # characters that a message repeats of a value that a user or a file supplied


def whole_number(name: str, value: int, least: int, most: int | None = None) -> int:
    """`value` unchanged, if it is a whole number in least..most; otherwise a ValueError."""
    bounds = f"from {least} to {most}" if most is not None else f"of at least {least}"
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        raise ValueError(f"{name} is {shown(value)}; expected a whole number {bounds}.")
    return value


def number_in(name: str, value: float, least: float, most: float) -> float:
    """`value` as a float, if it is a number in least..most (NaN is not); otherwise a ValueError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise ValueError(f"{name} is {shown(value)}; expected a number from {least:g} to {most:g}.")
    return float(value)


def shown(value: Any, limit: int = LONGEST) -> str:
    """repr(value) for a message, cut to at most `limit` characters; it never fails and never has a line break."""
    try:
        text = repr(value[: limit + 1] if isinstance(value, (str, bytes)) else value)
    except Exception:  # an integer of 5,000 digits, lists nested a thousand deep, somebody else's broken __repr__
        text = f"<{type(value).__name__}>"
    return printable(text, limit)


def printable(text: str, limit: int = LONGEST) -> str:
    """Text for a message, without quotes: cut to `limit` characters, "?" for each that cannot be printed."""
    kept = text if len(text) <= limit else f"{text[: limit - 3]}..."
    return "".join(sign if sign.isprintable() else "?" for sign in kept)


@contextmanager
def rust_errors(explain: Callable[[str], str]) -> Iterator[None]:
    """Put around every call into a library written in Rust (tokenizers, safetensors): what it raises becomes
    ValueError(explain(message)).

    A panic there is a BaseException and no Exception, so that it would end a server's thread; it becomes a ValueError
    too. KeyboardInterrupt, SystemExit and MemoryError pass.
    """
    try:
        yield
    except BaseException as error:
        panic = type(error).__name__ == "PanicException"  # each library has its own class of that name
        if isinstance(error, MemoryError) or not (panic or isinstance(error, Exception)):
            raise
        raise ValueError(explain(printable(str(error), 200))) from None
