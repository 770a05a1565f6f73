"""`lora`: what a LoRA file holds, and LoRAs merged into a checkpoint."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ..checkpoint.adapter_file import AdapterFile, read_adapter
from ..checkpoint.find import NANO, find
from ..checkpoint.load import check_weights
from ..checkpoint.merge import WEIGHTS, merge
from ..checks import printable
from ..files import check_writable
from ..model.adapters import Adapters
from ..pipeline import checkpoint_path, lora_path
from ..provenance import identified_checkpoint
from .command import Command, run_job
from .messages import say
from .options import lora, read_loras
from .output import check_not_read, progress
from .pictures import FIRST
from .train import LORA

_LONGEST = 200  # characters that are printed of what a file says of itself


def lora_info(args: argparse.Namespace) -> None:
    """What a LoRA file holds, and whether it fits a checkpoint."""
    found = find(checkpoint_path(args.checkpoint))
    check_weights(found)
    file = read_adapter(lora_path(args.file), found.config, found.table.code_offset)
    say(f"fits: {identified_checkpoint(found)['name']}")
    for line in described(file):
        say(line)
    for remark in file.remarks:
        say(remark, sys.stderr)


def described(file: AdapterFile) -> list[str]:
    """Lines that say what a LoRA changes, and what its file says of itself."""
    branches = file.branches
    layers = Counter(name.rpartition(".")[2] if ".blocks." in name else name for name in branches)
    lines = [
        f"rank: {_listed({one.rank for one in branches.values()})}",
        f"alpha: {_listed({one.alpha for one in branches.values()})}",
        f"layers: {', '.join(f'{name} ({count})' for name, count in layers.items())}",
        f"size: {file.adapter.nbytes / 1e6:.1f} MB",
    ]
    said = [f"{printable(name)}: {printable(value, _LONGEST)}" for name, value in sorted(file.metadata.items())]
    return [*lines, *said]


def _listed(numbers: Iterable[float]) -> str:
    return ", ".join(f"{number:g}" for number in sorted(numbers))


def lora_merge(args: argparse.Namespace) -> None:
    """A checkpoint with LoRAs in it."""
    output: Path = args.output
    check_writable(output, [WEIGHTS])
    found = find(checkpoint_path(args.source))
    check_not_read(output / WEIGHTS, [one.path for one in args.merged])
    loras = read_loras(found, args.merged)
    with progress("merge", unit="B") as on_step:
        size = merge(found, Adapters(loras), output, on_step=on_step)
    say(f"{output}: {size / 1e9:.2f} GB; `convert` makes one file of it.")


def lora_arguments(parser: argparse.ArgumentParser) -> None:
    """The jobs of `lora`, as commands of their own."""
    jobs = parser.add_subparsers(dest="job", required=True, metavar="JOB")

    info_job = jobs.add_parser("info", help="rank, alpha and layers of a LoRA file, and what it says of itself")
    info_job.add_argument("file", help="a LoRA file, a folder of PEFT, or a name in models/loras")
    info_job.add_argument(
        "--checkpoint", type=Path, default=NANO, metavar="PATH", help="the model that it is for (the built-in nano)"
    )
    info_job.set_defaults(job_run=lora_info)

    merge_job = jobs.add_parser(
        "merge",
        help="a checkpoint with LoRAs in its weights",
        description="Write a checkpoint folder with LoRAs in its weights, in the dtype of the checkpoint. Needs the "
        "memory of one tensor, not of the checkpoint.",
    )
    merge_job.add_argument("source", type=Path, metavar="checkpoint", help="a checkpoint that is not quantised")
    merge_job.add_argument(
        "merged", type=lora, nargs="+", metavar="lora", help="FILE or FILE:STRENGTH, as after --lora (STRENGTH 1)"
    )
    merge_job.add_argument(
        "-o", "--output", type=Path, metavar="FOLDER", required=True, help="folder for the finished checkpoint"
    )
    merge_job.set_defaults(job_run=lora_merge)


COMMANDS = (
    Command(
        "lora",
        "what a LoRA file holds, or LoRAs merged into a checkpoint",
        (
            "lora info runs/style/lora.safetensors",
            "lora merge models/Lumina-DiMOO style.safetensors:0.8 -o models/Lumina-DiMOO-style",
        ),
        lora_arguments,
        run_job,
        setup=(f"{FIRST} -o pictures/", "caption pictures/", LORA),
        stopped="no checkpoint was finished, the same command begins again",
    ),
)
