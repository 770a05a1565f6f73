"""Checkpoints: recognised by their content, loaded strictly, never twice in memory.

A checkpoint is a folder in the layout of the published one; only the names of the JSON files are fixed:

    config.json         shape of the transformer, model_type "llada"; "dimoo_token_ids" where its ids are its own,
                        "dimoo_defaults" where other settings suit it than the published model
    *.safetensors       its weights in one file or several, with or without a `*.safetensors.index.json`
    tokenizer.json
    vqvae/config.json   shape of the VQ (diffusers' VQModel); another subfolder serves if it is the only VQ
    vqvae/*.safetensors

Or it is one file that holds all of that, as `python -m dimoo_core convert` writes it (see single_file.py).

Only safetensors and JSON are ever read: no pickle, no code from the folder. Whatever is wrong with the files is a
ValueError of one sentence.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checks import printable, shown
from ..files import decoded
from ..model.config import TransformerConfig, VQConfig
from ..model.quantised import Format
from ..pictures.sizes import CELL
from ..sequence.token_table import RELEASED, TokenTable
from .defaults import Defaults
from .headers import (
    MAX_TOKENIZER,
    Entry,
    Weights,
    located,
    read_headers,
    read_json,
    read_text,
    refuse_pickle,
    some,
    visible,
)
from .single_file import SUFFIX, is_single_file, read_single_file

NANO = Path(__file__).parents[1] / "nano" / "checkpoint"
_DEPTH = 4  # folders below a model folder; the hub's cache lays a checkpoint three deep


@dataclass(frozen=True)
class Found:
    """A recognised checkpoint; the headers of its weight files are read, the weights are not.

    `path` is the folder, or the single file. `config_json` and `vq_config_json` are all that its two config.json
    hold, `config`, `table`, `defaults` and `vq_config` what this pack reads of that. `json_files` are the JSON files
    that were read; a single file has none.
    """

    path: Path
    kind: str
    config_json: Mapping[str, Any]
    config: TransformerConfig
    table: TokenTable
    defaults: Defaults
    weights: Weights
    vq_config_json: Mapping[str, Any]
    vq_config: VQConfig
    vq_weights: Weights
    tokenizer: Path | Entry
    json_files: tuple[Path, ...]

    @property
    def folder(self) -> Path:
        """The folder; of a single file the one that it lies in."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that is read, so that a caller can notice a change by size and time."""
        stored = {entry.file for part in (self.weights, self.vq_weights) for entry in part.values()}
        return (*sorted(stored), *self.json_files)

    @property
    def formats(self) -> frozenset[Format]:
        """Formats of the quantised weights; empty where there are none."""
        quantisations = [entry.quantisation for entry in self.weights.values()]
        return frozenset(one.format for one in quantisations if one is not None)

    def tokenizer_text(self) -> str:
        """The text of tokenizer.json. Raises ValueError or OSError where it cannot be read."""
        if isinstance(self.tokenizer, Path):
            return read_text(self.tokenizer, MAX_TOKENIZER)
        return decoded(self.tokenizer.read().numpy().tobytes())


def find(path: str | Path) -> Found:
    """Recognises the checkpoint at `path`: its folder, a file in it, a single file that is all of it, or a folder with
    exactly one checkpoint below.

    Raises ValueError where there is none, where a part is missing or broken, or where the parts do not fit together.
    """
    path = _resolved(path)
    return _find_in_file(path) if os.path.isfile(path) else _find_in_folder(path)


def _find_in_folder(folder: Path) -> Found:
    config_json, vq_folder = read_json(folder / "config.json"), _vq_folder(folder)
    tokenizer = folder / "tokenizer.json"
    if not os.path.isfile(tokenizer):
        raise ValueError(f"{folder} has no tokenizer.json; download the one that belongs to this checkpoint.")
    return _found(
        folder,
        "hub folder",
        config_json=config_json,
        vq_config_json=read_json(vq_folder / "config.json"),
        weights=lambda: read_headers(folder),
        vq_weights=lambda: read_headers(vq_folder),
        tokenizer=tokenizer,
        json_files=(folder / "config.json", vq_folder / "config.json", tokenizer),
    )


def _find_in_file(path: Path) -> Found:
    single = read_single_file(path)
    return _found(
        path,
        "single file",
        config_json=single.config_json,
        vq_config_json=single.vq_config_json,
        weights=lambda: single.weights,
        vq_weights=lambda: single.vq_weights,
        tokenizer=single.tokenizer,
        json_files=(),
    )


