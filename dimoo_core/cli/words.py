"""`describe` and `caption`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from .. import jobs
from ..checkpoint.find import find
from ..pictures.captions import caption_file, lacking_captions, pictures_below, shared_captions, write_captions
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

    def words(pixels: Tensor) -> str:
        (answer,) = jobs.describe_pictures(model, vq, [pixels], args.question, settings=settings)
        return answer

    failed = 0
    for done in tqdm(write_captions(wanted, words), total=len(wanted), desc="caption", unit="picture", file=sys.stderr):
        if done.problem is not None:
            failed += 1
            tqdm.write(done.problem, file=sys.stderr)
        else:
            tqdm.write(f"{done.path}: {done.words}", file=sys.stdout)
    if failed:
        raise ValueError(f"{failed} of {len(wanted)} pictures have no new caption, see above; fix or remove them.")


def describe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", type=Path, nargs="+", metavar="image", help="one picture, or several to ask about")
    answer_arguments(parser)
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="also write the answer to this text file")


def caption_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="where the pictures are, folders in it included")
    parser.add_argument("--again", action="store_true", help="also those that have a caption already")
    answer_arguments(parser)
