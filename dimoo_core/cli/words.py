"""`describe` and `caption`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from ..files import atomic_write_text, check_writable, shown_path
from ..pictures.captions import caption_file, lacking_captions, pictures_below, shared_captions, write_captions
from ..pictures.pixels import Picture
from .command import Command
from .messages import say
from .options import answer_arguments, load, text_options
from .output import check_not_read, progress, say_above
from .pictures import FIRST
from .vocabulary import name_unknown_words


def describe(args: argparse.Namespace) -> None:
    """An answer to a question about pictures."""
    pictures = [Picture.load(path) for path in args.images]
    pipe = load(args)
    with progress("describe") as report:
        answer = pipe.describe(pictures, args.question, progress=report, **text_options(args))
    say(answer)
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(args.output, answer + "\n")


def check_describe(args: argparse.Namespace) -> None:
    if args.output is not None:
        check_not_read(args.output, args.images)
        check_writable(args.output.parent, [args.output.name])
    name_unknown_words(args.checkpoint, [args.question])


def caption(args: argparse.Namespace) -> None:
    """A text file beside every picture of a folder. A picture that cannot be read, or whose caption cannot be written,
    is named and costs no other one its caption."""
    every = pictures_below(args.folder)
    todo, shared = lacking_captions(every, again=args.again), shared_captions(every)
    have = len(every) - len(shared) - len(todo)
    say(f"{len(every)} pictures, {have} of them have a caption already", sys.stderr)
    for path, owner in shared.items():
        say(f"{path} is left out: {caption_file(path).name} is the caption of {owner.name}", sys.stderr)
    if not todo:
        return
    _check_folders(todo)
    pipe = load(args)

    def words(pixels: Tensor) -> str:
        return pipe.describe(pixels, args.question, progress=False, **text_options(args))

    failed = written = 0
    try:
        bar = tqdm(todo, desc="caption", unit="picture", file=sys.stderr)
        for done in write_captions(bar, words, again=args.again):
            if done.problem is not None:
                failed += 1
                say_above(done.problem, sys.stderr)
            else:
                written += 1
                say_above(f"{shown_path(done.path)}: {done.words}", sys.stdout)
    except KeyboardInterrupt as stop:
        rest = "--again begins with the first picture" if args.again else "the same command makes the rest"
        raise KeyboardInterrupt(f"{written} captions are written and kept, {rest}") from stop
    if failed:
        raise ValueError(
            f"{failed} of {len(todo)} pictures have no new caption, see above: repair or remove these files, then run "
            "the same command again."
        )


def _check_folders(pictures: list[Path]) -> None:
    """Raises ValueError where no caption could be written; where only some can, the others are named in the run."""
    folders = sorted({path.parent for path in pictures})
    for folder in folders:
        try:
            check_writable(folder)
        except ValueError:
            if folder == folders[-1]:
                raise
        else:
            return


def describe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", type=Path, nargs="+", metavar="image", help="one picture, or several to ask about")
    answer_arguments(parser)
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="also write the answer to this text file")


def caption_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="where the pictures are, folders in it included")
    parser.add_argument("--again", action="store_true", help="replace captions that are there already")
    answer_arguments(parser)


COMMANDS = (
    Command(
        "describe",
        "what a picture shows, in words",
        (
            "describe generate-0.png",
            'describe a.jpg b.jpg --question "What changed?" --checkpoint models/Lumina-DiMOO',
        ),
        describe_arguments,
        describe,
        setup=(FIRST,),
        check=check_describe,
    ),
    Command(
        "caption",
        "a text file beside every picture of a folder",
        ("caption pictures/", 'caption pictures/ --question "what is in the picture" --again'),
        caption_arguments,
        caption,
        setup=(f"{FIRST} -o pictures/",),
        check=lambda args: name_unknown_words(args.checkpoint, [args.question]),
    ),
)
