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
        scene = verdict.scene
        seen = f"the outline of a {scene.size} {scene.shape} {scene.place}" if scene.shape else "no outline"
        right = verdict.clean and (scene.shape, scene.size, scene.place) == (shape, size, place)
        return Finding(title, seen + ("" if verdict.clean else " (not clean)"), right)

    return check


def says(title: str, wanted: str) -> Check:
    """The text of a node is exactly this."""

    def check(results: Results) -> Finding:
        text = " / ".join(results.texts[title])
        return Finding(title, f'"{text}"', text == wanted)

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


def beside(left: str, right: str, both: str, *, gap: int) -> Check:
    """The picture of a node has two others side by side, `gap` px between them."""

    def check(results: Results) -> Finding:
        first, second, pair = (results.pixels(title) for title in (left, right, both))
        width = first.shape[1]
        is_so = pair.shape[1] == width + gap + second.shape[1]
        is_so = is_so and (pair[:, :width] == first).all() and (pair[:, width + gap :] == second).all()
        return Finding(both, "the two side by side" if is_so else "something else", bool(is_so))

    return check


def keeps(before: str, after: str, box: Box, *, inside: bool) -> Check:
    """Inside, or outside, of the box (left, top, right, bottom in px) two pictures are equal in every pixel."""
    left, top, right, bottom = box

    def check(results: Results) -> Finding:
        differs = (results.pixels(before) != results.pixels(after)).any(axis=2)
        kept = np.zeros_like(differs)
        kept[top:bottom, left:right] = True
        changed = int((differs & (kept if inside else ~kept)).sum())
        what = f"{changed} of the pixels to keep changed" if changed else "every pixel to keep is as it was"
        return Finding(f"{before} and {after.lower()}", what, changed == 0)

    return check


STAR = "a large yellow star in the middle on a black background"  # what train-lora teaches
# of the sheet of samples: a row of two pictures below a line of 18 px for each of three steps
FIRST, LAST, LAST_RIGHT = (
    (left, 18 + 146 * row, left + 128, 146 + 146 * row) for left, row in ((0, 0), (0, 2), (130, 2))
)

CHECKS: dict[str, tuple[Check, ...]] = {
    "text-to-image": (shows("Picture", "a large red circle on the left on a white background"),),
    "text-to-image-ml-cache": (shows("Picture", "a small yellow star at the top on a black background"),),
    "edit": (
        shows("Before", "a large red circle in the middle on a cyan background"),
        shows("After", "a large blue circle in the middle on a cyan background"),
        beside("Before", "After", "Before and after", gap=8),
    ),
    "best-of": (
        shows("Best", "a small green star"),
        best_first("Ranked, the best first", "a small green star"),
    ),
    "caption": (says_what_they_show("Pictures", "DiMOO Describe"), says_what_they_show("Pictures", "DiMOO Save Text")),
    "control": (
        shows("First picture", "a large green star on the right on a grey background"),
        outlines("Edge map", "star", "large", "on the right"),
        shows("New picture", "a large orange star on the right on a cyan background"),
    ),
    "inpaint": (
        shows("Before", "a large red circle on the left on a white background"),
        shows("After", "a large blue star on the left on a white background"),
        keeps("Before", "After", (0, 32, 64, 96), inside=False),
    ),
    "outpaint": (
        shows("Before", "a large purple square in the middle on a pink background"),
        shows("After", "a large purple square in the middle on a pink background"),
        keeps("Before", "After", (32, 0, 96, 128), inside=True),
    ),
    "crop-and-stitch": (
        shows("After", "a large blue star in the middle on a white background", box=(352, 32, 480, 160)),
        keeps("Before", "After", (384, 64, 448, 128), inside=False),
    ),
    "describe": (
        shows("Picture", "a small orange triangle at the bottom on a brown background"),
        says("DiMOO Describe", "a small orange triangle at the bottom on a brown background"),
        says("What it says", "a small orange triangle at the bottom on a brown background"),
    ),
    "train-lora": (
        lacks("Teach it", STAR, FIRST),
        shows("Teach it", STAR, LAST),
        shows("Teach it", STAR, LAST_RIGHT),
        shows("With the LoRA", STAR),
    ),
    "lora": (lacks("Without the LoRA", STAR), shows("With the LoRA", STAR)),
    "describe-and-regenerate": (
        shows("First picture", "a large yellow triangle on the right on a black background"),
        says("DiMOO Describe", "a large yellow triangle on the right on a black background"),
        shows("Second picture", "a large yellow triangle on the right on a black background"),
    ),
}


def inspect(name: str, results: Results) -> list[Finding]:
    """What the judge finds in the results of a workflow, check by check."""
    return [check(results) for check in CHECKS[name]]
