"""LoRAs on the command line: `--lora` of every command that samples, and the jobs of `lora`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dimoo_core import provenance
from dimoo_core.checkpoint.find import find
from dimoo_core.cli.commands import build_parser
from dimoo_core.cli.main import main
from dimoo_core.cli.options import lora
from dimoo_core.cli.settings import Lora
from dimoo_core.pictures.pixels import to_pil

from ..lora_files import PREFIX, random_lora, write_lora

SAMPLING = ("generate", "edit", "inpaint", "describe", "caption", "list")


@pytest.fixture(scope="module")
def styles(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two LoRAs of the tiny checkpoint."""
    place = tmp_path_factory.mktemp("loras")
    return [write_lora(place / f"{seed}.safetensors", random_lora(find(model), seed=seed)) for seed in range(2)]


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def facts(path: Path | str) -> dict[str, Any]:
    with Image.open(path) as picture:
        return json.loads(picture.info[provenance.KEY])


def pixels(path: Path | str) -> bytes:
    with Image.open(path) as picture:
        return picture.tobytes()


@pytest.mark.parametrize(
    ("text", "name", "strength"),
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("a.safetensors:0.5", "a.safetensors", 0.5),
        ("a.safetensors:-0.5", "a.safetensors", -0.5),
        ("a.safetensors:0", "a.safetensors", 0.0),
        (r"C:\x.safetensors", r"C:\x.safetensors", 1.0),
        (r"C:\x.safetensors:.25", r"C:\x.safetensors", 0.25),
        ("C:/loras/x:1e-1", "C:/loras/x", 0.1),
        ("a:b", "a:b", 1.0),
        ("a:b:2", "a:b", 2.0),
        ("a:", "a:", 1.0),
        ("a:0,5", "a:0,5", 1.0),
    ],
)
def test_the_strength_is_what_follows_the_last_colon_where_that_is_a_number(
    text: str, name: str, strength: float
) -> None:
    assert lora(text) == Lora(name, strength)
    for command, rest in (("generate", ["x"]), ("caption", ["x"]), ("list", ["x"])):
        args = build_parser().parse_args([command, *rest, "--lora", text, "--lora", "b:2"])
        assert args.loras == [Lora(name, strength), Lora("b", 2.0)]
    assert build_parser().parse_args(["generate", "x"]).loras == [], "not those of an earlier line"


@pytest.mark.parametrize("strength", ["nan", "inf", "-inf", "101", "-100.5"])
def test_a_strength_that_is_none_is_refused(capsys: pytest.CaptureFixture, strength: str) -> None:
    with pytest.raises(SystemExit) as ended:
        run("generate", "x", "--lora", f"a.safetensors:{strength}")
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "expected a number from -100 to 100" in said


@pytest.mark.parametrize("command", SAMPLING)
def test_a_lora_acts_in_every_command(model: Path, styles: list[Path], here: Path, command: str) -> None:
    Path("in").mkdir()
    to_pil(torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))).save("in/in.png")
    Path("list.txt").write_text("x")
    answer = ["--max-tokens", "16", "--steps", "4", "--block-length", "16"]
    lines, out = {
        "generate": (["x", "-o", "out.png"], "out.png"),
        "edit": (["in/in.png", "x", "-o", "out.png"], "out.png"),
        "inpaint": (["in/in.png", "x", "--mask-width", "0.5", "-o", "out.png"], "out.png"),
        "list": (["list.txt", "-o", "out", "--again"], "out/00001.png"),
        "describe": (["in/in.png", "-o", "out.txt", *answer], "out.txt"),
        "caption": (["in", "--again", *answer], "in/in.txt"),
    }[command]

    def made(*loras: object) -> bytes:
        words = [word for one in loras for word in ("--lora", one)]
        assert run(command, *lines, *words, "--checkpoint", model, "--device", "cpu") == 0
        return Path(out).read_bytes() if out.endswith("txt") else pixels(out)

    plain = made()
    assert made(styles[0]) != plain
    assert made(f"{styles[0]}:0.5", styles[1]) == made(styles[1], f"{styles[0]}:0.5") not in (plain, made(styles[0]))
    assert made(f"{styles[0]}:0") == plain == made()


