"""DiMOO-nano itself, as it ships: a small part of the judge's table (`nox -s judge`), with limits below what it says.

Few cases are asked, and the limits leave room for that: about three standard deviations.
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

CASES = 8
COUNTS = {  # of rows that are not asked CASES
    **dict.fromkeys(("open_exact_16", "open_published", "open_halton_polish_16", "control_one_step"), 12),
    **dict.fromkeys(("describe", "describe_pairs", "questions", "edits_pairs", "edge_map", "from_edges"), 6),
    "edits": 5,  # one of each kind
    "spread_halton_polish_16": 40,  # of six colours, none may be missing by chance
}
# row of the table: the least share that must be right and clean
LEAST = {
    "full": 0.85,
    "held_out": 0.75,
    "open_exact_16": 0.5,
    "open_published": 0.2,
    "open_halton_polish_16": 0.8,
    "single": 0.6,
    "full_wide": 0.75,
    "describe": 0.8,
    "edits": 0.8,
    "edge_map": 0.8,
    "from_edges": 0.8,
    "inpaint": 0.75,
    "spread_halton_polish_16": 0.5,
    "same_at_0": 1.0,
}
# of a nano that has learnt scenes of several figures
LEAST_OF_SEVERAL = {
    "full_pairs": 0.6,
    "held_out_pairs": 0.5,
    "two_objects": 0.45,
    "counting": 0.5,
    "position": 0.5,
    "binding": 0.5,
    "describe_pairs": 0.6,
    "questions": 0.5,
    "edits_pairs": 0.5,
}
# controls: the most that may pass
MOST = {
    "control_one_step": 0.2,
    "control_stale": 0.13,
    "control_full": 0.0,
}
UNCOUNTED = {"spread_halton_polish_16", "same_at_0"}  # they measure something else than what is right


@pytest.fixture(scope="module")
def nano() -> tuple[Runner, Setup]:
    return load(NANO)


def rate(key: str, nano: tuple[Runner, Setup]) -> float:
    """A row's rate with one set of few cases; work is not counted."""
    runner, setup = nano
    chosen = next(row for row in rows(setup) if row.key == key)
    measure = chosen.measure if key in UNCOUNTED else right
    return replace(chosen, measure=measure, seeds=(0,), times=1).run(runner, COUNTS.get(key, CASES)).rate


@pytest.mark.parametrize("key", LEAST)
def test_nano_is_right(key: str, nano: tuple[Runner, Setup]) -> None:
    assert rate(key, nano) >= LEAST[key]


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
    scenes = edge_scenes()[::2] if edges else random.Random(0).sample(list(every_scene()), 30)
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
    scenes = [random_scene(choose, 2 + number % 2) for number in range(30)]
    pictures = torch.stack([draw(scene, *form) for scene in scenes])
    verdicts = judge_all(decode(runner.vq, Canvas.from_codes(runner.encode(pictures))))
    assert [verdict.scene for verdict in verdicts] == scenes
    assert all(verdict.clean for verdict in verdicts)


def test_nano_is_small() -> None:
    files = [path for path in NANO.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12 * 2**20
