"""`generate`, `edit` and `inpaint`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from .. import jobs
from ..checkpoint.defaults import Defaults
from ..checkpoint.find import find
from ..pictures.masks import PAINTED, RECTANGLE, cells_to_mask, centred_rectangle, load_mask
from ..pictures.pixels import Picture, load_picture
from ..sequence.prompt import EDITS
from .options import batch_arguments, chosen, image_settings, load, sampling_arguments, size
from .output import facts, picture_files, progress, save


def generate(args: argparse.Namespace) -> None:
    """Pictures from words."""
    found = find(args.checkpoint)
    settings, files = image_settings(args, found.defaults), picture_files(args)
    made = facts(args, found)
    model, vq = load(found, args)
    with progress("generate") as on_step:
        pictures = jobs.generate(
            model,
            vq,
            jobs.text_prompt(args.prompt, args.negative),
            args.size or found.defaults.size,
            settings=settings,
            cfg=chosen(args.cfg, found.defaults.cfg),
            batch=args.batch,
            on_step=on_step,
        )
    save(pictures, files, made)


def edit(args: argparse.Namespace) -> None:
    """A picture changed as a text says."""
    found = find(args.checkpoint)
    settings, files = image_settings(args, found.defaults), picture_files(args)
    source = Picture.load(args.image)
    reference = None if args.reference is None else load_picture(args.reference)
    made = facts(args, found)
    model, vq = load(found, args)
    request = jobs.Edit(args.type, args.prompt, args.negative, reference, side=chosen(args.side, found.defaults.side))
    with progress("edit") as on_step:
        pictures = jobs.edit(
            model,
            vq,
            source.on_white(),
            request,
            settings=settings,
            cfg=chosen(args.cfg, found.defaults.cfg),
            image_cfg=chosen(args.image_cfg, found.defaults.image_cfg),
            batch=args.batch,
            on_step=on_step,
        )
    save(pictures, files, made, source)


def inpaint(args: argparse.Namespace) -> None:
    """A part of a picture painted anew; every pixel outside of it stays as it was."""
    found = find(args.checkpoint)
    settings, files = image_settings(args, found.defaults), picture_files(args)
    source = Picture.load(args.image)
    picture = source.on_white()
    mask, coverage = wanted_mask(args, picture)
    made = facts(args, found)
    model, vq = load(found, args)
    height, width = picture.shape[2:]
    drawn = mask
    picture, mask = padded(picture, vq.scale, "replicate"), padded(mask[:, None], vq.scale, "constant")[:, 0]
    cells = jobs.painted_cells(vq, picture, mask, coverage=coverage, grow=args.grow)
    with progress("inpaint") as on_step:
        pictures = jobs.inpaint(
            model,
            vq,
            picture,
            cells.expand(args.batch, -1, -1),
            jobs.text_prompt(args.prompt, args.negative),
            settings=settings,
            cfg=chosen(args.cfg, found.defaults.cfg),
            on_step=on_step,
        )
    repainted = cells_to_mask(cells, vq.scale)[:, :height, :width]
    save(source.repainted(pictures[:, :, :height, :width], repainted, drawn), files, made, source)


def wanted_mask(args: argparse.Namespace, picture: Tensor) -> tuple[Tensor, float]:
    """What to repaint of a picture [1,3,h,w], [1,h,w] in 0..1, and the share of a cell that has to be marked."""
    height, width = picture.shape[2:]
    if args.mask is None:
        mask = centred_rectangle(width, height, width_ratio=args.mask_width, height_ratio=args.mask_height)
    else:
        mask = F.interpolate(load_mask(args.mask)[None], (height, width), mode="nearest-exact")[0]
    mask = (mask > 0.5).float()
    return (1 - mask if args.outpaint else mask), (RECTANGLE if args.mask is None else PAINTED)


def padded(pixels: Tensor, scale: int, mode: str) -> Tensor:
    """[B,C,h,w] continued to the right and below up to the next multiples of `scale` px."""
    height, width = pixels.shape[2:]
    return F.pad(pixels, (0, -width % scale, 0, -height % scale), mode=mode)


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
    parser.add_argument("--mask", type=Path, metavar="IMAGE", help="white, or transparent, where to repaint; any size")
    parser.add_argument("--mask-width", type=float, default=0.2, metavar="SHARE", help="of a centred rectangle (0.2)")
    parser.add_argument("--mask-height", type=float, default=1.0, metavar="SHARE", help="the same, its height (1.0)")
    parser.add_argument("--outpaint", action="store_true", help="repaint what is NOT marked")
    parser.add_argument("--grow", type=int, default=0, metavar="CELLS", help="widen the mask by cells of 16 px (0)")
    batch_arguments(parser)
    sampling_arguments(parser)
