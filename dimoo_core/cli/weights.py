"""`download` and `convert`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..checkpoint.convert import KINDS, convert
from ..checkpoint.find import find
from ..hub.download import REPO, download
from ..pipeline import model_folder
from .output import progress


def fetch(args: argparse.Namespace) -> None:
    """A checkpoint from the hub."""
    folder = args.folder or model_folder()
    print(f"Downloading {args.repo} into {folder} ...", file=sys.stderr)
    place = download(args.repo, folder, revision=args.revision, endpoint=args.endpoint)
    find(place)
    print(place)


def convert_checkpoint(args: argparse.Namespace) -> None:
    """A checkpoint as one file."""
    with progress("convert", unit="B") as on_step:
        size = convert(find(args.source), args.output, args.dtype, on_step=on_step)
    print(f"{args.output}: {size / 1e9:.2f} GB; ComfyUI finds it in its folder models/dimoo.")


def download_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("repo", nargs="?", default=REPO, help=f"OWNER/NAME on the hub ({REPO})")
    parser.add_argument(
        "--folder",
        type=Path,
        metavar="DIR",
        help="where the folder NAME is made (models/dimoo of the ComfyUI that has this pack, else models)",
    )
    parser.add_argument("--revision", default="main", metavar="REV", help="a branch, tag or commit (main)")
    parser.add_argument(
        "--endpoint", metavar="URL", help="a mirror of the hub (the environment's HF_ENDPOINT, else the hub)"
    )


def convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="checkpoint", help="a folder as published")
    parser.add_argument("output", type=Path, help="the file to write, NAME.safetensors")
    parser.add_argument(
        "--dtype",
        choices=KINDS,
        default="bf16",
        help="of the blocks' matrices: of 16.2 GB fp8 leaves 10.8 and int8 9.2, both a little less exact (bf16)",
    )
