"""Every command makes sure of where its results go before it loads anything."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from dimoo_core.cli import output
from dimoo_core.cli.main import main
from dimoo_core.cli.output import Output, PictureFile, check_writable, picture_files
from dimoo_core.pictures.pixels import to_pil
from dimoo_core.training.pretokenise import write_codes

from ..readonly import read_only
from ..tiny import TRANSFORMER, write_checkpoint

DEFAULTS = {"size": [64, 48], "side": 64, "sides": [64, 64], "steps": 2, "max_tokens": 4, "text_steps": 2}
LONG = "x" * 300
# What every command would begin its work with.
WORK = (
    "dimoo_core.cli.pictures.load",
    "dimoo_core.cli.words.load",
    "dimoo_core.cli.prompt_list.load",
    "dimoo_core.cli.weights.download",
    "dimoo_core.cli.weights.convert",
    "dimoo_core.cli.lora.merge",
    "dimoo_core.cli.train_tune.encode",
    "dimoo_core.cli.train_tune.tune",
    "dimoo_core.cli.train_lora.survey",
    "dimoo_core.cli.train.build",
)
COMMANDS = {
    "generate": "generate x --checkpoint model -o {}/a.png",
    "generate into a folder": "generate x --checkpoint model -o {}/",
    "edit": "edit in.png x --checkpoint model -o {}/a.png",
    "inpaint": "inpaint in.png x --mask-width 0.4 --checkpoint model -o {}/a.png",
    "describe": "describe in.png --checkpoint model -o {}/a.txt",
    "list": "list list.txt --checkpoint model -o {}",
    "download": "download --folder {}",
    "convert": "convert model {}/a.safetensors",
    "merge": "lora merge model style.safetensors -o {}",
    "encode": "train encode in --checkpoint model --output {}/a.safetensors",
    "tune": "train tune codes.safetensors --checkpoint model --run {}/run --output tuned",
    "tune's checkpoint": "train tune codes.safetensors --checkpoint model --run run --output {}/tuned",
    "lora": "train lora in --checkpoint model --run {}/run --output lora.safetensors",
    "the file of lora": "train lora in --checkpoint model --run run --output {}/a.safetensors",
    "nano": "train nano --run {}/run --output nano",
    "nano's checkpoint": "train nano --run run --output {}/nano",
}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to work in that others may look into, for `read_only` makes us somebody else."""
    with tempfile.TemporaryDirectory() as name:
        monkeypatch.chdir(name)
        yield prepare(Path(name), monkeypatch)
        monkeypatch.undo()


