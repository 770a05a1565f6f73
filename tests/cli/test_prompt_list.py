"""Lists of prompts: read, refused, worked off by one or several processes, taken up again; captions of a folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dimoo_core import jobs
from dimoo_core.cli.main import main
from dimoo_core.cli.prompt_list import Job, facts_of, picture_file, read_jobs, work_off
from dimoo_core.devices import Ranks
from dimoo_core.files import atomic_write_text
from dimoo_core.pictures.captions import folders_with_pictures, pictures_below
from dimoo_core.provenance import KEY, save

from ..tiny import TRANSFORMER, write_checkpoint

ROOT = Path(__file__).parents[2]
DEFAULTS = {"size": [64, 48], "side": 64, "sides": [64, 64], "steps": 2, "max_tokens": 4, "text_steps": 2}
USUAL = Job("", size=(64, 48), seed=5, steps=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = TRANSFORMER | {"dimoo_defaults": DEFAULTS | {"block_length": 4}}
    return write_checkpoint(tmp_path_factory.mktemp("model"), transformer=settings)


def listed(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


# Reading ------------------------------------------------------------------------------------------------------------


def test_the_three_kinds_of_lists_say_the_same(tmp_path: Path) -> None:
    text = listed(tmp_path, "a.txt", "\ufeffa red circle\n\n  ein gr\u00fcner Stern \n")
    array = listed(tmp_path, "a.json", json.dumps(["a red circle", {"prompt": "ein gr\u00fcner Stern"}]))
    rows = listed(tmp_path, "a.jsonl", '{"prompt": "a red circle"}\n"ein gr\u00fcner Stern"\n')
    read = [read_jobs(path, USUAL, 16) for path in (text, array, rows)]
    assert read[0] == read[1] == read[2]
    assert [(job.prompt, job.seed) for job in read[0]] == [("a red circle", 5), ("ein gr\u00fcner Stern", 6)]


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\u0085"])
def test_only_a_new_line_ends_a_line(tmp_path: Path, sign: str) -> None:
    rows = listed(tmp_path, "a.jsonl", f'"red{sign}circle"\r\n"blue star"')
    assert [job.prompt for job in read_jobs(rows, USUAL, 16)] == [f"red{sign}circle", "blue star"]


def test_an_entry_may_say_more_than_its_prompt(tmp_path: Path) -> None:
    entry = {
        "prompt": "x",
        "negative": "y",
        "size": [32, 64],
        "seed": 2**64 - 1,
        "steps": 3,
        "cfg": 0,
        "temperature": 0,
    }
    (job,) = read_jobs(listed(tmp_path, "a.json", json.dumps([entry])), USUAL, 16)
    assert job == Job("x", "y", (32, 64), 2**64 - 1, 3, 0, 0)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.txt", "\n \n", "holds no prompts"),
        ("a.json", "{}", "JSON dict; an array"),
        ("a.json", "[", "not usable JSON"),
        ("a.jsonl", '"x"\n{', "not usable JSON"),
        ("a.json", "[" * 100_000, "not usable JSON"),
        ("a.jsonl", "[" * 100_000, "not usable JSON"),
        ("a.json", '["x", 3]', "Entry 2 .* 3 came; a prompt is wanted"),
        ("a.json", '[{"text": "x"}]', 'Entry 1 .* object with "prompt"'),
        ("a.json", '[{"prompt": "x", "sede": 1}]', "no field 'sede'; there are prompt, negative"),
        ("a.json", '[{"prompt": null}]', "prompt is None"),
        ("a.json", '[{"prompt": "x", "steps": 0}]', "steps is 0"),
        ("a.json", '[{"prompt": "x", "seed": -1}]', "seed is -1"),
        ("a.json", '[{"prompt": "x", "cfg": NaN}]', "cfg is nan"),
        ("a.json", '[{"prompt": "x", "temperature": "warm"}]', "temperature is 'warm'"),
        ("a.json", '[{"prompt": "x", "size": [64]}]', "size is"),
        ("a.json", '[{"prompt": "x", "size": ["a", 64]}]', "size is 'a'"),
        ("a.json", '[{"prompt": "x", "size": [65, 64]}]', "multiples of 16"),
        ("absent.txt", None, "cannot be read"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence_before_any_work(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture, name: str, text: str | None, sentence: str
) -> None:
    path = tmp_path / name if text is None else listed(tmp_path, name, text)
    with pytest.raises(ValueError, match=sentence):
        read_jobs(path, USUAL, 16)
    assert run("list", path, "-o", tmp_path / "out", "--checkpoint", model) == 2
    assert not list((tmp_path / "out").glob("*")) and capsys.readouterr().err.count("\n") == 1


# Working off --------------------------------------------------------------------------------------------------------


def test_only_what_is_missing_or_another_is_made(tmp_path: Path) -> None:
    jobs, made = [Job(word) for word in ("a", "b", "c")], []

    def facts(job: Job) -> dict:
        return {"prompt": job.prompt}

    def make(job: Job, path: Path) -> None:
        made.append(job.prompt)
        save(Image.new("RGB", (64, 64)), path, {"version": "of the day", **facts(job)})

    def work() -> list[str]:
        made.clear()
        work_off(jobs, tmp_path, make, facts=facts, ranks=Ranks())
        return list(made)

    assert work() == ["a", "b", "c"]
    assert work() == []
    whole = picture_file(tmp_path, 1).read_bytes()
    picture_file(tmp_path, 1).write_bytes(whole[: len(whole) - 30])  # as a kill in the middle of writing leaves it
    picture_file(tmp_path, 2).unlink()
    assert work() == ["b", "c"]
    jobs[0] = Job("another")
    assert work() == ["another"]


def test_a_list_without_a_folder_goes_into_pictures(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("list", listed(tmp_path, "a.txt", "red circle"), "--checkpoint", model, "--device", "cpu") == 0
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["00001.png", "results.json"]


@pytest.mark.parametrize("name", ["x.png", "X.JPG", "a.txt"])
def test_a_list_into_a_file_is_refused_before_any_work(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture, name: str
) -> None:
    path = listed(tmp_path, "a.txt", "red circle")
    assert run("list", path, "-o", tmp_path / name, "--checkpoint", model) == 2
    assert "need a folder" in (said := capsys.readouterr().err) and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_list_takes_no_batch(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        run("list", listed(tmp_path, "a.txt", "red circle"), "--batch", 2)
    assert ended.value.code == 2 and "--batch" in capsys.readouterr().err


def test_the_same_checkpoint_by_another_path_makes_nothing_anew(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, link = listed(tmp_path, "a.txt", "red circle"), tmp_path / "another name"
    link.symlink_to(model)
    monkeypatch.chdir(model)
    written = set()
    for place in (model, ".", "config.json", link):
        assert run("list", path, "-o", tmp_path / "out", "--checkpoint", place, "--device", "cpu") == 0
        written.add((tmp_path / "out" / "00001.png").stat().st_mtime_ns)
    assert len(written) == 1


@pytest.mark.parametrize("said", ["[]", '"x"', "1", "null", "{", "[" * 100_000])
def test_a_picture_with_words_of_others_is_not_one_of_ours(tmp_path: Path, said: str) -> None:
    text = PngInfo()
    text.add_text(KEY, said)
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png", pnginfo=text)
    assert facts_of(tmp_path / "a.png") is None


def test_a_picture_too_large_to_read_is_not_one_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(Image.new("RGB", (64, 64)), tmp_path / "a.png", {"prompt": "x"})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert facts_of(tmp_path / "a.png") is None


def test_each_process_has_an_accelerator_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [torch.device("cuda", 0), torch.device("cuda", 1)]
    monkeypatch.setattr("dimoo_core.devices.accelerators", lambda: seen)
    for rank, wanted in ((None, "cuda:0"), ("1", "cuda:1"), ("2", "cuda:0")):
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        if rank is not None:
            monkeypatch.setenv("LOCAL_RANK", rank)
        assert Ranks().device == wanted


def test_two_processes_make_what_one_makes(tmp_path: Path, model: Path) -> None:
    path = listed(tmp_path, "a.txt", "red circle\nblue star\ngreen square\n")
    rest = ("--checkpoint", model, "--device", "cpu", "--temperature", "1")
    assert run("list", path, "-o", tmp_path / "one", *rest) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "dimoo_core", "list", path, "-o", tmp_path / "two", *rest]
    done = subprocess.run([str(word) for word in command], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0
    files = [{file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert files[0] == files[1]
    assert sorted(files[0]) == ["00001.png", "00002.png", "00003.png", "results.json"]
    results = json.loads(files[0]["results.json"])
    assert [(row["file"], row["prompt"], row["seed"]) for row in results[1:]] == [
        ("00002.png", "blue star", 1),
        ("00003.png", "green square", 2),
    ]


# Captions of a folder -----------------------------------------------------------------------------------------------


def test_a_folder_gets_a_text_beside_each_picture_once(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.png", "in/b b.jpg", ".hidden.png", "._a.png"):
        Image.new("RGB", (70, 60), "red").save(tmp_path / name)
    (tmp_path / "a.txt").write_text("mine", encoding="utf-8")
    assert run("caption", tmp_path, "--checkpoint", model) == 0
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "mine", "what is there stays"
    assert (tmp_path / "in" / "b b.txt").read_text(encoding="utf-8").endswith("\n")
    assert len(list(tmp_path.rglob("*.txt"))) == 2
    assert "2 pictures, 1 of them" in capsys.readouterr().err
    assert run("caption", tmp_path, "--checkpoint", model, "--again") == 0
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") != "mine"


def test_a_picture_that_cannot_be_read_stops_no_other(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    Image.new("RGB", (64, 64)).save(tmp_path / "b.png")
    for _ in range(2):
        assert run("caption", tmp_path, "--checkpoint", model) == 2
        assert (tmp_path / "b.txt").exists() and not (tmp_path / "a.txt").exists()
        said = capsys.readouterr().err
        assert "a.png is not a readable picture" in said and "have no new caption" in said.splitlines()[-1]
    assert "1 of 1 pictures" in said


def test_of_pictures_with_one_text_file_the_first_has_it(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, colour in (("a.jpg", "red"), ("a.png", "blue")):
        Image.new("RGB", (64, 64), colour).save(tmp_path / name)
    monkeypatch.setattr(jobs, "describe_pictures", lambda _model, _vq, shown, *_, **__: [str(shown[0].argmax().item())])
    assert run("caption", tmp_path, "--checkpoint", model, "--again") == 0
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "0\n", "what the red one shows"
    said = capsys.readouterr().err
    assert "2 pictures, 0 of them" in said and "a.png is left out: a.txt is the caption of a.jpg" in said


def test_hidden_folders_hold_no_pictures(tmp_path: Path) -> None:
    for name in ("in/a.png", "in/.cache/b.png", ".c.png", "other/d.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert pictures_below(tmp_path) == [tmp_path / "in" / "a.png"]
    assert folders_with_pictures(tmp_path) == [tmp_path / "in"]


def test_folders_without_pictures_are_one_sentence(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ValueError, match=r"no pictures|is not a folder"):
            pictures_below(path)


def test_a_disk_that_is_full_leaves_the_old_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = listed(tmp_path, "a.txt", "old")

    def full(self: Path, *_: object, **__: object) -> None:
        with self.open("w") as file:
            file.write("ne")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        atomic_write_text(path, "new")
    assert path.read_text(encoding="utf-8") == "old" and list(tmp_path.iterdir()) == [path]
