"""The table that says how often nano is right: its bookkeeping, with stand-ins that are known to be right or wrong."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dimoo_core.checkpoint.defaults import Defaults
from dimoo_core.evaluation.runner import BATCH, Case, Runner, Setup
from dimoo_core.evaluation.table import Result, ResultFile, Row, evenness
from dimoo_core.nano.cases import KINDS, Examiner, NanoCase
from dimoo_core.nano.judge import open_patterns
from dimoo_core.nano.scenes import FORMATS, Scene, caption, draw, draw_edges, every_scene, held_out, parse_caption
from dimoo_core.nano.table import CASES, load, main, rows
from dimoo_core.sampling.ml_cache import PRESETS
from dimoo_core.sampling.text import TextSettings
from dimoo_core.sampling.text_cache import EXACT, SPEEDS
from dimoo_core.sequence.canvas import Canvas
from dimoo_core.sequence.layout import answer_length
from dimoo_core.sequence.prompt import prompt_strings

from ..tiny import write_checkpoint

TEXT = TextSettings(max_tokens=32, steps=32, block_length=32)
USUAL = Setup(FORMATS[0], steps=16, cfg=1.0, image_cfg=1.0, text=TEXT)


@cache
def told_by() -> dict[str, list[Scene]]:
    """All scenes that a caption, full or open, is true of."""
    found = {}
    for scene in every_scene():
        for pattern in open_patterns():
            found.setdefault(caption(scene, pattern), {})[scene] = None
    return {words: list(scenes) for words, scenes in found.items()}


class Painter(Runner):
    """Stands for a model that paints what it is asked; `slip` makes mistakes."""

    def __init__(self, slip: Callable[[Scene], Scene] = lambda scene: scene, stain: bool = False):
        self.slip, self.stain, self.choose = slip, stain, random.Random(0)

    def encode(self, pictures: Tensor) -> Tensor:
        batch, _, height, width = pictures.shape
        return torch.zeros(batch, height // 16, width // 16, dtype=torch.int64)

    def fill(self, cases: Sequence[Case], setup: Setup) -> list[Canvas]:
        return [Canvas(case.blank.codes, torch.zeros_like(case.blank.unknown)) for case in cases]

    def show(self, cases: Sequence[Case], canvases: Sequence[Canvas]) -> Tensor:
        return torch.stack([self.paint(case) for case in cases])

    def paint(self, case: NanoCase) -> Tensor:
        from_words = not case.prompt.images  # else the words may leave to the picture what it shows
        scene = self.slip(self.choose.choice(told_by()[case.prompt.text if from_words else case.asked]))
        picture = (draw_edges if case.edges else draw)(scene, *case.blank.codes.shape[1:])
        if self.stain:
            picture[:, 40:52, 40:52] = torch.tensor([0.0, 1.0, 0.0])[:, None, None]
        return picture

    def flops(self, cases: Sequence[Case], setup: Setup) -> float:
        return 1e9 if setup == setup.exact else 4e8

    def answer(self, cases: Sequence[Case], setup: Setup) -> list[str]:
        return [caption(self.slip(parse_caption(case.asked))) for case in cases]


def row(name: str) -> Row:
    return next(row for row in rows(USUAL) if row.name == name)


@pytest.mark.parametrize("name", [row.name for row in rows(USUAL)])
def test_a_perfect_model_passes_all_but_the_controls(name: str) -> None:
    count = 30 if "spread" in name else 10
    result = row(name).run(Painter(), count)
    if "another caption" in name:
        assert result.measured.rate == 0 and result.passes
    elif name.startswith("control"):
        assert result.measured.rate == 1 and not result.passes
    else:
        assert result.passes


@pytest.mark.parametrize("name", ["generate full", "generate open", "edit", "edge map", "inpaint"])
def test_a_stain_is_exact_but_does_not_count(name: str) -> None:
    measured = row(name).run(Painter(stain=True), 5).measured
    assert measured.exact > 0.8 and measured.rate == 0


@pytest.mark.parametrize("name", ["generate full", "generate open", "describe", "edit", "edge map to image", "inpaint"])
def test_another_shape_does_not_count(name: str) -> None:
    def slip(scene: Scene) -> Scene:
        return Scene("white") if scene.background != "white" else Scene("black")

    measured = row(name).run(Painter(slip), 5).measured
    assert measured.exact == measured.rate == 0


def test_what_stays_outside_a_hole_must_keep_its_codes() -> None:
    class Spiller(Painter):
        def fill(self, cases: Sequence[Case], setup: Setup) -> list[Canvas]:
            return [Canvas(canvas.codes + 1, canvas.unknown) for canvas in super().fill(cases, setup)]

    measured = row("inpaint").run(Spiller(), 4).measured
    assert measured.exact == 1 and measured.rate == 0
    assert "0 of 4" in measured.remarks[0]


def test_one_picture_for_all_seeds_is_no_spread() -> None:
    stubborn = Painter(lambda scene: Scene("white", "circle", "red", "small", "at the top"))
    result = row("spread over seeds").run(stubborn, 20)
    assert result.measured.rate == 0 and not result.passes
    assert "1 different scenes in 20" in result.measured.remarks[0]
    measured = row("spread over seeds").run(Painter(stain=True), 5).measured
    assert measured.rate == 0  # nothing right to count


def test_evenness_is_one_for_equal_counts_and_zero_where_one_choice_is_missing() -> None:
    assert evenness([5, 5]) == evenness([3, 3, 3, 3]) == 1
    assert evenness([9, 0, 9]) == evenness([0, 0]) == 0
    assert evenness([3, 1]) == pytest.approx(0.5) and evenness([1, 1, 6]) == pytest.approx(0.375)


def test_a_preset_is_measured_with_its_cost() -> None:
    for name, policy in PRESETS.items():
        if policy is not None:
            for task in ("generate open", "edit"):
                result = row(f"{task}, cache {name}").run(Painter(), 5)
                assert result.measured.remarks == ("0.40 GFLOP a case counted, 40% of exact sampling's 1.00",)
                assert all(f"{getattr(policy, field.name)}" in result.settings for field in fields(policy))
    for name, policy in SPEEDS.items():
        if policy != EXACT:
            result = row(f"describe, {name}").run(Painter(), 5)
            assert "40% of exact sampling's" in result.measured.remarks[0] and str(policy.threshold) in result.settings


def test_operations_are_counted_attention_too(tmp_path: Path) -> None:
    """Of one pass over L tokens: every weight matrix of the blocks once a token, and twice D a pair of them."""
    runner, _ = load(write_checkpoint(tmp_path))
    cases = [Examiner(runner.encode, *FORMATS[0]).full(0)] * 2
    once = runner.flops(cases, Setup(FORMATS[0], image_cfg=0.0, text=TEXT, steps=1, cfg=0.0))
    length = len(runner.model.tokenizer.encode(prompt_strings(cases[0].prompt, str)[0])) + answer_length(*FORMATS[0])
    config = runner.model.transformer.config
    width, hidden, codes = config.d_model, config.mlp_hidden_size, runner.model.table.codebook_size
    least = (config.n_layers - 1) * length * (2 * (4 * width + 3 * hidden) * width + 4 * length * width)
    most = config.n_layers * length * (2 * (4 * width + 3 * hidden) * width + 4 * length * width)
    assert least < once < most + 2 * length * width * codes
    assert 2 * least < runner.flops(cases, Setup(FORMATS[0], image_cfg=0.0, text=TEXT, steps=2, cfg=0.0)) <= 2 * once
    steps = Setup(FORMATS[0], image_cfg=0.0, text=TEXT, steps=12, cfg=0.0)
    cached = runner.flops(cases, replace(steps, cache=PRESETS["balanced"]))
    assert 0.2 < cached / runner.flops(cases, steps) < 0.8


def test_the_cases_are_what_they_say() -> None:
    examiner = Examiner(Painter().encode, *FORMATS[0])
    for number in range(40):
        assert not held_out(parse_caption(examiner.full(number).asked))
        assert held_out(parse_caption(examiner.held_out(number).asked))
        assert parse_caption(examiner.open(number).asked) is None
        assert parse_caption(examiner.edit(number).asked) is not None
        case = examiner.mistaken(number)
        assert case.asked != case.prompt.text
        case = examiner.hole(number)
        assert bool(case.blank.unknown.any()) and not bool(case.blank.unknown.all())
    assert {examiner.edit(number).part for number in range(5)} == set(KINDS)


def test_the_same_seed_asks_the_same() -> None:
    one, two = (Examiner(Painter().encode, *FORMATS[0]) for _ in range(2))
    assert [one.open(n).asked for n in range(20)] == [two.open(n).asked for n in range(20)]
    assert CASES % (len(open_patterns()) - 1) == 0 and CASES >= 200


def test_a_batch_is_what_singles_are(tmp_path: Path) -> None:
    """Case i of a batch with seed s is a single run with seed s + i, prompts of several lengths notwithstanding."""
    runner, _ = load(write_checkpoint(tmp_path))
    setup = Setup(FORMATS[0], image_cfg=0.0, text=TEXT, steps=3, cfg=1.0)
    examiner = Examiner(runner.encode, *FORMATS[0])
    cases = [examiner.full(0)] * 3
    together = runner.fill(cases, setup)
    assert torch.equal(runner.fill(cases[:1], setup)[0].codes, together[0].codes)
    assert not torch.equal(together[0].codes, together[1].codes)
    mixed = runner.fill([examiner.open(number) for number in range(BATCH // 4)], setup)
    assert all(canvas.codes.shape == (1, 8, 8) and not canvas.unknown.any() for canvas in mixed)


def test_the_command_prints_a_line_per_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint that has learnt nothing runs through the whole, and fails."""
    folder = write_checkpoint(tmp_path)
    options = ["--checkpoint", str(folder), "--cases", "2", "--steps", "2", "--cfg", "1", "--image-cfg", "1"]
    assert main([*options, "--rows", "generate full", "edge map", "inpaint", "temperature 0"]) == 1
    text = capsys.readouterr().out
    for name in ("generate full", "edge map to image", "inpaint", "one picture at temperature 0"):
        assert any(line.startswith(name) for line in text.splitlines()), text
    assert "2 steps" in text and "MISS" in text and "rows are within their limits" in text
    assert text.isascii()
    assert main([*options, "--rows", "control: open in one step"]) == 0