def prepare(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_checkpoint(here / "model", transformer=TRANSFORMER | {"dimoo_defaults": DEFAULTS | {"block_length": 4}})
    to_pil(torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))).save("in.png")
    Path("in").mkdir()
    Path("list.txt").write_text("x")
    Path("file").write_text("somebody's")
    write_codes("codes.safetensors", {"a": torch.ones(4, 4, dtype=torch.int64)}, {"a": "a fox"})
    for work in WORK:
        monkeypatch.setattr(work, lambda *_, **__: pytest.fail("the work began before its place was made sure of"))
    for path in (here, *here.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return here


def refused(capsys: pytest.CaptureFixture, here: Path, line: str) -> str:
    before = sorted(here.rglob("*"))
    assert main(line.split()) == 2, line
    said = capsys.readouterr().err
    assert sorted(here.rglob("*")) == before and said.count("\n") == 1, said
    return said


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_that_cannot_be_written(here: Path, capsys: pytest.CaptureFixture, name: str) -> None:
    with read_only(lambda folder: (folder / "old").touch()) as folder:
        said = refused(capsys, here, COMMANDS[name].format(folder))
        assert "cannot be written (Permission denied): name another place, or make it writable." in said
        said = refused(capsys, here, COMMANDS[name].format(folder / "new" / "one"))
        assert "cannot be written (Permission denied)" in said


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_where_a_folder_is_expected(here: Path, capsys: pytest.CaptureFixture, name: str) -> None:
    said = refused(capsys, here, COMMANDS[name].format("file"))
    assert "file is a file, expected a folder" in said or "--output is file; expected a folder" in said
    assert "is a file, expected a folder" in refused(capsys, here, COMMANDS[name].format("file/below"))
    assert Path("file").read_text() == "somebody's"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_name_that_is_too_long(here: Path, capsys: pytest.CaptureFixture, name: str) -> None:
    assert "cannot be written (File name too long)" in refused(capsys, here, COMMANDS[name].format(LONG))
    line = COMMANDS[name].format("new").replace("/a.", f"/{LONG}.")
    if LONG in line:
        assert "cannot be written (File name too long)" in refused(capsys, here, line)


@pytest.mark.parametrize("line", [line for line in COMMANDS.values() if "/a." in line and ".png" not in line])
def test_a_folder_where_a_file_is_expected(here: Path, capsys: pytest.CaptureFixture, line: str) -> None:
    name = line[line.index("/a.") + 1 :].split()[0]
    Path("out", name).mkdir(parents=True)
    assert "is a folder, expected the name of a file" in refused(capsys, here, line.format("out"))


def test_captions_into_a_folder_that_cannot_be_written(here: Path, capsys: pytest.CaptureFixture) -> None:
    content = Path("in.png").read_bytes()
    with read_only(lambda folder: (folder / "a.png").write_bytes(content)) as folder:
        assert main(["caption", str(folder), "--checkpoint", "model"]) == 2
        assert "cannot be written (Permission denied)" in capsys.readouterr().err.splitlines()[-1]


def test_a_list_is_not_overwritten_by_its_own_results(here: Path, capsys: pytest.CaptureFixture) -> None:
    Path("out").mkdir()
    Path("out/results.json").write_text('["x"]')
    said = refused(capsys, here, "list out/results.json -o out --checkpoint model")
    assert "is the file that is read" in said


@pytest.mark.parametrize("suffix", [".xyz", ".psd", ".hdf5", ".grib", ".wmf"])
def test_pictures_that_cannot_be_saved(here: Path, capsys: pytest.CaptureFixture, suffix: str) -> None:
    said = refused(capsys, here, f"generate x --checkpoint model -o a{suffix}")
    assert f"a{suffix}; expected a folder or a picture file such as picture.png." in said


# Names --------------------------------------------------------------------------------------------------------------


class Arguments:
    command, batch, seed = "generate", 2, 7

    def __init__(self, output: str):
        self.output = Output.parse(output)


@pytest.mark.parametrize(
    ("output", "names"),
    [
        ("run.v2/", ["run.v2/generate-7.png", "run.v2/generate-8.png"]),
        ("run.v2/a.png", ["run.v2/a-7.png", "run.v2/a-8.png"]),
        ("there.v2", ["there.v2/generate-7.png", "there.v2/generate-8.png"]),
        ("new", ["new/generate-7.png", "new/generate-8.png"]),
        (".", ["generate-7.png", "generate-8.png"]),
        ("a.JPG", ["a-7.JPG", "a-8.JPG"]),
    ],
)
def test_a_slash_at_the_end_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, names: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.v2").mkdir()
    assert [file.path.as_posix() for file in picture_files(Arguments(output))] == names
    assert [path.name for path in tmp_path.iterdir()] == ["there.v2"]


def test_a_list_goes_into_a_folder_with_a_suffix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "model", transformer=TRANSFORMER | {"dimoo_defaults": DEFAULTS | {"block_length": 4}})
    Path("list.txt").write_text("x")
    assert main(["list", "list.txt", "-o", "run.png/", "--checkpoint", "model", "--device", "cpu"]) == 0
    assert Path("run.png/00001.png").is_file()


def test_two_runs_that_chose_one_name_keep_both_pictures(tmp_path: Path) -> None:
    ours, theirs = (PictureFile(tmp_path / "generate-0.png", named=False) for _ in range(2))
    assert [ours.claim().name, theirs.claim().name] == ["generate-0.png", "generate-0-2.png"]
    assert PictureFile(tmp_path / "generate-0.png", named=True).claim().name == "generate-0.png"


def test_looking_leaves_nothing_and_takes_nothing(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    check_writable(tmp_path / "a" / "b", ["c"])
    check_writable(tmp_path, ["old", "new"])
    assert [path.name for path in tmp_path.iterdir()] == ["old"] and (tmp_path / "old").read_text() == "old"


def test_a_disk_that_is_full_leaves_no_empty_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(output.provenance, "save", full)
    files = [PictureFile(tmp_path / "generate-0.png", named=False)]
    with pytest.raises(OSError, match="No space"):
        output.save([Image.new("RGB", (16, 16))], files, {"seed": 0})
    assert not list(tmp_path.iterdir())
