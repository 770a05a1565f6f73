"""What the released training computes comes out again, number by number, and a number that is another is noticed."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from dimoo_core.evaluation.recorded_training import TRAINING, TrainingRecord
from dimoo_core.evaluation.replay import main
from dimoo_core.evaluation.replay_training import WHY, parts

TESTS = Path(__file__).parents[1]
GOLDEN = TESTS / "golden_training"
TENSORS = "golden_training.safetensors"
KEYS = [key for key, _ in parts(TrainingRecord(GOLDEN)) if key != "hostile"]

# Reads what is hostile with 300 MB beyond what the imports take.
READER = """
import resource, sys
from dimoo_core.evaluation.recorded_training import TrainingRecord
from dimoo_core.evaluation.replay_pictures import hostile

record = TrainingRecord(sys.argv[1])
pages = int(open("/proc/self/statm").read().split()[0])
most = pages * resource.getpagesize() + (300 << 20)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
results = list(hostile(record))
print(len(results), [result for result in results if result[1]])
"""


class Noticed(Mapping[str, Tensor]):
    """Tensors by name, which remembers what was asked for."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self.tensors, self.seen = tensors, set[str]()

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.tensors[name]
        self.seen.add(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The record beside the toy weights, its pickles as files."""
    root = tmp_path_factory.mktemp("recorded")
    shutil.copytree(TESTS / "golden" / "model", root / "golden" / "model")
    folder = Path(shutil.copytree(GOLDEN, root / "golden_training"))
    for name in ("pictures.json", "hostile.json"):
        for path, content in json.loads((GOLDEN / name).read_text("ascii")).items():
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_bytes(base64.b64decode(content))
    return folder


@pytest.fixture(scope="module")
def replayed(folder: Path) -> tuple[dict[str, list[tuple[str, str]]], Noticed]:
    """Every comparison by part, and the tensors that they took."""
    record = TrainingRecord(folder)
    record.tensors = tensors = Noticed(record.tensors)
    found = {key: list(checks()) for key, checks in parts(record) if checks is not None and key != "hostile"}
    return found, tensors


@pytest.mark.parametrize("key", KEYS)
def test_equal(key: str, replayed: tuple[dict[str, list[tuple[str, str]]], Noticed]) -> None:
    results = replayed[0][key]
    assert results and [result for result in results if result[1]] == []


def test_every_recorded_tensor_is_compared(replayed: tuple[dict[str, list[tuple[str, str]]], Noticed]) -> None:
    tensors = replayed[1]
    assert set(tensors) - tensors.seen == set() and len(tensors) > 700


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process")
def test_hostile_pickles_are_refused_in_little_memory_and_run_nothing(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", READER, str(folder)]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(TESTS.parent)}, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "59 []\n", done.stderr[-2000:]
    assert list(tmp_path.iterdir()) == [] and "hostile_pickle_ran" not in done.stderr


# ------------------------------------------------------------------------------------------------ what the command says


@pytest.fixture
def part_of(folder: Path, tmp_path: Path) -> Callable[[Callable[[dict[str, Any], dict[str, Tensor]], None]], Path]:
    """A copy of the record that a function has changed, content and tensors."""

    def changed(change: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> Path:
        copy = folder.parent / tmp_path.name  # beside the toy weights
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("hostile"))
        content, tensors = json.loads((copy / TRAINING).read_text()), load_file(copy / TENSORS)
        change(content, tensors)
        (copy / TRAINING).write_text(json.dumps(content))
        save_file(tensors, copy / TENSORS)
        return copy

    return changed


INPUTS = ("vocab", "toy_vocab", "tokenizer", "toy_tokenizer", "records", "toy_records", "weights", "toy_weights")
INPUTS = (*INPUTS, "sequences", "toy_sequences", "versions")


def only(content: dict[str, Any], *keys: str) -> None:
    """Leave the inputs and these keys."""
    for key in content.keys() - {*INPUTS, *keys}:
        del content[key]


def test_the_command_says_how_many_are_equal_and_what_differs_on_purpose(
    part_of: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    def change(content: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        only(content, "mask_law", "schedule", "pictures", *WHY)

    assert main([str(part_of(change))]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {"part mask_law equal 504 of 504", "part schedule equal 48 of 48"} <= set(lines)
    assert [line.split(":")[0] for line in lines if "on purpose" in line] == [
        f"part {key} differs on purpose" for key in ("released_fails", "several_pictures", "understanding_preparation")
    ]
    assert not any(line.startswith("part versions") for line in lines), "it holds no numbers"
    assert all(line.startswith("part ") for line in lines)


def test_numbers_that_nothing_compares_are_told(
    part_of: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    def change(content: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        only(content)
        content["novelty"] = {"steps": [3]}

    assert main([str(part_of(change))]) == 1
    assert "part novelty not built" in capsys.readouterr().out.splitlines()


def test_a_part_that_fails_is_told_and_the_others_go_on(
    part_of: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    def change(content: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        only(content, "mask_law")
        content["records"]["t2i"]["answer_image"] = "pictures/nowhere.pkl"

    assert main([str(part_of(change))]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("differs  sequences.replay: ValueError: The codes") for line in lines)
    assert "part mask_law equal 504 of 504" in lines


def _short(content: dict[str, Any], key: str) -> None:
    """Leave the inputs and that key; of losses and updates one."""
    content["toy_loss"]["cases"] = {"t2i": content["toy_loss"]["cases"]["t2i"]}
    content["toy_adamw"]["runs"] = {"flat": content["toy_adamw"]["runs"]["flat"]}
    del content["toy_adamw"]["runs"]["flat"]["updates"][1:]
    only(content, key)


WTE = "model.transformer.wte.weight"
CHANGES: dict[str, tuple[tuple[str | int, ...], float]] = {
    "vocab": (("vocab", "mask"), 1),
    "tokenizer": (("tokenizer", "words", "[UNK]"), 1),
    "pictures": (("pictures", "pictures/toy_answer.pkl", "height_key"), 1),
    "records": (("records", "i2i", "len"), 1),
    "sequences": (("sequences", "i2i", "draws", "sections", 0, "r"), 0.3),
    "toy_sequences": (("toy_sequences", "mmu_long", "places", "text_end"), 1),
    "mask_law": (("mask_law", "pads", 3, 1), 1),
    "weights": (("weights", "seed"), 1),
    "toy_loss": (("toy_loss", "cases", "t2i", "loss"), 3e-5),
    "toy_adamw": (("toy_adamw", "runs", "flat", "updates", 0, "param_sums", WTE), 2e-3),
    "schedule": (("schedule", 5, "rates", 4), 1e-9),
    "crop_bucket_lists": (("crop_bucket_lists", "96", 0, 1), 32),
    "preparation": (("preparation", "pictures", "wide", "draws", 0), 1),
    "understanding_preparation": (("understanding_preparation", 2, "stages", 1, 0), 16),
    "evaluation": (("evaluation", "cases", "toy_text_only", "length"), 1),
}


@pytest.mark.parametrize("key", CHANGES)
def test_another_number_is_noticed(key: str, part_of: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    path, by = CHANGES[key]

    def change(content: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        _short(content, key)
        holder: Any = content
        for step in path[:-1]:
            holder = holder[step]
        holder[path[-1]] += by

    assert main([str(part_of(change))]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith(f"differs  {key}.") for line in lines)
    (summary,) = [line for line in lines if line.startswith(f"part {key} ")]
    equal, total = summary.split(" equal ")[1].split(" of ")
    assert int(equal) < int(total)


@pytest.mark.parametrize(
    ("name", "by"),
    [
        ("toy_loss.t2i.logits", 3e-4),
        ("toy_loss.t2i.grad.model.transformer.ln_f.weight", 3e-5),
        ("toy_adamw.flat.1.params.model.transformer.ln_f.weight", 5e-7),
        ("toy_adamw.flat.1.exp_avg_sq.model.transformer.ln_f.weight", 3e-5),
    ],
)
def test_another_tensor_is_noticed(
    name: str, by: float, part_of: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    def change(content: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        _short(content, name.split(".")[0])
        tensors[name].flatten()[-1:].add_(by)

    assert main([str(part_of(change))]) == 1
    assert f"differs  {name.split('.')[0]}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name",
    [
        "toy_seq.i2i.labels",
        "toy_loss.t2i.grad.model.transformer.ln_f.weight",
        "toy_adamw.start.model.transformer.ln_f.weight",
        "toy_adamw.flat.1.exp_avg.model.transformer.ln_f.weight",
    ],
)
def test_a_tensor_that_is_missing_is_noticed(
    name: str, part_of: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    def change(content: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        _short(content, name.split(".")[0])
        del tensors[name]

    assert main([str(part_of(change))]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("differs  toy_")]
    assert name in line and "not recorded" in line


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        (TRAINING, b"[1]", "holds a JSON list, expected an object"),
        (TRAINING, b"{}", f"{TRAINING} has no vocab"),
        (TENSORS, b"junk" * 10, "is not a usable safetensors file"),
    ],
)
def test_what_is_no_record_is_refused_in_a_sentence(
    file: str, content: bytes, complaint: str, part_of: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    copy = part_of(lambda record, _: only(record))
    (copy / file).write_bytes(content)
    assert main([str(copy)]) == 1
    written = capsys.readouterr()
    assert complaint in written.err and written.err.count("\n") == 1 and not written.out
