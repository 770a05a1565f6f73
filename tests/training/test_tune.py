"""Fine-tuning all weights: its data, its presets, what it tells and leaves, and what cannot fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dimoo_core.checkpoint.find import find
from dimoo_core.cli.main import main
from dimoo_core.devices import Ranks
from dimoo_core.sequence.prompt import DESCRIBE, GENERATE
from dimoo_core.sequence.token_table import RELEASED
from dimoo_core.training import room
from dimoo_core.training.engine import Single
from dimoo_core.training.pretokenise import write_codes
from dimoo_core.training.room import check_room
from dimoo_core.training.run_log import read_log
from dimoo_core.training.sequences import Layout
from dimoo_core.training.tune import GENERATED, CaptionedCodes, TuneSettings, open_dataset, with_warm_up

from ..tiny import AUTOENCODER, CODES, TABLE, TRANSFORMER, write_checkpoint

ROOT = Path(__file__).parents[2]
CAPTIONS = {"a.png": "a fox", "b.png": "a much longer hat", "c.png": ""}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint `model`, and a file of codes."""
    place = tmp_path_factory.mktemp("place")
    write_checkpoint(place / "model")
    dice = torch.Generator().manual_seed(0)
    codes = {name: torch.randint(0, CODES, (2, 2 + number), generator=dice) for number, name in enumerate(CAPTIONS)}
    write_codes(place / "codes.safetensors", codes, CAPTIONS)
    return place


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("model", "codes.safetensors"):
        (tmp_path / name).symlink_to(place / name)
    return tmp_path


def tune(data: object, *arguments: object, run: str = "run", output: str = "tuned") -> int:
    line = ["train", "tune", data, "--checkpoint", "model", "--run", run, "--output", output, "--batch", 2, *arguments]
    return main([str(word) for word in line])


# ------------------------------------------------------------------------------------------------------------- data


def test_each_captioned_picture_is_drawn_and_described() -> None:
    codes = {name: torch.full((2, 2), number) for number, name in enumerate(CAPTIONS)}
    data = CaptionedCodes(codes, CAPTIONS, TABLE)
    samples = [data[index] for index in range(len(data))]
    assert [sample.name for sample in samples] == [name for name in CAPTIONS for _ in range(GENERATED + 1)]
    for sample in samples:
        if isinstance(sample.answer, str):
            assert sample.prompt.task is DESCRIBE and sample.answer == CAPTIONS[sample.name]
            assert torch.equal(sample.prompt.images[0][0], codes[sample.name])
        else:
            assert sample.prompt.task is GENERATE and sample.prompt.text == CAPTIONS[sample.name]
            assert torch.equal(sample.answer, codes[sample.name])
    assert sum(isinstance(sample.answer, str) for sample in samples) == len(CAPTIONS)


