"""`train lora` as people type it: told before it starts, followed while it runs, stopped and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dimoo_core.checkpoint.convert import convert
from dimoo_core.checkpoint.find import NANO, find
from dimoo_core.cli import train_lora as command
from dimoo_core.cli.main import main
from dimoo_core.locks import folder_lock
from dimoo_core.pictures.pixels import to_pil
from dimoo_core.training import plan
from dimoo_core.training.run_log import read_log

ROOT = Path(__file__).parents[2]
PICTURES = {"a": (64, 64, "a fox"), "b": (130, 70, "a fox in a hut"), "c": (40, 90, "a hat")}
QUICK = ["--steps", "3", "--warm-up", "0", "--sample-every", "0", "--device", "cpu", "--rank", "2"]


def draw(path: Path, width: int = 64, height: int = 64, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    to_pil(torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))).save(path)


@pytest.fixture
def pictures(here: Path) -> Path:
    """`pictures`: three with captions of different lengths."""
    for number, (name, (width, height, caption)) in enumerate(PICTURES.items()):
        draw(here / "pictures" / f"{name}.png", width, height, number)
        (here / "pictures" / f"{name}.txt").write_text(caption)
    return here / "pictures"


def lora(model: Path, *arguments: object, folder: str = "pictures") -> int:
    return main(["train", "lora", folder, "--checkpoint", str(model), *QUICK, *map(str, arguments)])


def losses(run: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_log(run / "log.jsonl") if "loss" in line]


# --------------------------------------------------------------------------------------------------- before it starts


def test_a_report_comes_first_and_then_the_file(
    model: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lora(model, "--held-back", 0.3, "--check-every", 2, "--batch", 2) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "pictures holds 3 pictures; taught are 3 pictures, 0 edit pairs, 0 questions: 3 samples in a pass"
    assert out[1] == "captions and instructions: 3 found, 0 missing, 0 empty, 0 unreadable"
    assert out[2].startswith("sizes: ") and "1 at 64x64 px" in out[2]
    steps = [line for line in out if line.startswith("steps: ")]
    assert steps == ["steps: 3 of 2 samples, 2.0 passes over everything"]
    (memory,) = [line for line in out if line.startswith("memory: ")]
    assert memory.endswith(" in the largest step, counted") and float(memory.split()[1]) > 0
    assert [line.split(":")[0] for line in out if "held-back" in line] == [
        f"held-back loss at step {step}" for step in (0, 2, 3)
    ]
    file = Path("runs/pictures/lora.safetensors")
    assert out[-2].startswith(f"wrote {file}: it moves the logits by ")
    assert out[-1].startswith(f"{file}: use it with --lora {file}, ") and file.is_file()
    assert {path.name for path in file.parent.iterdir()} == {
        *("codes.safetensors", "log.jsonl", "loss.png", "lora.safetensors", "settings.json", "training.safetensors"),
    }


def test_check_looks_and_writes_nothing(model: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lora(model, "--check") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("time: about ")
    assert [path.name for path in pictures.parent.iterdir()] == ["pictures"]


@pytest.fixture
def unloadable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model is an error."""

    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("the model is loaded")

    for name in ("load_base", "load_vq"):
        monkeypatch.setattr(command, name, loaded)


