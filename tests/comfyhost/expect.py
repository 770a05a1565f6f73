"""What the example workflows must show, read off their results by nano's judge and compared with what was asked."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from dimoo_core.nano.judge import judge, judge_edges, matches

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

    def pixels(self, title: str) -> np.ndarray:
        """The first picture of a node, [height,width,3] of 0..255."""
        return np.asarray(Image.open(io.BytesIO(self.pictures[title][0])).convert("RGB"))


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


def shows(title: str, wanted: str) -> Check:
    """The picture of a node shows exactly what a caption says, cleanly."""

    def check(results: Results) -> Finding:
        verdict = judge(torch.from_numpy(results.pixels(title).copy()).movedim(-1, 0) / 255)
        flaw = "" if verdict.clean else " (not clean)"
        return Finding(title, verdict.words + flaw, verdict.clean and matches(verdict.scene, wanted))

    return check


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


def keeps(before: str, after: str, box: tuple[int, int, int, int], *, inside: bool) -> Check:
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


CHECKS: dict[str, tuple[Check, ...]] = {
    "text-to-image": (shows("Picture", "a large red circle on the left on a white background"),),
    "text-to-image-ml-cache": (shows("Picture", "a small yellow star at the top on a black background"),),
    "edit": (
        shows("Before", "a large red circle in the middle on a white background"),
        shows("After", "a large blue circle in the middle on a white background"),
    ),
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
    "describe": (
        shows("Picture", "a small orange triangle at the bottom on a brown background"),
        says("DiMOO Describe", "a small orange triangle at the bottom on a brown background"),
    ),
    "describe-and-regenerate": (
        shows("First picture", "a large yellow triangle on the right on a black background"),
        says("DiMOO Describe", "a large yellow triangle on the right on a black background"),
        shows("Second picture", "a large yellow triangle on the right on a black background"),
    ),
}


def inspect(name: str, results: Results) -> list[Finding]:
    """What the judge finds in the results of a workflow, check by check."""
    return [check(results) for check in CHECKS[name]]
