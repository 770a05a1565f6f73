"""Options that commands share, and what they mean."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from .. import jobs
from ..checkpoint.defaults import Defaults
from ..checkpoint.find import NANO, Found
from ..checkpoint.load import load_tokenizer, load_transformer, load_vq
from ..devices import device
from ..model.vq import VQ
from ..model.vq_tiles import TILE
from ..sampling.image import ImageSettings
from ..sampling.ml_cache import CANDIDATES, PRESETS, CachePolicy
from ..sampling.text import TextSettings
from ..sampling.text_cache import SPEEDS
from ..sequence.prompt import DESCRIBE_QUESTION
from .output import Output

DTYPES = {"auto": None, "fp32": torch.float32, "bf16": torch.bfloat16}


def load(found: Found, args: argparse.Namespace) -> tuple[jobs.Model, OnDevice]:
    """The networks of a checkpoint, on the device and in the dtype that the user named."""
    where = device(args.device)
    wanted = DTYPES[args.dtype]
    transformer = load_transformer(found, device=where, dtype=wanted, dequantised=wanted is not None)
    model = jobs.Model(transformer, load_tokenizer(found), found.table, found.defaults.sides)
    return model, OnDevice(load_vq(found, device=where), where, TILE if args.vq_strips else None)


@dataclass(frozen=True, eq=False)
class OnDevice:
    """A VQ as the jobs use it: pictures come from the CPU and go back there.

    One at a time is enough for a whole batch to need no more memory than a picture, and to give the very same bits.
    """

    vq: VQ
    device: torch.device
    tile: int | None = None

    @property
    def scale(self) -> int:
        """Pixels per cell along each side."""
        return self.vq.scale

    def encode(self, pixels: Tensor) -> Tensor:
        """pixels [B,3,h,w] -> codes [B,H,W]"""
        return torch.cat([self.vq.encode(one.to(self.device), tile=self.tile).cpu() for one in pixels.split(1)])

    def decode(self, codes: Tensor) -> Tensor:
        """codes [B,H,W] -> pixels [B,3,h,w]"""
        return torch.cat([self.vq.decode(one.to(self.device), tile=self.tile).cpu() for one in codes.split(1)])


Value = TypeVar("Value")


def chosen(value: Value | None, default: Value) -> Value:
    """The user's value, or the checkpoint's default."""
    return default if value is None else value


def image_settings(args: argparse.Namespace, defaults: Defaults) -> ImageSettings:
    """How to sample pictures. Raises ValueError for a setting out of range."""
    steps, temperature = chosen(args.steps, defaults.steps), chosen(args.temperature, defaults.temperature)
    return ImageSettings(steps, temperature, args.seed, args.ml_cache, args.guidance_start)


def text_settings(args: argparse.Namespace, defaults: Defaults) -> TextSettings:
    """How to sample an answer. Raises ValueError for a setting out of range or blocks that do not divide the answer."""
    return TextSettings(
        max_tokens=chosen(args.max_tokens, defaults.max_tokens),
        steps=chosen(args.steps, defaults.text_steps),
        block_length=chosen(args.block_length, defaults.block_length),
        temperature=args.temperature,
        cfg=args.cfg,
        seed=args.seed,
        policy=SPEEDS[args.speed],
    )


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
    group = parser.add_argument_group("model")
    group.add_argument(
        "--checkpoint",
        type=Path,
        default=NANO,
        metavar="PATH",
        help="a checkpoint folder, or a file made by `convert` (the built-in DiMOO-nano)",
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
        help="encode and decode pictures in tiles: a third of the memory or less, up to twice the time "
        "(--vq-strips is its old name)",
    )
    group.add_argument(
        "--seed", type=int, metavar="N", default=0, help="0 to 2^64-1; picture i of a batch has seed + i (0)"
    )


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
    common_arguments(parser)


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
        "--steps", type=int, metavar="N", help=f"a multiple of the number of blocks ({own} {Defaults.text_steps})"
    )
    group.add_argument(
        "--block-length", type=int, metavar="N", help=f"it divides --max-tokens ({own} {Defaults.block_length})"
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
