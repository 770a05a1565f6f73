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
from safetensors.torch import save_file
from torch import Tensor

from ..files import atomic_write, printable
from ..model.vq import VQ
from ..pictures.captions import caption_file, pictures_below, read_caption
from ..pictures.pixels import fit, load_picture
from ..pictures.sizes import fit_size

_log = logging.getLogger(__name__)


def pictures_in(
    folder: str | Path, side: int, *, on_problem: Callable[[str], None] | None = None
) -> Iterator[tuple[str, Tensor, str]]:
    """(name, pixels [3,h,w] fitted to the bucket of `side`, caption) of every picture that has a .txt of its name.

    The name is the path below the folder. A picture or a text that cannot be read is left out; `on_problem` (None: the
    log) gets a sentence that names it, and one for a text that is not UTF-8. Raises ValueError where the folder holds
    none, or not one can be read.
    """
    report = on_problem or _log.warning
    files = [path for path in pictures_below(folder) if caption_file(path).is_file()]
    if not files:
        raise ValueError(f"{folder} holds no picture with a .txt of the same name beside it; put captions there.")
    problems: list[str] = []
    for path in files:
        try:
            caption = read_caption(path, report=report)
            pixels = load_picture(path)
        except ValueError as error:
            problems.append(str(error))
            report(problems[-1])
            continue
        pixels = fit(pixels, *fit_size(pixels.shape[3], pixels.shape[2], side))
        yield printable(path.relative_to(folder)), pixels[0], caption or ""
    if len(problems) == len(files):
        raise ValueError(f"None of the {len(files)} pictures in {folder} can be read, such as: {problems[0]}")


def encode_pictures(vq: VQ, pictures: Iterable[tuple[str, Tensor]], batch: int = 16) -> Iterator[tuple[str, Tensor]]:
    """(name, codes [H,W]) for (name, pixels [3,H*s,W*s]); up to `batch` neighbours of one size are encoded together."""
    for _, group in groupby(pictures, key=lambda pair: pair[1].shape):
        while chunk := list(islice(group, batch)):
            names, pixels = zip(*chunk, strict=True)
            yield from zip(names, vq.encode(torch.stack(pixels)), strict=True)


def write_codes(path: str | Path, codes: Mapping[str, Tensor], captions: Mapping[str, str]) -> None:
    """Write grids [H,W] and captions by name; a kill never leaves half a file."""
    highest = max(int(grid.max()) for grid in codes.values())
    dtype = torch.int16 if highest < 2**15 else torch.int32
    tensors = {name: grid.to(dtype).contiguous() for name, grid in codes.items()}
    with atomic_write(path) as part:
        save_file(tensors, part, metadata={"captions": json.dumps(dict(captions))})


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
