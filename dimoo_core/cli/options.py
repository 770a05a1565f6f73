"""Options that commands share, and what they mean."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import pipeline
from ..checkpoint.defaults import Defaults
from ..checkpoint.find import NANO, Found, find
from ..checkpoint.load import check_weights
from ..checks import number_in
from ..jobs import image_settings
from ..model.adapters import MOST_STRENGTH, Applied
from ..pipeline import DTYPES, ImageOptions, Pipeline, TextOptions, checkpoint_path, load_loras
from ..sampling.ml_cache import CANDIDATES, PRESETS, CachePolicy
from ..sampling.orders import ORDERS
from ..sampling.text_cache import SPEEDS
from ..sequence.prompt import DESCRIBE_QUESTION
from .messages import say
from .output import Output
from .settings import Lora


def load(args: argparse.Namespace) -> Pipeline:
    """The checkpoint that the user named, on the device and in the dtype that they named, with their LoRAs. These are
    read first, since they are small, and one that does not fit should cost no minute of loading."""
    loras = read_loras(find(checkpoint_path(args.checkpoint)), args.loras) if args.loras else []
    pipe = pipeline.load(args.checkpoint, device=args.device, dtype=args.dtype, tiles=args.vq_strips or None)
    return pipe.with_adapters(loras) if loras else pipe


def read_loras(found: Found, loras: Sequence[Lora]) -> list[Applied]:
    """The LoRAs that the user named, for a checkpoint; what has to be said of one is said on stderr."""
    check_weights(found)
    return load_loras(found, [(lora.path, lora.strength) for lora in loras], lambda remark: say(remark, sys.stderr))


def image_options(args: argparse.Namespace) -> ImageOptions:
    """The settings of an image job as `Pipeline` takes them; None: the checkpoint's own."""
    return {
        "seed": args.seed,
        "steps": args.steps,
        "cfg": args.cfg,
        "image_cfg": getattr(args, "image_cfg", None),
        "temperature": args.temperature,
        "guidance_start": args.guidance_start,
        "ml_cache": args.ml_cache,
        "corrections": args.corrections,
        "polish": args.polish,
        "order": args.order,
        "shared_noise": args.shared_noise,
    }


def check_image_options(args: argparse.Namespace) -> None:
    """Raises ValueError for a setting of an image job that is out of range, whatever the checkpoint's own are."""
    given: dict[str, Any] = {**image_options(args)}
    image_settings(Defaults(), cache=given.pop("ml_cache"), **given)


def text_options(args: argparse.Namespace) -> TextOptions:
    """The settings of an answer as `Pipeline` takes them; None: the checkpoint's own."""
    return {
        "seed": args.seed,
        "max_tokens": args.max_tokens,
        "steps": args.steps,
        "block_length": args.block_length,
        "temperature": args.temperature,
        "cfg": args.cfg,
        "speed": args.speed,
    }


def lora(text: str) -> Lora:
    """FILE or FILE:STRENGTH: a strength is what follows the last colon where that is a number, so that a drive's letter
    begins a path."""
    file, _, number = text.rpartition(":")
    try:
        strength = float(number)
    except ValueError:
        return Lora(text)
    try:
        return Lora(file, number_in("its strength", strength, -MOST_STRENGTH, MOST_STRENGTH))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"got {text!r:.80}; {error}") from None


def size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT in px."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"got {text!r:.80}; expected WIDTHxHEIGHT in px, such as 1024x768")
    return int(parts[0]), int(parts[1])


def cache(text: str) -> CachePolicy | None:
    """A preset of ML-Cache, or its numbers: three as published, then optionally candidates and prefix interval."""
    if text in PRESETS:
        return PRESETS[text]
    try:
        ratio, warmup, refresh, *rest = text.split(",")
        candidates, prefix = [*rest, *("all", "1")[len(rest) :]]
        return CachePolicy(float(ratio), float(warmup), int(refresh), candidates, int(prefix))
    except ValueError as error:
        names = ", ".join(PRESETS)
        raise argparse.ArgumentTypeError(
            f"got {text!r:.80}; expected one of {names}, or RATIO,WARMUP,REFRESH[,CANDIDATES[,PREFIX]] such as "
            f"0.9,0.3,5 or 0.9,0.3,5,holes,10 ({error})"
        ) from None


def common_arguments(parser: argparse.ArgumentParser) -> None:
    model_arguments(parser).add_argument(
        "--seed", type=int, metavar="N", default=0, help="0 to 2^64-1; picture i of a batch has seed + i (0)"
    )


