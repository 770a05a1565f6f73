"""Where results go: files, their names and metadata, progress."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from tqdm import tqdm

from .. import provenance
from ..checkpoint.find import NANO, Found
from ..devices import device
from ..pictures.pixels import Picture, to_pil
from ..sampling.noise import SEEDS


@contextmanager
def progress(title: str, unit: str = "step") -> Iterator[Callable[[int, int, object], None]]:
    """Gives the jobs' `on_step`: a bar on stderr that appears with the first step and goes with the `with`."""
    with ExitStack() as stack:
        bars: list[tqdm] = []

        def on_step(done: int, total: int, _state: object) -> None:
            if not bars:
                bars.append(
                    stack.enter_context(
                        tqdm(total=total, desc=title, unit=unit, unit_scale=unit == "B", file=sys.stderr)
                    )
                )
            bars[0].update(done - bars[0].n)

        yield on_step


def picture_files(args: argparse.Namespace) -> list[Path]:
    """Where the pictures of a batch go, each named after its own seed; made sure of before the work begins.

    A file that the user names is overwritten, a file named by us never. Raises ValueError where no picture can be.
    """
    if args.batch < 1:
        raise ValueError(f"--batch is {args.batch}; a whole number from 1 is needed.")
    output, seeds = args.output or Path(), [(args.seed + item) % SEEDS for item in range(args.batch)]
    if output.is_dir() or not output.suffix:
        output.mkdir(parents=True, exist_ok=True)
        return [unused(output, f"{args.command}-{seed}") for seed in seeds]
    if Image.registered_extensions().get(output.suffix.lower()) not in Image.SAVE:  # some can be read only
        raise ValueError(f"--output is {output}; a folder or a picture file such as picture.png is needed.")
    output.parent.mkdir(parents=True, exist_ok=True)
    return [output] if args.batch == 1 else [output.with_stem(f"{output.stem}-{seed}") for seed in seeds]


def check_folder(path: Path) -> None:
    """Raises ValueError where a folder is wanted and the user names a file."""
    if not path.is_dir() and (path.exists() or path.suffix.lower() in Image.registered_extensions()):
        raise ValueError(f"--output is {path}; the pictures of a list need a folder; name one, such as pictures.")


def unused(folder: Path, stem: str) -> Path:
    """folder/stem.png, numbered where that name is taken."""
    path, number = folder / f"{stem}.png", 2
    while path.exists():
        path, number = folder / f"{stem}-{number}.png", number + 1
    return path


def facts(args: argparse.Namespace, found: Found) -> dict[str, Any]:
    """How a picture is made, to be written into its file: all that was said on the command line, defaults filled in.

    Files are told by name and fingerprint, never by where they lie.
    """
    place = Path(os.path.abspath(found.path))  # not resolved: the links of the hub's cache lead to nameless files
    name = "DiMOO-nano" if place == NANO.absolute() else place.name
    said = {
        key: value for key, value in vars(args).items() if key not in ("run", "checkpoint", "batch", "output", "list")
    }
    for key, value in said.items():
        if value is None:
            said[key] = getattr(found.defaults, key, None)
        elif isinstance(value, Path):
            said[key] = provenance.identified(value.name, [value])
        elif is_dataclass(value):
            said[key] = asdict(value)
    checkpoint = provenance.identified(name, found.files)
    return {**provenance.versions(), "checkpoint": checkpoint, **said, "device": device(args.device).type}


def save(pictures: Tensor, files: Sequence[Path], made: dict[str, Any], source: Picture | None = None) -> None:
    """Writes pictures [B,3 or 4,h,w] with what `facts` says of the first of them, and says where they are; colour
    profile and dpi are those of the `source`, the picture that was changed."""
    kept = {} if source is None else {"icc_profile": source.icc_profile, "dpi": source.dpi}
    for item, (picture, path) in enumerate(zip(pictures, files, strict=True)):
        provenance.save(to_pil(picture), path, {**made, "seed": (made["seed"] + item) % SEEDS}, **kept)
        print(path)