def test_records_and_folders_of_pictures_are_taught_too(here: Path, capsys: pytest.CaptureFixture) -> None:
    (here / "pictures").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (64, 64), "red").save(here / "pictures" / f"{name}.png")
        (here / "pictures" / f"{name}.txt").write_text(f"a {name}")
    lines = [{"picture": "pictures/a.png", "prompt": "red"}, {"picture": "gone.png", "prompt": "x"}]
    lines.append({"sources": ["pictures/a.png"], "turns": [{"question": "What?", "answer": "red"}]})
    (here / "records.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    encode = "train encode records.jsonl --checkpoint model --side 64 --output shards"
    assert main(encode.split()) == 0
    assert "wrote 2 samples to shards, 1 records left out" in capsys.readouterr().out
    for run, data, wanted in (("r", "shards", 2), ("f", "pictures", 2)):
        found = find("model")
        dataset = open_dataset(
            found, Path(data), run=here / run, where=torch.device("cpu"), ranks=Ranks(), report=lambda line: None
        )
        assert len(dataset) == wanted
        assert tune(data, "--steps", 1, run=run, output=f"tuned {run}") == 0
        assert find(f"tuned {run}").table == found.table
    assert "pictures holds 2 pictures" in capsys.readouterr().out, "the report of a folder comes first"


def test_records_of_another_vq_are_refused(here: Path, capsys: pytest.CaptureFixture) -> None:
    table = replace(TABLE, codebook_size=40)
    transformer = TRANSFORMER | {"dimoo_token_ids": table.to_dict(), "vocab_size": table.code_offset + 40}
    write_checkpoint(here / "wide", transformer=transformer, vq=AUTOENCODER | {"num_vq_embeddings": 40})
    Image.new("RGB", (32, 32)).save("a.png")
    Path("records.jsonl").write_text('{"picture": "a.png", "prompt": "black"}')
    assert main(["train", "encode", "records.jsonl", "--checkpoint", "wide", "--side", "32", "--output", "shards"]) == 0
    assert tune("shards") == 2
    assert "codes of a VQ that knows 40, but the checkpoint knows 32" in capsys.readouterr().err
    assert not Path("run").exists() and not Path("tuned").exists()


def test_a_folder_of_records_that_is_not_finished_is_told(here: Path, capsys: pytest.CaptureFixture) -> None:
    Image.new("RGB", (32, 32)).save("a.png")
    Path("records.jsonl").write_text('{"picture": "a.png", "prompt": "black"}')
    assert (
        main(["train", "encode", "records.jsonl", "--checkpoint", "model", "--side", "32", "--output", "shards"]) == 0
    )
    Path("shards/dataset.json").unlink()
    assert tune("shards") == 2
    assert "shards has no dataset.json, it is not finished; make the folder again" in capsys.readouterr().err


@pytest.mark.parametrize(("run", "output"), [("pictures/run", "tuned"), ("run", "pictures")])
def test_nothing_is_written_into_the_folder_that_is_read(
    here: Path, capsys: pytest.CaptureFixture, run: str, output: str
) -> None:
    Path("pictures").mkdir()
    assert tune("pictures", run=run, output=output) == 2
    assert "in the folder that is read: what is written would be taught, too" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------- settings


def test_the_released_preset_is_the_released_training() -> None:
    made = TuneSettings.of("released", steps=10, warm_up=None)
    assert made.step_samples == 512
    optimiser = made.train.optimiser
    assert (optimiser.name, optimiser.rate, optimiser.betas, optimiser.weight_decay) == (
        "adamw",
        2e-5,
        (0.9, 0.95),
        0.1,
    )
    assert made.train.clip == 4 and {with_warm_up(made, 512_000).train.scale(step) for step in range(10)} == {1.0}
    layout = made.layout(RELEASED)
    assert layout == Layout(places=1024, rows="all", together=True), "whole prompts, well spelt"
    assert replace(made, misspelt=True).layout(RELEASED).misspelt
    assert made.layout(TABLE).places == 0, "a checkpoint with ids of its own answers as it learnt to"


@pytest.mark.parametrize(("chosen", "rate"), [(None, 0.5), (0, 1.0), (4, 0.25)])
def test_the_released_warm_up_is_a_share_of_an_epoch_unless_one_is_chosen(chosen: int | None, rate: float) -> None:
    made = TuneSettings.of("released", steps=10, warm_up=chosen)
    assert with_warm_up(made, 2 * 512 * 1000).train.scale(0) == rate


def test_what_is_chosen_takes_the_place_of_the_preset() -> None:
    made = TuneSettings.of("released", steps=10, warm_up=5, rate=1e-3, accumulate=3, clip=None)
    assert made.train.rate == 1e-3 and made.step_samples == 6 and made.train.clip == 4 and made.train.warm_up == 5


# ---------------------------------------------------------------------------------------------------- while it runs


def test_a_run_keeps_a_log_and_a_held_back_loss(here: Path, capsys: pytest.CaptureFixture) -> None:
    assert tune("codes.safetensors", "--steps", 4, "--held-back", 0.3, "--check-every", 2, "--accumulate", 2) == 0
    lines = read_log(Path("run/log.jsonl"))
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert all({"learning_rate", "gradient_norm", "seconds"} <= line.keys() for line in steps)
    assert [line["step"] for line in lines if "held_back_loss" in line] == [2, 4]
    assert "held-back loss at step 4: " in capsys.readouterr().out
    with Image.open("run/loss.png") as curve:
        assert curve.width > 100


def test_a_file_named_stop_ends_a_run_that_goes_on_later(here: Path, capsys: pytest.CaptureFixture) -> None:
    assert tune("codes.safetensors", "--steps", 3) == 0
    Path("half").mkdir()
    for order in ("stop", "sample"):
        Path("half", order).write_text("")
    assert tune("codes.safetensors", "--steps", 3, run="half") == 0
    assert [line["step"] for line in read_log(Path("half/log.jsonl"))] == [1]
    assert "no samples: they are made while a LoRA is taught" in capsys.readouterr().out
    assert tune("codes.safetensors", "--steps", 3, run="half", output="again") == 0
    whole, again = (load_file(f"{name}/model.safetensors") for name in ("tuned", "again"))
    assert find("tuned").table == find("again").table and whole.keys() == again.keys()
    assert [line["step"] for line in read_log(Path("half/log.jsonl"))] == [1, 2, 3]


def test_a_finished_run_says_so_and_what_is_changed_is_told(here: Path, capsys: pytest.CaptureFixture) -> None:
    held = ("--held-back", 0.3, "--check-every", 1)
    assert tune("codes.safetensors", "--steps", 2, *held) == 0
    lines = read_log(Path("run/log.jsonl"))
    assert tune("codes.safetensors", "--steps", 1, *held) == 0
    said = capsys.readouterr().out
    assert "nothing is left to do: 2 steps are made, 1 are asked for" in said and "steps 2 -> 1" in said
    assert "continues after" not in said and read_log(Path("run/log.jsonl")) == lines
    assert tune("codes.safetensors", "--steps", 3, "--preset", "released", "--accumulate", 1, *held) == 0
    said = capsys.readouterr().out
    assert "rate 0.0001 -> 2e-05" in said and "released False -> True" in said and "continues after step 2 of 3" in said


def test_a_run_goes_on_with_its_own_data_and_checkpoint_only(here: Path, capsys: pytest.CaptureFixture) -> None:
    assert tune("codes.safetensors", "--steps", 1) == 0
    write_codes("other.safetensors", {"a": torch.zeros(2, 2, dtype=torch.int64)}, {"a": "a fox"})
    assert tune("other.safetensors", "--steps", 2) == 2
    assert "run holds a run with data " in capsys.readouterr().err
    assert tune("codes.safetensors", "--steps", 2, "--checkpoint", "tuned", output="again") == 2
    assert "run holds a run with base " in capsys.readouterr().err


def test_a_step_that_cannot_be_saved_is_in_the_log(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "run")

    monkeypatch.setattr(Single, "save", full)
    assert tune("codes.safetensors", "--steps", 2, "--save-every", 1) == 2
    assert [line["step"] for line in read_log(Path("run/log.jsonl"))] == [1]


# --------------------------------------------------------------------------------------------------------- several


def test_torchrun_tunes_as_one_process_does(here: Path) -> None:
    options = ["--steps", 3, "--dtype", "fp32", "--device", "cpu", "--accumulate", 2, "--warm-up", 0]
    options += ["--held-back", 0.3, "--check-every", 1]
    assert tune("codes.safetensors", *options) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    job = ["-m", "dimoo_core", "train", "tune", here / "codes.safetensors", "--checkpoint", here / "model", "--batch"]
    job += [2, "--run-folder", here / "run2", "--output", here / "tuned2", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(word) for word in (*torchrun, *job)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote ") == 1, "the first process speaks"
    logs = [read_log(Path(run) / "log.jsonl") for run in ("run", "run2")]
    for name in ("loss", "held_back_loss"):
        one, two = ([line[name] for line in log if name in line] for log in logs)
        assert len(one) == 3 and one == pytest.approx(two, rel=1e-5)
    whole, shared = (load_file(f"{name}/model.safetensors") for name in ("tuned", "tuned2"))
    for name in whole:
        assert torch.allclose(whole[name].float(), shared[name].float(), rtol=0.02, atol=1e-3), name
    assert tune("codes.safetensors", *options[2:], "--steps", 4, run="run2", output="tuned3") == 0
    steps = [line["step"] for line in read_log(Path("run2/log.jsonl")) if "loss" in line]
    assert steps == [1, 2, 3, 4], "one process goes on there"


# ------------------------------------------------------------------------------------------------------------ room


def test_what_does_not_fit_on_a_card_says_what_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "free_bytes", lambda where: 85_000_000_000)
    card, weights = torch.device("cuda"), 8_080_000_000
    with pytest.raises(ValueError) as refused:
        check_room(weights, card, shards=1, processes=1)
    said = str(refused.value)
    assert "takes 129.3 GB on cuda (fp32 weights 32.3, gradients 32.3, AdamW 64.6 GB" in said
    assert "85.0 GB are there: start it with torchrun on at least 2 such cards" in said and "train lora" in said
    assert "--offload" in said
    check_room(weights, card, shards=2, processes=2)


def test_offloaded_weights_need_the_memory_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "memory_bytes", lambda: 64_000_000_000)
    card, weights = torch.device("cuda"), 8_080_000_000
    with pytest.raises(ValueError, match=r"129\.3 GB on the memory of this machine for 2 processes"):
        check_room(weights, card, shards=2, processes=2, offload=True)
    check_room(weights, card, shards=8, processes=2, offload=True)


def test_a_tune_that_does_not_fit_does_not_start(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(room, "memory_bytes", lambda: 1000)
    assert tune("codes.safetensors", "--device", "cpu") == 2
    said = capsys.readouterr().err
    assert "billion weights takes" in said and said.count("\n") == 1
    assert not Path("run").exists() and not Path("tuned").exists()


@pytest.mark.parametrize("shards", [0, 2, -1])
def test_shards_are_as_many_as_divide_the_processes(here: Path, capsys: pytest.CaptureFixture, shards: int) -> None:
    assert tune("codes.safetensors", "--shard", shards) == 2
    assert f"--shard is {shards}, which does not divide 1 processes" in capsys.readouterr().err


def test_offloading_needs_torchrun(here: Path, capsys: pytest.CaptureFixture) -> None:
    assert tune("codes.safetensors", "--offload") == 2
    assert "start it with torchrun" in capsys.readouterr().err
