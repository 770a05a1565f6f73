"""`train`: build nano, encode pictures, fine-tune."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ..checkpoint.find import NANO, Found, find
from ..devices import device
from ..nano.build import FURTHER, TRAINING, build
from ..training.engine import TrainSettings
from ..training.tune import encode, tune
from .command import Command
from .locks import folder_lock
from .messages import say
from .output import check_writable
from .pictures import FIRST


def train(args: argparse.Namespace) -> None:
    """Run the job that was asked for."""
    args.job_run(args)


def train_nano(args: argparse.Namespace) -> None:
    """DiMOO-nano from nothing, or a finished one trained further."""
    start = None if args.start is None else find(args.start)
    _check_folders(args, start)
    training = TRAINING if start is None else FURTHER
    training = training if args.steps is None else training.with_steps(args.steps)
    with folder_lock(args.run_folder):
        build(args.run_folder, args.output, report=reporter(), training=training, start=args.start)


def train_encode(args: argparse.Namespace) -> None:
    """Pictures with captions to a file of codes."""
    found = find(args.checkpoint)
    check_writable(args.output.parent, [args.output.name])
    side = found.defaults.side if args.side is None else args.side
    made = encode(found, args.pictures, args.output, side=side, report=reporter())
    for problem in made.problems:
        say(problem, sys.stderr)
    say(f"wrote {made.count} pictures to {args.output}")
    if made.count < made.total:
        raise ValueError(f"{made.total - made.count} of {made.total} pictures are not in {args.output}, see above.")


def train_tune(args: argparse.Namespace) -> None:
    """A checkpoint fine-tuned on a file of codes."""
    found = find(args.checkpoint)
    settings = TrainSettings(steps=args.steps, rate=args.rate, matrix_rate=0.0, seed=args.seed)
    _check_folders(args, found)
    with folder_lock(args.run_folder):
        tune(
            found,
            args.codes,
            run=args.run_folder,
            output=args.output,
            settings=settings,
            device=device(args.device),
            report=reporter(),
        )
    say(f"wrote {args.output}")


def reporter(every: float = 5.0) -> Callable[[str], None]:
    """Prints a line with the minutes passed, at most one in `every` seconds for one kind of line."""
    start, last = time.monotonic(), dict[str, float]()

    def report(line: str) -> None:
        now, kind = time.monotonic(), line.split(" ", 1)[0]
        if now - last.get(kind, -every) >= every:
            last[kind] = now
            say(f"{(now - start) / 60:6.1f} min  {line}")

    return report


def _check_folders(args: argparse.Namespace, source: Found | None) -> None:
    """Raises ValueError where a folder cannot be written, and where two folders are one: the files of one would be
    taken for the other's."""
    if args.run_folder.resolve() == args.output.resolve():
        raise ValueError(f"--run and --output are both {args.output}; name two folders.")
    read = set() if source is None else {path.parent.resolve() for path in source.files}
    for name, folder in (("--run", args.run_folder), ("--output", args.output)):
        if folder.resolve() in read:
            raise ValueError(f"{name} {folder} is the checkpoint that is being read; name another folder.")
        check_writable(folder)


def train_arguments(parser: argparse.ArgumentParser) -> None:
    """The three jobs of `train`, as commands of their own."""
    jobs = parser.add_subparsers(dest="job", required=True, metavar="JOB")

    encode_job = jobs.add_parser("encode", help="pictures with .txt captions beside them to one file of codes")
    encode_job.add_argument("pictures", type=Path, help="folder of pictures, each with a .txt of its name")
    encode_job.add_argument(
        "--checkpoint", type=Path, default=NANO, metavar="PATH", help="whose VQ encodes (the built-in nano)"
    )
    encode_job.add_argument("--output", type=Path, metavar="FILE", required=True, help="the .safetensors file to write")
    encode_job.add_argument(
        "--side", type=int, metavar="PX", help="fit pictures to about SIDE x SIDE px (the checkpoint's)"
    )
    encode_job.set_defaults(job_run=train_encode)

    tune_job = jobs.add_parser(
        "tune",
        help="fine-tune a small checkpoint, of nano's size, on a file of codes",
        description="Fine-tune all weights of a checkpoint, in fp32 with AdamW. That suits checkpoints of nano's size: "
        "the 8B would need about 128 GB for weights and optimiser alone. It waits for LoRA.",
    )
    tune_job.add_argument("codes", type=Path, help="file made by `train encode`")
    tune_job.add_argument(
        "--checkpoint", type=Path, default=NANO, metavar="PATH", help="where to start (the built-in nano)"
    )
    _run_arguments(tune_job)
    tune_job.add_argument("--steps", type=int, default=1000, metavar="N", help="number of steps (1000)")
    tune_job.add_argument("--rate", type=float, default=1e-4, metavar="X", help="peak learning rate of AdamW (1e-4)")
    tune_job.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the data (0)")
    tune_job.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps ... (auto)")
    tune_job.set_defaults(job_run=train_tune)

    nano_job = jobs.add_parser("nano", help="build DiMOO-nano from nothing (hours on two cores; resumes when stopped)")
    _run_arguments(nano_job)
    nano_job.add_argument("--from", dest="start", metavar="NANO", type=Path, help="train a finished nano further")
    nano_job.add_argument("--steps", type=int, metavar="N", help="steps of the transformer's training (the recipe's)")
    nano_job.set_defaults(job_run=train_nano)


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run",
        dest="run_folder",
        metavar="RUN",
        type=Path,
        required=True,
        help="folder that keeps the state of the run, to resume after a stop",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", required=True, help="folder for the finished checkpoint"
    )


COMMANDS = (
    Command(
        "train",
        "networks trained: a fine-tune on your own pictures, or DiMOO-nano from nothing",
        (
            "train encode pictures/ --output codes.safetensors",
            "train tune codes.safetensors --run runs/mine --output runs/mine/checkpoint --steps 20",
            "train nano --run runs/nano --output runs/nano/checkpoint",
        ),
        train_arguments,
        train,
        setup=(f"{FIRST} -o pictures/", "caption pictures/"),
    ),
)
