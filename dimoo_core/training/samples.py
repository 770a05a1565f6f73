"""Pictures that a model in training makes of fixed prompts and seeds, kept side by side: what it has learnt so far.

They are made by the jobs that users sample with, so that what is seen here is what will be seen later.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image

from .. import jobs
from ..devices import is_out_of_memory
from ..files import atomic_write
from ..pictures.pixels import to_pil
from ..pictures.sheet import fitted, grid, label
from ..sampling.image import ImageSettings
from ..sequence.canvas import Canvas
from ..sequence.prompt import Prompt
from .dataset import Dataset

FOLDER, SHEET = "samples", "samples.png"
_NAME = re.compile(r"step-(\d+)-(\d+)\.png")
_CELL, _LABEL = 256, 18  # px: the longer side of a picture on the sheet, and the line above each row


@dataclass(frozen=True, eq=False)
class Request:
    """A picture to be made of a prompt: height x width cells."""

    prompt: Prompt
    height: int
    width: int
    seed: int = 0


def requests_of(dataset: Dataset, count: int, seed: int = 0) -> list[Request]:
    """What the first different prompts of a dataset ask for, up to `count` whose answers are pictures."""
    found: dict[str, Request] = {}
    for index in range(len(dataset)):
        if len(found) == count:
            break
        sample = dataset[index]
        if not isinstance(sample.answer, str):
            height, width = sample.answer.shape
            found.setdefault(sample.prompt.text, Request(sample.prompt, height, width, seed + len(found)))
    return list(found.values())


class Samples:
    """The samples of a run, in its folder: samples/step-000100-1.png and so on, and all of them on one sheet,
    samples.png, a row for each step. Those of steps after `step` are dropped."""

    def __init__(
        self,
        folder: Path,
        requests: Sequence[Request],
        settings: ImageSettings,
        vq: jobs.Autoencoder,
        *,
        place: jobs.Placer = jobs.where_the_weights_are,
        step: int = 0,
    ):
        self.folder, self.requests, self.settings, self.vq, self.place = folder, requests, settings, vq, place
        for path, number in self._kept():
            if number > step:
                path.unlink(missing_ok=True)

    def made(self, step: int) -> bool:
        """Whether the samples of a step are there."""
        return len(self.requests) == sum(number == step for _, number in self._kept())

    def make(
        self,
        step: int,
        model: Callable[[], jobs.Model],
        report: Callable[[str], None],
        on_step: jobs.ImageStep | None = None,
    ) -> list[Image.Image]:
        """The pictures of a step, one after the other, made with what `model` gives. None where the memory for them is
        missing, or where they cannot be made or written: `report` gets a line, and the training goes on. Ctrl-C and
        other exceptions that `on_step` raises to stop it pass."""
        if not self.requests:
            report(f"no samples at step {step}: there is no prompt to make them of")
            return []
        try:
            now = model()
            pictures = [self._picture(request, now, on_step) for request in self.requests]
            self._write(step, pictures)
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            why = "the device has too little memory beside the training" if is_out_of_memory(error) else error
            report(f"no samples at step {step}: {why}")
            return []
        return pictures

    def _picture(self, request: Request, model: jobs.Model, on_step: jobs.ImageStep | None) -> Image.Image:
        canvas = Canvas.empty(1, request.height, request.width)
        plan = jobs.plan_image(model, request.prompt, canvas, replace(self.settings, seed=request.seed))
        with torch.no_grad():
            return to_pil(jobs.decode(self.vq, plan.run(self.place(plan), on_step))[0])

    def _write(self, step: int, pictures: Sequence[Image.Image]) -> None:
        (self.folder / FOLDER).mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(pictures, 1):
            with atomic_write(self.folder / FOLDER / f"step-{step:06d}-{number}.png") as part:
                picture.save(part, "PNG")
        rows: dict[int, list[Image.Image]] = {}
        for path, number in self._kept():
            with Image.open(path) as picture:
                rows.setdefault(number, []).append(fitted(picture.convert("RGB"), _CELL))
        with atomic_write(self.folder / SHEET) as part:
            sheet(rows).save(part, "PNG")

    def _kept(self) -> list[tuple[Path, int]]:
        """The samples in the folder, and their steps."""
        paths = (self.folder / FOLDER).glob("step-*.png")
        found = [(int(match[1]), int(match[2]), path) for path in paths if (match := _NAME.fullmatch(path.name))]
        return [(path, step) for step, _, path in sorted(found)]


def sheet(rows: dict[int, list[Image.Image]]) -> Image.Image:
    """Pictures side by side, a row for each step under a line that says which."""
    lines = [row for step, pictures in sorted(rows.items()) for row in ([label(f"step {step}", _LABEL)], pictures)]
    return grid(lines, across=2)