def model_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--checkpoint",
        type=Path,
        default=NANO,
        metavar="PATH",
        help="a checkpoint folder, or a file made by `convert` (the built-in DiMOO-nano)",
    )
    group.add_argument(
        "--lora",
        dest="loras",
        type=lora,
        action="append",
        default=[],
        metavar="FILE",
        help="FILE or FILE:STRENGTH, such as style.safetensors:0.8: a LoRA file, a folder of PEFT, or a name in "
        f"models/loras; may be given several times (STRENGTH 1, from {-MOST_STRENGTH:g} to {MOST_STRENGTH:g})",
    )
    group.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps ... (auto)")
    group.add_argument(
        "--dtype", choices=DTYPES, default="auto", help="dtype of the transformer; auto: as stored (auto)"
    )
    group.add_argument(
        "--vq-tiles",
        "--vq-strips",  # the name that it had up to version 0.1
        dest="vq_strips",
        action="store_true",
        help="encode and decode pictures in tiles: about a third of the memory or less for a picture of 1024x1024 px, "
        "up to half as much work again (--vq-strips is its old name)",
    )
    return group


def sampling_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    own = "the checkpoint's own, else"
    group.add_argument("--steps", type=int, metavar="N", help=f"more are slower and better ({own} {Defaults.steps})")
    group.add_argument(
        "--cfg", type=float, metavar="X", help=f"how closely to follow the text; 0: fastest ({own} {Defaults.cfg:g})"
    )
    group.add_argument(
        "--temperature",
        type=float,
        metavar="X",
        help=f"variety; 0: the same picture for every seed ({own} {Defaults.temperature:g})",
    )
    group.add_argument("--negative", default="", metavar="TEXT", help="what not to show")
    group.add_argument(
        "--ml-cache",
        type=cache,
        metavar="CACHE",
        help=f"{', '.join(PRESETS)}, or RATIO,WARMUP,REFRESH[,CANDIDATES[,PREFIX]] such as 0.9,0.3,5 or "
        f"0.9,0.3,5,holes,10: faster, a little worse. CANDIDATES: {' or '.join(CANDIDATES)} (all); PREFIX: compute "
        "prompt and input pictures again only every PREFIX steps (1) (off)",
    )
    group.add_argument(
        "--guidance-start",
        type=float,
        metavar="SHARE",
        default=0.0,
        help="skip guidance for this share of the steps, at the beginning: faster (0)",
    )
    group.add_argument(
        "--corrections",
        type=int,
        metavar="N",
        default=0,
        help="at each of the later steps, empty N doubtful cells again and fill them better: no extra steps (0)",
    )
    group.add_argument(
        "--polish",
        type=int,
        metavar="N",
        default=0,
        help="N passes over the finished picture, each as long as a step, that redraw what does not fit; 2 reach all "
        "of it, and half the steps with --polish 2 save time (0)",
    )
    group.add_argument(
        "--order",
        choices=ORDERS,
        default="confidence",
        help="which cells are filled first: the most certain, spread evenly over the picture, or any (confidence)",
    )
    group.add_argument(
        "--shared-noise",
        type=float,
        metavar="SHARE",
        default=0.0,
        help="let all cells draw with the same noise for this share of the steps, at the beginning: helps where steps "
        "are few (0)",
    )
    common_arguments(parser)


def size_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--size", type=size, metavar="WxH", help="px, in steps of 16 (the checkpoint's, else 1024x1024)"
    )


def batch_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, metavar="N", default=1, help="how many pictures (1)")
    parser.add_argument(
        "-o",
        "--output",
        type=Output.parse,
        metavar="PATH",
        help="a picture file, or a folder, such as new/ (this folder, as COMMAND-SEED.png)",
    )


def answer_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--question", default=DESCRIBE_QUESTION, help=f"what to ask ({DESCRIBE_QUESTION})")
    group = parser.add_argument_group("sampling")
    own = "the checkpoint's own, else"
    group.add_argument("--max-tokens", type=int, metavar="N", help=f"longest answer ({own} {Defaults.max_tokens})")
    group.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="a multiple of the number of blocks (the checkpoint's own; for another --max-tokens one per token)",
    )
    group.add_argument(
        "--block-length",
        type=int,
        metavar="N",
        help=f"it divides --max-tokens ({own} {Defaults.block_length}, or less where that does not divide)",
    )
    group.add_argument("--temperature", type=float, metavar="X", default=0.0, help="0: the likeliest answer (0)")
    group.add_argument(
        "--cfg", type=float, metavar="X", default=0.0, help="above 0: weigh pictures and question more (0)"
    )
    group.add_argument(
        "--speed",
        choices=SPEEDS,
        default="exact",
        help="balanced and fast read the picture once or a few times instead of at every step, and write several words "
        "per step where they are certain; a word may differ now and then (exact)",
    )
    common_arguments(parser)
