"""Records to shards: what is encoded how, what is left out, and runs that are stopped, repeated or shared."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

from dimoo_core.checkpoint.find import Found, find
from dimoo_core.checkpoint.load import load_vq
from dimoo_core.devices import Ranks
from dimoo_core.model.vq import VQ
from dimoo_core.pictures.pixels import fit, load_picture
from dimoo_core.training import encode
from dimoo_core.training.encode import encode_records
from dimoo_core.training.shards import LEFT_OUT, MANIFEST, RecordDataset
from dimoo_core.training.stopping import Stopped

from ..tiny import TRANSFORMER, write_checkpoint

ROOT = Path(__file__).parents[2]
SIDE = 64
DEFAULTS = {"dimoo_defaults": {"side": SIDE, "sides": [64, 96]}}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return find(write_checkpoint(tmp_path_factory.mktemp("checkpoint"), transformer=TRANSFORMER | DEFAULTS))


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "SHARD_RECORDS", 2)


def picture(path: Path, seed: int, size: tuple[int, int] = (64, 64)) -> Path:
    image = Image.new("RGB", size, (40 * seed % 256, 90, 255 - 25 * seed % 256))
    ImageDraw.Draw(image).ellipse((seed, seed, size[0] - 10, size[1] // 2), "white")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def listed(folder: Path, *records: Any) -> Path:
    path = folder / "list.jsonl"
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    return path


def captioned(folder: Path, count: int = 5) -> Path:
    """A list of pictures with words."""
    for number in range(count):
        picture(folder / f"{number}.png", number)
    return listed(folder, *({"picture": f"{number}.png", "prompt": f"picture {number}"} for number in range(count)))


def run(found: Found, source: Path, output: Path, **options: Any) -> RecordDataset:
    encode_records(found, source, output, side=SIDE, ranks=Ranks(), report=lambda _: None, **options)
    return RecordDataset(output)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# What is encoded ----------------------------------------------------------------------------------------------------


def test_each_kind_of_record_becomes_what_the_model_will_see(found: Found, tmp_path: Path) -> None:
    picture(tmp_path / "wide.png", 1, (160, 80))
    picture(tmp_path / "other.png", 2, (64, 64))
    mask = Image.new("L", (160, 80))
    mask.paste(255, (0, 0, 80, 80))
    mask.save(tmp_path / "mask.png")
    source = listed(
        tmp_path,
        {"picture": "wide.png", "prompt": "wide", "mask": "mask.png"},
        {"picture": "wide.png", "sources": ["other.png", "other.png"], "prompt": "widen"},
        {"sources": ["wide.png"], "turns": [{"question": "q", "answer": "a"}, {"question": "r", "answer": "b"}]},
        {"sources": ["wide.png", "other.png"], "turns": [{"question": "Which?", "answer": "the first"}]},
    )
    made, edit, asked, again, two = list(run(found, source, tmp_path / "out"))
    vq = load_vq(found)

    def codes(name: str, width: int, height: int) -> list[list[int]]:
        return vq.encode(fit(load_picture(tmp_path / name), width, height))[0].tolist()

    assert made.answer.tolist() == codes("wide.png", 64, 32)
    assert made.weights.tolist() == [[1, 1, 0, 0]] * 2
    assert edit.answer.tolist() == made.answer.tolist() and edit.weights is None
    assert [image[0].tolist() for image in edit.prompt.images] == [
        codes("other.png", 64, 32),  # like the picture that is made of it
        codes("other.png", 64, 64),
    ]
    assert (asked.prompt.text, asked.answer, again.prompt.text, again.answer) == ("q", "a", "r", "b")
    assert asked.prompt.images[0][0].tolist() == codes("wide.png", 128, 64), "over the largest side"
    assert [image[0].tolist() for image in two.prompt.images] == [
        codes("wide.png", 64, 32),
        codes("other.png", 64, 64),
    ]
    names = [sample.name for sample in (made, asked, again)]
    assert names == ["list.jsonl line 1", "list.jsonl line 3", "list.jsonl line 3"], "turns are held back together"


def test_released_records_need_no_vq(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "load_vq", lambda *_, **__: pytest.fail("a VQ was loaded"))
    released = {"dimoo_token_ids": TRANSFORMER["dimoo_token_ids"] | {"code_offset": 126356, "codebook_size": 8192}}
    shape = {"vocab_size": 126356 + 8192, "d_model": 8, "n_heads": 1, "mlp_hidden_size": 8, "n_layers": 1}
    vq = write_checkpoint.__kwdefaults__["vq"] | {"num_vq_embeddings": 8192}
    checkpoint = find(write_checkpoint(tmp_path / "model", transformer=TRANSFORMER | shape | released, vq=vq))
    files = json.loads((ROOT / "tests/golden_training/hostile.json").read_text("ascii"))
    for name in ("pictures/answer.pkl", "hostile/global_os_system.pkl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(base64.b64decode(files[name]))
    blank = {"user_image": "", "answer_image": "", "answer_text": "", "user_prompt": "x", "system_prompt": "S."}
    source = tmp_path / "released.json"
    values = [
        blank | {"answer_image": "pictures/answer.pkl"},
        blank | {"answer_image": "hostile/global_os_system.pkl"},
        blank | {"answer_image": "pictures/gone.pkl"},
        blank | {"user_image": ["pictures/answer.pkl", "pictures/answer.pkl"], "answer_text": "yes"},
    ]
    source.write_text(json.dumps(values), encoding="utf-8")
    made, asked = list(run(checkpoint, source, tmp_path / "out"))
    assert made.answer.shape == (5, 7) and made.answer[0, 0] == 810
    assert made.prompt.task.system == asked.prompt.task.system == "S."
    assert asked.answer == "yes" and [tuple(image.shape) for image in asked.prompt.images] == [(1, 5, 7)] * 2
    first, second = (tmp_path / "out" / LEFT_OUT).read_text().splitlines()
    assert first.startswith("released.json record 2: ") and "operation b'c'" in first
    assert second.startswith("released.json record 3: ") and "gone.pkl cannot be read" in second


# What is left out ---------------------------------------------------------------------------------------------------


def test_broken_records_are_named_and_replaced_by_nothing(found: Found, tmp_path: Path) -> None:
    picture(tmp_path / "good.png", 3)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    picture(tmp_path / "long.png", 4, (400, 64))
    Image.new("L", (8, 4), 255).save(tmp_path / "flat.png")
    edge = Image.new("L", (400, 64))
    edge.paste(255, (0, 0, 20, 64))
    edge.save(tmp_path / "edge.png")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
    values = [
        {"picture": "bad.png", "prompt": "bad"},
        {"picture": "good.png", "prompt": "good"},
        {"picture": "gone.png", "prompt": "gone"},
        {"picture": "good.png", "promt": "good"},
        {"picture": "good.png", "sources": ["pipe.png"], "prompt": "x"},
        {"picture": "good.png", "prompt": "x", "mask": "flat.png"},
        {"picture": f"{'x' * 5000}.png", "prompt": "x"},
        {"picture": "long.png", "prompt": "x", "mask": "edge.png"},
    ]
    dataset = run(found, listed(tmp_path, *values), tmp_path / "out")
    assert [sample.prompt.text for sample in dataset] == ["good"]
    lines = (tmp_path / "out" / LEFT_OUT).read_text(encoding="utf-8").splitlines()
    assert [line.split(":")[0] for line in lines] == [f"list.jsonl line {number}" for number in (1, 3, 4, 5, 6, 7, 8)]
    assert ["bad.png" in lines[0], "gone.png is absent" in lines[1], "'promt'" in lines[2]] == [True] * 3
    assert "pipe.png is not a file" in lines[3] and "8x4 px and the picture 64x64 px; expected the same" in lines[4]
    assert "cannot be read (File name too long)" in lines[5] and len(lines[5]) < 400
    assert "edge.png marks only what the crop" in lines[6]
    assert dataset.facts.left_out == 7


def test_a_list_of_which_nothing_can_be_used_is_refused(found: Found, tmp_path: Path) -> None:
    source = listed(tmp_path, {"picture": "gone.png", "prompt": "gone"})
    with pytest.raises(ValueError, match="None of the records can be used"):
        run(found, source, tmp_path / "out")
    assert "gone.png" in (tmp_path / "out" / LEFT_OUT).read_text()
    with pytest.raises(ValueError, match=r"list\.jsonl holds no records"):
        run(found, listed(tmp_path), tmp_path / "out")


# Again --------------------------------------------------------------------------------------------------------------


def test_a_stopped_run_goes_on_with_the_shards_it_lacks(
    found: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = captioned(tmp_path), tmp_path / "out"
    expected = content(run(found, source, tmp_path / "straight").folder)
    real, seen = VQ.encode, list[int]()

    def stopping(self: VQ, pixels: torch.Tensor) -> torch.Tensor:
        seen.append(1)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return real(self, pixels)

    monkeypatch.setattr(VQ, "encode", stopping)
    with pytest.raises(Stopped, match="the finished shards are kept"):
        run(found, source, output)
    assert sorted(content(output)) == ["shard-00000.safetensors"]
    (output / "shard-00001.safetensors.0123456789.part").write_bytes(b"of a killed run")
    assert content(run(found, source, output).folder) == expected
    assert len(seen) == 4 + 3, "the first shard was not made again"
    run(found, source, output)
    assert len(seen) == 7, "nothing was"


def test_a_change_is_noticed_by_content(found: Found, tmp_path: Path) -> None:
    source, output = captioned(tmp_path), tmp_path / "out"
    before = content(run(found, source, output).folder)
    times = os.stat(tmp_path / "4.png")
    other = picture(tmp_path / "4.png", 9)
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    dataset = run(found, source, output)
    after = content(output)
    assert {name for name in before if before[name] != after[name]} == {"shard-00002.safetensors", MANIFEST}
    assert dataset[4].answer.tolist() == load_vq(found).encode(load_picture(other))[0].tolist()

    listed(tmp_path, {"picture": "0.png", "prompt": "picture 0"}, {"picture": "1.png", "prompt": "another"})
    (output / "shard-of-mine.txt").write_text("mine")
    assert [sample.prompt.text for sample in run(found, source, output)] == ["picture 0", "another"]
    assert sorted(content(output)) == [MANIFEST, "index.npy", "shard-00000.safetensors", "shard-of-mine.txt"]

    other_side = encode_records(found, source, output, side=96, ranks=Ranks(), report=lambda _: None)
    assert other_side.samples == 2 and RecordDataset(output)[0].answer.shape == (6, 6)


TORCHRUN = """
import sys
from pathlib import Path
from dimoo_core.checkpoint.find import find
from dimoo_core.devices import Ranks
from dimoo_core.training import encode

encode.SHARD_RECORDS = 2
checkpoint, source, output = map(Path, sys.argv[1:])
ranks = Ranks.from_environment()
said = []
encode.encode_records(find(checkpoint), source, output, side=64, ranks=ranks, report=said.append)
(source.parent / f"said by {ranks.rank}").write_text("\\n".join(said))
ranks.leave()
"""


def test_two_processes_make_the_bytes_that_one_makes(found: Found, tmp_path: Path) -> None:
    source = captioned(tmp_path, 7)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the last bits of a sum depend on it
    expected = content(run(found, source, tmp_path / "one").folder)
    torch.set_num_threads(threads)
    (tmp_path / "job.py").write_text(TORCHRUN)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, tmp_path / "job.py", found.path, source, tmp_path / "two"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([str(word) for word in command], cwd=ROOT, env=environment)
    assert done.returncode == 0
    assert content(tmp_path / "two") == expected
    for rank in (0, 1):
        written = [line for line in (tmp_path / f"said by {rank}").read_text().splitlines() if "written" in line]
        assert written == [f"shard {number} of 4 written" for number in (rank + 1, rank + 3)]
