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
from .options import answer_arguments, load, text_settings
from .output import progress


def describe(args: argparse.Namespace) -> None:
    """An answer to a question about pictures."""
    found = find(args.checkpoint)
    settings = text_settings(args, found.defaults)
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
    pictures = [load_picture(path) for path in args.images]
    model, vq = load(found, args)
    with progress("describe") as on_step:
        answers = jobs.describe_pictures(model, vq, pictures, args.question, settings=settings, on_step=on_step)
    print(answers[0])
    if args.output is not None:
        args.output.write_text(answers[0] + "\n", encoding="utf-8")


def caption(args: argparse.Namespace) -> None:
    """A text file beside every picture of a folder."""
    found = find(args.checkpoint)
    settings = text_settings(args, found.defaults)
    every = pictures_below(args.folder)
    wanted, shared = lacking_captions(every, again=args.again), shared_captions(every)
    have = len(every) - len(shared) - len(wanted)
    print(f"{len(every)} pictures, {have} of them have a caption already", file=sys.stderr)
    for path, owner in shared.items():
        print(f"{path} is left out: {caption_file(path).name} is the caption of {owner.name}", file=sys.stderr)
    if not wanted:
        return
    model, vq = load(found, args)
    unreadable = 0
    for path in tqdm(wanted, desc="caption", unit="picture", file=sys.stderr):
        try:
            picture = load_picture(path)
        except ValueError as error:
            unreadable += 1
            tqdm.write(str(error), file=sys.stderr)
            continue
        (words,) = jobs.describe_pictures(model, vq, [picture], args.question, settings=settings)
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
