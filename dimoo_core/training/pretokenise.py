"""Pictures to codes, once, before training: one safetensors file of grids, with captions beside them.

The file holds a tensor [H,W] per picture under its name, as 16-bit integers where the codebook is small enough, and the
captions as JSON in its metadata. There is no pickle and nothing that could run.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby, islice
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..checkpoint.headers import write_tensors
from ..model.vq import VQ
from ..pictures.captions import caption_file, pictures_below, read_caption
from ..pictures.pixels import fit, load_picture
from ..pictures.sizes import fit_size

_log = logging.getLogger(__name__)


def captioned_pictures(folder: str | Path) -> list[Path]:
    """The pictures below a folder that have a .txt of their name beside them. Raises ValueError where none has."""
    files = [path for path in pictures_below(folder) if caption_file(path).is_file()]
    if not files:
        raise ValueError(f"{folder} holds no picture with a .txt of the same name beside it; put captions there.")
    return files


def read_captioned(path: Path, side: int, report: Callable[[str], None]) -> tuple[Tensor, str]:
    """Pixels [3,h,w] of a picture, fitted to the bucket of `side`, and its caption; `report` gets a sentence where the
    caption is not UTF-8. Raises ValueError where one of them cannot be read."""
    caption = read_caption(path, report=report)
    pixels = load_picture(path)
    pixels = fit(pixels, *fit_size(pixels.shape[3], pixels.shape[2], side))
    return pixels[0], caption or ""


def encode_pictures(vq: VQ, pictures: Iterable[tuple[str, Tensor]], batch: int = 16) -> Iterator[tuple[str, Tensor]]:
    """(name, codes [H,W]) for (name, pixels [3,H*s,W*s]); up to `batch` neighbours of one size are encoded together."""
    for _, group in groupby(pictures, key=lambda pair: pair[1].shape):
        while chunk := list(islice(group, batch)):
            names, pixels = zip(*chunk, strict=True)
            yield from zip(names, vq.encode(torch.stack(pixels)), strict=True)


def write_codes(
    path: str | Path,
    codes: Mapping[str, Tensor],
    captions: Mapping[str, str],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write grids [H,W] and captions by name, whole or not at all; `metadata` is kept beside them."""
    highest = max(int(grid.max()) for grid in codes.values())
    dtype = torch.int16 if highest < 2**15 else torch.int32
    tensors = {name: grid.to(dtype).contiguous() for name, grid in codes.items()}
    write_tensors(path, tensors, {**(metadata or {}), "captions": json.dumps(dict(captions))})


def read_codes(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Grids [H,W] int64 and captions by name, as `write_codes` wrote them. Raises ValueError for another file."""
    remedy = "make it with `python -m dimoo_core train encode`."
    try:
        with safe_open(path, "pt") as file:
            captions = json.loads((file.metadata() or {}).get("captions", "null"))
            codes = {name: file.get_tensor(name).long() for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise ValueError(f"{path} is not a file of codes ({error}); {remedy}") from None
    if not isinstance(captions, dict) or not codes or codes.keys() - captions.keys():
        raise ValueError(f"{path} holds no captions for its pictures; {remedy}")
    return codes, captions
