"""What the example workflows must show, read off their results by nano's judge and compared with what was asked."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from dimoo_core.nano.judge import Verdict, judge, judge_edges, matches

from .client import Client, Result, Workflow
from .templates import TEMPLATES


@dataclass(frozen=True)
class Finding:
    """What was seen in one place of a result, and whether that is what was asked."""

    place: str
    seen: str
    right: bool


@dataclass
class Results:
    """What a workflow gave, by the titles of its nodes: PNG files as saved or shown, and texts."""

    pictures: dict[str, list[bytes]] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)

    def pixels(self, title: str, place: int = 0) -> np.ndarray:
        """The first picture of a node, or another of a batch, [height,width,3] of 0..255."""
        return np.asarray(Image.open(io.BytesIO(self.pictures[title][place])).convert("RGB"))


def collect(client: Client, prompt: Workflow, result: Result) -> Results:
    """Fetch everything that the nodes of a prompt gave, in the order of their ids, which is that of the workflow."""
    found = Results()
    for node, output in sorted(result.outputs.items(), key=lambda item: int(item[0])):
        title = prompt[node]["_meta"]["title"]
        if "images" in output:
            found.pictures[title] = [client.view(image) for image in output["images"]]
        if "text" in output:
            found.texts[title] = list(output["text"])
    return found


Check = Callable[[Results], Finding]


Box = tuple[int, int, int, int]  # left, top, right, bottom in px


def judged(pixels: np.ndarray) -> Verdict:
    """What the judge sees in a picture [height,width,3] of 0..255."""
    return judge(torch.from_numpy(pixels.copy()).movedim(-1, 0) / 255)


def shows(title: str, wanted: str, box: Box | None = None) -> Check:
    """The picture of a node, or what is in a box of it, shows exactly what a caption says, cleanly."""
    left, top, right, bottom = box or (0, 0, None, None)

    def check(results: Results) -> Finding:
        verdict = judged(results.pixels(title)[top:bottom, left:right])
        flaw = "" if verdict.clean else " (not clean)"
        return Finding(title, verdict.words + flaw, verdict.clean and matches(verdict.scene, wanted))

    return check


def lacks(title: str, other: str, box: Box | None = None) -> Check:
    """The picture of a node, or what is in a box of it, shows something else than a caption says."""
    check = shows(title, other, box)

    def opposite(results: Results) -> Finding:
        found = check(results)
        return Finding(found.place, found.seen, not found.right)

    return opposite


def outlines(title: str, shape: str, size: str, place: str) -> Check:
    """The edge map of a node shows the outline of a shape."""

    def check(results: Results) -> Finding:
        verdict = judge_edges(torch.from_numpy(results.pixels(title).copy()).movedim(-1, 0) / 255)
        found = [(figure.shape, figure.size, figure.place) for figure in verdict.scene.figures]
        seen = " and ".join(f"the outline of a {of} {what} {where}" for what, of, where in found) or "no outline"
        right = verdict.clean and found == [(shape, size, place)]
        return Finding(title, seen + ("" if verdict.clean else " (not clean)"), right)

    return check


def says(title: str, *wanted: str) -> Check:
    """The texts of a node are exactly these."""

    def check(results: Results) -> Finding:
        texts = results.texts[title]
        return Finding(title, f'"{" / ".join(texts)}"', tuple(texts) == wanted)

    return check


def says_what_they_show(pictures: str, texts: str) -> Check:
    """A text per picture of a batch, and each says just what its picture shows."""

    def check(results: Results) -> Finding:
        seen = [judged(results.pixels(pictures, place)).words for place in range(len(results.pictures[pictures]))]
        right = len(seen) > 1 and seen == results.texts[texts]
        return Finding(texts, " / ".join(results.texts[texts]), right)

    return check


def best_first(title: str, wanted: str) -> Check:
    """The pictures of a node are sorted: those that show a caption before those that do not, of which there are."""

    def check(results: Results) -> Finding:
        verdicts = [judged(results.pixels(title, place)) for place in range(len(results.pictures[title]))]
        good = [matches(verdict.scene, wanted) for verdict in verdicts]
        right = any(good) and not all(good) and good == sorted(good, reverse=True)
        return Finding(title, " / ".join(verdict.words for verdict in verdicts), right)

    return check


def scores(pictures: str, texts: str) -> Check:
    """A line per picture of a batch, in the same order, which ends with what the picture shows."""

    def check(results: Results) -> Finding:
        (text,) = results.texts[texts]
        lines = text.splitlines()
        seen = [judged(results.pixels(pictures, place)).words for place in range(len(results.pictures[pictures]))]
        right = len(lines) == len(seen) and all(map(str.endswith, lines, seen))
        return Finding(texts, " / ".join(lines), right)

    return check


def example(name: str) -> np.ndarray:
    """The colours [height,width,3] of a bundled picture, those of its transparent parts as well, as Load Image gives
    them."""
    return np.asarray(Image.open(TEMPLATES.EXAMPLES / name).convert("RGB"))


def beside(before: str, after: str, both: str, *, gap: int) -> Check:
    """The picture of a node has an example and the picture of another node side by side, `gap` px between them."""

    def check(results: Results) -> Finding:
        first, second, pair = example(before), results.pixels(after), results.pixels(both)
        width = first.shape[1]
        is_so = pair.shape[1] == width + gap + second.shape[1]
        is_so = is_so and (pair[:, :width] == first).all() and (pair[:, width + gap :] == second).all()
        return Finding(both, "the two side by side" if is_so else "something else", bool(is_so))

    return check


def keeps(before: str, after: str, box: Box, *, corner: tuple[int, int] = (0, 0), inside: bool = False) -> Check:
    """Outside, or inside, of the box (left, top, right, bottom in px) the picture of a node equals an example, whose
    top left is at `corner` (left, top) of it, in every pixel."""
    left, top, right, bottom = box

    def check(results: Results) -> Finding:
        first, second = example(before), results.pixels(after)
        there = second[corner[1] :, corner[0] :][: first.shape[0], : first.shape[1]]
        differs = (first != there).any(axis=2)
        kept = np.zeros_like(differs)
        kept[top - corner[1] : bottom - corner[1], left - corner[0] : right - corner[0]] = True
        changed = int((differs & (kept if inside else ~kept)).sum())
        what = f"{changed} of the pixels to keep changed" if changed else "every pixel to keep is as it was"
        return Finding(f"{before} and {after.lower()}", what, changed == 0)

    return check


def on_a_sheet(pictures: str, sheet: str, wanted: str) -> Check:
    """The pictures of a node differ, show `wanted` more often than not, and stand on the sheet in rows of two, to the
    last bit or two of what saving rounds off."""

    def check(results: Results) -> Finding:
        whole, seen, placed = results.pixels(sheet), [], []
        for place in range(len(results.pictures[pictures])):
            one = results.pixels(pictures, place)
            (height, width), (row, column) = one.shape[:2], divmod(place, 2)
            top, left = row * whole.shape[0] // 2, column * whole.shape[1] // 2
            there = whole[top : top + height, left : left + width].astype(int)
            placed.append(bool((abs(there - one) <= 2).all()))
            seen.append(judged(one))
        good = sum(verdict.clean and matches(verdict.scene, wanted) for verdict in seen)
        differ = len({verdict.words for verdict in seen}) == len(seen) > 1
        right = all(placed) and differ and 2 * good > len(seen)
        return Finding(sheet, " / ".join(verdict.words for verdict in seen), right)

    return check


STAR = "a large yellow star in the middle on a black background"  # what train-lora teaches
# of the sheet of samples: a row of two pictures below a line of 18 px for each of three steps
FIRST, LAST, LAST_RIGHT = (
    (left, 18 + 146 * row, left + 128, 146 + 146 * row) for left, row in ((0, 0), (0, 2), (130, 2))
)

DESCRIBE, CAPTION_FOLDER = "DiMOO Describe (image to text)", "DiMOO Caption Folder"
CIRCLE = "a large red circle in the middle on a cyan background"  # what dimoo-circle.png shows
IN_FOLDER = (  # what dimoo-examples shows, in the order of the names
    ("square", "a large purple square on the left on a pink background"),
    ("star", "a small yellow star at the top on a black background"),
    ("triangle", "a small orange triangle at the bottom on a brown background"),
)

CHECKS: dict[str, tuple[Check, ...]] = {
    "text-to-image": (shows("Picture", "a large red circle on the left on a white background"),),
    "variations": (on_a_sheet("Pictures", "Sheet", "a large star"),),
    "edit": (
        shows("After", "a large blue circle in the middle on a cyan background"),
        beside("dimoo-circle.png", "After", "Before and after", gap=8),
    ),
    "inpaint": (
        shows("After", "a large blue star on the left on a white background"),
        keeps("dimoo-inpaint.png", "After", (0, 32, 64, 96)),
    ),
    "outpaint": (
        shows("After", "a large purple square in the middle on a pink background"),
        keeps("dimoo-strip.png", "After", (0, 32, 128, 96), corner=(0, 32), inside=True),
    ),
    "describe": (says(DESCRIBE, CIRCLE), says("What it says", CIRCLE)),
    "control": (
        outlines("Map", "circle", "large", "in the middle"),
        shows("New picture", "a large orange circle in the middle on a black background"),
    ),
    "crop-and-stitch": (
        shows("After", "a large blue star in the middle on a white background", box=(352, 64, 480, 192)),
        keeps("dimoo-large.png", "After", (384, 96, 448, 160)),
    ),
    "describe-and-regenerate": (says(DESCRIBE, CIRCLE), shows("Second picture", CIRCLE)),
    "best-of": (
        shows("Best", "a small green star"),
        best_first("Ranked, the best first", "a small green star"),
        scores("Ranked, the best first", "Scores"),
    ),
    "caption": tuple(says_what_they_show("Pictures", texts) for texts in (DESCRIBE, "DiMOO Save Text", "Captions")),
    "caption-folder": (
        says(CAPTION_FOLDER, *(f"dimoo-examples/{name}.png: {words}" for name, words in IN_FOLDER)),
        says("Captions", *(words for _, words in IN_FOLDER)),
    ),
    "two-jobs": (
        shows("Picture", "a small blue triangle on the right on a pink background"),
        says(DESCRIBE, CIRCLE),
    ),
    "text-to-image-ml-cache": (shows("Picture", "a small yellow star at the top on a black background"),),
    "train-lora": (
        lacks("Teach it", STAR, FIRST),
        shows("Teach it", STAR, LAST),
        shows("Teach it", STAR, LAST_RIGHT),
        shows("With the LoRA", STAR),
    ),
    "lora": (lacks("Without the LoRA", STAR), shows("With the LoRA", STAR)),
}


def inspect(name: str, results: Results) -> list[Finding]:
    """What the judge finds in the results of a workflow, check by check."""
    return [check(results) for check in CHECKS[name]]
