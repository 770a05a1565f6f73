"""The program and its surroundings: consoles that cannot spell, pipes that close, and stops at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from dimoo_core.cli.main import main
from dimoo_core.cli.messages import shortened
from dimoo_core.pictures.pixels import to_pil
from dimoo_core.training.pretokenise import encode_pictures, read_codes, write_codes
from dimoo_core.training.stopping import Stopped, uninterrupted

ROOT = Path(__file__).parents[2]
CAT = "\u732b"


def start(*arguments: object, here: Path, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "dimoo_core", *map(str, arguments)],
        cwd=here,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(*arguments: object, here: Path, **environment: str) -> tuple[int, bytes, bytes]:
    process = start(*arguments, here=here, **environment)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    to_pil(torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(seed))).save(path)
    return path


# Consoles -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_console_that_cannot_spell_a_name_ends_nothing(tmp_path: Path, model: Path, encoding: str) -> None:
    there = {"here": tmp_path, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    code, out, err = run("generate", CAT, "--batch", 3, "-o", f"{CAT}/", "--checkpoint", model, **there)
    assert code == 0 and len(list((tmp_path / CAT).iterdir())) == 3, err
    assert out.decode(encoding).split()[0] in (r"\u732b/generate-0.png", r"\u732b\generate-0.png")
    (tmp_path / CAT / "broken.png").write_bytes(b"x")
    code, out, err = run("caption", CAT, "--checkpoint", model, **there)
    assert code == 2 and len(list((tmp_path / CAT).glob("*.txt"))) == 3 and b"Traceback" not in err, err
    assert rb"\u732b" in out and rb"\u732b" in err
    code, out, err = run("describe", f"{CAT}.png", "--checkpoint", model, **there)
    assert code == 2 and rb"\u732b.png cannot be read" in err, err
    code, out, err = run("generate", "x", "--type", CAT, **there)
    assert code == 2 and rb"\u732b" in err and b"Traceback" not in err


def test_a_name_that_is_not_utf8_ends_nothing(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture) -> None:
    picture(tmp_path / "\udcff.png")
    assert main(["caption", str(tmp_path), "--checkpoint", str(model)]) == 0
    assert len(list(tmp_path.glob("*.txt"))) == 1


def test_a_reader_that_has_gone_costs_no_picture(tmp_path: Path, model: Path) -> None:
    process = start("generate", "x", "--batch", 3, "-o", "made/", "--checkpoint", model, here=tmp_path)
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=60) == 0 and b"Traceback" not in err and b"Broken" not in err, err
    assert len(list((tmp_path / "made").iterdir())) == 3


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_closed_pipe_is_quiet(tmp_path: Path, model: Path, stream: str) -> None:
    for arguments in (["--help"], ["generate", "x", "--steps", 0], ["generate", "x", "--checkpoint", model]):
        process = start(*arguments, here=tmp_path)
        getattr(process, stream).close()
        rest = (process.stderr if stream == "stdout" else process.stdout).read()
        process.wait(timeout=60)
        assert b"Traceback" not in rest and b"Exception ignored" not in rest, rest


@pytest.mark.parametrize(
    "line",
    [
        ["edit", "a.png", "x", "--type", "x" * 100_000],
        ["edit", "a.png", "x", "--type", "x y " * 25_000],
        ["generate", "x", "--size", "x" * 100_000],
        ["generate", "x", "--ml-cache", "x" * 100_000],
        ["generate", "x", "--seed", "x" * 100_000],
        ["generate", "x", "--device", "x" * 100_000],
        ["generate", "x", "y " * 50_000],
        ["generate", "x", "--checkpoint", "x" * 100_000],
        ["generate", "x", "-o", "x" * 100_000 + ".png"],
        ["generate", "x " * 50_000],
        ["list", "x" * 100_000],
        ["x" * 100_000],
    ],
)
def test_no_message_is_endless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, line: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = main(line)
    except SystemExit as ended:
        code = ended.code
    said = capsys.readouterr().err
    assert code == 2 and len(said.splitlines()[-1]) < 1500 and "x" * 300 not in said, len(said)
    assert not list(tmp_path.iterdir())


def test_what_a_message_says_beside_it_is_kept() -> None:
    assert shortened("The device 'toaster' cannot be used; try 'auto' or 'cpu'.") == (
        "The device 'toaster' cannot be used; try 'auto' or 'cpu'."
    )
    long = shortened(f"argument --type: invalid choice: '{'x y ' * 9000}' (choose from 'a', 'b')")
    assert len(long) < 200 and long.endswith("...' (choose from 'a', 'b')")


# Stops --------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="it is seen in /proc when torch is being loaded")
@pytest.mark.parametrize("delay", [0.0, 0.1, 0.2, 0.4, 1.0])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_while_importing_is_quiet(tmp_path: Path, model: Path, delay: float, number: int, code: int) -> None:
    long = ("--steps", 10_000, "--size", "1024x1024")
    process = start("generate", "x", *long, "--checkpoint", model, here=tmp_path)
    while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(delay)
    process.send_signal(number)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == code and b"Traceback" not in err, err
    assert b"stopped; nothing was written." in err and not list(tmp_path.iterdir())


def test_a_stop_waits_for_the_end_of_an_update() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt):
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("the update")
        done.append("what comes after it")
    assert done == ["the update"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.fixture
def tuning(tmp_path: Path, model: Path) -> list[object]:
    """A `train tune` in tmp_path that would take minutes."""
    codes = {name: torch.randint(32, (4, 4), generator=torch.Generator().manual_seed(i)) for i, name in enumerate("ab")}
    write_codes(tmp_path / "codes.safetensors", codes, {"a": "a fox", "b": "a hat"})
    line = ["train", "tune", "codes.safetensors", "--checkpoint", model, "--run", "run", "--output", "tuned"]
    return [*line, "--device", "cpu", "--steps", 3000]


def steps_kept(folder: Path) -> int:
    with safe_open(folder / "run" / "training.safetensors", "pt") as file:
        return int(file.metadata()["step"])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_tune_keeps_what_it_says(tmp_path: Path, tuning: list[object], number: int, code: int) -> None:
    process = start(*tuning, here=tmp_path)
    assert b"step 1/3000" in process.stdout.readline()
    time.sleep(1)
    process.send_signal(number)
    err = process.communicate(timeout=60)[1].decode()
    kept = steps_kept(tmp_path)
    assert process.returncode == code and kept > 1 and kept % 100, "not one of those that are saved on the way"
    assert f"train: stopped; step {kept} of 3000 is kept in run, the same command continues there." in err
    process = start(*tuning, here=tmp_path)
    assert process.stdout.readline() == f"continues after step {kept} of 3000\n".encode()
    assert f"step {kept + 1}/3000".encode() in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)


def test_two_tunes_in_one_run_do_not_fight(tmp_path: Path, tuning: list[object]) -> None:
    first = start(*tuning, here=tmp_path)
    assert b"step 1/3000" in first.stdout.readline()
    code, _, err = run(*tuning, here=tmp_path)
    assert code == 2 and b"Another process is working in run: wait" in err
    first.send_signal(signal.SIGINT)
    assert first.wait(timeout=60) == 130


def test_a_stopped_encode_keeps_what_it_says(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    for index, name in enumerate("abcd"):
        picture(Path("in", f"{name}.png"), index).with_suffix(".txt").write_text(f"a {name}")
    line = ["train", "encode", "in", "--checkpoint", str(model), "--side", "64", "--output"]
    assert main([*line, "whole.safetensors"]) == 0
    encoded: list[str] = []

    def stopping(vq: object, pictures: object, stop_at: int | None) -> object:
        for name, codes in encode_pictures(vq, pictures, batch=1):
            if len(encoded) == stop_at:
                raise KeyboardInterrupt
            encoded.append(name)
            yield name, codes

    def encode(stop_at: int | None) -> tuple[int, list[str], str]:
        encoded.clear()
        with monkeypatch.context() as patch:
            patch.setattr(
                "dimoo_core.training.encode_captioned.encode_pictures", lambda *both: stopping(*both, stop_at)
            )
            code = main([*line, "codes.safetensors"])
        return code, list(encoded), capsys.readouterr().err

    code, made, said = encode(0)
    assert code == 130 and made == [] and "stopped; nothing was written" in said and not list(Path().glob("codes*"))
    code, made, said = encode(2)
    assert code == 130 and made == ["a.png", "b.png"] and not Path("codes.safetensors").exists()
    assert "stopped; 2 of 4 pictures are kept in codes.safetensors.partial, the same command makes the rest." in said
    picture(Path("in/b.png"), 9)  # changed meanwhile
    code, made, said = encode(None)
    assert (code, made) == (0, ["b.png", "c.png", "d.png"]) and not Path("codes.safetensors.partial").exists()
    (codes, captions), (whole, _) = read_codes("codes.safetensors"), read_codes("whole.safetensors")
    assert captions == {f"{name}.png": f"a {name}" for name in "abcd"}
    assert all(torch.equal(codes[name], whole[name]) for name in ("a.png", "c.png", "d.png"))
    assert encode(2)[0] == 130 and len(read_codes("codes.safetensors.partial")[0]) == 2
    assert main([*line, "codes.safetensors", "--side", "96"]) == 0, "the last side counts"
    assert read_codes("codes.safetensors")[0]["a.png"].shape == (6, 6), "codes of another side are not used"


def test_one_picture_that_cannot_be_read_does_not_cost_the_others(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    for index, name in enumerate("abc"):
        picture(Path("in", f"{name}.png"), index).with_suffix(".txt").write_bytes(
            f"\ufeffGr\u00fc\u00dfe {name}".encode()
        )
    Path("in/b.png").write_bytes(b"no picture")
    Path("in/c.txt").write_bytes("Gr\u00fc\u00dfe c".encode("cp1252"))
    assert main(["train", "encode", "in", "--checkpoint", str(model), "--output", "codes.safetensors"]) == 2
    codes, captions = read_codes("codes.safetensors")
    assert codes.keys() == {"a.png", "c.png"} and captions["a.png"] == "Gr\u00fc\u00dfe a"
    said = capsys.readouterr().err
    assert "b.png is no" in said and said.endswith("train: 1 of 3 pictures are not in codes.safetensors, see above.\n")


@pytest.mark.parametrize("again", [False, True])
def test_a_stopped_caption_keeps_what_it_says(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, again: bool
) -> None:
    for name in "ab":
        picture(tmp_path / f"{name}.png")

    def answers(_model: object, _vq: object, *_: object, **__: object) -> list[str]:
        if (tmp_path / "a.txt").exists():
            raise KeyboardInterrupt
        return ["words"]

    monkeypatch.setattr("dimoo_core.jobs.describe", answers)
    assert main(["caption", str(tmp_path), "--checkpoint", str(model), *["--again"] * again]) == 130
    said = capsys.readouterr().err
    assert "stopped; 1 captions are written and kept" in said and ("the same command makes the rest" in said) != again


def test_a_stopped_list_and_batch_say_how_many_are_kept(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("x\ny\nz")
    from dimoo_core import provenance

    save = provenance.save

    def stop_at_the_third(image: object, path: Path, metadata: object, **kept: object) -> None:
        if len(list(Path().rglob("*.png"))) + path.exists() * -1 == 2:
            raise KeyboardInterrupt
        save(image, path, metadata, **kept)

    monkeypatch.setattr(provenance, "save", stop_at_the_third)
    assert main(["list", "a.txt", "--checkpoint", str(model)]) == 130
    assert "list: stopped; 2 of 3 pictures are finished and kept; the same command makes the rest." in (
        capsys.readouterr().err
    )
    for path in Path("pictures").glob("*.png"):
        path.unlink()
    assert main(["generate", "x", "--batch", "3", "--checkpoint", str(model)]) == 130
    assert "generate: stopped; 2 of 3 pictures are written." in capsys.readouterr().err
    assert sorted(path.name for path in Path().glob("*.png")) == ["generate-0.png", "generate-1.png"]


def test_a_stop_of_nano_says_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dimoo_core.nano.build.train_vq", stop)
    assert main(["train", "nano", "--run", "run", "--output", "nano"]) == 130
    assert "stopped; nothing is kept, the VQ's training was not finished." in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert issubclass(Stopped, KeyboardInterrupt)
