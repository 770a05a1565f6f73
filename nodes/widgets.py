"""The pack's inputs that have a widget: each one has a tooltip, a default and bounds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from ..dimoo_core.checks import shown
from ..dimoo_core.sampling.noise import SEEDS
from .host import io

OWN = -1  # in a number: the checkpoint's own setting

Meaning = TypeVar("Meaning")
Number = TypeVar("Number", int, float)
Widget = TypeVar("Widget", bound=io.WidgetInput)


def integer(
    name: str, default: int, bounds: tuple[int, int], tooltip: str, *, step: int = 1, optional: bool = False
) -> io.Int.Input:
    """A whole number within `bounds`, both included. Inputs added in a later version are `optional`, so that older
    workflows, which lack them, stay valid."""
    least, most = bounds
    return io.Int.Input(name, default=default, min=least, max=most, step=step, tooltip=tooltip, optional=optional)


def number(
    name: str,
    default: float,
    bounds: tuple[float, float],
    tooltip: str,
    *,
    step: float,
    finest: float = 0.001,
    optional: bool = False,
) -> io.Float.Input:
    """A number within `bounds`, both included; `step` is one click on the arrows, values as fine as `finest` can be
    typed."""
    least, most = map(float, bounds)
    return io.Float.Input(
        name, default=float(default), min=least, max=most, step=step, round=finest, optional=optional, tooltip=tooltip
    )


def unless_own(value: Number) -> Number | None:
    """A number as the core takes it: None where it says the checkpoint's own."""
    return None if value == OWN else value


def unless_own_size(px: int) -> int | None:
    """A length in px as the core takes it: None where 0 or less says the checkpoint's own. Sizes go in steps that the
    page counts from the least of them, so that is a whole step below 0, where -1 is taken as well."""
    return px if px > 0 else None


def choice(name: str, options: Iterable[str], tooltip: str, *, optional: bool = False) -> io.Combo.Input:
    """One of `options`, the first by default."""
    options = list(options)
    return io.Combo.Input(name, options=options, default=options[0], optional=optional, tooltip=tooltip)


def advanced(inputs: Iterable[Widget]) -> list[Widget]:
    """The inputs, which pages that know of such a thing keep folded away."""
    made = list(inputs)
    for one in made:
        one.extra_dict["advanced"] = True  # as an argument only newer ComfyUIs take it
    return made


def chosen(name: str, value: str, meanings: Mapping[str, Meaning]) -> Meaning:
    """What a choice means. Raises ValueError for an unknown choice, which ComfyUI 0.3.75 lets through."""
    if not isinstance(value, str) or value not in meanings:
        raise ValueError(f"Got {name} {shown(value)}; choose one of {', '.join(meanings)}.")
    return meanings[value]


def words(name: str, tooltip: str, *, default: str = "", optional: bool = False) -> io.String.Input:
    """Text of several lines with ComfyUI's dynamic prompts: {this|that} picks one of the two at random."""
    return io.String.Input(
        name, multiline=True, dynamic_prompts=True, default=default, optional=optional, tooltip=tooltip
    )


def seed(tooltip: str) -> io.Int.Input:
    """A 64-bit seed with the page's control_after_generate beside it."""
    return io.Int.Input("seed", default=0, min=0, max=SEEDS - 1, control_after_generate=True, tooltip=tooltip)
