"""`train`: pictures or records to codes, a LoRA, a fine-tune, nano built."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..checkpoint.find import find
from ..locks import folder_lock
from ..nano.build import FURTHER, TRAINING, build
from .command import Command, run_job
from .pictures import FIRST
from .runs import check_folders, reporter, run_arguments
from .train_lora import lora_arguments, teach
from .train_tune import encode_arguments, train_encode, train_tune, tune_arguments


def train_nano(args: argparse.Namespace) -> None:
    """DiMOO-nano from nothing, or a finished one trained further."""
    start = None if args.start is None else find(args.start)
    check_folders(args, start)
    training = TRAINING if start is None else FURTHER
    training = training if args.steps is None else training.with_steps(args.steps)
    with folder_lock(args.run_folder):
        build(args.run_folder, args.output, report=reporter(), training=training, start=args.start)


def train_arguments(parser: argparse.ArgumentParser) -> None:
    """The jobs of `train`, as commands of their own."""
    jobs = parser.add_subparsers(dest="job", required=True, metavar="JOB")

    encode_job = jobs.add_parser("encode", help="pictures with captions, or records, to codes")
    encode_arguments(encode_job)
    encode_job.set_defaults(job_run=train_encode)

    tune_job = jobs.add_parser("tune", help="fine-tune all weights of a checkpoint, on one device or on many")
    tune_arguments(tune_job)
    tune_job.set_defaults(job_run=train_tune)

    lora_job = jobs.add_parser("lora", help="teach a LoRA from a folder of pictures with .txt captions beside them")
    lora_arguments(lora_job)
    lora_job.set_defaults(job_run=teach)

    nano_job = jobs.add_parser("nano", help="build DiMOO-nano from nothing (hours on two cores; resumes when stopped)")
    run_arguments(nano_job)
    nano_job.add_argument("--from", dest="start", metavar="NANO", type=Path, help="train a finished nano further")
    nano_job.add_argument("--steps", type=int, metavar="N", help="steps of the transformer's training (the recipe's)")
    nano_job.set_defaults(job_run=train_nano)


LORA = "train lora pictures/ --steps 4 --warm-up 1 --sample-every 2 --run runs/style"

COMMANDS = (
    Command(
        "train",
        "a LoRA or a fine-tune taught on your own pictures, or DiMOO-nano from nothing",
        (
            LORA,
            "train encode pictures/ --output codes.safetensors",
            "train tune codes.safetensors --run runs/mine --output runs/mine/checkpoint --steps 20",
            "train nano --run runs/nano --output runs/nano/checkpoint",
        ),
        train_arguments,
        run_job,
        setup=(f"{FIRST} -o pictures/", "caption pictures/"),
    ),
)
