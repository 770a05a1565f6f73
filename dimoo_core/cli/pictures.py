"""`generate`, `edit` and `inpaint`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..checkpoint.defaults import Defaults
from ..jobs import Inpaint
from ..pictures.masks import load_mask
from ..pictures.pixels import Picture
from ..pipeline import MaskLike, PictureLike, Pipeline
from ..sequence.prompt import EDIT_NAMES, EDITS
from .command import Command
from .options import batch_arguments, check_image_options, image_options, load, sampling_arguments, size_argument
from .output import check_not_read, picture_files, picture_metadata, progress, save
from .vocabulary import name_unknown_words


def generate(args: argparse.Namespace) -> None:
    """Pictures that show a prompt."""
    files, pipe = picture_files(args), load(args)
    metadata = picture_metadata(args, pipe.checkpoint)
    with progress("generate") as report:
        pictures = generated(pipe, args, progress=report)
    save(pictures, files, metadata)


def edit(args: argparse.Namespace) -> None:
    """A picture changed as a text says."""
    files, picture = picture_files(args), Picture.load(args.image)
    reference = None if args.reference is None else Picture.load(args.reference)
    pipe = load(args)
    metadata = picture_metadata(args, pipe.checkpoint)
    with progress("edit") as report:
        pictures = edited(pipe, args, picture, reference, progress=report)
    save(pictures, files, metadata)


def inpaint(args: argparse.Namespace) -> None:
    """A part of a picture repainted; every pixel outside of it stays as it was."""
    files, picture = picture_files(args), Picture.load(args.image)
    mask = None if args.mask is None else load_mask(args.mask)
    pipe = load(args)
    metadata = picture_metadata(args, pipe.checkpoint)
    with progress("inpaint") as report:
        pictures = inpainted(pipe, args, picture, mask, progress=report)
    save(pictures, files, metadata)


# The jobs of a pipeline, with the settings of a command line; `reports` are `progress` and `preview` -----------------


def generated(pipe: Pipeline, args: argparse.Namespace, **reports: Any) -> list[Image.Image]:
    return pipe.generate(
        args.prompt, negative=args.negative, size=args.size, batch=args.batch, **reports, **image_options(args)
    )


def edited(
    pipe: Pipeline, args: argparse.Namespace, picture: PictureLike, reference: PictureLike | None, **reports: Any
) -> list[Image.Image]:
    return pipe.edit(
        picture,
        args.prompt,
        type=args.type,
        reference=reference,
        negative=args.negative,
        side=args.side,
        own_size=args.own_size,
        batch=args.batch,
        **reports,
        **image_options(args),
    )


def inpainted(
    pipe: Pipeline, args: argparse.Namespace, picture: PictureLike, mask: MaskLike | None, **reports: Any
) -> list[Image.Image]:
    return pipe.inpaint(
        picture,
        args.prompt,
        mask,
        mask_width=args.mask_width,
        mask_height=args.mask_height,
        outpaint=args.outpaint,
        grow=args.grow,
        negative=args.negative,
        batch=args.batch,
        **reports,
        **image_options(args),
    )


# What can be checked before anything is loaded -----------------------------------------------------------------------


def check_generate(args: argparse.Namespace) -> None:
    check_image_options(args)
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
    _check_options_and_output(args, [args.image, args.reference])
    name_unknown_words(args.checkpoint, [args.prompt if task.text is None else "", args.negative])


def check_inpaint(args: argparse.Namespace) -> None:
    """Raises ValueError where nothing says what to repaint."""
    if args.mask is None and args.mask_width is None and args.mask_height is None and not args.outpaint:
        raise ValueError(
            "nothing says what to repaint: add --mask IMAGE, or --mask-width SHARE for a centred rectangle."
        )
    _check_options_and_output(args, [args.image, args.mask])
    name_unknown_words(args.checkpoint, [args.prompt, args.negative])


def _check_options_and_output(args: argparse.Namespace, inputs: Sequence[Path | None]) -> None:
    check_image_options(args)
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
        "--type",
        type=lambda name: EDIT_NAMES[name].name if name in EDIT_NAMES else name,
        choices=EDITS,
        default="edit_replace",
        metavar="TYPE",
        help=f"{'; '.join(f'{name}: {task.label}' for name, task in EDITS.items())} (edit_replace)",
    )
    parser.add_argument(
        "--reference", type=Path, metavar="IMAGE", help="the picture whose style to take, for image_ref_transfer"
    )
    parser.add_argument(
        "--side", type=int, metavar="PX", help=f"fit to about SIDE x SIDE px (the checkpoint's, else {Defaults.side})"
    )
    parser.add_argument(
        "--own-size", action="store_true", help="give the result the picture's size, not that which it was fitted to"
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
        metavar="SHARE",
        help="in place of --mask: width of a centred rectangle, as a share of the picture's "
        f"({Inpaint.width_ratio:g} with --mask-height or --outpaint alone)",
    )
    parser.add_argument(
        "--mask-height",
        type=float,
        metavar="SHARE",
        help=f"the same, its height ({Inpaint.height_ratio:g} with --mask-width or --outpaint alone)",
    )
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
