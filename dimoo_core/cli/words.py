"""`describe` and `caption`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from ..files import atomic_write_text
from ..pictures.captions import caption_file, lacking_captions, pictures_below, shared_captions
from ..pictures.pixels import load_picture
from .options import answer_arguments, load, text_options
from .output import progress


def describe(args: argparse.Namespace) -> None:
    """An answer to a question about pictures."""
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
    pictures = [load_picture(path) for path in args.images]
    pipe = load(args)
    with progress("describe") as report:
        answer = pipe.describe(pictures, args.question, progress=report, **text_options(args))
    print(answer)
    if args.output is not None:
        args.output.write_text(answer + "\n", encoding="utf-8")


def caption(args: argparse.Namespace) -> None:
    """A text file beside every picture of a folder."""
    every = pictures_below(args.folder)
    wanted, shared = lacking_captions(every, again=args.again), shared_captions(every)
    have = len(every) - len(shared) - len(wanted)
    print(f"{len(every)} pictures, {have} of them have a caption already", file=sys.stderr)
    for path, owner in shared.items():
        print(f"{path} is left out: {caption_file(path).name} is the caption of {owner.name}", file=sys.stderr)
    if not wanted:
        return
    pipe = load(args)
    unreadable = 0
    for path in tqdm(wanted, desc="caption", unit="picture", file=sys.stderr):
        try:
            picture = load_picture(path)
        except ValueError as error:
            unreadable += 1
            tqdm.write(str(error), file=sys.stderr)
            continue
        words = pipe.describe(picture, args.question, progress=False, **text_options(args))
        atomic_write_text(caption_file(path), words + "\n")
        tqdm.write(f"{path}: {words}", file=sys.stdout)
    if unreadable:
        raise ValueError(f"{unreadable} of {len(wanted)} pictures have no new caption, see above; mend or remove them.")


def describe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", type=Path, nargs="+", metavar="image", help="one picture, or several to ask about")
    answer_arguments(parser)
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="also write the answer to this text file")


def caption_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="where the pictures are, folders in it included")
    parser.add_argument("--again", action="store_true", help="also those that have a caption already")
    answer_arguments(parser)
