"""Shards: what is put in comes out, and memory does not grow with what lies in the folder."""

from __future__ import annotations

import gc
import os
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from dimoo_core.sequence.prompt import DESCRIBE, GENERATE, Prompt, edit_task
from dimoo_core.training.dataset import Dataset, Sample, split
from dimoo_core.training.shards import INDEX, LEFT_OUT, MANIFEST, RecordDataset, Shard, ShardFacts, finish, shard_file

CODES = 32


def grid(seed: int, *shape: int, codes: int = CODES) -> Tensor:
    return torch.randint(codes, shape, generator=torch.Generator().manual_seed(seed))


def samples() -> list[Sample]:
    source = grid(0, 3, 2)[None]
    weights = (grid(2, 3, 2) % 2).float()
    paint = replace(GENERATE, system="Paint.")
    several = replace(edit_task("edit_replace"), images=2)
    return [
        Sample(Prompt(GENERATE, "a r\u00e9d fox"), grid(1, 4, 5), name="one"),
        Sample(Prompt(paint, "a fox"), grid(1, 4, 5)),
        Sample(Prompt(edit_task("canny_pred"), images=(source,)), grid(2, 3, 2), weights, "three"),
        Sample(Prompt(several, "mix", images=(source, grid(4, 1, 7)[None])), grid(3, 3, 2)),
        Sample(Prompt(DESCRIBE, "What?", images=(source,)), "a \U0001f98a", name="five"),
    ]


def write_shard(path: Path, made: list[Sample], left_out: list[str] | None = None) -> Path:
    shard = Shard(CODES)
    for sample in made:
        shard.add(sample)
    shard.write(path, f"digest of {path.name}", left_out or [])
    return path


def same(one: Sample, other: Sample) -> bool:
    prompts = [(p.task, p.text, p.negative, [i.tolist() for i in p.images]) for p in (one.prompt, other.prompt)]
    answers = [a if isinstance(a, str) else (a.dtype, a.tolist()) for a in (one.answer, other.answer)]
    weights = [w if w is None else (w.dtype, w.tolist()) for w in (one.weights, other.weights)]
    return all(one == other for one, other in (prompts, answers, weights, (one.name, other.name)))


def test_samples_come_back_as_they_were(tmp_path: Path) -> None:
    made = samples()
    write_shard(shard_file(tmp_path, 0), made[:2])
    write_shard(shard_file(tmp_path, 1), [])
    write_shard(shard_file(tmp_path, 2), made[2:])
    finished = finish(tmp_path, 3, CODES)
    assert (finished.samples, finished.shards, finished.left_out) == (5, 3, 0)
    dataset: Dataset = RecordDataset(tmp_path)
    assert len(dataset) == 5
    assert all(same(dataset[number], made[number]) for number in (4, 0, 3, 1, 2))
    assert dataset[4].prompt.task is DESCRIBE and dataset[2].prompt.task is edit_task("canny_pred")
    for number in (-1, 5):
        with pytest.raises(IndexError):
            dataset[number]


def test_codes_that_samples_share_are_kept_once(tmp_path: Path) -> None:
    source = grid(0, 64, 64)[None]
    asked = [Sample(Prompt(DESCRIBE, str(number), images=(source,)), "yes") for number in range(50)]
    with safe_open(write_shard(shard_file(tmp_path, 0), asked), "pt") as file:
        assert file.get_slice("codes").get_shape() == [64 * 64]
        assert file.get_slice("codes").get_dtype() == "I16"


def test_large_codebooks_are_kept_whole(tmp_path: Path) -> None:
    shard = Shard(2**17)
    shard.add(Sample(Prompt(GENERATE, "x"), torch.tensor([[2**17 - 1, 0]])))
    shard.write(shard_file(tmp_path, 0), "", [])
    finish(tmp_path, 1, 2**17)
    assert RecordDataset(tmp_path)[0].answer.tolist() == [[2**17 - 1, 0]]


def test_the_same_samples_make_the_same_bytes(tmp_path: Path) -> None:
    files = [write_shard(tmp_path / f"{name}.safetensors", samples(), ["x: y"]) for name in "abcd"]
    contents = {file.read_bytes().replace(file.name.encode(), b"NAME") for file in files}
    assert len(contents) == 1


def test_what_was_left_out_is_named_in_the_folder(tmp_path: Path) -> None:
    write_shard(shard_file(tmp_path, 0), samples(), ["a.jsonl line 7: broken"])
    write_shard(shard_file(tmp_path, 1), [], ["a.jsonl line 9: dangling"])
    assert finish(tmp_path, 2, CODES).left_out == 2
    assert (tmp_path / LEFT_OUT).read_text() == "a.jsonl line 7: broken\na.jsonl line 9: dangling\n"
    write_shard(shard_file(tmp_path, 0), [], ["a.jsonl line 7: broken"])
    with pytest.raises(ValueError, match=r"None of the records can be used; .*left_out\.txt says why"):
        finish(tmp_path, 2, CODES)


