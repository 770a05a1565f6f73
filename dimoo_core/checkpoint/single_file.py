"""A checkpoint in one safetensors file: what stands where in it, and reading its header.

metadata   dimoo_format             "1"; what such a file is known by
           config.json              the text of the transformer's config.json, ids and defaults with it
           vqvae/config.json        the text of the VQ's
           _quantization_metadata   where layers are quantised: which, and how, in ComfyUI's own words
tensors    model.transformer...     the transformer, as published; a quantised weight has its `weight_scale` beside
           vqvae....                the VQ
           tokenizer.json           the bytes of that file, uint8
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..model.quantised import FORMATS, Quantised
from .headers import MAX_HEADER, MAX_JSON, Entry, Weights, json_object, read_header

SUFFIX = ".safetensors"
MARK, VERSION = "dimoo_format", "1"
CONFIG, VQ_CONFIG, TOKENIZER = "config.json", "vqvae/config.json", "tokenizer.json"
VQ_PREFIX = "vqvae."
QUANTISATION = "_quantization_metadata"


@dataclass(frozen=True)
class SingleFile:
    """What the header of such a file says."""

    path: Path
    settings: Mapping[str, Any]
    vq_settings: Mapping[str, Any]
    weights: Weights
    vq_weights: Weights
    tokenizer: Entry


def is_single_file(path: Path) -> bool:
    """Whether a file says in its header that it is one; a glance, without complaint.

    Other models may lie in the same folder; of none more than a megabyte is read.
    """
    try:
        if path.suffix != SUFFIX or not path.is_file():
            return False
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            return length <= MAX_HEADER and f'"{MARK}"'.encode() in file.read(min(length, MAX_JSON))
    except OSError:
        return False


def read_single_file(path: Path) -> SingleFile:
    """Raises ValueError where the file is broken, or is none of these."""
    metadata, entries = read_header(path)
    if metadata.get(MARK) != VERSION:
        raise ValueError(
            f"{path} says {MARK} = {metadata.get(MARK)!r:.80}; {VERSION!r} is known, made by `python -m dimoo_core "
            "convert`: update this pack, or convert the published checkpoint again."
        )
    if QUANTISATION in metadata:
        entries = _with_layers(path, entries, _object(path, metadata, QUANTISATION))
    tokenizer = entries.pop(TOKENIZER, None)
    if tokenizer is None or tokenizer.dtype != "U8" or len(tokenizer.shape) != 1:
        raise ValueError(f"{path} has no {TOKENIZER} in it; convert the published checkpoint again.")
    return SingleFile(
        path,
        _object(path, metadata, CONFIG),
        _object(path, metadata, VQ_CONFIG),
        {name: entry for name, entry in entries.items() if not name.startswith(VQ_PREFIX)},
        {name.removeprefix(VQ_PREFIX): entry for name, entry in entries.items() if name.startswith(VQ_PREFIX)},
        tokenizer,
    )


def quantisation_metadata(layers: Mapping[str, Quantised]) -> str:
    """The text under `_quantization_metadata`; layers by name, without `.weight`."""
    return json.dumps({"format_version": "1.0", "layers": {name: layer.to_dict() for name, layer in layers.items()}})


def _object(path: Path, metadata: Mapping[str, str], name: str) -> dict[str, Any]:
    """A JSON object of the metadata; too large a text is not meant."""
    text = metadata.get(name, "")
    if len(text) > MAX_JSON:
        raise ValueError(f"{name} in {path} has more than {MAX_JSON} bytes; fetch the file again.")
    return json_object(text, f"{name} in {path}")


def _with_layers(path: Path, entries: dict[str, Entry], said: Mapping[str, Any]) -> dict[str, Entry]:
    """The entries, each quantised weight with its format and its scale, which is no entry of its own any more."""
    left = dict(entries)
    for name, layer in _layers(path, said):
        weight, scale = left.get(f"{name}.weight"), left.pop(f"{name}.weight_scale", None)
        if weight is None or scale is None:
            raise ValueError(
                f"{path} says that {name} is quantised, but lacks its weight or weight_scale; fetch it again."
            )
        rows = weight.shape[0] if weight.shape else 0
        for entry, dtype, shape in (
            (weight, layer.format.stored, (rows, *weight.shape[1:2])),
            (scale, "F32", layer.format.scale_shape(rows)),
        ):
            if (entry.dtype, entry.shape) != (dtype, shape):
                raise ValueError(
                    f"{entry.name} in {path} is {entry.dtype} {list(entry.shape)}, but {layer.format.name} wants "
                    f"{dtype} {list(shape)}; fetch the file again."
                )
        left[f"{name}.weight"] = replace(weight, layer=layer, scale=scale)
    return left


def _layers(path: Path, said: Mapping[str, Any]) -> Iterator[tuple[str, Quantised]]:
    layers = said.get("layers")
    if not isinstance(layers, dict):
        raise ValueError(f"{QUANTISATION} in {path} names no layers; fetch the file again.")
    for name, fields in layers.items():
        if not isinstance(fields, dict):
            raise ValueError(f"{path} says {name:.80} is quantised as {fields!r:.80}; {', '.join(FORMATS)} are known.")
        if name.startswith(VQ_PREFIX):
            raise ValueError(f"{path} says that {name:.80} is quantised, which a VQ never is; fetch the file again.")
        try:
            yield name, Quantised.from_dict(fields)
        except ValueError as error:
            raise ValueError(f"{path} says that {name:.80} is {error}.") from None
