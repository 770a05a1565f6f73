"""The examples of the help run as they stand, one after the other in an empty folder, and give what they say."""

from __future__ import annotations

import random
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dimoo_core.checkpoint.find import find
from dimoo_core.cli.command import SHELL
from dimoo_core.cli.commands import COMMANDS, first_examples
from dimoo_core.cli.main import main
from dimoo_core.cli.vocabulary import untaught
from dimoo_core.nano.captions import caption
from dimoo_core.nano.edits import every_edit
from dimoo_core.nano.judge import judge, judge_edges, matches
from dimoo_core.nano.questions import KINDS, ask
from dimoo_core.nano.scenes import every_scene, random_scene
from dimoo_core.nano.words import QUESTIONS
from dimoo_core.pictures.pixels import load_picture
from dimoo_core.training.pretokenise import read_codes

CIRCLE = "a large red circle on a cyan background"


def needs_more_than_nano(line: str) -> bool:
    """Whether an example takes the 8B model or hours, or has no end."""
    return line.startswith(("app", "download", "convert", "train nano")) or "models/Lumina-DiMOO" in line


SETS = {"--help": first_examples()} | {name: [*command.setup, *command.examples] for name, command in COMMANDS.items()}
RUNNABLE = {name: [line for line in lines if not needs_more_than_nano(line)] for name, lines in SETS.items()}


def shows(path: str, words: str) -> None:
    """A picture of exactly what the words say, and nothing else."""
    verdict = judge(load_picture(path)[0])
    assert matches(verdict.scene, words) and verdict.clean, (path, verdict)


def says(text: str, picture: str) -> None:
    """A description that is true of what the judge sees in the picture."""
    assert matches(judge(load_picture(picture)[0]).scene, text.strip()), (text, picture)


def captions(folder: str) -> None:
    pictures = sorted(Path(folder).glob("*.png"))
    assert pictures
    for path in pictures:
        says(path.with_suffix(".txt").read_text(), str(path))


def edges(_out: str) -> None:
    verdict = judge_edges(load_picture("edges.png")[0])
    assert matches(verdict.scene, "a large circle") and verdict.clean, verdict


def four_squares(_out: str) -> None:
    for seed in range(7, 11):
        shows(f"pictures/generate-{seed}.png", "a green square")


# What each example gives, by its beginning; the longest that fits counts.
GIVES: dict[str, Callable[[str], None]] = {
    f'generate "{CIRCLE}"': lambda _: shows("generate-0.png", CIRCLE),
    f'generate "{CIRCLE}" -o pictures/': lambda _: shows("pictures/generate-0.png", CIRCLE),
    'generate "a green square"': four_squares,
    'edit generate-0.png "make the circle yellow"': lambda _: shows("edit-0.png", CIRCLE.replace("red", "yellow")),
    "edit generate-0.png --type canny_pred": edges,
    "inpaint": lambda _: shows("inpaint-0.png", "a small green square on a cyan background"),
    "describe": lambda out: says(out, "generate-0.png"),
    "list": lambda _: shows("pictures/00001.png", "a purple triangle on a white background"),
    "caption": lambda _: captions("pictures"),
    "train lora": lambda _: Path("runs/style/lora.safetensors").stat(),
    "lora info": lambda out: out.index("fits: DiMOO-nano\nrank: "),
    "train encode": lambda _: [grid.shape for grid in read_codes("codes.safetensors")[0].values()].index((8, 8)),
    "train tune": lambda _: find(Path("runs/mine/checkpoint")),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], Path]:
    """Folders as they are after lines that several sets begin with, so that these run once."""
    return {}


def shell(line: str) -> None:
    words, _, file = line.removeprefix(SHELL).rpartition(" > ")
    Path(file).write_text(words + "\n")


@pytest.mark.parametrize("name", [name for name, lines in RUNNABLE.items() if lines])
def test_examples_run_as_they_stand(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    finished: dict[tuple[str, ...], Path],
    name: str,
) -> None:
    here, lines = tmp_path_factory.mktemp("here"), RUNNABLE[name]
    begun = max((done for done in finished if done == tuple(lines[: len(done)])), key=len, default=())
    if begun:
        shutil.copytree(finished[begun], here, dirs_exist_ok=True)
    monkeypatch.chdir(here)
    for index in range(len(begun), len(lines)):
        line = lines[index]
        if line.startswith(SHELL):
            shell(line)
            continue
        assert main(shlex.split(line)) == 0, line
        said = capsys.readouterr()
        assert "was not taught" not in said.err, said.err
        GIVES[max((start for start in GIVES if line.startswith(start)), key=len)](said.out)
        if index < 2:
            finished[tuple(lines[: index + 1])] = shutil.copytree(here, tmp_path_factory.mktemp("kept") / "folder")


def test_every_command_has_an_example_that_nano_can_do() -> None:
    assert {name for name, lines in RUNNABLE.items() if not lines} == {"app", "download", "convert"}
    left_out = {line for lines in SETS.values() for line in lines if needs_more_than_nano(line)}
    assert all(
        line.startswith("train nano") or "Lumina-DiMOO" in line or line in ("app", "download") for line in left_out
    )


# Words that nano was never taught -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        (CIRCLE, []),
        ("A large RED circle, on a cyan background.", []),
        ("a large red circle on a blue background", ["blue background"]),
        ("make the background red", ["background red"]),
        ("a pink star", ["pink star"]),
        ("a photo of a fox", ["photo", "fox"]),
        ("", []),
    ],
)
def test_words_that_nano_does_not_know_are_named(text: str, unknown: list[str]) -> None:
    assert untaught(text) == unknown


def test_nothing_that_nano_was_taught_is_called_unknown() -> None:
    if untaught("two"):
        pytest.skip("this nano has learnt scenes of one figure")
    choose = random.Random(0)
    scenes = [*every_scene(), *(random_scene(choose, count) for count in (2, 3) for _ in range(100))]
    texts = [caption(scene) for scene in scenes] + list(QUESTIONS)
    texts += [edit.instruction for scene in scenes[::37] for edit in every_edit(scene)]
    texts += [asked.words for scene in scenes for kind in KINDS if (asked := ask(kind, scene, choose))]
    assert {word for text in texts for word in untaught(text)} == set()


def test_an_unknown_word_is_said_and_only_for_nano(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in ("generate", "inpaint in.png --mask-width 0.4", "edit in.png", "describe in.png --question"):
        main([*command.split(), "a red fox on a blue background"])
        said = capsys.readouterr().err
        assert "DiMOO-nano was not taught 'fox', 'blue background'; the result may show something else." in said
        assert "shapes circle, square, triangle, star in red, green" in said
        main([*command.split(), "a red fox", "--checkpoint", "another"])
        assert "was not taught" not in capsys.readouterr().err
    Path("a.txt").write_text("a fox\na circle\na fox\n")
    main(["list", "a.txt", "--steps", "1", "--device", "cpu"])
    assert capsys.readouterr().err.count("was not taught 'fox'; ") == 1
