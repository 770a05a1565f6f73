"""Weights in one file or in several with an index."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dimoo_core.checkpoint.convert import Chunk, Stored
from dimoo_core.checkpoint.headers import read_headers
from dimoo_core.checkpoint.shard_files import write_weights

NUMBERS = {name: torch.arange(24).view(6, 4).bfloat16() + offset for offset, name in enumerate("abcde")}


def chunks(tensor: Stored) -> Iterator[Chunk]:
    """In two parts, the second one first."""
    numbers = NUMBERS[tensor.name]
    yield Chunk(tensor.name, numbers[:2].nbytes, numbers[2:])
    yield Chunk(tensor.name, 0, numbers[:2])


def written(folder: Path, file_bytes: int) -> dict[str, torch.Tensor]:
    folder.mkdir(exist_ok=True)
    write_weights(folder, [Stored(name, "BF16", (6, 4)) for name in NUMBERS], chunks, file_bytes=file_bytes)
    assert read_headers(folder).keys() == NUMBERS.keys()
    files = folder.glob("*.safetensors")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("file_bytes, files", [(48, 5), (100, 3), (1000, 1)])
def test_weights_are_split_into_files_of_a_size(tmp_path: Path, file_bytes: int, files: int) -> None:
    found = written(tmp_path, file_bytes)
    assert all(torch.equal(found[name], NUMBERS[name]) for name in NUMBERS)
    assert len(list(tmp_path.glob("*.safetensors"))) == files
    assert (tmp_path / "model.safetensors.index.json").exists() == (files > 1)


def test_files_of_an_earlier_checkpoint_do_not_stay_among_the_new_ones(tmp_path: Path) -> None:
    for file_bytes in (48, 1000, 100):
        assert written(tmp_path, file_bytes).keys() == NUMBERS.keys()