@pytest.mark.usefixtures("unloadable")
def test_without_any_caption_it_is_refused_before_the_model_is_loaded(
    model: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in pictures.glob("*.txt"):
        path.rename(path.with_suffix(".caption"))
    assert lora(model) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "None of 3 pictures below pictures has a text" in said and "rename what lies there instead" in said


@pytest.mark.usefixtures("unloadable")
def test_what_does_not_fit_into_memory_is_refused_before_the_model_is_loaded(
    model: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plan, "memory_bytes", lambda: 50_000)
    assert lora(model) == 2
    said = capsys.readouterr().err
    assert "train: A step needs " in said and "cpu has 50.0 kB: use an int8 checkpoint (see `convert`), " in said
    monkeypatch.setattr(plan, "memory_bytes", lambda: None)  # nobody can say
    with pytest.raises(AssertionError, match="the model is loaded"):
        lora(model)


@pytest.mark.usefixtures("unloadable")
@pytest.mark.parametrize(
    ("flag", "value"),
    [
        *(("--steps", 0), ("--rate", -1), ("--rank", 0), ("--alpha", 0), ("--batch", 0), ("--accumulate", 0)),
        *(("--warm-up", -1), ("--weight-decay", 2), ("--clip", 0), ("--dropout", 1.5), ("--seed", -1)),
        *(("--save-every", 0), ("--sample-every", -1), ("--check-every", 0), ("--held-back", 0.7)),
        *(("--sample-seed", -1),),
    ],
)
def test_a_number_out_of_range_is_named_as_it_was_typed(
    model: Path, pictures: Path, capsys: pytest.CaptureFixture[str], flag: str, value: float
) -> None:
    assert lora(model, flag, value) == 2
    assert f"train: {flag} is {value}; expected a" in capsys.readouterr().err.replace(f"{value}.0;", f"{value};")


@pytest.mark.usefixtures("unloadable")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--output", "lora.pt"], "--output is lora.pt; expected a file name that ends in .safetensors."),
        (["--run", "pictures/run"], "--run is pictures/run, in the folder that is read: what is written would be"),
        (["--targets", "q_proj", "wte"], "targets is wte; expected some of q_proj, k_proj"),
        (["--optimizer", "prodigy"], "The optimizer prodigy comes with the package prodigyopt"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_be_is_refused(
    model: Path,
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.setitem(sys.modules, "prodigyopt", None)
    assert lora(model, *arguments) == 2
    assert words in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_run_in_the_folder_one_stands_in_is_refused(
    model: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(pictures)
    assert lora(model, folder=".") == 2
    assert "--run is runs/pictures, in the folder that is read" in capsys.readouterr().err.replace("\\", "/")


# ------------------------------------------------------------------------------------------------------- what is taught


def test_edits_questions_and_masks_are_taught_with_pictures(
    model: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(pictures / "edits" / "source" / "x.png", seed=5)
    draw(pictures / "edits" / "target" / "x.png", seed=6)
    (pictures / "edits" / "target" / "x.txt").write_text("remove it")
    (pictures / "a.json").write_text(json.dumps([{"question": "what is it?", "answer": "a fox"}]))
    Image.new("L", (130, 70), 255).save(pictures / "b-masklabel.png")
    assert lora(model, "--batch", 5, "--trigger", "zwx") == 0
    out = capsys.readouterr().out
    assert "taught are 3 pictures, 1 edit pair, 1 question: 5 samples in a pass" in out and "masks: 1" in out
    assert len(losses(Path("runs/pictures"))) == 3


def test_samples_show_what_was_asked_for(model: Path, pictures: Path) -> None:
    asked = ["--sample-prompt", "a fox", "--sample-prompt", "a hat", "--sample-every", 2]
    assert lora(model, *asked) == 0
    names = sorted(path.name for path in Path("runs/pictures/samples").iterdir())
    assert names == [f"step-{step:06d}-{number}.png" for step in (0, 2, 3) for number in (1, 2)]
    assert Image.open("runs/pictures/samples/step-000000-1.png").size == (64, 48), "the checkpoint's size"


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_stored_bases_are_taught_as_they_are(here: Path, pictures: Path, kind: str) -> None:
    base = here / f"{kind}.safetensors"
    convert(find(NANO), base, kind)
    before = base.read_bytes()
    assert lora(base, "--recompute") == 0
    assert base.read_bytes() == before
    state = load_file("runs/pictures/lora.safetensors")
    ups = [tensor for name, tensor in state.items() if "lora_B" in name]
    assert len(ups) == 7 * find(NANO).config.n_layers and all(bool(up.any()) for up in ups)


# ------------------------------------------------------------------------------------------------------------ two runs


def test_another_folder_of_the_same_name_is_no_continuation(
    model: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lora(model) == 0
    before = Path("runs/pictures/training.safetensors").read_bytes()
    draw(Path("other/pictures/z.png"))
    Path("other/pictures/z.txt").write_text("an owl")
    assert lora(model, folder="other/pictures") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "holds a run with folder " in said and "name another folder for it, or train with the same." in said
    assert Path("runs/pictures/training.safetensors").read_bytes() == before
    assert lora(model, "--run", "runs/other", folder="other/pictures") == 0


def test_two_at_once_in_one_folder_are_refused(model: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with folder_lock(Path("runs/pictures")):
        assert lora(model) == 2
    assert "Another process is working in runs/pictures" in capsys.readouterr().err.replace("\\", "/")


def test_more_steps_go_on_and_the_bar_begins_there(
    model: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lora(model) == 0
    first = losses(Path("runs/pictures"))
    assert lora(model) == 0
    assert "nothing is left to do: 3 steps are made, 3 are asked for" in capsys.readouterr().out
    assert lora(model, "--steps", 5) == 0
    said = capsys.readouterr()
    assert "continues after step 3 of 5" in said.out and "steps 3 -> 5" in said.out
    assert "| 3/5 [" in said.err and "| 5/5 [" in said.err and "| 0/5 [" not in said.err
    assert losses(Path("runs/pictures"))[:3] == first and len(losses(Path("runs/pictures"))) == 5


# ------------------------------------------------------------------------------------------------- stopped from outside


def started(model: Path, *arguments: str, **options: int) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "dimoo_core", "train", "lora", "pictures", "--checkpoint", str(model), *QUICK]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*line, *arguments], env=environment, stderr=subprocess.PIPE, text=True, **options)


def wait_for_steps(run: Path, count: int, process: subprocess.Popen[str]) -> None:
    ended = time.monotonic() + 120
    while len(losses(run)) < count:
        assert process.poll() is None and time.monotonic() < ended
        time.sleep(0.05)


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Here and in processes that are started: the last bits of a sum depend on how many threads share it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM that a process can handle")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_run_that_is_stopped_from_outside_goes_on_as_if_unbroken(
    model: Path, pictures: Path, number: signal.Signals
) -> None:
    process = started(model, "--steps", "100000", "--save-every", "5", stdout=subprocess.DEVNULL)
    run = Path("runs/pictures")
    try:
        wait_for_steps(run, 8, process)
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    made = losses(run)
    if number is signal.SIGTERM:
        assert process.returncode == 143
        last = said.splitlines()[-1]
        assert f"train: stopped; step {len(made)} of 100000 is kept in runs/pictures" in last
        assert last.endswith("what it has learnt is in runs/pictures/lora.safetensors.")
        assert (run / "lora.safetensors").is_file()
    assert lora(model, "--steps", len(made) + 2) == 0
    assert lora(model, "--steps", len(made) + 2, "--run", "runs/straight") == 0
    assert losses(run) == losses(Path("runs/straight")) and losses(run)[: len(made)] == made


@pytest.mark.skipif(os.name == "nt", reason="pipes break otherwise on Windows")
def test_a_reader_that_has_gone_ends_no_training(model: Path, pictures: Path) -> None:
    process = started(model, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()  # as by `| head -0`
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0 and "Traceback" not in said
    assert Path("runs/pictures/lora.safetensors").is_file() and len(losses(Path("runs/pictures"))) == 3


# ---------------------------------------------------------------------------------------------------------- several


def test_torchrun_teaches_as_one_process_does(model: Path, pictures: Path) -> None:
    options = ["--batch", 2, "--accumulate", 2, "--held-back", 0.3, "--check-every", 3]
    assert lora(model, *options, "--run", "one") == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    job = ["-m", "dimoo_core", "train", "lora", pictures, "--checkpoint", model, *QUICK, *options]
    job += ["--run-folder", pictures.parent / "two"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(word) for word in (*torchrun, *job)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote ") == done.stdout.count("steps: ") == 1, "the first process speaks"
    first, second = losses(Path("one")), losses(Path("two"))
    assert [step for step, _ in first] == [step for step, _ in second] == [1, 2, 3]
    assert [loss for _, loss in first] == pytest.approx([loss for _, loss in second], rel=1e-5)
    one, two = (load_file(f"{run}/lora.safetensors") for run in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        assert torch.allclose(one[name].float(), two[name].float(), rtol=0.02, atol=1e-4), name
    held_back = [line["held_back_loss"] for line in read_log(Path("two/log.jsonl")) if "held_back_loss" in line]
    assert len(held_back) == 2, "taken by one process, at the start and at the end"
