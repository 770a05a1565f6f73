"""Pictures are encoded once: what is kept, what is made anew, and what the samples of a folder are."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dimoo_core import jobs
from dimoo_core.checkpoint.find import find
from dimoo_core.checkpoint.load import load_vq
from dimoo_core.pictures.pixels import fit, load_picture, to_pil
from dimoo_core.training.code_cache import FILE, FolderDataset, OnStep, codec_name, encode_folder, encode_list
from dimoo_core.training.dataset import Sample, split
from dimoo_core.training.folder import survey

from ..tiny import AUTOENCODER, CODES, write_checkpoint


class Counting:
    """A VQ that counts the pictures it encodes."""

    scale, codebook_size = 16, CODES

    def __init__(self, vq: jobs.Autoencoder):
        self.vq, self.count = vq, 0

    def encode(self, pixels: Tensor) -> Tensor:
        self.count += len(pixels)
        return self.vq.encode(pixels)

    def decode(self, codes: Tensor) -> Tensor:
        return self.vq.decode(codes)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> jobs.Autoencoder:
    return load_vq(find(write_checkpoint(tmp_path_factory.mktemp("model"))))


@pytest.fixture
def vq(tiny: jobs.Autoencoder) -> Counting:
    return Counting(tiny)


def put(path: Path, text: str | None = "words", seed: int = 0, size: tuple[int, int] = (64, 64)) -> Path:
    """A picture of noise, whose file has as many bytes whatever the seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = torch.rand(3, size[1], size[0], generator=torch.Generator().manual_seed(seed))
    to_pil(noise).save(path, "BMP")
    if text is not None:
        path.with_suffix(".txt").write_text(text)
    return path


def encode(
    place: Path,
    vq: Counting,
    *,
    side: int = 64,
    codec: str = "one",
    trigger: str = "",
    on_step: OnStep | None = None,
    said: list[str] | None = None,
) -> FolderDataset:
    found = survey(place / "in", side=side, sides=(64, 128), trigger=trigger)
    lines = said if said is not None else []
    return encode_folder(found, vq, place / "run", codec=codec, report=lines.append, on_step=on_step)


def kept(place: Path) -> set[str]:
    """The entries of the cache file."""
    with safe_open(place / "run" / FILE, "pt") as file:
        return set(file.keys())


# What is kept -------------------------------------------------------------------------------------------------------


def test_pictures_are_encoded_once_and_captions_are_never_kept(tmp_path: Path, vq: Counting) -> None:
    for seed, name in enumerate(("a.png", "deep/b.png")):
        put(tmp_path / "in" / name, seed=seed)
    first = encode(tmp_path, vq)
    assert vq.count == 2
    (tmp_path / "in" / "a.txt").write_text("other words")
    second = encode(tmp_path, vq)
    assert vq.count == 2 and second[0].prompt.text == "other words"
    assert all(torch.equal(one.answer, two.answer) for one, two in zip(samples(first), samples(second), strict=True))


def samples(dataset: FolderDataset) -> list[Sample]:
    return [dataset[index] for index in range(len(dataset))]


def test_a_picture_edited_in_place_is_encoded_anew(tmp_path: Path, vq: Counting) -> None:
    path = put(tmp_path / "in" / "a.png")
    put(tmp_path / "in" / "b.png", seed=1)
    before, stat = encode(tmp_path, vq), path.stat()
    put(path, seed=2)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size
    after = encode(tmp_path, vq)
    assert vq.count == 3 and not torch.equal(before[0].answer, after[0].answer)
    assert len(kept(tmp_path)) == 2, "the codes of the old picture are dropped"


def test_a_picture_that_was_moved_or_doubled_is_not(tmp_path: Path, vq: Counting) -> None:
    path = put(tmp_path / "in" / "a.png")
    encode(tmp_path, vq)
    path.rename(tmp_path / "in" / "z.png"), path.with_suffix(".txt").rename(tmp_path / "in" / "z.txt")
    put(tmp_path / "in" / "copy.png")
    assert len(encode(tmp_path, vq)) == 2 and vq.count == 1 and len(kept(tmp_path)) == 1


def test_another_size_or_codec_is_encoded_anew(tmp_path: Path, vq: Counting) -> None:
    put(tmp_path / "in" / "a.png")
    encode(tmp_path, vq)
    said: list[str] = []
    assert encode(tmp_path, vq, side=32, said=said)[0].answer.shape == (2, 2)
    assert vq.count == 2 and not said
    encode(tmp_path, vq, side=32, codec="two", said=said)
    assert vq.count == 3 and "another VQ" in said[0]


