"""The command line: every command on a tiny random checkpoint, and mistakes that end in one sentence and status 2."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from dimoo_core import jobs
from dimoo_core.cli.commands import COMMANDS
from dimoo_core.cli.main import main
from dimoo_core.model.vq import VQ
from dimoo_core.pictures.pixels import load_picture, to_pil
from dimoo_core.provenance import KEY
from dimoo_core.sampling.text_cache import SPEEDS
from dimoo_core.sequence.prompt import EDITS

from ..tiny import AUTOENCODER, TRANSFORMER, write_checkpoint

ROOT = Path(__file__).parents[2]
DEFAULTS = {"size": [64, 48], "side": 64, "sides": [64, 64], "steps": 4, "max_tokens": 8, "text_steps": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = TRANSFORMER | {"dimoo_defaults": DEFAULTS | {"block_length": 4}}
    return write_checkpoint(tmp_path_factory.mktemp("model"), transformer=settings)


def noise_picture(path: Path, width: int, height: int, mode: str = "RGB") -> Path:
    generator = torch.Generator().manual_seed(width)
    to_pil(torch.rand(3, height, width, generator=generator)).convert(mode).save(path)
    return path


def run(model: Path, *arguments: object) -> None:
    assert main([str(argument) for argument in (*arguments, "--checkpoint", model, "--device", "cpu")]) == 0


def test_generate_takes_the_checkpoints_defaults(model: Path, here: Path, capsys: pytest.CaptureFixture) -> None:
    run(model, "generate", "a red circle")
    assert Image.open("generate-0.png").size == (64, 48)
    said = capsys.readouterr()
    assert said.out == "generate-0.png\n"
    assert "generate" in said.err and "4/4" in said.err


def test_a_batch_equals_singles_with_their_seeds(model: Path, here: Path) -> None:
    run(model, "generate", "a red circle", "--batch", 2, "--seed", 7, "-o", "both")
    run(model, "generate", "a red circle", "--seed", 8, "-o", "single/one.png")
    assert sorted(path.name for path in (here / "both").iterdir()) == ["generate-7.png", "generate-8.png"]
    assert torch.equal(load_picture("both/generate-8.png"), load_picture("single/one.png"))
    assert not torch.equal(load_picture("both/generate-7.png"), load_picture("single/one.png"))


def test_the_seeds_in_names_begin_anew_at_their_end(model: Path, here: Path) -> None:
    run(model, "generate", "x", "--steps", 1, "--batch", 2, "--seed", 2**64 - 1)
    assert sorted(path.name for path in here.iterdir()) == ["generate-0.png", f"generate-{2**64 - 1}.png"]


def test_names_of_our_own_never_overwrite(model: Path, here: Path, capsys: pytest.CaptureFixture) -> None:
    for _ in range(3):
        run(model, "generate", "x", "--steps", 1, "--cfg", 0)
    assert capsys.readouterr().out.split() == ["generate-0.png", "generate-0-2.png", "generate-0-3.png"]
    run(model, "generate", "x", "--steps", 1, "--batch", 2, "-o", "here.png")
    assert capsys.readouterr().out.split() == ["here-0.png", "here-1.png"]


@pytest.mark.parametrize("cache", ["off", "fast", "0.5,0,2", "0.5,0,2,holes,3"])
def test_every_sampling_setting_reaches_the_sampler(model: Path, here: Path, cache: str) -> None:
    settings = [
        "--steps",
        6,
        "--cfg",
        1.5,
        "--guidance-start",
        0.5,
        "--temperature",
        0.5,
        "--negative",
        "blue",
        "--dtype",
        "bf16",
    ]
    run(model, "generate", "a red circle", "--size", "32x80", *settings, "--ml-cache", cache, "-o", "a.png")
    assert Image.open("a.png").size == (32, 80)


def test_temperature_zero_gives_one_picture_for_every_seed(model: Path, here: Path) -> None:
    for seed in (1, 2):
        run(model, "generate", "x", "--temperature", 0, "--seed", seed, "-o", f"{seed}.png")
    assert torch.equal(load_picture("1.png"), load_picture("2.png"))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_edit_fits_the_picture(model: Path, here: Path, mode: str) -> None:
    run(model, "edit", noise_picture(here / "in.png", 50, 41, mode), "make it blue", "-o", "out.png")
    assert Image.open("out.png").size == (64, 64)
    run(model, "edit", "in.png", "--type", "canny_pred", "--side", 96, "--batch", 2, "--image-cfg", 0)
    assert Image.open("edit-0.png").size == Image.open("edit-1.png").size


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_edit_gives_back_the_pictures_own_size_and_says_how(
    model: Path, here: Path, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    noise_picture(here / "in.png", 71, 40, mode)
    run(model, "edit", "in.png", "make it blue", "--own-size", "-o", "out.png")
    run(model, "edit", "in.png", "make it blue", "-o", "fitted.png")
    made = Image.open("out.png")
    assert made.size == (71, 40) and made.mode == mode and Image.open("fitted.png").size == (64, 32)
    assert [record.getMessage() for record in caplog.records] == [
        "71x40 px became 64x32 px: own_size (--own-size) gives the result the picture's size."
    ]
    assert [json.loads(Image.open(name).info[KEY])["own_size"] for name in ("out.png", "fitted.png")] == [True, False]


def test_an_edit_type_has_a_name_that_people_read(model: Path, here: Path, capsys: pytest.CaptureFixture) -> None:
    noise_picture(here / "in.png", 64, 64)
    run(model, "edit", "in.png", "--type", "map: canny edges", "-o", "label.png")
    run(model, "edit", "in.png", "--type", "canny_pred", "-o", "id.png")
    assert torch.equal(load_picture("label.png"), load_picture("id.png"))
    assert json.loads(Image.open("label.png").info[KEY])["type"] == "canny_pred"
    with pytest.raises(SystemExit):
        main(["edit", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert all(f"{name}: {task.label}" in said for name, task in EDITS.items())


def test_edit_with_a_style(model: Path, here: Path) -> None:
    noise_picture(here / "in.png", 64, 64), noise_picture(here / "style.png", 128, 32)
    run(model, "edit", "in.png", "--type", "image_ref_transfer", "--reference", "style.png", "-o", "out.png")
    assert Image.open("out.png").size == (64, 64)


@pytest.mark.parametrize("line", ["edit in.png x", "inpaint in.png x --mask-width 0.4"])
def test_a_batch_of_one_picture_is_encoded_once(
    model: Path, here: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    noise_picture(here / "in.png", 64, 64)
    encode, encoded = VQ.encode, []
    monkeypatch.setattr(
        VQ, "encode", lambda vq, pixels, **rest: encoded.append(len(pixels)) or encode(vq, pixels, **rest)
    )
    run(model, *line.split(), "--batch", 3, "-o", "three")
    assert encoded == [1] and len(list(Path("three").iterdir())) == 3
    run(model, *line.split(), "--seed", 2, "-o", "one.png")
    (last,) = Path("three").glob("*-2.png")
    assert torch.equal(load_picture(last), load_picture("one.png"))


def outside_is_untouched(before: Path, after: Path, painted: Image.Image) -> bool:
    was, now = load_picture(before)[0], load_picture(after)[0]
    changed = (was != now).any(dim=0)
    allowed = load_picture(painted)[0, 0] > 0.5 if isinstance(painted, Path) else painted
    return bool(changed.any()) and not bool((changed & ~allowed).any())


@pytest.mark.parametrize("size", [(64, 64), (70, 45), (33, 100)])
@pytest.mark.parametrize("mask_size", [None, (13, 9)])
def test_inpaint_leaves_all_else_bit_for_bit(model: Path, here: Path, size: tuple, mask_size: tuple | None) -> None:
    width, height = size
    noise_picture(here / "in.png", width, height)
    mask = Image.new("L", mask_size or size)
    mask.paste(255, (0, 0, mask.width // 3, mask.height // 3))
    mask.save("mask.png")
    run(model, "inpaint", "in.png", "a red circle", "--mask", "mask.png", "-o", "out.png")
    assert Image.open("out.png").size == size
    cells = torch.zeros(height, width, dtype=torch.bool)
    cells[: (height // 3 + 16) // 16 * 16 + 16, : (width // 3 + 16) // 16 * 16 + 16] = True
    assert outside_is_untouched(here / "in.png", here / "out.png", cells)


def test_a_centred_rectangle_is_painted_where_one_is_asked_for(model: Path, here: Path) -> None:
    noise_picture(here / "in.png", 96, 64)
    run(model, "inpaint", "in.png", "x", "--mask-width", 0.34, "-o", "in2.png")
    middle = torch.zeros(64, 96, dtype=torch.bool)
    middle[:, 32:64] = True
    assert outside_is_untouched(here / "in.png", here / "in2.png", middle)
    run(model, "inpaint", "in.png", "x", "--mask-width", 0.34, "--outpaint", "-o", "out.png")
    assert outside_is_untouched(here / "in.png", here / "out.png", ~middle)
    run(model, "inpaint", "in.png", "x", "--mask-height", 0.5, "-o", "low.png")
    middle = torch.zeros(64, 96, dtype=torch.bool)
    middle[16:48, 32:64] = True
    assert outside_is_untouched(here / "in.png", here / "low.png", middle), "0.2 of the width, in whole cells"
    run(model, "inpaint", "in.png", "x", "--mask-width", 0.34, "--grow", 1, "--batch", 2)
    assert outside_is_untouched(here / "in.png", here / "inpaint-1.png", torch.ones(64, 96, dtype=torch.bool))


def test_outpaint_alone_keeps_the_rectangle_that_it_kept_in_released_versions_and_says_so(
    model: Path, here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    noise_picture(here / "in.png", 160, 64)
    run(model, "inpaint", "in.png", "x", "--outpaint", "-o", "out.png")
    said = "There is no mask: all outside a centred rectangle, 0.2 wide and 1 high, is repainted."
    assert [record.getMessage() for record in caplog.records] == [said]
    middle = torch.zeros(64, 160, dtype=torch.bool)
    middle[:, 64:96] = True
    assert outside_is_untouched(here / "in.png", here / "out.png", ~middle)
    run(model, "inpaint", "in.png", "x", "--outpaint", "--mask-width", 0.2, "--mask-height", 1, "-o", "same.png")
    assert torch.equal(load_picture("out.png"), load_picture("same.png"))
    assert Image.open("out.png").info[KEY] == Image.open("same.png").info[KEY]


def test_describe_prints_the_answer(model: Path, here: Path, capsys: pytest.CaptureFixture) -> None:
    pictures = [noise_picture(here / "a.png", 64, 64), noise_picture(here / "b.png", 20, 90)]
    run(model, "describe", pictures[0], "-o", "answers/a.txt")
    answer = capsys.readouterr().out
    assert answer.endswith("\n") and Path("answers/a.txt").read_text(encoding="utf-8") == answer
    run(model, "describe", *pictures, "--question", "what?", "--cfg", 1, "--steps", 2, "--block-length", 8)


@pytest.mark.parametrize("speed", SPEEDS)
def test_describe_at_every_speed(model: Path, here: Path, monkeypatch: pytest.MonkeyPatch, speed: str) -> None:
    asked = []
    monkeypatch.setattr(jobs, "describe", lambda *_, settings, **__: [asked.append(settings.policy) or "x"])
    run(model, "describe", noise_picture(here / "a.png", 64, 64), "--speed", speed)
    run(model, "describe", here / "a.png")
    assert asked == [SPEEDS[speed], SPEEDS["exact"]]


MISTAKES = {
    "no such checkpoint": ("generate x --checkpoint nowhere", "nowhere does not exist"),
    "a file as checkpoint": ("generate x --checkpoint in.png", "no config.json of model_type 'llada' beside it"),
    "no such picture": ("describe gone.png", "gone.png cannot be read"),
    "a text as picture": ("edit note.txt x", "not a readable picture"),
    "no such mask": ("inpaint in.png x --mask gone.png", "gone.png cannot be read"),
    "an empty mask": ("inpaint in.png x --mask black.png", "The mask is empty"),
    "neither a mask nor a rectangle": ("inpaint in.png x", "nothing says what to repaint: add --mask IMAGE, or"),
    "a rectangle of nothing": ("inpaint in.png x --mask-width 0", "marks nothing"),
    "a rectangle too wide": ("inpaint in.png x --mask-width 1.5", "--mask-width is 1.5"),
    "a size not in steps of 16": ("generate x --size 100x64", "multiples of 16"),
    "a huge size": ("generate x --size 100000x100000", "cells"),
    "no steps": ("generate x --steps 0", "--steps is 0"),
    "a negative scale": ("generate x --cfg -1", "-1"),
    "a scale that is no number": ("generate x --cfg nan", "nan"),
    "a temperature that is no number": ("generate x --temperature nan", "--temperature is nan"),
    "a seed below zero": ("generate x --seed -1", "--seed is -1"),
    "a seed too large": ("generate x --seed 18446744073709551616", "seed is 18446744073709551616"),
    "no pictures": ("generate x --batch 0", "--batch is 0"),
    "steps that do not divide": ("describe in.png --steps 3", "use 2 or 4 steps"),
    "a device that is not": ("generate x --device toaster", "'toaster' cannot be used"),
    "an output that is no picture": ("generate x -o picture.xyz", "picture.xyz; expected a folder or a picture file"),
    "an output that can be read only": (
        "generate x -o picture.psd",
        "picture.psd; expected a folder or a picture file",
    ),
    "style without a reference": (
        "edit in.png --type image_ref_transfer",
        "image_ref_transfer takes the style from a second picture: add --reference IMAGE.",
    ),
    "a reference for nothing": ("edit in.png x --reference in.png", "--reference is only for image_ref_transfer"),
    "a text too long": ("generate " + "x" * 50_000, "shorten it"),
    "half an emoji": ("generate \ud83d", "half of a character"),
    "an edit without words": ("edit in.png", "edit_replace follows your words, but there are none"),
    "a control without words": ("edit in.png --type canny_control", "canny_control follows your words"),
    "output over the picture": ("edit in.png x -o in.png", "--output in.png is the file that is read"),
    "output over the mask": ("inpaint in.png x --mask black.png -o black.png", "--output black.png is the file that"),
    "an answer over the picture": ("describe in.png -o in.png", "--output in.png is the file that is read"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_and_status_2(
    model: Path, here: Path, capsys: pytest.CaptureFixture, name: str
) -> None:
    noise_picture(here / "in.png", 64, 64)
    Image.new("L", (64, 64)).save("black.png")
    Path("note.txt").write_text("no picture")
    before = sorted(here.rglob("*"))
    line, wanted = MISTAKES[name]
    arguments = line.split() if "--checkpoint" in line else [*line.split(), "--checkpoint", str(model)]
    assert main(arguments if "--device" in line else [*arguments, "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert wanted in said and said.startswith("python -m dimoo_core ") and said.count("\n") == 1, said
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("generate x --size 12", "WIDTHxHEIGHT"),
        ("generate x --ml-cache turbo", "off, quality"),
        ("generate x --ml-cache 2,0,5", "cache_ratio"),
        ("generate x --ml-cache 0.5,0,5,some", "candidates"),
        ("generate x --ml-cache 0.5,0,5,holes,2,2", "CANDIDATES"),
        ("edit a.png --type dance", "invalid choice: 'dance'"),
        ("generate", "the following arguments are required: prompt"),
        ("", "required: COMMAND"),
    ],
)
def test_what_the_parser_refuses(capsys: pytest.CaptureFixture, line: str, wanted: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    assert ended.value.code == 2
    assert wanted in capsys.readouterr().err


def test_a_broken_checkpoint_is_told_in_one_line(here: Path, capsys: pytest.CaptureFixture) -> None:
    broken = write_checkpoint(here / "broken", vq=AUTOENCODER | {"num_vq_embeddings": 64})
    assert main(["generate", "x", "--checkpoint", str(broken)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate ..."), MemoryError()])
def test_too_little_memory_is_one_sentence(
    model: Path, here: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("dimoo_core.jobs.generate", full)
    assert main(["generate", "x", "--checkpoint", str(model)]) == 2
    said = capsys.readouterr().err
    assert "generate: the device has too little memory; a smaller picture" in said and said.count("\n") == 1


def test_stopping_is_no_error_of_the_program(
    model: Path, here: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dimoo_core.jobs.generate", stop)
    assert main(["generate", "x", "--checkpoint", str(model)]) == 130
    assert "stopped" in capsys.readouterr().err and not list(here.iterdir())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_examples_that_parse(capsys: pytest.CaptureFixture, command: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(line in shown for line in COMMANDS[command].examples)


def test_it_runs_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dimoo_core", "generate", "x", "--checkpoint", "nowhere"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "python -m dimoo_core generate: nowhere does not exist; give the folder of a checkpoint.\n"
