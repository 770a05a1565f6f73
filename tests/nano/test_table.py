"""DiMOO-nano itself, as it ships: a small part of the judge's table (`nox -s judge`), with limits below what it says.

The limits leave room for 30 cases instead of 210: about three standard deviations.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from dimoo_core.checkpoint.find import NANO
from dimoo_core.evaluation.runner import Runner, Setup
from dimoo_core.jobs import decode
from dimoo_core.nano.judge import judge_all
from dimoo_core.nano.recipe import edge_scenes
from dimoo_core.nano.scenes import FORMATS, draw, draw_edges, every_scene, random_scene
from dimoo_core.nano.table import load, right, rows, unknown_words
from dimoo_core.sequence.canvas import Canvas

pytestmark = pytest.mark.skipif(not NANO.exists(), reason=f"{NANO.relative_to(NANO.parents[2])} is not built yet")

CASES = 30
# row of the table: the least share that must be right and clean
LEAST = {
    "full": 0.95,
    "held_out": 0.9,
    "open_exact_16": 0.61,
    "open_published": 0.24,
    "open_polish_8": 0.7,
    "open_random_polish_16": 0.85,
    "single": 0.8,
    "colours": 0.8,
    "full_wide": 0.95,
    "open_wide": 0.54,
    "describe": 0.95,
    "describe_held_out": 0.95,
    "edits": 0.93,
    "edge_map": 0.95,
    "from_edges": 0.95,
    "inpaint": 0.9,
    "spread_exact_16": 0.5,
    "same_at_0": 1.0,
}
# of a nano that has learnt scenes of several figures
LEAST_OF_SEVERAL = {
    "full_pairs": 0.8,
    "held_out_pairs": 0.7,
    "two_objects": 0.65,
    "counting": 0.7,
    "position": 0.7,
    "binding": 0.7,
    "describe_pairs": 0.8,
    "questions": 0.75,
    "edits_pairs": 0.75,
}
# controls: the most that may pass
MOST = {
    "control_one_step": 0.1,
    "control_stale": 0.1,
    "control_full": 0.04,
}
UNCOUNTED = {"spread_exact_16", "same_at_0"}  # they measure something else than what is right
# cases, where others than CASES: a spread over six colours does not show in 30 pictures
COUNTS = {"spread_exact_16": 90}


@pytest.fixture(scope="module")
def nano() -> tuple[Runner, Setup]:
    return load(NANO)


def rate(key: str, nano: tuple[Runner, Setup], cases: int = CASES) -> float:
    """A row's rate with one set of cases; work is not counted."""
    runner, setup = nano
    chosen = next(row for row in rows(setup) if row.key == key)
    measure = chosen.measure if key in UNCOUNTED else right
    return replace(chosen, measure=measure, seeds=(0,)).run(runner, cases // chosen.times).rate


@pytest.mark.parametrize("key", LEAST)
def test_nano_is_right(key: str, nano: tuple[Runner, Setup]) -> None:
    assert rate(key, nano, COUNTS.get(key, CASES)) >= LEAST[key]


@pytest.mark.parametrize("key", LEAST_OF_SEVERAL)
def test_nano_is_right_about_several_figures(key: str, nano: tuple[Runner, Setup]) -> None:
    if unknown_words(nano[0]):
        pytest.skip("this nano has learnt scenes of one figure")
    assert rate(key, nano) >= LEAST_OF_SEVERAL[key]


@pytest.mark.parametrize("key", MOST)
def test_controls_fail(key: str, nano: tuple[Runner, Setup]) -> None:
    assert rate(key, nano) <= MOST[key]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("edges", [False, True], ids=["pictures", "edge maps"])
def test_the_vq_keeps_what_a_picture_shows(form: tuple[int, int], edges: bool, nano: tuple[Runner, Setup]) -> None:
    runner, _ = nano
    scenes = edge_scenes() if edges else random.Random(0).sample(list(every_scene()), 100)
    pictures = torch.stack([(draw_edges if edges else draw)(scene, *form) for scene in scenes])
    verdicts = judge_all(decode(runner.vq, Canvas.from_codes(runner.encode(pictures))), edges=edges)
    assert [verdict.scene for verdict in verdicts] == scenes
    assert all(verdict.clean for verdict in verdicts)


@pytest.mark.parametrize("form", FORMATS)
def test_the_vq_keeps_several_figures(form: tuple[int, int], nano: tuple[Runner, Setup]) -> None:
    runner, _ = nano
    if unknown_words(runner):
        pytest.skip("this nano has learnt scenes of one figure")
    choose = random.Random(0)
    scenes = [random_scene(choose, 2 + number % 2) for number in range(60)]
    pictures = torch.stack([draw(scene, *form) for scene in scenes])
    verdicts = judge_all(decode(runner.vq, Canvas.from_codes(runner.encode(pictures))))
    assert [verdict.scene for verdict in verdicts] == scenes
    assert all(verdict.clean for verdict in verdicts)


def test_nano_is_small() -> None:
    files = [path for path in NANO.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12 * 2**20