def test_the_codec_is_the_weights_and_the_shape_of_the_vq(tmp_path: Path) -> None:
    one, same = (find(write_checkpoint(tmp_path / name)) for name in ("one", "same"))
    weights = find(write_checkpoint(tmp_path / "weights", seed=3))
    groups = find(write_checkpoint(tmp_path / "groups", vq=AUTOENCODER | {"norm_num_groups": 2}))
    assert codec_name(one) == codec_name(same)
    assert len({codec_name(found) for found in (one, weights, groups)}) == 3


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError, MemoryError])
def test_what_was_encoded_until_a_stop_is_kept(tmp_path: Path, vq: Counting, stop: type[BaseException]) -> None:
    for seed in range(4):
        put(tmp_path / "in" / f"{seed}.png", seed=seed)
    encode(tmp_path, vq)
    for seed in range(4, 8):
        put(tmp_path / "in" / f"{seed}.png", seed=seed)
    steps: list[tuple[int, int]] = []

    def on_step(done: int, total: int, name: str) -> None:
        steps.append((done, total))
        if name.endswith("6.png"):
            raise stop

    with pytest.raises(stop):
        encode(tmp_path, vq, on_step=on_step)
    assert steps == [(number, 8) for number in range(7)] and len(kept(tmp_path)) == 6
    assert len(encode(tmp_path, vq)) == 8 and vq.count == 8
    assert [path.name for path in (tmp_path / "run").iterdir()] == [FILE], "nothing half-written is left"


@pytest.mark.parametrize("damage", ["cut", "junk", "shape", "codes", "dtype"])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, vq: Counting, damage: str) -> None:
    put(tmp_path / "in" / "a.png")
    expected, said = encode(tmp_path, vq)[0].answer, list[str]()
    file = tmp_path / "run" / FILE
    (key,) = kept(tmp_path)
    tensors = {
        "shape": torch.zeros(3, 4, dtype=torch.int16),
        "codes": torch.full((4, 4), CODES, dtype=torch.int16),
        "dtype": torch.zeros(4, 4),
    }
    if damage in tensors:
        save_file({key: tensors[damage]}, file, metadata={"codec": "one"})
    else:
        file.write_bytes(file.read_bytes()[:-8] if damage == "cut" else b"junk")
    assert torch.equal(encode(tmp_path, vq, said=said)[0].answer, expected) and vq.count == 2
    assert damage in ("shape", "codes") or (len(said) == 1 and said[0].startswith("The pictures are encoded anew"))
    encode(tmp_path, vq)
    assert vq.count == 2, "it is whole again"


