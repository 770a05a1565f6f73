"""Where results go: files and their names, made sure of before the work begins; metadata; progress."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, TextIO

from PIL import Image
from tqdm import tqdm

from .. import provenance
from ..checkpoint.find import Found
from ..files import check_writable
from ..sampling.noise import SEEDS
from .messages import say
from .settings import PictureSettings


@contextmanager
def progress(title: str, unit: str = "step") -> Iterator[Callable[..., None]]:
    """Gives what is called with (done, total) after each step: it shows a bar on stderr, until the `with` ends."""
    with ExitStack() as stack:
        bars: list[tqdm] = []

        def on_step(done: int, total: int, _state: object = None) -> None:
            if not bars:
                bars.append(
                    stack.enter_context(
                        tqdm(total=total, desc=title, unit=unit, unit_scale=unit == "B", file=sys.stderr)
                    )
                )
            bars[0].update(done - bars[0].n)

        yield on_step


def say_above(text: str, stream: TextIO) -> None:
    """Print a line while a bar is shown, which stays below it."""
    with tqdm.external_write_mode(file=stream):
        say(text, stream)


# Where to write -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Output:
    """Where the user wants results: a file or a folder. A slash at the end, as in `run.v2/`, means a folder."""

    path: Path
    is_folder: bool = False

    @classmethod
    def parse(cls, text: str) -> Output:
        """As it is typed after -o."""
        return cls(Path(text), text.endswith(("/", os.sep)))

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class PictureFile:
    """Where one picture goes. A file that the user named (`named`) is overwritten, a file that we named never."""

    path: Path
    named: bool

    def claim(self) -> Path:
        """The path to write to: of a name of ours, an empty file that was made for this picture just now, even if
        another process made one of the same name since we looked."""
        path = self.path
        path.parent.mkdir(parents=True, exist_ok=True)
        while not self.named:
            try:
                path.touch(exist_ok=False)
                break
            except FileExistsError:
                path = unused(self.path.parent, self.path.stem)
        return path


def picture_files(args: argparse.Namespace) -> list[PictureFile]:
    """Where the pictures of a batch go, each named after its own seed. Raises ValueError where no picture can be
    written: made sure of before the work begins."""
    if args.batch < 1:
        raise ValueError(f"--batch is {args.batch}; expected a whole number of at least 1.")
    output, seeds = args.output or Output(Path()), [(args.seed + item) % SEEDS for item in range(args.batch)]
    path = output.path
    if output.is_folder or not path.suffix or os.path.isdir(path):  # False too for a name that is too long
        check_writable(path)
        return [PictureFile(unused(path, f"{args.command}-{seed}"), named=False) for seed in seeds]
    if not _can_be_saved(path.suffix):
        raise ValueError(f"--output is {path}; expected a folder or a picture file such as picture.png.")
    paths = [path] if args.batch == 1 else [path.with_stem(f"{path.stem}-{seed}") for seed in seeds]
    check_writable(path.parent, [one.name for one in paths])
    return [PictureFile(one, named=True) for one in paths]


def _can_be_saved(suffix: str) -> bool:
    """Whether Pillow writes pictures of this kind here: some kinds it only reads, some take a library."""
    name = Image.registered_extensions().get(suffix.lower())
    if name not in Image.SAVE:
        return False
    try:
        Image.new("RGB", (16, 16)).save(BytesIO(), name)
    except (OSError, ValueError, KeyError):
        return False
    return True


def check_not_read(output: Path, inputs: Iterable[Path]) -> None:
    """Raises ValueError where an output would overwrite one of the files that are read."""
    for path in inputs:
        if os.path.exists(output) and os.path.exists(path) and output.samefile(path):
            raise ValueError(f"--output {output} is the file that is read; name another file.")


def unused(folder: Path, stem: str) -> Path:
    """folder/stem.png, numbered where that name is taken."""
    path, number = folder / f"{stem}.png", 2
    while path.exists():
        path, number = folder / f"{stem}-{number}.png", number + 1
    return path


# Writing ------------------------------------------------------------------------------------------------------------


def picture_metadata(args: argparse.Namespace, found: Found) -> dict[str, Any]:
    """How a command's first picture is made, to be written into its file."""
    return PictureSettings.from_arguments(args, found).metadata(args)


def write(picture: Image.Image, path: Path, metadata: dict[str, Any]) -> None:
    """Write one picture with its metadata, and the colour profile and dpi that it holds."""
    kept = {name: picture.info.get(name) for name in ("icc_profile", "dpi")}
    provenance.save(picture, path, metadata, **kept)


def save(pictures: Sequence[Image.Image], files: Sequence[PictureFile], metadata: dict[str, Any]) -> None:
    """Write pictures, each with the `metadata` of the first and its own seed, and print where they are. Colour profile
    and dpi are those that they hold."""
    paths: list[Path] = []
    try:
        for item, (picture, file) in enumerate(zip(pictures, files, strict=True)):
            path = file.claim()
            try:
                write(picture, path, {**metadata, "seed": (metadata["seed"] + item) % SEEDS})
            except BaseException:
                if not file.named:
                    path.unlink(missing_ok=True)
                raise
            paths.append(path)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"{len(paths)} of {len(files)} pictures are written") from stop
    finally:
        for path in paths:
            say(str(path))