def test_the_command_refuses_what_it_cannot_measure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--checkpoint", str(tmp_path / "nowhere")], ["--rows", "no such row"], ["--cases", "0"]):
        if "--checkpoint" not in options:
            options += ["--checkpoint", str(write_checkpoint(tmp_path / "tiny"))]
        with pytest.raises(SystemExit) as end:
            main(options)
        assert end.value.code == 2
        assert "does not exist" in capsys.readouterr().err or "tiny" in options[-1]


def test_results_are_kept_row_by_row_and_read_again(tmp_path: Path) -> None:
    """What is written is what was measured; a row measured again replaces the old one, others stay."""
    path, order = tmp_path / "results.json", [row.name for row in rows(USUAL)]
    file = ResultFile(path, {"commit": "one"})
    results = [row(name).run(Painter(), 5) for name in ("edit", "generate open")]
    for result in results:
        file.add(result, order)
    kept = json.loads(path.read_text())["rows"]
    assert [one["name"] for one in kept] == ["generate open", "edit"], "in the table's order"
    assert [Result.from_dict(one) for one in kept] == results[::-1]
    assert ResultFile(path, {"commit": "one"}).get(row("edit"), 5) == results[0]
    assert results[0].measured.parts.keys() == set(KINDS)
    for commit, count in (("two", 5), ("one", 6)):
        assert ResultFile(path, {"commit": commit}).get(row("edit"), count) is None, "made otherwise"
    wrong = row("edit").run(Painter(lambda scene: Scene("white")), 5)
    ResultFile(path, {"commit": "two"}).add(wrong, order)
    again = json.loads(path.read_text())["rows"]
    assert again[0] == kept[0] and Result.from_dict(again[1]) == wrong
    assert again[1]["made_with"] == {"commit": "two"}


