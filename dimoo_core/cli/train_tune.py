"""`train encode` and `train tune`: pictures to codes, and all weights of a checkpoint fine-tuned on them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..checkpoint.find import NANO, find
from ..devices import Ranks
from ..files import check_writable
from ..locks import folder_lock
from ..training.encode import encode_records
from ..training.encode_captioned import encode
from ..training.loop import Step
from ..training.optimise import OPTIMISERS, SCHEDULES
from ..training.tune import OURS, PRESETS, RELEASED, Placement, TuneSettings, tune
from ..training.watch import Watch
from .messages import say
from .runs import check_folders, check_outside, reporter, run_arguments

_CHOSEN = ("rate", "batch", "accumulate", "warm_up", "schedule", "clip", "weight_decay", "optimizer")


def train_encode(args: argparse.Namespace) -> None:
    """Captioned pictures to a file of codes, or records to a folder of shards."""
    found = find(args.checkpoint)
    side = found.defaults.side if args.side is None else args.side
    ranks = Ranks.from_environment()
    if args.pictures.is_file():
        check_writable(args.output)
        report = reporter() if ranks.rank == 0 else lambda line: None
        made = encode_records(
            found, args.pictures, args.output, side=side, ranks=ranks, report=report, misspelt=args.misspelt
        )
        if ranks.rank == 0:
            left = f", {made.left_out} records left out (see left_out.txt there)" if made.left_out else ""
            say(f"wrote {made.samples} samples to {args.output}{left}")
        ranks.leave()
        return
    if ranks.size > 1:
        raise ValueError(
            f"{args.pictures} is a folder, which one process encodes; leave torchrun out, or list its pictures as "
            "records in a .jsonl file."
        )
    check_writable(args.output.parent, [args.output.name])
    encoded = encode(found, args.pictures, args.output, side=side, report=reporter())
    for problem in encoded.problems:
        say(problem, sys.stderr)
    say(f"wrote {encoded.count} pictures to {args.output}")
    if encoded.count < encoded.total:
        raise ValueError(
            f"{encoded.total - encoded.count} of {encoded.total} pictures are not in {args.output}, see above."
        )


def train_tune(args: argparse.Namespace) -> None:
    """A checkpoint fine-tuned, by this process alone or by all that torchrun starts."""
    found = find(args.checkpoint)
    settings = TuneSettings.of(
        args.preset,
        steps=args.steps,
        seed=args.seed,
        save_every=args.save_every,
        misspelt=args.misspelt,
        held_back=args.held_back,
        check_every=args.check_every,
        betas=None if args.betas is None else tuple(args.betas),
        **{name: getattr(args, name) for name in _CHOSEN},
    )
    check_folders(args, found)
    for flag, folder in (("--run", args.run_folder), ("--output", args.output)):
        check_outside(flag, folder, args.data)
    report = reporter()

    def on_step(step: Step) -> None:
        report(f"step {step.number}/{step.steps} loss {step.loss:.4f}")

    first = tune(
        found,
        args.data,
        settings,
        run=args.run_folder,
        output=args.output,
        placement=Placement(args.device, args.dtype == "bf16", args.shard, args.offload),
        watch=Watch(say, on_step),
        hold=folder_lock,
    )
    if first:
        say(f"wrote {args.output}")


def encode_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "pictures",
        type=Path,
        help="folder of pictures, each with a .txt of its name; or records, a .jsonl file or the released .json: see "
        "docs/training.md",
    )
    parser.add_argument(
        "--checkpoint", type=Path, default=NANO, metavar="PATH", help="whose VQ encodes (the built-in nano)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        required=True,
        help="what to write: a .safetensors file for a folder of pictures, a folder for records",
    )
    parser.add_argument(
        "--side", type=int, metavar="PX", help="fit pictures to about SIDE x SIDE px (the checkpoint's)"
    )
    parser.add_argument(
        "--misspelt", action="store_true", help='keep "accroding" in the system prompts of released records'
    )


def tune_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Fine-tune all weights of a checkpoint, kept in fp32 with AdamW: 16 bytes a weight, on one device or, started "
        "by torchrun, cut into shards over the cards of one machine or of many. A LoRA needs far less: see `train "
        "lora`."
    )
    add = parser.add_argument
    add(
        "data",
        type=Path,
        help="a file or a folder made by `train encode`, or a folder of pictures as `train lora` reads it",
    )
    add("--checkpoint", type=Path, default=NANO, metavar="PATH", help="where to start (the built-in nano)")
    run_arguments(parser)
    add("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps ... (auto)")
    add("--dtype", choices=("bf16", "fp32"), default="bf16", help="of what is computed; weights are fp32 (bf16)")
    group = parser.add_argument_group("training")
    add = group.add_argument
    add(
        "--preset",
        choices=tuple(PRESETS),
        default="ours",
        help="values of the options below, and how answers are laid out; released: as the published model was tuned "
        "(ours)",
    )
    add("--steps", type=int, default=1000, metavar="N", help="number of updates (1000)")
    add("--rate", type=float, metavar="X", help=f"peak learning rate {_both('rate')}")
    add("--batch", type=int, metavar="N", help=f"samples in a pass {_both('batch')}")
    add(
        "--accumulate",
        type=int,
        metavar="N",
        help=f"passes in an update, which all processes share {_both('accumulate')}",
    )
    add("--schedule", choices=SCHEDULES, help=f"of the rate, after the warm-up {_both('schedule')}")
    add("--warm-up", type=int, metavar="N", help="updates in which the rate rises (100; released: 0.001 epochs)")
    add("--optimizer", choices=tuple(OPTIMISERS), help="in shards there is adamw only (adamw)")
    add("--betas", type=float, nargs=2, metavar="X", help=f"of AdamW {_both('betas')}")
    add("--weight-decay", type=float, metavar="X", help=f"of every weight {_both('weight_decay')}")
    add("--clip", type=float, metavar="X", help=f"largest norm of a gradient {_both('clip')}")
    add("--seed", type=int, default=0, metavar="N", help="of the order and of what is hidden (0)")
    add("--misspelt", action="store_true", help='the system prompt of the released data, "accroding to the text"')
    group = parser.add_argument_group("following it")
    add = group.add_argument
    add("--save-every", type=int, default=100, metavar="N", help="updates between two states on disk (100)")
    add("--held-back", type=float, default=0.0, metavar="SHARE", help="of the pictures, which only check the rest (0)")
    add("--check-every", type=int, default=100, metavar="N", help="updates between two checks (100)")
    group = parser.add_argument_group("several processes")
    add = group.add_argument
    add("--shard", type=int, metavar="N", help="in how many parts the weights are cut; fewer than processes: copies")
    add("--offload", action="store_true", help="keep weights and optimiser in the machine's memory: slow, but it fits")


def _both(name: str) -> str:
    """The values of both presets, for a help text."""
    ours, released = (" ".join(map(str, _several(preset[name]))) for preset in (OURS, RELEASED))
    return f"({ours}; released: {released})"


def _several(value: object) -> tuple:
    return value if isinstance(value, tuple) else (value,)