def test_a_picture_says_which_loras_made_it(model: Path, styles: list[Path], here: Path) -> None:
    line = ["generate", "x", "--checkpoint", model, "--device", "cpu", "-o"]
    assert run(*line, "plain.png") == 0 and "loras" not in facts("plain.png")
    assert run(*line, "zero.png", "--lora", f"{styles[0]}:0") == 0 and facts("zero.png") == facts("plain.png")
    for name, order in (("a.png", (0, 1)), ("b.png", (1, 0))):
        words = [word for index in order for word in ("--lora", f"{styles[index]}:{0.5 + index}")]
        assert run(*line, name, *words) == 0
    both = [provenance.identified(path.name, [path]) | {"strength": 0.5 + i} for i, path in enumerate(styles)]
    said = facts("a.png")
    assert said["loras"] == sorted(both, key=lambda one: one["fingerprint"]) == facts("b.png")["loras"]
    assert said.keys() - facts("plain.png").keys() == {"loras"} and str(styles[0].parent) not in json.dumps(said)


def test_a_list_is_made_again_where_its_loras_changed_and_only_there(
    model: Path, styles: list[Path], here: Path, capsys: pytest.CaptureFixture
) -> None:
    Path("list.txt").write_text("x")
    copy = shutil.copy(styles[0], here / "another name.safetensors")

    def listed(*words: object) -> tuple[int, int]:
        status = run("list", "list.txt", "-o", "out", "--checkpoint", model, "--device", "cpu", *words)
        return status, Path("out/00001.png").stat().st_mtime_ns

    status, first = listed()
    assert status == 0 and listed("--lora", f"{styles[0]}:0") == (0, first) == listed()
    assert listed("--lora", styles[0]) == (2, first)
    assert "made with other settings; pass --again" in capsys.readouterr().err
    status, second = listed("--lora", styles[0], "--again")
    assert status == 0 and second != first
    assert listed("--lora", copy) == (0, second), "the same file by another name"
    assert listed("--lora", f"{styles[0]}:0.5")[0] == 2 == listed("--lora", styles[1])[0] == listed()[0]
    assert listed("--lora", styles[0]) == (0, second)


def test_what_a_picture_of_others_says_of_loras_ends_no_list(model: Path, styles: list[Path], here: Path) -> None:
    Path("list.txt").write_text("x")
    line = ["list", "list.txt", "-o", "out", "--checkpoint", model, "--device", "cpu", "--lora", styles[0]]
    assert run(*line) == 0
    said = facts("out/00001.png")
    for loras in ("x", 5, None, {}, [1, "x", None], [{"strength": []}]):
        with Image.open("out/00001.png") as picture:
            picture.load()
        provenance.save(picture, Path("out/00001.png"), said | {"loras": loras})
        assert run(*line) == 2
    assert run(*line, "--again") == 0 and facts("out/00001.png") == said


@pytest.mark.parametrize("command", SAMPLING)
def test_a_lora_that_does_not_fit_is_one_sentence_before_the_model_is_loaded(
    model: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, command: str
) -> None:
    to_pil(torch.rand(3, 64, 64)).save("in.png")
    Path("list.txt").write_text("x")
    monkeypatch.setattr("dimoo_core.pipeline.load", lambda *_, **__: pytest.fail("loaded before the check"))
    state = random_lora(find(model))
    write_lora(Path("dora.safetensors"), state | {f"{PREFIX}blocks.0.q_proj.dora_scale": torch.ones(1)})
    Path("pickle.safetensors").write_bytes(b"PK\x03\x04" + bytes(99))
    target = {"list": "list.txt", "caption": "."}.get(command, "in.png")
    text = ["x"] if command in ("edit", "inpaint") else []
    mask = ["--mask-width", "0.5"] if command == "inpaint" else []
    words = [command, target, *text, *mask, "--checkpoint", model, "--device", "cpu"]
    for name, sentence in (
        ("dora.safetensors", "changes model.transformer.blocks.0.q_proj by DoRA"),
        ("pickle.safetensors", "is a pickle in spite of its name"),
        ("dore.safetensors", "is no file, and no LoRA of that name is in models/loras: name one of dora.safetensors"),
    ):
        assert run(*words, "--lora", name) == 2
        *_, said = capsys.readouterr().err.splitlines()
        assert sentence in said and said.startswith(f"python -m dimoo_core {command}: ")


