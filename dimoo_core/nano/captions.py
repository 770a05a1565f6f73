"""The words of DiMOO-nano's world: captions, what each says of a scene, and whether that is true of one.

"a small red circle at the top left on a white background", "a red circle on the left and a blue square on the right",
"two red circles", "a red circle left of a blue square". Any part but the shapes may be left open.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from itertools import permutations

from .scenes import BACKGROUNDS, BOXES, COLOURS, SHAPES, SIZES, Figure, Scene

OPEN = ("size", "colour", "place", "background")  # what a caption may leave unsaid
RELATIONS = ("left of", "right of", "above", "below")
NUMBERS = ("none", "one", "two", "three")
PLURALS = {shape: f"{shape}s" for shape in SHAPES}


@dataclass(frozen=True)
class Look:
    """What is said of one figure; None where it is left open."""

    shape: str
    colour: str | None = None
    size: str | None = None
    place: str | None = None

    @property
    def words(self) -> str:
        """The figure in words: "a small red circle on the left"."""
        return " ".join(word for word in ("a", self.size, self.colour, self.shape, self.place) if word)

    def fits(self, figure: Figure) -> bool:
        """Whether all that is said is true of the figure."""
        said = ((self.colour, figure.colour), (self.size, figure.size), (self.place, figure.place))
        return self.shape == figure.shape and all(word in (None, shown) for word, shown in said)


@dataclass(frozen=True)
class Caption:
    """What is said of a scene: a look for each figure, in the order of the words, and the background.

    With `count` one look is said of so many figures: "two red circles". With `relation`, one of RELATIONS, the first of
    two looks stands so to the second: "a circle left of a square". Raises ValueError where either is said of another
    number of looks, or of looks with a size or a place.
    """

    looks: tuple[Look, ...]
    background: str | None = None
    count: int | None = None
    relation: str | None = None

    def __post_init__(self) -> None:
        if self.count is None and self.relation is None:
            return
        wanted = 2 if self.count is None else 1
        bare = all(look.size is None and look.place is None for look in self.looks)
        known = self.count is None or (self.relation is None and 1 <= self.count < len(NUMBERS))
        if len(self.looks) != wanted or not bare or not known:
            raise ValueError(
                f"Got {self.looks} with count {self.count} and relation {self.relation}; expected one look with a "
                f"count up to {len(NUMBERS) - 1}, or two with a relation, without size or place."
            )

    @classmethod
    def of(cls, scene: Scene, leave_open: Collection[str] = ()) -> Caption:
        """All that can be said of a scene; `leave_open` names what stays unsaid, of OPEN. Of several figures, which are
        all small, the size is never said; of a scene without figures the background always is."""
        if not scene.figures:
            return cls((), scene.background)
        unsaid = {*leave_open, "size"} if len(scene.figures) > 1 else {*leave_open}
        parts = [name for name in ("colour", "size", "place") if name not in unsaid]
        looks = (Look(figure.shape, **{name: getattr(figure, name) for name in parts}) for figure in scene.figures)
        return cls(tuple(looks), None if "background" in unsaid else scene.background)

    @property
    def words(self) -> str:
        """The caption as text."""
        if not self.looks:
            return f"an empty {self.background} background" if self.background else "an empty background"
        behind = f" on a {self.background} background" if self.background else ""
        return self._figures() + behind

    def _figures(self) -> str:
        if self.count is not None:
            look = self.looks[0]
            kind = PLURALS[look.shape] if self.count > 1 else look.shape
            return " ".join(word for word in (NUMBERS[self.count], look.colour, kind) if word)
        *most, last = [look.words for look in self.looks]
        if self.relation is not None:
            return f"{most[0]} {self.relation} {last}"
        return f"{', '.join(most)} and {last}" if most else last

    def fits(self, scene: Scene) -> bool:
        """Whether all that is said is true of the scene, and it shows as many figures as are spoken of.

        It does not matter which look is said first, unless there is a relation: that is judged by columns alone ("left
        of", "right of") or by rows alone.
        """
        looks = self.looks * (self.count or 1)
        if self.background not in (None, scene.background) or len(looks) != len(scene.figures):
            return False
        return any(
            all(look.fits(figure) for look, figure in zip(looks, figures, strict=True))
            and (self.relation is None or stands(figures[0], self.relation, figures[1]))
            for figures in permutations(scene.figures)
        )

    @property
    def scene(self) -> Scene | None:
        """The only scene that the caption fits, where it says everything; None where it does not, or where there is no
        such scene."""
        alone = len(self.looks) == 1
        full = all(look.colour and look.place and bool(look.size) == alone for look in self.looks)
        if not full or self.background is None:
            return None
        figures = tuple(
            Figure(look.shape, look.colour, look.size or "small", look.place)
            for look in self.looks
            if look.colour and look.place
        )
        try:
            return Scene(self.background, figures)
        except ValueError:  # two in one place, or a large one in a corner
            return None


def stands(figure: Figure, relation: str, other: Figure) -> bool:
    """Whether a figure is left of, right of, above or below another, whatever row or column the two are in."""
    (row, column), (other_row, other_column) = (divmod(BOXES.index(one.place), 3) for one in (figure, other))
    return {
        "left of": column < other_column,
        "right of": column > other_column,
        "above": row < other_row,
        "below": row > other_row,
    }[relation]


def caption(scene: Scene, leave_open: Collection[str] = ()) -> str:
    """The words for a scene: `Caption.of`."""
    return Caption.of(scene, leave_open).words


def _one_of(words: Collection[str]) -> str:
    return f"({'|'.join(sorted(words, key=len, reverse=True))})"  # "at the top left" before "at the top"


_COLOUR, _SHAPE = _one_of(COLOURS), _one_of(SHAPES)
_EMPTY = re.compile(rf"an empty(?: {_one_of(BACKGROUNDS)})? background")
_BACKGROUND = re.compile(rf" on a {_one_of(BACKGROUNDS)} background$")
_COUNT = re.compile(rf"{_one_of(NUMBERS[1:])}(?: {_COLOUR})? {_SHAPE}s?")
_RELATION = re.compile(rf"a(?: {_COLOUR})? {_SHAPE} {_one_of(RELATIONS)} a(?: {_COLOUR})? {_SHAPE}")
_LOOK = re.compile(rf"\ba(?: {_one_of(SIZES)})?(?: {_COLOUR})? {_SHAPE}(?: {_one_of(BOXES)})?\b")


def parse_caption(text: str) -> Caption | None:
    """The caption whose words a text has; None if it is no caption. Commas may be missing: nano's tokenizer drops
    them."""
    text = _without_commas(text)
    found = _read(text)
    return found if _without_commas(found.words) == text else None


def described(text: str) -> Scene | None:
    """The scene that a full caption describes; None if the text is not a full caption."""
    found = parse_caption(text)
    return None if found is None else found.scene


def _without_commas(text: str) -> str:
    return " ".join(text.replace(",", " ").split())


def _read(text: str) -> Caption:
    """The caption that a text without commas has the words of, if it is one."""
    if empty := _EMPTY.fullmatch(text):
        return Caption((), empty[1])
    behind = _BACKGROUND.search(text)
    background, said = (behind[1], text[: behind.start()]) if behind else (None, text)
    if count := _COUNT.fullmatch(said):
        return Caption((Look(count[3], count[2]),), background, count=NUMBERS.index(count[1]))
    if two := _RELATION.fullmatch(said):
        return Caption((Look(two[2], two[1]), Look(two[5], two[4])), background, relation=two[3])
    looks = (Look(look[3], look[2], look[1], look[4]) for look in _LOOK.finditer(said))
    return Caption(tuple(looks), background)