def test_large_codebooks_keep_their_codes(tmp_path: Path) -> None:
    class Large(Counting):
        codebook_size = 70_000

        def encode(self, pixels: Tensor) -> Tensor:
            self.count += 1
            return torch.full((1, pixels.shape[2] // 16, pixels.shape[3] // 16), 69_999)

    put(tmp_path / "in" / "a.png")
    large = Large(None)  # type: ignore[arg-type]
    assert all(int(encode(tmp_path, large)[0].answer.max()) == 69_999 for _ in range(2)) and large.count == 1


# Samples ------------------------------------------------------------------------------------------------------------


def test_a_plain_picture_is_what_the_jobs_would_encode(tmp_path: Path, vq: Counting) -> None:
    path = put(tmp_path / "in" / "2_x" / "a.png", "a fox", size=(96, 64))
    dataset = encode(tmp_path, vq, trigger="sks")
    assert len(dataset) == 2 and vq.count == 1
    for sample in samples(dataset):
        assert torch.equal(sample.answer, vq.vq.encode(fit(load_picture(path), 64, 32))[0])
        assert sample.answer.dtype == torch.int64 and sample.prompt.text == "sks, a fox" and sample.weights is None
        assert sample.name == "2_x/a.png"
    for index in (-1, 2):
        with pytest.raises(IndexError):
            dataset[index]


def test_source_and_target_are_cropped_alike(tmp_path: Path, vq: Counting) -> None:
    put(tmp_path / "in" / "target" / "a.png", "change it", size=(100, 44))
    source = put(tmp_path / "in" / "source" / "a.png", None, size=(100, 44))
    (sample,) = samples(encode(tmp_path, vq))
    assert vq.count == 1, "the same picture twice"
    assert torch.equal(sample.prompt.images[0][0], sample.answer)
    put(source, None, seed=1, size=(50, 90))
    (sample,) = samples(encode(tmp_path, vq))
    assert sample.prompt.images[0].shape[1:] == sample.answer.shape


def test_questions_get_the_codes_that_describe_would_get(tmp_path: Path, vq: Counting) -> None:
    path = put(tmp_path / "in" / "a.png", None, size=(100, 90))
    path.with_suffix(".json").write_text(json.dumps([{"question": "What?", "answer": "Noise."}]))
    (sample,) = samples(encode(tmp_path, vq))

    class Asked:
        sides = (64, 128)

    expected = jobs.encode_for_question(Asked(), vq, [load_picture(path)])  # type: ignore[arg-type]
    assert sample.answer == "Noise." and torch.equal(sample.prompt.images[0], expected[0])


def test_masks_become_weights(tmp_path: Path, vq: Counting) -> None:
    path = put(tmp_path / "in" / "a.png")
    drawn = Image.new("L", (64, 64))
    drawn.paste(255, (0, 0, 32, 16))
    drawn.save(path.with_name("a-masklabel.png"))
    (sample,) = samples(encode(tmp_path, vq))
    assert sample.weights is not None and sample.weights.dtype == torch.float32
    assert sample.weights.sum() == 2 and sample.weights[0, :2].tolist() == [1, 1]


def test_a_picture_that_breaks_below_its_header_is_named_and_not_replaced(tmp_path: Path, vq: Counting) -> None:
    put(tmp_path / "in" / "a.png")
    for name in ("target/b.png", "source/b.png"):
        put(tmp_path / "in" / name, seed=1)
    broken = tmp_path / "in" / "source" / "b.png"
    broken.write_bytes(broken.read_bytes()[:2000])
    said: list[str] = []
    dataset = encode(tmp_path, vq, said=said)
    assert [sample.name for sample in samples(dataset)] == ["a.png"]
    assert len(dataset.notes) == 1 and str(broken) in said[0]
    (tmp_path / "in" / "a.png").write_bytes((tmp_path / "in" / "a.png").read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"None of 3 pictures .* not a readable picture"):
        encode(tmp_path, vq)


def test_a_picture_that_changed_its_size_meanwhile_is_named(tmp_path: Path, vq: Counting) -> None:
    put(tmp_path / "in" / "a.png"), put(tmp_path / "in" / "b.png", seed=1)
    found, said = survey(tmp_path / "in", side=64, sides=(64, 128)), list[str]()
    put(tmp_path / "in" / "a.png", size=(32, 64))
    dataset = encode_folder(found, vq, tmp_path / "run", codec="one", report=said.append)
    assert len(dataset) == 1 and "a.png has 32x64 px, where its header says 64x64" in said[0]


def test_a_vq_that_fails_is_no_fault_of_the_picture(tmp_path: Path, vq: Counting) -> None:
    class Failing(Counting):
        def encode(self, pixels: Tensor) -> Tensor:
            raise ValueError("the numbers are not finite")

    put(tmp_path / "in" / "a.png")
    with pytest.raises(ValueError, match="not finite"):
        encode(tmp_path, Failing(vq))


def test_pictures_in_memory_are_taught_as_those_of_a_folder(tmp_path: Path, vq: Counting) -> None:
    sizes = [(96, 64), (64, 64)]
    paths = [put(tmp_path / "in" / f"{seed}.png", "a fox", seed=seed, size=size) for seed, size in enumerate(sizes)]
    folder = samples(encode(tmp_path, vq, trigger="sks"))
    pixels = [load_picture(path)[0] for path in paths]
    for texts in (["a fox\n"], ["a fox", "a fox"]):
        memory = encode_list(pixels, texts, vq, side=64, trigger="sks")
        assert all(torch.equal(one.answer, two.answer) for one, two in zip(folder, memory, strict=True))
        assert [sample.prompt.text for sample in memory] == ["sks, a fox"] * 2
        assert [sample.name for sample in memory] == ["picture 1", "picture 2"]
    for images, texts in ((pixels, ["a"] * 3), (pixels, []), ([], ["a"]), ([], [])):
        with pytest.raises(ValueError, match="expected a text for each picture"):
            encode_list(images, texts, vq, side=64)


# Held back ----------------------------------------------------------------------------------------------------------


def test_no_picture_is_on_both_sides(tmp_path: Path, vq: Counting) -> None:
    for seed in range(10):
        put(tmp_path / "in" / "3_x" / f"{seed}.png", seed=seed)
    asked = tmp_path / "in" / "3_x" / "0.json"
    asked.write_text(json.dumps([{"question": "What?", "answer": "Noise."}] * 2))
    dataset = encode(tmp_path, vq)
    sides = set()
    for seed in range(5):
        learnt, held = split(dataset, 0.2, seed)
        names = [{part[index].name for index in range(len(part))} for part in (learnt, held)]
        assert not names[0] & names[1] and (len(names[0]), len(names[1])) == (8, 2)
        assert len(learnt) + len(held) == len(dataset) == 36
        assert split(dataset, 0.2, seed)[1].indices.tolist() == held.indices.tolist()
        sides.add(frozenset(names[1]))
    assert len(sides) > 1, "the seed chooses"


def test_at_least_one_picture_is_held_back_and_none_where_none_is_asked_for(tmp_path: Path, vq: Counting) -> None:
    listed = encode_list([torch.rand(3, 64, 64) for _ in range(3)], ["words"], vq, side=64)
    learnt, held = split(listed, 0.01, 0)
    assert (len(learnt), len(held)) == (2, 1)
    learnt, held = split(listed, 0.0, 0)
    assert (len(learnt), len(held)) == (3, 0)
    with pytest.raises(ValueError, match="there is a single picture"):
        split(listed[:1], 0.1, 0)
    with pytest.raises(ValueError, match="held back is"):
        split(listed, 0.9, 0)
