"""Options that commands share, and what they mean."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import pipeline
from ..checkpoint.defaults import Defaults
from ..checkpoint.find import NANO
from ..pipeline import DTYPES, ImageOptions, Pipeline, TextOptions
from ..sampling.ml_cache import CANDIDATES, PRESETS, CachePolicy
from ..sampling.text_cache import SPEEDS


def load(args: argparse.Namespace) -> Pipeline:
    """The checkpoint that the user named, on the device and in the dtype that they named."""
    return pipeline.load(args.checkpoint, device=args.device, dtype=args.dtype, tiles=args.vq_strips or None)


def image_options(args: argparse.Namespace) -> ImageOptions:
    """The settings of an image job as the face takes them; None: the checkpoint's own."""
    return {
        "seed": args.seed,
        "steps": args.steps,
        "cfg": args.cfg,
        "temperature": args.temperature,
        "guidance_start": args.guidance_start,
        "ml_cache": args.ml_cache,
    }


def text_options(args: argparse.Namespace) -> TextOptions:
    """The settings of an answer as the face takes them; None: the checkpoint's own."""
    return {
        "seed": args.seed,
        "max_tokens": args.max_tokens,
        "steps": args.steps,
        "block_length": args.block_length,
        "temperature": args.temperature,
        "cfg": args.cfg,
        "speed": args.speed,
    }


def size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT in px."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} came; WIDTHxHEIGHT in px is wanted, such as 1024x768")
    return int(parts[0]), int(parts[1])


def cache(text: str) -> CachePolicy | None:
    """A preset of ML-Cache, or its numbers: three as published, then perhaps the candidates and the prefix interval."""
    if text in PRESETS:
        return PRESETS[text]
    try:
        ratio, warmup, refresh, *ours = text.split(",")
        candidates, prefix = [*ours, *("all", "1")[len(ours) :]]
        return CachePolicy(float(ratio), float(warmup), int(refresh), candidates, int(prefix))
    except ValueError as error:
        names = ", ".join(PRESETS)
        raise argparse.ArgumentTypeError(
            f"{text!r} came; one of {names} is wanted, or RATIO,WARMUP,REFRESH[,CANDIDATES[,PREFIX]] such as 0.9,0.3,5 "
            f"or 0.9,0.3,5,holes,10 ({error})"
        ) from None


def common_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--checkpoint",
        type=Path,
        default=NANO,
        metavar="PATH",
        help="a folder as published, or a file that `convert` made (built-in DiMOO-nano)",
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps ... (auto)")
    group.add_argument("--dtype", choices=DTYPES, default="auto", help="of the transformer; auto: as stored (auto)")
    group.add_argument(
        "--vq-strips",
        action="store_true",
        help="turn pictures into codes and back in tiles: a third of the memory and less, twice the time",
    )
    group.add_argument(
        "--seed", type=int, metavar="N", default=0, help="0 to 2^64-1; picture i of a batch has seed + i (0)"
    )


def sampling_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    ours = "the checkpoint's own, else"
    group.add_argument("--steps", type=int, metavar="N", help=f"more are slower and better ({ours} {Defaults.steps})")
    group.add_argument(
        "--cfg", type=float, metavar="X", help=f"how closely to follow the text; 0: fastest ({ours} {Defaults.cfg:g})"
    )
    group.add_argument(
        "--temperature",
        type=float,
        metavar="X",
        help=f"variety; 0: the same picture for every seed ({ours} {Defaults.temperature:g})",
    )
    group.add_argument("--negative", default="", metavar="TEXT", help="what not to show")
    group.add_argument(
        "--ml-cache",
        type=cache,
        metavar="CACHE",
        help=f"{', '.join(PRESETS)}, or RATIO,WARMUP,REFRESH[,CANDIDATES[,PREFIX]] such as 0.9,0.3,5 or "
        f"0.9,0.3,5,holes,10: faster, a little worse. CANDIDATES: {' or '.join(CANDIDATES)} (all); PREFIX: in how many "
        "steps prompt and input pictures are computed once (1) (off)",
    )
    group.add_argument(
        "--guidance-start",
        type=float,
        metavar="SHARE",
        default=0.0,
        help="share of the steps, at the beginning, that go without guidance: faster (0)",
    )
    common_arguments(parser)


def batch_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, metavar="N", default=1, help="how many pictures (1)")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="PATH", help="a picture file or a folder (here, as COMMAND-SEED.png)"
    )


def answer_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--question", default="Describe the image.", help="what to ask (Describe the image.)")
    group = parser.add_argument_group("sampling")
    ours = "the checkpoint's own, else"
    group.add_argument("--max-tokens", type=int, metavar="N", help=f"longest answer ({ours} {Defaults.max_tokens})")
    group.add_argument(
        "--steps", type=int, metavar="N", help=f"a multiple of the number of blocks ({ours} {Defaults.text_steps})"
    )
    group.add_argument(
        "--block-length", type=int, metavar="N", help=f"it divides --max-tokens ({ours} {Defaults.block_length})"
    )
    group.add_argument("--temperature", type=float, metavar="X", default=0.0, help="0: the likeliest answer (0)")
    group.add_argument(
        "--cfg", type=float, metavar="X", default=0.0, help="above 0 weighs pictures and question more (0)"
    )
    group.add_argument(
        "--speed",
        choices=SPEEDS,
        default="exact",
        help="balanced and fast read the picture once or a few times, not at every step, and write several words a "
        "step where they are sure; now and then another word (exact)",
    )
    common_arguments(parser)
