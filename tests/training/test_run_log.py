"""The log of a run: lines that are whole and single, a curve whatever there is to draw, TensorBoard where it is."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest
from PIL import Image

from dimoo_core.training.run_log import RunLog, draw_curve, read_log, smoothed


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_each_line_is_there_as_soon_as_it_is_known(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "run")
    log.add(0, held_back_loss=2.5)
    log.add(1, loss=3.0, learning_rate=1e-4)
    assert lines(tmp_path / "run") == [
        {"step": 0, "held_back_loss": 2.5},
        {"step": 1, "loss": 3.0, "learning_rate": 1e-4},
    ]
    assert log.losses() == [3.0]
    assert log.has(0, "held_back_loss") and not log.has(1, "held_back_loss") and not log.has(2, "loss")


def test_lines_of_steps_that_are_made_again_are_dropped(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    for step in (1, 2, 3, 4):
        log.add(step, loss=float(step))
    log.add(2, held_back_loss=9.0)
    again = RunLog(tmp_path, 2)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 2]
    again.add(3, loss=7.0)
    assert again.losses() == [1.0, 2.0, 7.0] == RunLog(tmp_path, 3).losses()


@pytest.mark.parametrize("rest", [b'{"step": 2, "lo', b'{"step": 2, "loss": 1.5}\n\xff\xfe\n', b"[]\n3\n"])
def test_a_line_that_was_cut_off_costs_no_other(tmp_path: Path, rest: bytes) -> None:
    RunLog(tmp_path).add(1, loss=1.0)
    with (tmp_path / "log.jsonl").open("ab") as file:
        file.write(rest)
    log = RunLog(tmp_path, 1)
    log.add(2, loss=2.0)
    assert lines(tmp_path) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}]
    assert read_log(tmp_path / "nowhere.jsonl") == []


def colours(image: Image.Image) -> set[tuple[int, ...]]:
    return {colour for _, colour in image.getcolors(1 << 20)}


def test_the_curve_shows_each_kind_of_loss_in_its_colour() -> None:
    trained = [{"step": step, "loss": 5 - step / 10} for step in range(1, 31)]
    held = [{"step": step, "held_back_loss": 4.0} for step in (0, 10, 20)]
    orange, blue = (0xD9, 0x62, 0x2B), (0x1F, 0x5F, 0xA8)
    assert {orange, blue} <= colours(draw_curve([*trained, *held]))
    assert orange not in colours(draw_curve(trained)) and blue not in colours(draw_curve(held))


@pytest.mark.parametrize(
    "told",
    [[{"step": 0, "held_back_loss": 1.0}], [{"step": 1, "loss": 2.0}], [{"step": 1, "loss": 2.0}] * 2, [{"step": 3}]],
)
def test_there_is_a_curve_of_whatever_there_is(told: list[dict]) -> None:
    assert draw_curve(told).size == (960, 480)


def test_a_curve_that_cannot_be_written_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows a viewer that shows the picture holds it."""
    log = RunLog(tmp_path)
    log.add(1, loss=1.0)
    log.draw()
    before = (tmp_path / "loss.png").read_bytes()

    def held(*_: object) -> None:
        raise PermissionError(13, "in use")

    log.add(2, loss=9.0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", held)
        log.draw()
    assert (tmp_path / "loss.png").read_bytes() == before
    log.draw()
    assert (tmp_path / "loss.png").read_bytes() != before
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["log.jsonl", "loss.png"]


def test_the_mean_is_without_a_bias_to_the_first() -> None:
    assert smoothed([2.0] * 5) == pytest.approx([2.0] * 5)
    assert smoothed([0.0, 1.0])[1] == pytest.approx(1 / 1.95)


class Writer:
    """Stands for TensorBoard's."""

    made: ClassVar[list[Writer]] = []

    def __init__(self, folder: str, purge_step: int):
        self.folder, self.purge_step = folder, purge_step
        self.scalars: list[tuple[str, float, int]] = []
        self.closed = False
        self.made.append(self)

    def add_scalar(self, name: str, number: float, step: int) -> None:
        self.scalars.append((name, number, step))

    def close(self) -> None:
        self.closed = True


def test_tensorboard_gets_the_numbers_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(Writer, "made", [])
    log = RunLog(tmp_path, 4)
    log.add(5, loss=1.0, learning_rate=0.1)
    log.close()
    (writer,) = Writer.made
    assert writer.folder == str(tmp_path / "tensorboard") and writer.closed
    assert writer.scalars == [("loss", 1.0, 5), ("learning_rate", 0.1, 5)]
    assert writer.purge_step == 5, "steps that are made again are not shown twice"


def test_without_tensorboard_nothing_is_said_or_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    log = RunLog(tmp_path)
    log.add(1, loss=1.0)
    log.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", "loss.png"]
    assert capfd.readouterr() == ("", "")
