"""`describe` and `caption`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from .. import jobs
from ..checkpoint.find import find
from ..files import atomic_write_text
from ..pictures.captions import caption_file, lacking_captions, pictures_below, shared_captions
from ..pictures.pixels import load_picture
from .command import Command
from .messages import say
from .options import answer_arguments, load, text_settings
from .output import check_not_read, check_writable, progress, say_above
from .pictures import FIRST
from .vocabulary import name_unknown_words


def describe(args: argparse.Namespace) -> None:
    """An answer to a question about pictures."""
    found = find(args.checkpoint)
    settings = text_settings(args, found.defaults)
    pictures = [load_picture(path) for path in args.images]
    model, vq = load(found, args)
    with progress("describe") as on_step:
        answers = jobs.describe_pictures(model, vq, pictures, args.question, settings=settings, on_step=on_step)
    say(answers[0])
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(args.output, answers[0] + "\n")


def check_describe(args: argparse.Namespace) -> None:
    if args.output is not None:
        check_not_read(args.output, args.images)
        check_writable(args.output.parent, [args.output.name])
    name_unknown_words(args.checkpoint, [args.question])


def caption(args: argparse.Namespace) -> None:
    """A text file beside every picture of a folder. A picture that cannot be read, or whose caption cannot be written,
    is named and costs no other one its caption."""
    found = find(args.checkpoint)
    settings = text_settings(args, found.defaults)
    every = pictures_below(args.folder)
    todo, shared = lacking_captions(every, again=args.again), shared_captions(every)
    have = len(every) - len(shared) - len(todo)
    say(f"{len(every)} pictures, {have} of them have a caption already", sys.stderr)
    for path, owner in shared.items():
        say(f"{path} is left out: {caption_file(path).name} is the caption of {owner.name}", sys.stderr)
    if not todo:
        return
    _check_folders(todo)
    model, vq = load(found, args)
    failed = written = 0
    try:
        for path in tqdm(todo, desc="caption", unit="picture", file=sys.stderr):
            if not args.again and caption_file(path).is_file():
                continue  # another process has written it meanwhile
            try:
                picture = load_picture(path)
                (words,) = jobs.describe_pictures(model, vq, [picture], args.question, settings=settings)
                atomic_write_text(caption_file(path), words + "\n")
            except (ValueError, OSError) as error:
                failed += 1
                say_above(str(error), sys.stderr)
                continue
            written += 1
            say_above(f"{path}: {words}", sys.stdout)
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
