"""`generate`, `edit` and `inpaint`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..checkpoint.defaults import Defaults
from ..pictures.masks import load_mask
from ..pictures.pixels import load_picture
from ..sequence.prompt import EDITS
from .options import batch_arguments, image_options, load, sampling_arguments, size
from .output import facts, picture_files, progress, save


def generate(args: argparse.Namespace) -> None:
    """Pictures that show a prompt."""
    files = picture_files(args)
    pipe = load(args)
    with progress("generate") as report:
        pictures = pipe.generate(
            args.prompt,
            negative=args.negative,
            size=args.size,
            batch=args.batch,
            progress=report,
            **image_options(args),
        )
    save(pictures, files, facts(args, pipe.checkpoint))


def edit(args: argparse.Namespace) -> None:
    """A picture changed as a text says."""
    files = picture_files(args)
    picture = load_picture(args.image)
    reference = None if args.reference is None else load_picture(args.reference)
    pipe = load(args)
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
            image_cfg=args.image_cfg,
            **image_options(args),
        )
    save(pictures, files, facts(args, pipe.checkpoint))


def inpaint(args: argparse.Namespace) -> None:
    """A part of a picture repainted; every pixel outside of it stays as it was."""
    files = picture_files(args)
    picture = load_picture(args.image)
    mask = None if args.mask is None else load_mask(args.mask)
    pipe = load(args)
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
    save(pictures, files, facts(args, pipe.checkpoint))


def generate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="what to show")
    parser.add_argument(
        "--size", type=size, metavar="WxH", help="px, in steps of 16 (the checkpoint's, else 1024x1024)"
    )
    batch_arguments(parser)
    sampling_arguments(parser)


def edit_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", type=Path, help="the picture to start from")
    parser.add_argument("prompt", nargs="?", default="", help="what to change; some types need no words")
    parser.add_argument(
        "--type", choices=EDITS, default="edit_replace", metavar="TYPE", help=f"{', '.join(EDITS)} (edit_replace)"
    )
    parser.add_argument("--reference", type=Path, metavar="IMAGE", help="the style to take, for image_ref_transfer")
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
    parser.add_argument("prompt", help="what the whole picture is to show")
    parser.add_argument("--mask", type=Path, metavar="IMAGE", help="white where to repaint, of any size")
    parser.add_argument("--mask-width", type=float, default=0.2, metavar="SHARE", help="of a centred rectangle (0.2)")
    parser.add_argument("--mask-height", type=float, default=1.0, metavar="SHARE", help="the same, its height (1.0)")
    parser.add_argument("--outpaint", action="store_true", help="repaint what is NOT marked")
    parser.add_argument("--grow", type=int, default=0, metavar="CELLS", help="widen the mask by cells of 16 px (0)")
    batch_arguments(parser)
    sampling_arguments(parser)