def test_a_stopped_table_is_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, kept = write_checkpoint(tmp_path / "tiny"), tmp_path / "kept.json"
    options = ["--checkpoint", str(folder), "--cases", "2", "--steps", "1", "--json", str(kept), "--commit", "abc"]
    assert main([*options, "--rows", "edge map to image"]) == 1
    first = json.loads(kept.read_text())
    first["rows"][0]["measured"]["rate"] = 1.0  # as no checkpoint without training is: a sign that the row was reused
    kept.write_text(json.dumps(first))
    assert main([*options, "--rows", "edge map to image", "--resume"]) == 0
    assert "1 of 1 rows" in capsys.readouterr().out
    assert main([*options, "--rows", "edge map to image"]) == 1, "measured again, unless asked to resume"
    assert json.loads(kept.read_text())["rows"][0]["made_with"]["commit"] == "abc"
    kept.write_text("[]")
    with pytest.raises(SystemExit):
        main([*options, "--rows", "edge map to image"])
    assert "list of rows" in capsys.readouterr().err


def test_the_table_names_its_settings() -> None:
    for one in rows(Setup.usual(Defaults(steps=20, cfg=0.5, temperature=0.7), FORMATS[0])):
        first = next(one.run(Painter(), 2).lines())
        assert "px" in first and "temperature" in first and "guidance" in first
