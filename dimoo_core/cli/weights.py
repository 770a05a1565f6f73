"""`download` and `convert`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..checkpoint.convert import KINDS, convert
from ..checkpoint.find import find
from ..files import check_writable
from ..hub.download import REPO, download
from ..pipeline import model_folder
from .command import Command
from .messages import say
from .output import progress


def fetch(args: argparse.Namespace) -> None:
    """A checkpoint from the hub."""
    folder = args.folder or model_folder()
    check_writable(folder)
    say(f"Downloading {args.repo} into {folder} ...", sys.stderr)
    path = download(args.repo, folder, revision=args.revision, endpoint=args.endpoint)
    find(path)
    say(str(path))


def convert_checkpoint(args: argparse.Namespace) -> None:
    """A checkpoint as one file."""
    found = find(args.source)
    check_writable(args.output.parent, [args.output.name])
    with progress("convert", unit="B") as on_step:
        size = convert(found, args.output, args.dtype, on_step=on_step)
    say(f"{args.output}: {size / 1e9:.2f} GB; ComfyUI finds it in its folder models/dimoo.")


def download_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("repo", nargs="?", default=REPO, help=f"OWNER/NAME on the hub ({REPO})")
    parser.add_argument(
        "--folder",
        type=Path,
        metavar="DIR",
        help="make the folder NAME in this folder (models/dimoo of the ComfyUI that has this pack, else models here)",
    )
    parser.add_argument("--revision", default="main", metavar="REV", help="a branch, tag or commit (main)")
    parser.add_argument(
        "--endpoint", metavar="URL", help="a mirror of the hub (the environment's HF_ENDPOINT, else the hub)"
    )


def convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="checkpoint", help="a checkpoint folder, as published")
    parser.add_argument("output", type=Path, help="the file to write, NAME.safetensors")
    parser.add_argument(
        "--dtype",
        choices=KINDS,
        default="bf16",
        help="dtype of the blocks' matrices; the 8B takes 16.2 GB in bf16, 10.8 in fp8, 9.2 in int8; fp8 and int8 are "
        "a little less exact (bf16)",
    )


COMMANDS = (
    Command(
        "download",
        "the 8B model from the Hugging Face Hub; resumes where it was stopped",
        ("download", "download Alpha-VLLM/Lumina-DiMOO --revision main --endpoint https://mirror.example"),
        download_arguments,
        fetch,
        stopped="what is downloaded is kept, the same command resumes",
    ),
    Command(
        "convert",
        "a checkpoint as one file, for ComfyUI's model folder and for smaller cards",
        (
            "convert models/Lumina-DiMOO Lumina-DiMOO-int8.safetensors --dtype int8",
            "convert models/Lumina-DiMOO Lumina-DiMOO.safetensors",
        ),
        convert_arguments,
        convert_checkpoint,
    ),
)
