"""`python -m dimoo_core train ...`: build nano, encode pictures, fine-tune."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ..checkpoint.export import export_transformer, export_vq
from ..checkpoint.find import NANO, find
from ..checkpoint.load import load_tokenizer, load_transformer, load_vq
from ..devices import device
from ..nano.build import FURTHER, TRAINING, build
from ..training.engine import Trainer, TrainSettings, attention_for_training
from ..training.examples import Examples
from ..training.mixture import CaptionedPictures
from ..training.pretokenise import encode_pictures, pictures_in, read_codes, write_codes

EXAMPLES = (
    "train nano --run runs/nano --output runs/nano/checkpoint",
    "train encode pictures/ --output codes.safetensors --side 128",
    "train tune codes.safetensors --run runs/mine --output runs/mine/checkpoint --steps 500",
)


def train_arguments(parser: argparse.ArgumentParser) -> None:
    """The three things that `train` does, as commands of their own."""
    jobs = parser.add_subparsers(dest="job", required=True, metavar="JOB")
    nano = jobs.add_parser("nano", help="build DiMOO-nano from nothing (hours on two cores; goes on where it stopped)")
    _run_arguments(nano)
    nano.add_argument("--from", dest="start", metavar="NANO", type=Path, help="train a finished nano further")
    nano.add_argument("--steps", type=int, help="steps of the transformer's training [the recipe's]")
    nano.set_defaults(job_run=_nano)
    encode = jobs.add_parser("encode", help="pictures with .txt captions beside them to one file of codes")
    encode.add_argument("pictures", type=Path, help="folder of pictures, each with a .txt of its name")
    encode.add_argument("--checkpoint", type=Path, default=NANO, help="whose VQ encodes [built-in nano]")
    encode.add_argument("--output", type=Path, required=True, help="the .safetensors file to write")
    encode.add_argument("--side", type=int, default=512, help="px; pictures are fitted to about side x side [512]")
    encode.set_defaults(job_run=_encode)
    tune = jobs.add_parser("tune", help="fine-tune a checkpoint on a file of codes")
    tune.add_argument("codes", type=Path, help="file made by `train encode`")
    tune.add_argument("--checkpoint", type=Path, default=NANO, help="where to start [built-in nano]")
    _run_arguments(tune)
    tune.add_argument("--steps", type=int, default=1000, help="[1000]")
    tune.add_argument("--rate", type=float, default=1e-4, help="peak learning rate of AdamW [1e-4]")
    tune.add_argument("--seed", type=int, default=0, help="[0]")
    tune.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps ... [auto]")
    tune.set_defaults(job_run=_tune)


def train(args: argparse.Namespace) -> None:
    """Run the job that was asked for."""
    args.job_run(args)


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    # not `run`, which is where the command line keeps the function to call
    run = {"dest": "run_folder", "metavar": "RUN", "type": Path, "required": True}
    parser.add_argument("--run", **run, help="folder for what is needed to go on after a stop")
    parser.add_argument("--output", type=Path, required=True, help="folder for the finished checkpoint")


def reporter(every: float = 5.0) -> Callable[[str], None]:
    """Prints a line with the minutes passed, at most one in `every` seconds for one kind of line."""
    start, last = time.monotonic(), dict[str, float]()

    def report(line: str) -> None:
        now, kind = time.monotonic(), line.split(" ", 1)[0]
        if now - last.get(kind, -every) >= every:
            last[kind] = now
            print(f"{(now - start) / 60:6.1f} min  {line}", flush=True)

    return report


def _check_folders(args: argparse.Namespace, *others: Path) -> None:
    """Raises ValueError where two folders are one: the files of one would be taken for the other's."""
    if args.run_folder.resolve() == args.output.resolve():
        raise ValueError(f"--run and --output are both {args.output}; name two folders.")
    for name, folder in (("--run", args.run_folder), ("--output", args.output)):
        if folder.resolve() in [other.resolve() for other in others]:
            raise ValueError(f"{name} {folder} is the checkpoint that is being read; name another folder.")


def _nano(args: argparse.Namespace) -> None:
    start = None if args.start is None else find(args.start)
    _check_folders(args, *(() if start is None else {path.parent for path in start.files}))
    training = TRAINING if start is None else FURTHER
    training = training if args.steps is None else training.with_steps(args.steps)
    build(args.run_folder, args.output, report=reporter(), training=training, start=args.start)


def _encode(args: argparse.Namespace) -> None:
    vq, report, captions, problems = load_vq(find(args.checkpoint)), reporter(), {}, []

    def pictures():
        for name, pixels, words in pictures_in(args.pictures, args.side, on_problem=problems.append):
            captions[name] = words
            report(f"encoding picture {len(captions)}: {name}")
            yield name, pixels

    codes = dict(encode_pictures(vq, pictures()))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_codes(args.output, codes, captions)
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"wrote {len(codes)} pictures to {args.output}")


def _tune(args: argparse.Namespace) -> None:
    found, report = find(args.checkpoint), reporter()
    _check_folders(args, *{path.parent for path in found.files})
    settings = TrainSettings(steps=args.steps, rate=args.rate, matrix_rate=0.0, seed=args.seed)
    codes, captions = read_codes(args.codes)
    tokenizer = load_tokenizer(found)
    weights = {"device": device(args.device), "dtype": torch.float32, "dequantised": True}
    transformer = load_transformer(found, **weights, attention=attention_for_training)
    data = CaptionedPictures(Examples(tokenizer, found.table), codes, captions)
    trainer = Trainer(
        transformer.requires_grad_(True), data.draw, settings, mask_id=found.table.mask, folder=args.run_folder
    )
    trainer.run(lambda done, steps, loss: report(f"step {done}/{steps} loss {loss:.4f}"))
    export_transformer(args.output, transformer, fields=found.config_json, tokenizer=found.tokenizer_text())
    vq = load_vq(found, dtype="auto")  # as it is stored: other rounding would make other codes
    export_vq(args.output / "vqvae", vq, fields=found.vq_config_json, dtype=vq.quantize.embedding.weight.dtype)
    print(f"wrote {args.output}")
