"""DiMOO-nano itself, as it ships: a small part of the judge's table (`nox -s judge`), with limits below what it says.

The limits leave room for 30 cases instead of 210: about three standard deviations.
"""

from __future__ import annotations

import random

import pytest
import torch

from dimoo_core.checkpoint.find import NANO
from dimoo_core.evaluation.runner import Runner, Setup
from dimoo_core.evaluation.table import Row
from dimoo_core.jobs import decode
from dimoo_core.nano.judge import judge_all
from dimoo_core.nano.recipe import edge_scenes
from dimoo_core.nano.scenes import FORMATS, draw, draw_edges, every_scene
from dimoo_core.nano.table import load, rows
from dimoo_core.sequence.canvas import Canvas

pytestmark = pytest.mark.skipif(not NANO.exists(), reason=f"{NANO.relative_to(NANO.parents[2])} is not built yet")

CASES = 30
# row of the table: the least share that must be right and clean
LEAST = {
    "generate full": 0.95,
    "generate full, held out": 0.9,
    "generate open": 0.61,
    "generate open, ML-Cache": 0.24,
    "generate full, other format": 0.95,
    "generate open, other format": 0.54,
    "describe": 0.95,
    "describe, held out": 0.95,
    "edit": 0.93,
    "edge map": 0.95,
    "edge map to image": 0.95,
    "inpaint": 0.9,
    "spread over seeds": 0.5,
    "one picture at temperature 0": 1.0,
}
# controls: the most that may pass
MOST = {
    "control: open in one step": 0.1,
    "control: open, cache never refreshed": 0.1,
    "control: full, judged by another caption": 0.04,
}
# cases, where others than CASES: a spread over six colours does not show in 30 pictures
COUNTS = {"spread over seeds": 90}


@pytest.fixture(scope="module")
def nano() -> tuple[Runner, Setup]:
    return load(NANO)


def row(name: str, setup: Setup) -> Row:
    return next(row for row in rows(setup) if row.name == name)


@pytest.mark.parametrize("name", LEAST)
def test_nano_is_right(name: str, nano: tuple[Runner, Setup]) -> None:
    runner, setup = nano
    chosen = row(name, setup)
    result = chosen.run(runner, COUNTS.get(name, CASES) // chosen.times)
    assert result.measured.rate >= LEAST[name], result


@pytest.mark.parametrize("name", MOST)
def test_controls_fail(name: str, nano: tuple[Runner, Setup]) -> None:
    runner, setup = nano
    result = row(name, setup).run(runner, CASES)
    assert result.measured.rate <= MOST[name], result


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("edges", [False, True], ids=["pictures", "edge maps"])
def test_the_vq_keeps_what_a_picture_shows(form: tuple[int, int], edges: bool, nano: tuple[Runner, Setup]) -> None:
    runner, _ = nano
    scenes = edge_scenes() if edges else random.Random(0).sample(list(every_scene()), 100)
    pictures = torch.stack([(draw_edges if edges else draw)(scene, *form) for scene in scenes])
    verdicts = judge_all(decode(runner.vq, Canvas.from_codes(runner.encode(pictures))), edges=edges)
    assert [verdict.scene for verdict in verdicts] == scenes
    assert all(verdict.clean for verdict in verdicts)


def test_nano_is_small() -> None:
    files = [path for path in NANO.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12 * 2**20
