"""What a form asks for, as arguments of the command line, so that a picture says the same of itself; and its job."""

from __future__ import annotations

import argparse
import math
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ...pictures.pixels import open_picture, picture_size
from ...pipeline import Pipeline
from ...sampling.ml_cache import PRESETS
from ...sequence.prompt import EDITS
from ..options import text_options
from ..output import picture_metadata, write
from ..pictures import edited, generated, inpainted
from .desk import Job

KEPT = 24 * 3600  # seconds that files of visitors are kept for
MAX_PIXELS = 40_000_000  # of a picture that is uploaded: many visitors may do so at once
_EASEL = 1024  # px, longest side of a picture as it is shown to be painted on

Form = Mapping[str, Any]  # values by name


@dataclass(frozen=True, eq=False)
class Workshop:
    """A pipeline, the arguments that it was loaded with, and the folder for what is made."""

    pipe: Pipeline
    args: argparse.Namespace
    folder: Path

    def generate(self, form: Form, job: Job) -> Path:
        """The file of a new picture."""
        if not form["prompt"].strip():
            raise ValueError("There are no words: say what the picture should show.")
        args = self._arguments("generate", form, size=(form["width"], form["height"]))
        return self._made(args, generated, job)

    def edit(self, form: Form, job: Job) -> Path:
        """The file of an edited picture."""
        task = EDITS[form["type"]]
        form = {**form, "prompt": form["prompt"] if task.text is None else ""}
        image = _given(form["image"], "There is no picture: add the one to edit.")
        if task.text is None and not form["prompt"].strip():
            raise ValueError("There are no words: say what to change.")
        reference = None
        if task.images == 2:
            reference = _given(form["reference"], "There is no second picture: add the one whose style to take.")
        args = self._arguments("edit", form, image=image, reference=reference)
        return self._made(args, edited, job, image, reference)

    def inpaint(self, form: Form, job: Job) -> Path:
        """The file of a picture of which a part was repainted."""
        image = _given(form["image"], "There is no picture: add the one to repaint.")
        if not form["prompt"].strip():
            raise ValueError("There are no words: say what the whole picture should show.")
        mask = form["mask"] if form["mask"] is None else _checked(form["mask"])
        if mask is None:
            mask = self._new_file("mask.png")
            _painted(form["easel"]).save(mask)
        args = self._arguments("inpaint", form, image=image, mask=mask, mask_width=None, mask_height=None)
        return self._made(args, inpainted, job, image, mask)

    def describe(self, form: Form, job: Job) -> str:
        """The answer to a question about a picture."""
        image = _given(form["image"], "There is no picture: add the one to ask about.")
        args = argparse.Namespace(**{**form, "steps": None, "block_length": None})
        return self.pipe.describe(image, form["question"], progress=job.report, preview=job.show, **text_options(args))

    def _arguments(self, command: str, form: Form, **own: Any) -> argparse.Namespace:
        """The command line that makes the picture of a form."""
        settings = {**form, "ml_cache": PRESETS[form["ml_cache"]], "batch": 1, **own}
        return argparse.Namespace(**{**vars(self.args), "command": command, **settings})

    def _made(self, args: argparse.Namespace, make: Callable[..., list[Image.Image]], job: Job, *inputs: Any) -> Path:
        metadata = picture_metadata(args, self.pipe.checkpoint)
        (picture,) = make(self.pipe, args, *inputs, progress=job.report, preview=lambda one: job.show(one[0]))
        path = self._new_file(f"{args.command}-{args.seed}.png")
        write(picture, path, metadata)
        return path

    def _new_file(self, name: str) -> Path:
        """A path in a folder whose name nobody can guess; what has lain there for long is removed."""
        for old in self.folder.iterdir():
            with suppress(FileNotFoundError):  # a file that is just being uploaded gets another name
                if time.time() - old.stat().st_mtime > KEPT:
                    shutil.rmtree(old, ignore_errors=True)
        folder = self.folder / secrets.token_hex(16)
        folder.mkdir()
        return folder / name


def asked(form: Form) -> list[str]:
    """The words of a form that the model will read."""
    fixed = form.get("type") in EDITS and EDITS[form["type"]].text is not None
    return [form.get(name) or "" for name in ("prompt", "question", "negative") if not (fixed and name == "prompt")]


def on_easel(picture: Path) -> Image.Image:
    """A picture as it is shown to be painted on: not too large for a browser. Raises ValueError where it cannot be
    read."""
    with open_picture(_checked(picture)) as image:
        shown = image.convert("RGBA")
    shown.thumbnail((_EASEL, _EASEL))
    return shown


def _given(path: Path | None, missing: str) -> Path:
    if path is None:
        raise ValueError(missing)
    return _checked(path)


def _checked(path: Path) -> Path:
    """The path of an uploaded picture, unless it is too large to be worked on; the header says that."""
    width, height = picture_size(path)
    if math.prod((width, height)) > MAX_PIXELS:
        raise ValueError(
            f"The picture has {width}x{height} px; expected at most {MAX_PIXELS // 10**6} million pixels: scale it "
            "down first."
        )
    return path


def _painted(easel: Mapping[str, Any] | None) -> Image.Image:
    """The mask, mode L, of what was painted over a picture: white where any layer covers it by half."""
    layers = (easel or {}).get("layers") or []
    if not layers:
        raise ValueError("Nothing is painted: paint over a part of the picture.")
    mask = Image.new("L", layers[0].size)
    for layer in layers:
        mask.paste(255, mask=layer.convert("RGBA").getchannel("A").point(lambda alpha: 255 * (alpha > 127)))
    if mask.getbbox() is None:
        raise ValueError("Nothing is painted: paint over a part of the picture.")
    return mask
