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
from typing import Any, TypeVar

from ..model.config import TransformerConfig, VQConfig
from ..model.quantised import Format
from ..pictures.sizes import CELL
from ..sequence.token_table import RELEASED, TokenTable
from .defaults import Defaults
from .headers import Entry, Weights, read_headers, read_json, refuse_pickle, some
from .single_file import SUFFIX, is_single_file, read_single_file

NANO = Path(__file__).parents[1] / "nano" / "checkpoint"
_DEPTH = 4  # folders below a model folder; the hub's cache lays a checkpoint three deep


@dataclass(frozen=True)
class Found:
    """A recognised checkpoint; the headers of its weight files are read, the weights are not.

    `path` is the folder, or the single file; `settings` and `vq_settings` are what its two config.json say.
    """

    path: Path
    kind: str
    settings: Mapping[str, Any]
    config: TransformerConfig
    table: TokenTable
    defaults: Defaults
    weights: Weights
    vq_settings: Mapping[str, Any]
    vq_config: VQConfig
    vq_weights: Weights
    tokenizer: Path | Entry
    settings_files: tuple[Path, ...]

    @property
    def folder(self) -> Path:
        """The folder; of a single file the one that it lies in."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that is read, so that a caller can notice a change by size and time."""
        stored = {entry.file for part in (self.weights, self.vq_weights) for entry in part.values()}
        return (*sorted(stored), *self.settings_files)

    @property
    def formats(self) -> frozenset[Format]:
        """Formats of the quantised weights; empty where there are none."""
        return frozenset(entry.layer.format for entry in self.weights.values() if entry.layer is not None)

    def tokenizer_text(self) -> str:
        """What stands in tokenizer.json. Raises ValueError or OSError where it cannot be read."""
        if isinstance(self.tokenizer, Path):
            return self.tokenizer.read_text(encoding="utf-8")
        return self.tokenizer.read().numpy().tobytes().decode("utf-8")


def find(path: str | Path) -> Found:
    """Recognises the checkpoint at `path`: its folder, a file in it, a single file that is all of it, or a folder with
    exactly one checkpoint below.

    Raises ValueError where there is none, where a part is missing or broken, or where the parts do not fit together.
    """
    path = _place(Path(path).expanduser())
    return _find_in_file(path) if path.is_file() else _find_in_folder(path)


def _find_in_folder(folder: Path) -> Found:
    settings, vq_folder = read_json(folder / "config.json"), _vq_folder(folder)
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.is_file():
        raise ValueError(f"{folder} has no tokenizer.json; fetch the one that belongs to this checkpoint.")
    return _found(
        folder,
        "hub folder",
        settings=settings,
        vq_settings=read_json(vq_folder / "config.json"),
        weights=lambda: read_headers(folder),
        vq_weights=lambda: read_headers(vq_folder),
        tokenizer=tokenizer,
        settings_files=(folder / "config.json", vq_folder / "config.json", tokenizer),
    )


def _find_in_file(path: Path) -> Found:
    single = read_single_file(path)
    return _found(
        path,
        "single file",
        settings=single.settings,
        vq_settings=single.vq_settings,
        weights=lambda: single.weights,
        vq_weights=lambda: single.vq_weights,
        tokenizer=single.tokenizer,
        settings_files=(),
    )


