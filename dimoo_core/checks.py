"""Checks of numbers: what was got and what is expected, in one sentence."""

from __future__ import annotations


def whole_number(name: str, value: int, least: int, most: int | None = None) -> int:
    """`value` unchanged, if it is a whole number in least..most; otherwise a ValueError."""
    bounds = f"from {least} to {most}" if most is not None else f"of at least {least}"
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        raise ValueError(f"{name} is {value!r:.80}; expected a whole number {bounds}.")
    return value


def number_in(name: str, value: float, least: float, most: float) -> float:
    """`value` as a float, if it is a number in least..most (NaN is not); otherwise a ValueError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise ValueError(f"{name} is {value!r:.80}; expected a number from {least:g} to {most:g}.")
    return float(value)