def test_a_million_records_are_served_without_being_held(tmp_path: Path) -> None:
    count, links = 50_000, 20
    made = Sample(Prompt(GENERATE, "a red fox"), grid(1, 2, 2))
    first = write_shard(shard_file(tmp_path, 0), [replace(made, name=f"made-up {number}") for number in range(count)])
    for number in range(1, links):
        os.link(first, shard_file(tmp_path, number))

    def served(shards: int) -> int:
        """Bytes that are alive after sixty samples from all over the folder."""
        finish(tmp_path, shards, CODES)
        RecordDataset(tmp_path)[0]
        gc.collect()
        tracemalloc.start()
        dataset = RecordDataset(tmp_path)
        assert len(dataset) == shards * count
        for number in range(0, len(dataset), len(dataset) // 60):
            assert dataset[number].name == f"made-up {number % count}"
        peak = tracemalloc.get_traced_memory()[1]
        gc.collect()
        alive = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert peak < 2_000_000, "an eighth of the index of a million"
        maps = Path("/proc/self/maps")
        assert not maps.exists() or str(tmp_path / "shard-") not in maps.read_text(), "no shard stays mapped"
        return alive

    few, many = served(1), served(links)
    assert len(RecordDataset(tmp_path)) == 1_000_000
    assert 0 < (tmp_path / INDEX).stat().st_size - 16 * 1_000_000 < 1_000
    assert abs(many - few) < 50_000, "not a byte a record"


def test_a_share_is_held_back_by_names_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [replace(sample, name=f"{number // 2}") for number, sample in enumerate(samples() * 8)]
    for number in range(4):
        write_shard(shard_file(tmp_path, number), made[10 * number : 10 * number + 10])
    finish(tmp_path, 4, CODES)
    dataset = RecordDataset(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(RecordDataset, "__getitem__", lambda *_: pytest.fail("a sample was read"))
        learnt, held_back = split(dataset, 0.25, 3)
    assert held_back.indices.tolist() == split(made, 0.25, 3)[1].indices.tolist()
    assert [learnt[number].name for number in range(30)] == [made[number].name for number in learnt.indices]
    assert len(held_back) == 10 and learnt.indices.nbytes == 8 * 30


def test_an_unfinished_or_damaged_folder_is_refused(tmp_path: Path) -> None:
    path = write_shard(shard_file(tmp_path, 0), samples())
    with pytest.raises(ValueError, match=r"has no dataset\.json, it is not finished; make the folder again"):
        RecordDataset(tmp_path)
    with pytest.raises(ValueError, match=r"shard-00001\.safetensors is missing or damaged"):
        finish(tmp_path, 2, CODES)
    finish(tmp_path, 1, CODES)
    dataset, whole = RecordDataset(tmp_path), path.read_bytes()
    path.write_bytes(whole[:-40])
    with pytest.raises(ValueError, match=r"shard-00000\.safetensors is missing or damaged \("):
        dataset[0]
    finish_small(path, CODES // 4)
    with pytest.raises(ValueError, match=rf"a code is not in 0\.\.{CODES // 4 - 1}"):
        RecordDataset(tmp_path)[0]
    manifest = (tmp_path / MANIFEST).read_text()
    (tmp_path / MANIFEST).write_text(manifest.replace('"samples": 5', '"samples": 6'))
    with pytest.raises(ValueError, match=r"index\.npy does not belong to dataset\.json"):
        RecordDataset(tmp_path)
    (tmp_path / MANIFEST).write_text(manifest.replace('"format": 1', '"format": 2'))
    with pytest.raises(ValueError, match="was written by another version"):
        RecordDataset(tmp_path)
    (tmp_path / MANIFEST).write_text(manifest)
    (tmp_path / INDEX).write_bytes(b"")
    with pytest.raises(ValueError, match=r"index\.npy is missing or damaged"):
        RecordDataset(tmp_path)


def finish_small(path: Path, codebook_size: int) -> None:
    """Finish the folder as if its codebook were smaller than what its codes need."""
    write_shard(path, samples())
    finish(path.parent, 1, codebook_size)


def test_a_shard_says_what_it_was_made_of(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.safetensors", samples(), ["x"])
    assert ShardFacts.read(path) == ShardFacts(5, "digest of a.safetensors", ["x"])
    assert ShardFacts.read(tmp_path / "none.safetensors") is None
    path.write_bytes(path.read_bytes()[:100])
    assert ShardFacts.read(path) is None
