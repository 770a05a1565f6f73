"""Lists of prompts: read, refused, worked off by one or several processes, taken up again; captions of a folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dimoo_core import jobs
from dimoo_core.cli.main import main
from dimoo_core.cli.prompt_file import Job, read_jobs
from dimoo_core.cli.prompt_list import Work, picture_file, recorded
from dimoo_core.cli.settings import PictureSettings
from dimoo_core.devices import Ranks
from dimoo_core.files import atomic_write_text
from dimoo_core.locks import folder_lock
from dimoo_core.model.transformer import Transformer
from dimoo_core.pictures.captions import folders_with_pictures, pictures_below
from dimoo_core.provenance import KEY, save
from dimoo_core.sampling.ml_cache import CachePolicy
from dimoo_core.sequence.tokenizer import TextTokenizer

ROOT = Path(__file__).parents[2]
USUAL = Job("", size=(64, 48), seed=5, steps=2)


def listed(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


# Reading ------------------------------------------------------------------------------------------------------------


def test_every_kind_of_list_says_the_same(tmp_path: Path) -> None:
    star = "ein gr\u00fcner Stern"
    texts = {
        "a.txt": f"\ufeffa red circle\n\n# a comment\n  {star} \n\\#2, a hat\n",
        "a": f"a red circle\n{star}\n\\#2, a hat",
        "a.json": json.dumps(["a red circle", {"prompt": star}, "#2, a hat"]),
        "a.jsonl": f'{{"prompt": "a red circle"}}\n"{star}"\n\n"#2, a hat"\n',
        "a.ndjson": f'"a red circle"\r\n{{"prompt": "{star}"}}\r\n"#2, a hat"',
        "a.csv": f'\ufeffPrompt\r\na red circle\r\n\r\n{star}\r\n"#2, a hat"\r\n',
        "b.csv": f"seed;prompt\n;a red circle\n6;{star}\n;#2, a hat\n",
        "a.tsv": f"prompt\tseed\na red circle\t\n{star}\t6\n#2, a hat\n",
    }
    for name, text in texts.items():
        read = read_jobs(listed(tmp_path, name, text), USUAL, 16)
        assert [(job.prompt, job.seed) for job in read] == [("a red circle", 5), (star, 6), ("#2, a hat", 7)], name


def test_a_list_of_notepad_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("a red circle\r\n".encode("utf-16"))
    assert [job.prompt for job in read_jobs(tmp_path / "a.txt", USUAL, 16)] == ["a red circle"]


def test_a_table_has_every_field(tmp_path: Path) -> None:
    text = (
        "prompt,negative,size,seed,steps,cfg,temperature,corrections,polish,order,shared_noise\n"
        '"x, y",z,32x64,9,3,0.5,0,1,2,random,0.5\n"two\nlines",,,,,,,,,,\n'
    )
    first, second = read_jobs(listed(tmp_path, "a.csv", text), USUAL, 16)
    assert first == Job("x, y", "z", (32, 64), 9, 3, 0.5, 0, 1, 2, "random", 0.5)
    assert second == Job("two\nlines", "", (64, 48), 6, 2)


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
        "corrections": 1,
        "polish": 2,
        "order": "halton",
        "shared_noise": 0.5,
    }
    (job,) = read_jobs(listed(tmp_path, "a.json", json.dumps([entry])), USUAL, 16)
    assert job == Job("x", "y", (32, 64), 2**64 - 1, 3, 0, 0, 1, 2, "halton", 0.5)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.txt", "\n \n", "holds no prompts"),
        ("a.txt", "# x\n", "holds no prompts"),
        ("a.md", "x", r"a.md is not a list of prompts by its name; expected one of .txt, .json, .jsonl"),
        ("a.json", "{}", "JSON dict; expected an array"),
        ("a.json", "[", "not valid JSON"),
        ("a.jsonl", '"x"\n\n"y"\n{"prompt": "z",', "Line 4 of .*a.jsonl is not valid JSON .* at column 16"),
        ("a.ndjson", '"x"\n{', "Line 2 of .*a.ndjson is not valid JSON"),
        ("a.json", "[" + "1" * 5000 + "]", "a.json is not usable JSON"),
        ("a.jsonl", '"x"\n{"prompt": "half \\ud83d"}', r"Line 2 .* prompt has '\\ud83d', which is half"),
        ("a.json", '["x", {"prompt": "x", "negative": "\\udc00"}]', "Entry 2 .* negative has"),
        (
            "a.csv",
            "a red circle\na blue star",
            r"names no column prompt \(got 'a red circle'\); begin it with a header",
        ),
        ("a.csv", "prompt,sede\nx,1", "unknown column 'sede'; the columns can be prompt, negative"),
        ("a.csv", "prompt,prompt\nx,y", "has a column twice"),
        ("a.csv", "prompt\nx\na circle, red", "Line 3 of .* has 2 cells, but there are 1 columns"),
        ("a.csv", "prompt,steps\nx,\ny,many", "Line 3 of .*steps is 'many'"),
        ("a.csv", "prompt,size\nx,64", "Line 2 of .*size is"),
        ("a.csv", "prompt,seed\n,7", "Line 2 of .*expected a prompt"),
        ("a.csv", 'prompt\n"x', "Line 2 of .* not a row of a table"),
        ("a.tsv", "prompt,seed\nx,1", "names no column prompt"),
        ("a.txt", "x" * 10_001, "Line 1 of .* 10001 characters; expected at most 10000"),
        ("a.json", "[" * 100_000, "not usable JSON"),
        ("a.jsonl", "[" * 100_000, "not usable JSON"),
        ("a.json", '["x", 3]', "Entry 2 .* got 3; expected a prompt"),
        ("a.json", '[{"text": "x"}]', 'Entry 1 .* object with "prompt"'),
        ("a.json", '[{"prompt": "x", "sede": 1}]', "unknown field 'sede'; the fields are prompt, negative"),
        ("a.json", '[{"prompt": null}]', "prompt is of type NoneType; expected words"),
        ("a.json", '[{"prompt": "x", "steps": 0}]', "steps is 0"),
        ("a.json", '[{"prompt": "x", "seed": -1}]', "seed is -1"),
        ("a.json", '[{"prompt": "x", "cfg": NaN}]', "cfg is nan"),
        ("a.json", '[{"prompt": "x", "temperature": "warm"}]', "temperature is 'warm'"),
        ("a.json", '[{"prompt": "x", "polish": "much"}]', "polish is 'much'"),
        ("a.json", '[{"prompt": "x", "order": {}}]', "order is {}; expected one of confidence, halton, random"),
        ("a.csv", "prompt,corrections\nx,few", "Line 2 of .*corrections is 'few'"),
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


def test_only_what_is_missing_is_made_and_nothing_replaced_unasked(tmp_path: Path) -> None:
    made: list[str] = []

    def make(job: Job, path: Path, wanted: PictureSettings) -> None:
        made.append(job.prompt)
        save(Image.new("RGB", (64, 64)), path, {"version": "of the day", "prompt": job.prompt} | ONE)

    def work(*prompts: str, again: bool = False) -> list[str]:
        made.clear()
        wanted = [PictureSettings(ONE["checkpoint"], prompt) for prompt in prompts]
        work = Work(tmp_path, [Job(prompt) for prompt in prompts], wanted)
        work.refuse_others(again=again)
        work.make(work.unfinished(Ranks()), make, Ranks())
        return list(made)

    assert work("a", "b", "c") == ["a", "b", "c"]
    assert work("a", "b", "c") == []
    content = picture_file(tmp_path, 1).read_bytes()
    picture_file(tmp_path, 1).write_bytes(content[: len(content) - 30])  # as a full disk leaves it
    picture_file(tmp_path, 2).unlink()
    assert work("a", "b", "c") == ["b", "c"]
    with pytest.raises(ValueError, match=r"^1 of 4 pictures in .* were made with other settings; pass --again to"):
        work("another", "b", "c", "d")
    assert made == [] and not picture_file(tmp_path, 3).exists()
    assert work("another", "b", "c", "d", again=True) == ["another", "d"]
    Image.new("RGB", (64, 64)).save(picture_file(tmp_path, 1))
    with pytest.raises(ValueError, match=r"^1 of 3 pictures"):
        work("another", "b", "c")


ONE = {"checkpoint": {"name": "x", "fingerprint": "0"}}


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({}, True),
        ({"dtype": "fp32", "device": "cuda", "vq_strips": True, "version": "9", "torch": "9", "command": "x"}, True),
        ({"checkpoint": {"name": "y", "fingerprint": "0"}}, True),
        ({"checkpoint": {"name": "x", "fingerprint": "1"}}, False),
        ({"prompt": "q"}, False),
        ({"negative": "q"}, False),
        ({"size": [64, 64]}, False),
        ({"seed": 1}, False),
        ({"steps": 63}, False),
        ({"cfg": 4}, True),
        ({"cfg": 4.5}, False),
        ({"temperature": 0}, False),
        ({"guidance_start": 0.5}, False),
        ({"corrections": 0, "polish": 0, "order": "confidence", "shared_noise": 0}, True),
        ({"corrections": 1}, False),
        ({"polish": 2}, False),
        ({"order": "halton"}, False),
        ({"shared_noise": 0.5}, False),
        ({"ml_cache": None}, False),
        ({"ml_cache": {"ratio": 0.9, "warmup": 0.3, "refresh_interval": 5}}, True),
        ({"ml_cache": {"ratio": 0.9, "warmup": 0.3, "refresh_interval": 4}}, False),
        ({"ml_cache": {"of": "a later version"}}, False),
        ({"mask": {"name": "m", "fingerprint": "2"}}, False),
    ],
)
def test_only_settings_that_decide_a_picture_count(change: dict, same: bool) -> None:
    policy = CachePolicy(0.9, 0.3, 5)
    wanted = PictureSettings(ONE["checkpoint"], "x", size=(64, 48), ml_cache=policy)
    said = {"prompt": "x", "size": [64, 48], "ml_cache": asdict(policy), "vq_strips": False, **ONE}
    assert wanted.made(said | change) == same


def test_a_list_that_was_made_otherwise_is_left_alone(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ("list", listed(tmp_path, "a.txt", "red circle\nblue star"), "-o", tmp_path / "out", "--checkpoint", model)
    assert run(*line) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr("dimoo_core.cli.prompt_list.load", lambda *_: pytest.fail("there is nothing to do"))
        assert run(*line, "--vq-tiles", "--dtype", "fp32") == 0
        assert run(*line, "--steps", 3) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "2 of 2 pictures in" in said and "pass --again to replace them, or name another folder with -o." in said
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert run(*line, "--steps", 3, "--again") == 0
    assert recorded(tmp_path / "out" / "00001.png")["steps"] == 3


def test_all_entries_are_checked_before_the_first_picture(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = TextTokenizer.encode

    def broken(self: TextTokenizer, text: str) -> list[int]:
        if "snark" in text:
            raise ValueError("a broken pattern")
        return encode(self, text)

    monkeypatch.setattr(TextTokenizer, "encode", broken)
    monkeypatch.setattr("dimoo_core.cli.prompt_list.load", lambda *_: pytest.fail("loaded before the check"))
    path = listed(tmp_path, "a.txt", "red circle\na snark")
    assert run("list", path, "-o", tmp_path / "out", "--checkpoint", model) == 2
    assert "Entry 2 of" in (said := capsys.readouterr().err) and "a broken pattern" in said
    assert not (tmp_path / "out").exists()


def test_two_runs_on_one_folder_do_not_fight(tmp_path: Path, model: Path) -> None:
    path = listed(tmp_path, "a.txt", "red circle\n" * 40)
    line = [sys.executable, "-m", "dimoo_core", "list", path, "-o", tmp_path / "out", "--checkpoint", model]
    line += ["--steps", "8", "--size", "128x128", "--device", "cpu"]
    both = [
        subprocess.Popen([str(word) for word in line], cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    said = [process.communicate(timeout=120)[1] for process in both]
    codes = [process.returncode for process in both]
    assert 0 in codes and set(codes) <= {0, 2}, said
    for code, words in zip(codes, said, strict=True):
        assert code == 0 or f"Another process is working in {tmp_path / 'out'}: wait" in words
    assert sorted(file.name for file in (tmp_path / "out").iterdir())[-2:] == ["00040.png", "results.json"]
    assert len(list((tmp_path / "out").iterdir())) == 41


def test_after_ctrl_c_the_same_command_makes_the_rest_and_no_picture_twice(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path, out = listed(tmp_path, "a.txt", "one\ntwo\nthree\nfour\n"), tmp_path / "out"
    arguments = ("list", path, "-o", out, "--checkpoint", model, "--device", "cpu")
    forward, finished = Transformer.forward, list[int]()

    def stopped(self: Transformer, *inputs: object, **options: object) -> torch.Tensor:
        finished.append(len(list(out.glob("*.png"))))
        if finished.count(2) == 2:  # in the middle of the third picture
            os.kill(os.getpid(), signal.SIGINT)
        return forward(self, *inputs, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Transformer, "forward", stopped)
        assert run(*arguments) == 130
    assert "stopped; 2 of 4 pictures are finished and kept; the same command makes the rest." in capsys.readouterr().err
    first = {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in out.iterdir()}
    assert sorted(first) == ["00001.png", "00002.png"], "nothing half done, and no lock"
    assert run(*arguments) == 0
    assert {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in out.iterdir()}.items() >= first.items()
    assert sorted(file.name for file in out.iterdir()) == [*(f"0000{n}.png" for n in range(1, 5)), "results.json"]
    assert run("list", path, "-o", tmp_path / "at once", "--checkpoint", model, "--device", "cpu") == 0
    for file in out.glob("*.png"):
        assert Image.open(file).tobytes() == Image.open(tmp_path / "at once" / file.name).tobytes()


def test_a_folder_that_is_worked_in_is_refused(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture) -> None:
    path = listed(tmp_path, "a.txt", "red circle")
    with folder_lock(tmp_path / "out"):
        assert run("list", path, "-o", tmp_path / "out", "--checkpoint", model) == 2
    assert "Another process is working in" in capsys.readouterr().err
    assert not (tmp_path / "out").exists(), "what was made for the lock alone is gone"
    assert run("list", path, "-o", tmp_path / "out", "--checkpoint", model) == 0


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
    assert "expected a folder for the pictures" in (said := capsys.readouterr().err) and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_list_takes_no_batch(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        run("list", listed(tmp_path, "a.txt", "red circle"), "--batch", 2)
    assert ended.value.code == 2 and "--batch" in capsys.readouterr().err


def test_the_same_checkpoint_by_another_path_makes_nothing_again(
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
    assert recorded(tmp_path / "a.png") == {}


def test_a_picture_too_large_to_read_is_not_one_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(Image.new("RGB", (64, 64)), tmp_path / "a.png", {"prompt": "x"})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert recorded(tmp_path / "a.png") == {}


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
    monkeypatch.setattr(jobs, "describe", lambda _model, _vq, shown, *_, **__: [str(shown[0].argmax().item())])
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
