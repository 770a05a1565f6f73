"""Settings of the sampler that are off by default: each way to ask for a picture takes them, and its job gets them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import dimoo_core as dimoo
from dimoo_core import jobs
from dimoo_core.cli.app.desk import Job
from dimoo_core.cli.app.work import Workshop
from dimoo_core.cli.commands import build_parser
from dimoo_core.cli.main import main
from dimoo_core.pipeline import ImageOptions
from dimoo_core.provenance import read_metadata
from dimoo_core.sampling.image import ImageSettings
from dimoo_core.sequence.canvas import Canvas

from .tiny import write_checkpoint

GIVEN: ImageOptions = {"corrections": 2, "polish": 3, "order": "halton", "shared_noise": 0.25}
USUAL = ("steps", 2), ("cfg", 0.0), ("temperature", 1.0)
COMMANDS = ("generate x --size 48x32", "edit in.png x --side 64", "inpaint in.png x --mask-width 0.5")
WRONG = {
    "corrections": (-1, "corrections is -1; expected a whole number of at least 0"),
    "polish": (101, "polish is 101; expected a whole number from 0 to 100"),
    "order": ("spiral", "confidence, halton, random"),
    "shared_noise": (1.5, "is 1.5; expected a number from 0 to 1"),
}
EACH = pytest.mark.parametrize("name", GIVEN)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64), "red").save("in.png")
    return tmp_path


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> list[ImageSettings]:
    """The settings of each canvas that was filled; filling takes no work here."""
    seen: list[ImageSettings] = []

    def sample(_network: Any, _table: Any, canvas: Canvas, *_rest: Any, settings: ImageSettings, **_: Any) -> Canvas:
        seen.append(settings)
        return Canvas(canvas.codes, torch.zeros_like(canvas.unknown))

    monkeypatch.setattr(jobs, "sample_image", sample)
    return seen


def beside_the_usual(settings: ImageSettings) -> dict[str, Any]:
    """The settings of the sampler that are not off."""
    return {name: getattr(settings, name) for name in GIVEN if getattr(settings, name) != getattr(ImageSettings, name)}


def flags(settings: dict[str, Any]) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def form(**settings: Any) -> dict[str, Any]:
    """The form of a picture from words, with everything as it is at the beginning but for `settings`."""
    usual = {"corrections": 0, "polish": 0, "order": "confidence", "shared_noise": 0.0, "guidance_start": 0.0}
    words = {"prompt": "x", "negative": "", "width": 48, "height": 32, "seed": 0, "ml_cache": "off"}
    return {**words, **dict(USUAL), **usual, **settings}


# Python -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ask",
    [
        lambda pipe, how: pipe.generate("x", size=(48, 32), progress=False, **how),
        lambda pipe, how: pipe.edit(Image.new("RGB", (64, 64)), "x", side=64, progress=False, **how),
        lambda pipe, how: pipe.inpaint(Image.new("RGB", (64, 64)), "x", mask_width=0.5, progress=False, **how),
    ],
    ids=["generate", "edit", "inpaint"],
)
def test_python_takes_them_for_every_picture(
    model: Path, sampled: list[ImageSettings], ask: Callable[[dimoo.Pipeline, dict[str, Any]], Any]
) -> None:
    pipe = dimoo.load(model, device="cpu")
    ask(pipe, {})
    for name in GIVEN:
        ask(pipe, {name: GIVEN[name]})
    assert [beside_the_usual(one) for one in sampled] == [{}, *({name: GIVEN[name]} for name in GIVEN)]


@EACH
def test_a_wrong_one_is_one_sentence_in_python(model: Path, name: str) -> None:
    value, sentence = WRONG[name]
    with pytest.raises(ValueError, match=sentence):
        dimoo.load(model, device="cpu").image_settings(**{name: value})


@pytest.mark.parametrize("order", [{}, [], None, 0])
def test_an_order_of_another_kind_is_one_sentence(order: Any) -> None:
    with pytest.raises(ValueError, match=r"^order is .*; expected one of confidence, halton, random\.$"):
        ImageSettings(order=order)


def test_progress_and_previews_count_the_polishing_passes(model: Path) -> None:
    counted, shown = [], []
    dimoo.load(model, device="cpu").generate(
        "x",
        size=(48, 32),
        steps=3,
        cfg=0.0,
        polish=2,
        progress=lambda done, total: counted.append((done, total)),
        preview=shown.append,
    )
    assert counted == [(done, 5) for done in range(1, 6)] and len(shown) == 5


# The command line ---------------------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("line", COMMANDS)
def test_the_command_line_takes_them_and_the_picture_says_so(
    model: Path, here: Path, sampled: list[ImageSettings], line: str, name: str
) -> None:
    for given in ({}, {name: GIVEN[name]}):
        rest = [*flags(dict(USUAL)), *flags(given), "--checkpoint", str(model), "--device", "cpu", "-o", "out.png"]
        assert main([*line.split(), *rest]) == 0
        said = read_metadata("out.png") or {}
        assert beside_the_usual(sampled[-1]) == given
        assert {key: said[key] for key in GIVEN} == {key: getattr(sampled[-1], key) for key in GIVEN}


@EACH
@pytest.mark.parametrize("line", [*COMMANDS, "list prompts.txt"])
def test_a_wrong_one_is_one_sentence_on_the_command_line_before_anything_is_loaded(
    model: Path, here: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, line: str, name: str
) -> None:
    Path("prompts.txt").write_text("x\n")
    monkeypatch.setattr("dimoo_core.pipeline.load", lambda *_, **__: pytest.fail("the model is loaded"))
    value, sentence = WRONG[name]
    words = [*line.split(), *flags({name: value}), "--checkpoint", str(model), "--device", "cpu"]
    try:
        status = main(words)
    except SystemExit as refused:  # by the parser, which knows the orders
        status = refused.code
    said = capsys.readouterr().err
    assert status == 2 and sentence in said.replace("'", "").replace("--shared-noise", "shared_noise"), said
    assert "Line 1" not in said, "the list is not at fault"
    assert [path.name for path in here.rglob("*.png")] == ["in.png"]


@EACH
def test_a_picture_is_made_again_from_what_its_file_says(model: Path, here: Path, name: str) -> None:
    usual = flags({**dict(USUAL), "steps": 4, "cfg": 2, "size": "96x64", "checkpoint": model, "device": "cpu"})
    for file, given in (("plain.png", {}), ("out.png", {name: GIVEN[name]})):
        assert main(["generate", "x", *usual, *flags(given), "-o", file]) == 0
    said = read_metadata("out.png") or {}
    wanted = ("prompt", "size", "seed", "steps", "cfg", "temperature", "ml_cache", "guidance_start", *GIVEN)
    (again,) = dimoo.load(model, device="cpu").generate(**{key: said[key] for key in wanted}, progress=False)
    made, plain = (Image.open(file).convert("RGB").tobytes() for file in ("out.png", "plain.png"))
    assert again.tobytes() == made != plain


# Lists --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["list.json", "list.csv"])
def test_each_entry_of_a_list_has_its_own(model: Path, here: Path, sampled: list[ImageSettings], file: str) -> None:
    entries = [{"prompt": "x"}, *({"prompt": "x", name: GIVEN[name]} for name in GIVEN)]
    if file.endswith("json"):
        Path(file).write_text(json.dumps(entries))
    else:
        with Path(file).open("w", newline="") as table:
            writer = csv.DictWriter(table, ["prompt", *GIVEN])
            writer.writeheader()
            writer.writerows(entries)
    line = ["list", file, "--size", "48x32", "--checkpoint", str(model), "--device", "cpu", *flags(dict(USUAL))]
    assert main([*line, "--polish", "1"]) == 0
    wanted = [{"polish": 1} | {name: value for name, value in entry.items() if name in GIVEN} for entry in entries]
    assert [beside_the_usual(one) for one in sampled] == wanted
    assert main([*line, "--polish", "1"]) == 0 and len(sampled) == len(entries), "what is finished is kept"
    assert main(line) == 2, "a picture that was made with another one is not what is asked for"
    told = json.loads(Path("pictures/results.json").read_text())
    assert [{name: row[name] for name in GIVEN} for row in told] == [
        {name: getattr(one, name) for name in GIVEN} for one in sampled
    ]


@EACH
def test_a_wrong_one_in_a_list_names_the_entry(
    model: Path, here: Path, capsys: pytest.CaptureFixture, name: str
) -> None:
    value, sentence = WRONG[name]
    Path("list.json").write_text(json.dumps(["x", {"prompt": "x", name: value}]))
    assert main(["list", "list.json", "--checkpoint", str(model), "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert "Entry 2 of list.json: " in said and sentence in said and said.count("\n") == 1


# The page that needs no ComfyUI -------------------------------------------------------------------------------------


@EACH
def test_a_form_takes_them_and_the_picture_says_so(
    model: Path, here: Path, sampled: list[ImageSettings], name: str
) -> None:
    args = build_parser().parse_args(["app", "--checkpoint", str(model), "--device", "cpu"])
    workshop = Workshop(dimoo.load(model, device="cpu"), args, here)
    path = workshop.generate(form(**{name: GIVEN[name]}), Job(("visitor", "job")))
    assert beside_the_usual(sampled[-1]) == {name: GIVEN[name]}
    assert (
        main(
            [
                *("generate", "x", "--size", "48x32", "-o", "typed.png"),
                *flags({**dict(USUAL), name: GIVEN[name]}),
                *("--checkpoint", str(model), "--device", "cpu"),
            ]
        )
        == 0
    )
    assert read_metadata(path) == read_metadata("typed.png") is not None


# Memory -------------------------------------------------------------------------------------------------------------


def test_corrections_raise_the_estimate_of_memory_where_a_cache_computes_more(model: Path) -> None:
    pipe = dimoo.load(model, device="cpu")
    settings = pipe.image_settings(steps=4, ml_cache="balanced")
    plan = jobs.plan_image(pipe.model, jobs.text_prompt("x"), Canvas.empty(1, 32, 32), settings)
    corrected = replace(plan, settings=replace(settings, corrections=64))
    assert corrected.scratch_bytes(4, graphs=True) > plan.scratch_bytes(4, graphs=True)
