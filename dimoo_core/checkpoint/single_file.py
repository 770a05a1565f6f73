"""A checkpoint in one safetensors file: what stands where in it, and reading its header.

metadata   dimoo_format             what such a file is known by: "1", or "2" where a matrix is rotated or has an
                                    `input_scale`, of which 0.2.0 of this pack knows nothing
           config.json              the text of the transformer's config.json, ids and defaults with it
           vqvae/config.json        the text of the VQ's
           converted_from           where DiMOO Loader made it: the fingerprint of the checkpoint that it is made of
           _quantization_metadata   where layers are quantised: which, and how, in ComfyUI's own words
tensors    model.transformer...     the transformer, as published; a quantised weight has its `weight_scale` beside
           it, and one in fp8 behind a norm the `input_scale` of what it is multiplied with
           vqvae....                the VQ
           tokenizer.json           the bytes of that file, uint8
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..checks import printable, shown
from ..model.quantised import FORMATS, Format, Quantised
from .headers import MAX_HEADER, MAX_JSON, MAX_TOKENIZER, Entry, Weights, json_object, read_header

SUFFIX = ".safetensors"
MARK, VERSION, NEWER_VERSION = "dimoo_format", "1", "2"
CONFIG, VQ_CONFIG, TOKENIZER = "config.json", "vqvae/config.json", "tokenizer.json"
VQ_PREFIX = "vqvae."
QUANTISATION = "_quantization_metadata"
SOURCE = "converted_from"


@dataclass(frozen=True)
class SingleFile:
    """What the header of such a file says."""

    config_json: Mapping[str, Any]
    vq_config_json: Mapping[str, Any]
    weights: Weights
    vq_weights: Weights
    tokenizer: Entry


def is_single_file(path: Path) -> bool:
    """Whether a file says in its header that it is one; a glance, without complaint.

    Other models may lie in the same folder; no more than a megabyte of each is read.
    """
    try:
        if path.suffix != SUFFIX or not os.path.isfile(path):
            return False
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            return length <= MAX_HEADER and f'"{MARK}"'.encode() in file.read(min(length, MAX_JSON))
    except OSError:
        return False


def read_single_file(path: Path) -> SingleFile:
    """What the file at `path` holds. Raises ValueError where it is broken, or not a file of this format."""
    metadata, entries = read_header(path)
    if metadata.get(MARK) not in (VERSION, NEWER_VERSION):
        raise ValueError(
            f"{path} says {MARK} = {shown(metadata.get(MARK))}, expected {VERSION!r} or {NEWER_VERSION!r}; update this "
            "pack, or convert the published checkpoint again with `python -m dimoo_core convert`."
        )
    if QUANTISATION in metadata:
        entries = _with_quantisation(path, entries, _object(path, metadata, QUANTISATION))
    tokenizer = entries.pop(TOKENIZER, None)
    if tokenizer is None or tokenizer.dtype != "U8" or len(tokenizer.shape) != 1:
        raise ValueError(f"{path} has no {TOKENIZER} in it; convert the published checkpoint again.")
    if tokenizer.shape[0] > MAX_TOKENIZER:
        raise ValueError(
            f"{TOKENIZER} in {path} has {tokenizer.shape[0]} bytes, expected at most {MAX_TOKENIZER}; convert the "
            "published checkpoint again."
        )
    return SingleFile(
        _object(path, metadata, CONFIG),
        _object(path, metadata, VQ_CONFIG),
        {name: entry for name, entry in entries.items() if not name.startswith(VQ_PREFIX)},
        {name.removeprefix(VQ_PREFIX): entry for name, entry in entries.items() if name.startswith(VQ_PREFIX)},
        tokenizer,
    )


def quantisation_metadata(layers: Mapping[str, Quantised]) -> str:
    """The text under `_quantization_metadata`; layers by name, without `.weight`."""
    fields = {name: quantisation.to_dict() for name, quantisation in layers.items()}
    return json.dumps({"format_version": "1.0", "layers": fields})


def _object(path: Path, metadata: Mapping[str, str], name: str) -> dict[str, Any]:
    """The JSON object under `name` in the metadata; ValueError where there is none or it is too large to be meant."""
    text = metadata.get(name, "")
    if len(text) > MAX_JSON:
        raise ValueError(f"{name} in {path} has more than {MAX_JSON} characters; download the file again.")
    return json_object(text, f"{name} in {path}")


def _with_quantisation(path: Path, entries: Mapping[str, Entry], metadata: Mapping[str, Any]) -> dict[str, Entry]:
    """The entries, each quantised weight with its format and its scales, which are no longer entries of their own."""
    left = dict(entries)
    for name, quantisation in _layers(path, metadata):
        weight, scale = left.get(f"{name}.weight"), left.pop(f"{name}.weight_scale", None)
        if weight is None or scale is None:
            raise ValueError(
                f"{path} says that {printable(name)} is quantised, but lacks its weight or weight_scale; download it "
                "again."
            )
        rows, format = weight.shape[0] if weight.shape else 0, quantisation.format
        _check_stored(weight, format, format.stored, (rows, *weight.shape[1:2]))
        _check_stored(scale, format, "F32", format.scale_shape(rows))
        if quantisation.group is not None and weight.shape[-1] % quantisation.group:
            raise ValueError(
                f"{path} says that {printable(name)} is rotated in groups of {quantisation.group}, which do not divide "
                f"its {weight.shape[-1]} columns; download the file again."
            )
        input_scale = left.pop(f"{name}.input_scale", None)
        if input_scale is not None:
            _check_stored(input_scale, format, "F32", ())
        left[f"{name}.weight"] = replace(weight, quantisation=quantisation, scale=scale, input_scale=input_scale)
    return left


def _check_stored(entry: Entry, format: Format, dtype: str, shape: tuple[int, ...]) -> None:
    if (entry.dtype, entry.shape) != (dtype, shape):
        raise ValueError(
            f"{printable(entry.name)} in {entry.file} is {entry.dtype} {shown(list(entry.shape))}, but {format.name} "
            f"has {dtype} {list(shape)}; download the file again."
        )


def _layers(path: Path, metadata: Mapping[str, Any]) -> Iterator[tuple[str, Quantised]]:
    """The quantised layers by name, without `.weight`."""
    layers = metadata.get("layers")
    if not isinstance(layers, dict):
        raise ValueError(f"{QUANTISATION} in {path} names no layers; download the file again.")
    for name, fields in layers.items():
        if not isinstance(fields, dict):
            raise ValueError(
                f"{path} says {printable(name)} is quantised as {shown(fields)}; known are {', '.join(FORMATS)}."
            )
        if name.startswith(VQ_PREFIX):
            raise ValueError(
                f"{path} says that {printable(name)} is quantised, which a VQ never is; download the file again."
            )
        try:
            yield name, Quantised.from_dict(fields)
        except ValueError as error:
            raise ValueError(f"{path} says that {printable(name)} is {error}.") from None