def _found(
    path: Path,
    kind: str,
    *,
    settings: Mapping[str, Any],
    vq_settings: Mapping[str, Any],
    weights: Callable[[], Weights],
    vq_weights: Callable[[], Weights],
    **rest: Any,
) -> Found:
    """A checkpoint whose parts fit together; the headers of weights are read last, when all else is right."""
    config, table, defaults = _transformer_settings(path, settings)
    vq_config = _explained(path, lambda: VQConfig.from_dict(vq_settings))
    _check_fit(vq_config, table, path)
    return Found(
        path=path,
        kind=kind,
        settings=settings,
        config=config,
        table=table,
        defaults=defaults,
        weights=weights(),
        vq_settings=vq_settings,
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


def _place(path: Path) -> Path:
    """The folder or the single file that a path stands for."""
    if not os.path.exists(path):  # unlike Path.exists it is False, too, for a name that no file system could have
        raise ValueError(f"{str(path)[:200]} does not exist; give the folder of a checkpoint.")
    if path.is_file():
        refuse_pickle(path)
        if is_single_file(path):
            return path
        if not _is_llada(path.parent):
            raise ValueError(
                f"{path} has no config.json of model_type 'llada' beside it and is no whole "
                "checkpoint; give a checkpoint folder, or a file made by `python -m dimoo_core convert`."
            )
        return path.parent
    if (path / "config.json").exists():
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
        place = folder.resolve()
        if place in seen:  # links may run in circles
            return
        seen.add(place)
        if _is_llada(folder):
            yield folder
            return
        inside = [child for child in sorted(folder.iterdir()) if not child.name.startswith(".")]
        inner = [child for child in inside if os.path.isdir(child)]
    except OSError:
        return
    yield from (child for child in inside if child.suffix == SUFFIX and is_single_file(child))
    if depth:
        for child in inner:
            yield from _walk(child, depth - 1, seen)


def _is_llada(folder: Path) -> bool:
    return _says(folder, "model_type", "llada")


def _says(folder: Path, field: str, value: str) -> bool:
    """Whether the folder's config.json can be read and says so; a glance, without complaint."""
    try:
        return read_json(folder / "config.json").get(field) == value
    except ValueError:
        return False


def _transformer_settings(place: Path, settings: Mapping[str, Any]) -> tuple[TransformerConfig, TokenTable, Defaults]:
    config = _explained(place, lambda: TransformerConfig.from_dict(settings))
    ids, defaults = settings.get("dimoo_token_ids", RELEASED.to_dict()), settings.get("dimoo_defaults", {})
    for name, value in {"dimoo_token_ids": ids, "dimoo_defaults": defaults}.items():
        if not isinstance(value, dict):
            raise ValueError(f"In {place}: config.json says {name} = {value!r:.80}; names with values are wanted.")
    table = _explained(place, lambda: TokenTable.from_dict(ids))
    _explained(place, lambda: table.check(config.vocab_size))
    return config, table, _explained(place, lambda: Defaults.from_dict(defaults))


def _vq_folder(folder: Path) -> Path:
    named = folder / "vqvae"
    if named.is_dir():
        return named
    others = [child for child in sorted(folder.iterdir()) if child.is_dir() and _says(child, "_class_name", "VQModel")]
    if len(others) == 1:
        return others[0]
    came = f"several VQ folders ({some([one.name for one in others])})" if others else "no VQ"
    raise ValueError(f"{folder} has {came}; the pictures' VQ is wanted in its subfolder vqvae/.")


def _check_fit(vq: VQConfig, table: TokenTable, folder: Path) -> None:
    if vq.scale != CELL:
        raise ValueError(f"The VQ in {folder} has {vq.scale} px per code; fetch the one of this model, {CELL} px.")
    if vq.codebook_size != table.codebook_size:
        raise ValueError(
            f"The VQ in {folder} has {vq.codebook_size} codes, but the transformer's ids have room for "
            f"{table.codebook_size}; use the VQ that belongs to this checkpoint."
        )
    if vq.in_channels != 3 or vq.out_channels != 3:
        raise ValueError(f"The VQ in {folder} has {vq.in_channels} to {vq.out_channels} channels; 3 to 3 are needed.")


Result = TypeVar("Result")


def _explained(folder: Path, read: Callable[[], Result]) -> Result:
    """What `read` returns; its complaint, where it has one, also says which folder it is about."""
    try:
        return read()
    except ValueError as error:
        message = str(error)
        raise ValueError(message if str(folder) in message else f"In {folder}: {message}") from None
