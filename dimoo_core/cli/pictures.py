"""`generate`, `edit` and `inpaint`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..checkpoint.defaults import Defaults
from ..pictures.masks import load_mask
from ..pictures.pixels import Picture
from ..sequence.prompt import EDITS
from .command import Command
from .options import batch_arguments, image_options, load, sampling_arguments, size_argument
from .output import check_not_read, picture_files, picture_metadata, progress, save
from .vocabulary import name_unknown_words


def generate(args: argparse.Namespace) -> None:
    """Pictures that show a prompt."""
    files, pipe = picture_files(args), load(args)
    metadata = picture_metadata(args, pipe.checkpoint)
    with progress("generate") as report:
        pictures = pipe.generate(
            args.prompt,
            negative=args.negative,
            size=args.size,
            batch=args.batch,
            progress=report,
            **image_options(args),
        )
    save(pictures, files, metadata)


def edit(args: argparse.Namespace) -> None:
    """A picture changed as a text says."""
    files, picture = picture_files(args), Picture.load(args.image)
    reference = None if args.reference is None else Picture.load(args.reference)
    pipe = load(args)
    metadata = picture_metadata(args, pipe.checkpoint)
    with progress("edit") as report:
        pictures = pipe.edit(
            picture,
            args.prompt,
            type=args.type,
            reference=reference,
            negative=args.negative,
            side=args.side,
            batch=args.batch,
            progress=report,
            **image_options(args),
        )
    save(pictures, files, metadata)


def inpaint(args: argparse.Namespace) -> None:
    """A part of a picture repainted; every pixel outside of it stays as it was."""
    files, picture = picture_files(args), Picture.load(args.image)
    mask = None if args.mask is None else load_mask(args.mask)
    pipe = load(args)
    metadata = picture_metadata(args, pipe.checkpoint)
    with progress("inpaint") as report:
        pictures = pipe.inpaint(
            picture,
            args.prompt,
            mask,
            mask_width=args.mask_width,
            mask_height=args.mask_height,
            outpaint=args.outpaint,
            grow=args.grow,
            negative=args.negative,
            batch=args.batch,
            progress=report,
            **image_options(args),
        )
    save(pictures, files, metadata)


# What can be checked before anything is loaded -----------------------------------------------------------------------


def check_generate(args: argparse.Namespace) -> None:
    picture_files(args)
    name_unknown_words(args.checkpoint, [args.prompt, args.negative])


def check_edit(args: argparse.Namespace) -> None:
    """Raises ValueError where the edit type and what is given for it do not go together."""
    task = EDITS[args.type]
    if task.images == 2 and args.reference is None:
        raise ValueError(f"{args.type} takes the style from a second picture: add --reference IMAGE.")
    if task.images < 2 and args.reference is not None:
        raise ValueError(f"--reference is only for image_ref_transfer, but the type is {args.type}: leave it out.")
    if task.text is None and not args.prompt.strip():
        raise ValueError(
            f"{args.type} follows your words, but there are none: say what to change after the picture, such as "
            '"make the circle yellow", or name a type that needs no words, such as --type canny_pred.'
        )
    _check_output(args, [args.image, args.reference])
    name_unknown_words(args.checkpoint, [args.prompt if task.text is None else "", args.negative])


def check_inpaint(args: argparse.Namespace) -> None:
    _check_output(args, [args.image, args.mask])
    name_unknown_words(args.checkpoint, [args.prompt, args.negative])


def _check_output(args: argparse.Namespace, inputs: Sequence[Path | None]) -> None:
    for file in picture_files(args):
        check_not_read(file.path, [path for path in inputs if path is not None])


# Arguments ----------------------------------------------------------------------------------------------------------


def generate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="what to show")
    size_argument(parser)
    batch_arguments(parser)
    sampling_arguments(parser)


def edit_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", type=Path, help="the picture to start from")
    parser.add_argument("prompt", nargs="?", default="", help="what to change; some types need no words")
    parser.add_argument(
        "--type", choices=EDITS, default="edit_replace", metavar="TYPE", help=f"{', '.join(EDITS)} (edit_replace)"
    )
    parser.add_argument(
        "--reference", type=Path, metavar="IMAGE", help="the picture whose style to take, for image_ref_transfer"
    )
    parser.add_argument(
        "--side", type=int, metavar="PX", help=f"fit to about SIDE x SIDE px (the checkpoint's, else {Defaults.side})"
    )
    parser.add_argument(
        "--image-cfg",
        type=float,
        metavar="X",
        help=f"how closely to follow the picture (the checkpoint's, else {Defaults.image_cfg:g})",
    )
    batch_arguments(parser)
    sampling_arguments(parser)


def inpaint_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", type=Path, help="the picture to repaint")
    parser.add_argument("prompt", help="what the whole picture should show")
    parser.add_argument("--mask", type=Path, metavar="IMAGE", help="white where to repaint, of any size")
    parser.add_argument(
        "--mask-width",
        type=float,
        default=0.2,
        metavar="SHARE",
        help="without --mask: width of a centred rectangle, as a share of the picture's (0.2)",
    )
    parser.add_argument("--mask-height", type=float, default=1.0, metavar="SHARE", help="the same, its height (1.0)")
    parser.add_argument("--outpaint", action="store_true", help="repaint what is NOT marked")
    parser.add_argument("--grow", type=int, default=0, metavar="CELLS", help="widen the mask by cells of 16 px (0)")
    batch_arguments(parser)
    sampling_arguments(parser)


FIRST = 'generate "a large red circle on a cyan background"'

COMMANDS = (
    Command(
        "generate",
        "a picture from words",
        (FIRST, 'generate "a green square" --batch 4 --seed 7 -o pictures/'),
        generate_arguments,
        generate,
        check=check_generate,
    ),
    Command(
        "edit",
        "a picture changed by an instruction; or its edges, its depth, another style",
        (
            'edit generate-0.png "make the circle yellow"',
            "edit generate-0.png --type canny_pred -o edges.png",
            "edit photo.jpg --type image_ref_transfer --reference painting.jpg --checkpoint models/Lumina-DiMOO",
        ),
        edit_arguments,
        edit,
        setup=(FIRST,),
        check=check_edit,
    ),
    Command(
        "inpaint",
        "a part of a picture repainted, the rest untouched",
        (
            'inpaint generate-0.png "a small green square on a cyan background" --mask-width 0.5',
            'inpaint photo.png "a wide beach" --mask-width 0.6 --outpaint --checkpoint models/Lumina-DiMOO',
        ),
        inpaint_arguments,
        inpaint,
        setup=(FIRST,),
        check=check_inpaint,
    ),
)