def test_what_has_to_be_said_of_a_lora_is_a_line_on_stderr(
    model: Path, here: Path, capsys: pytest.CaptureFixture
) -> None:
    state = random_lora(find(model)) | {"lora_te_x.lora_down.weight": torch.ones(1)}
    write_lora(Path("more.safetensors"), state)
    write_lora(Path("dead.safetensors"), {key: tensor * 0 for key, tensor in state.items()})
    line = ["generate", "x", "--checkpoint", model, "--device", "cpu", "-o", "out.png"]
    assert run(*line, "--lora", "more.safetensors") == 0
    said = "1 of the keys in more.safetensors fit no module of this model and are not used: lora_te_x.lora_down.weight."
    assert said in capsys.readouterr().err.splitlines()
    assert run(*line, "--lora", "dead.safetensors") == 0
    assert "dead.safetensors changes nothing, since all of" in capsys.readouterr().err


# `lora` -------------------------------------------------------------------------------------------------------------


def test_info_says_what_a_file_holds(model: Path, here: Path, capsys: pytest.CaptureFixture) -> None:
    state = random_lora(find(model), rank=3)
    save_file(state, "x.safetensors", metadata={"modelspec.trigger_phrase": "sks \u2028 dog", "z": "y" * 500})
    assert run("lora", "info", "x", "--checkpoint", model) == 0
    said = capsys.readouterr()
    layers = find(model).config.n_layers
    lines = said.out.splitlines()
    assert lines[:3] == [f"fits: {model.name}", "rank: 3", "alpha: 3"] and said.err == ""
    assert f"q_proj ({layers})" in lines[3] and f"ff_out ({layers})" in lines[3] and lines[4].startswith("size: ")
    assert lines[5] == "modelspec.trigger_phrase: sks ? dog" and len(lines[6]) == len("z: ") + 200
    save_file(state | {"te.lora_up.weight": torch.ones(1)}, "x.safetensors")
    assert run("lora", "info", "x.safetensors", "--checkpoint", model) == 0
    assert "fit no module of this model and are not used: te.lora_up.weight" in capsys.readouterr().err
    assert run("lora", "info", "x.safetensors") == 2, "nano is another model"
    assert "take a LoRA that was trained on this model" in capsys.readouterr().err


def test_merged_and_converted_it_makes_what_the_lora_made(
    model: Path, styles: list[Path], here: Path, capsys: pytest.CaptureFixture
) -> None:
    loras = [f"{styles[0]}:0.5", styles[1]]
    assert run("lora", "merge", model, *loras, "-o", "merged") == 0
    said = capsys.readouterr()
    assert said.out.startswith("merged: 0.00 GB; `convert` makes one file of it.") and "merge: 100%" in said.err
    line = ["generate", "x", "--device", "cpu", "--temperature", "0"]
    words = [word for one in loras for word in ("--lora", one)]
    assert run(*line, "--checkpoint", model, *words, "-o", "branch.png") == 0
    assert run(*line, "--checkpoint", "merged", "-o", "merged.png") == 0
    assert pixels("branch.png") == pixels("merged.png")
    assert run("convert", "merged", "files/int8.safetensors", "--dtype", "int8") == 0
    assert run(*line, "--checkpoint", "files/int8.safetensors", "-o", "int8.png") == 0
    capsys.readouterr()
    assert run("lora", "merge", "files/int8.safetensors", styles[0], "-o", "again") == 2
    assert "is quantised" in capsys.readouterr().err
    assert run("lora", "merge", model, styles[0], "-o", "merged") == 2
    assert "merged holds a checkpoint already" in capsys.readouterr().err


def test_a_lora_is_not_overwritten_by_what_it_is_merged_into(
    model: Path, styles: list[Path], here: Path, capsys: pytest.CaptureFixture
) -> None:
    Path("out").mkdir()
    content = Path(shutil.copy(styles[0], "out/model.safetensors")).read_bytes()
    assert run("lora", "merge", model, "out/model.safetensors", "-o", "out") == 2
    assert "is the file that is read" in capsys.readouterr().err
    assert Path("out/model.safetensors").read_bytes() == content and len(list(Path("out").iterdir())) == 1
