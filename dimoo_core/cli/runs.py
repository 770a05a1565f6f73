"""What commands share that work in a folder and leave a checkpoint in another."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from ..checkpoint.find import Found
from ..files import check_writable
from .messages import say


def run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run",
        "--run-folder",  # torchrun takes --run for an option of its own, wherever it stands
        dest="run_folder",
        metavar="RUN",
        type=Path,
        required=True,
        help="folder that keeps the state of the run, to resume after a stop; with torchrun say --run-folder",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", required=True, help="folder for the finished checkpoint"
    )


def check_folders(args: argparse.Namespace, source: Found | None) -> None:
    """Raises ValueError where a folder cannot be written, and where two folders are one: the files of one would be
    taken for the other's."""
    if args.run_folder.resolve() == args.output.resolve():
        raise ValueError(f"--run and --output are both {args.output}; name two folders.")
    read = set() if source is None else {path.parent.resolve() for path in source.files}
    for name, folder in (("--run", args.run_folder), ("--output", args.output)):
        if folder.resolve() in read:
            raise ValueError(f"{name} {folder} is the checkpoint that is being read; name another folder.")
        check_writable(folder)


def check_outside(flag: str, folder: Path, read: Path) -> None:
    """Raises ValueError where a folder to be written lies in the one that is read."""
    if folder.resolve().is_relative_to(read.resolve()):
        raise ValueError(
            f"{flag} is {folder}, in the folder that is read: what is written would be taught, too; name one outside."
        )


def reporter(every: float = 5.0) -> Callable[[str], None]:
    """Prints a line with the minutes passed, at most one in `every` seconds for one kind of line."""
    start, last = time.monotonic(), dict[str, float]()

    def report(line: str) -> None:
        now, kind = time.monotonic(), line.split(" ", 1)[0]
        if now - last.get(kind, -every) >= every:
            last[kind] = now
            say(f"{(now - start) / 60:6.1f} min  {line}")

    return report