def _found(
    path: Path,
    kind: str,
    *,
    config_json: Mapping[str, Any],
    vq_config_json: Mapping[str, Any],
    weights: Callable[[], Weights],
    vq_weights: Callable[[], Weights],
    **rest: Any,
) -> Found:
    """A checkpoint whose parts fit together; the headers of weights are read last, when all else is right."""
    with located(path):
        config = TransformerConfig.from_dict(config_json)
        table = TokenTable.from_dict(_table_of(config_json, "dimoo_token_ids", RELEASED.to_dict()))
        table.check(config.vocab_size)
        defaults = Defaults.from_dict(_table_of(config_json, "dimoo_defaults", {}))
        vq_config = VQConfig.from_dict(vq_config_json)
    _check_fit(vq_config, table, path)
    return Found(
        path=path,
        kind=kind,
        config_json=config_json,
        config=config,
        table=table,
        defaults=defaults,
        weights=weights(),
        vq_config_json=vq_config_json,
        vq_config=vq_config,
        vq_weights=vq_weights(),
        **rest,
    )


def candidates(folder: str | Path) -> list[Path]:
    """Checkpoint folders and single files at or below `folder`, sorted; cheap, reads nothing but each config.json and
    the beginning of each .safetensors file.

    A broken checkpoint is listed too, so that choosing it says what is wrong. Never raises for what lies there.
    """
    return sorted(_walk(Path(folder), _DEPTH, set()))


def _resolved(path: str | Path) -> Path:
    """The folder or the single file that a path stands for."""
    path = Path(os.path.expanduser(path))  # unlike Path.expanduser it leaves a user that it does not know
    if not os.path.exists(path):  # unlike Path.exists it is False, too, for a name that no file system could have
        raise ValueError(f"{printable(str(path), 200)} does not exist; give the folder of a checkpoint.")
    if os.path.isfile(path):
        refuse_pickle(path)
        if is_single_file(path):
            return path
        if not _is_llada(path.parent):
            raise ValueError(
                f"{path} has no config.json of model_type 'llada' beside it and is not a whole "
                "checkpoint; give a checkpoint folder, or a file made by `python -m dimoo_core convert`."
            )
        return path.parent
    if os.path.exists(path / "config.json"):
        return path
    below = candidates(path)
    if len(below) == 1:
        return below[0]
    if below:
        raise ValueError(f"{path} holds several checkpoints; name one of {some([str(one) for one in below])}.")
    raise ValueError(
        f"{path} has no config.json; give a folder with config.json, tokenizer.json, *.safetensors, vqvae/."
    )


def _walk(folder: Path, depth: int, seen: set[Path]) -> Iterator[Path]:
    try:
        real = folder.resolve()
        if real in seen:  # links may run in circles
            return
        seen.add(real)
        if _is_llada(folder):
            yield folder
            return
        inside = visible(folder)
    except (OSError, RuntimeError, ValueError):  # away, not ours to read; a circle of links, before Python 3.13
        return
    yield from (child for child in inside if child.suffix == SUFFIX and is_single_file(child))
    if depth:
        for child in inside:
            if os.path.isdir(child):
                yield from _walk(child, depth - 1, seen)


def _is_llada(folder: Path) -> bool:
    return _says(folder, "model_type", "llada")


def _says(folder: Path, field: str, value: str) -> bool:
    """Whether the folder's config.json can be read and says so; a glance, without complaint."""
    try:
        return read_json(folder / "config.json").get(field) == value
    except ValueError:
        return False


def _table_of(config_json: Mapping[str, Any], name: str, default: Mapping[str, Any]) -> Mapping[str, Any]:
    """The JSON object that a config.json has under `name`."""
    value = config_json.get(name, default)
    if not isinstance(value, dict):
        raise ValueError(f"config.json says {name} = {shown(value)}; expected an object of names with values.")
    return value


def _vq_folder(folder: Path) -> Path:
    named = folder / "vqvae"
    if os.path.isdir(named):
        return named
    others = [child for child in visible(folder) if os.path.isdir(child) and _says(child, "_class_name", "VQModel")]
    if len(others) == 1:
        return others[0]
    has = f"several VQ folders ({some([one.name for one in others])})" if others else "no VQ"
    raise ValueError(f"{folder} has {has}; expected the pictures' VQ in its subfolder vqvae/.")


def _check_fit(vq: VQConfig, table: TokenTable, path: Path) -> None:
    if vq.scale != CELL:
        raise ValueError(
            f"The VQ in {path} has {vq.scale} px per code, expected {CELL} px; download the one of this model."
        )
    if vq.codebook_size != table.codebook_size:
        raise ValueError(
            f"The VQ in {path} has {vq.codebook_size} codes, but the transformer's ids have room for "
            f"{table.codebook_size}; use the VQ that belongs to this checkpoint."
        )
    if vq.in_channels != 3 or vq.out_channels != 3:
        raise ValueError(
            f"The VQ in {path} has {vq.in_channels} to {vq.out_channels} channels, expected 3 to 3; download the one "
            "of this model."
        )
