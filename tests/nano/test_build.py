"""Building DiMOO-nano: the order of its lessons, and that a build which is stopped makes the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dimoo_core.nano import build as recipe
from dimoo_core.nano.build import FURTHER, TRAINING, build, course
from dimoo_core.nano.lessons import Lessons
from dimoo_core.nano.recipe import centres
from dimoo_core.nano.train_vq import VQTrainSettings
from dimoo_core.nano.words import build_table, build_tokenizer
from dimoo_core.sequence.tokenizer import TextTokenizer
from dimoo_core.training.loop import TrainSettings
from dimoo_core.training.stopping import Stopped

FILES = ("model.safetensors", "vqvae/diffusion_pytorch_model.safetensors", "tokenizer.json", "config.json")
SHORT = TrainSettings(steps=4, decay=0.3)  # the last lesson begins after step 3
TINY = {"d_model": 32, "n_heads": 1, "n_kv_heads": 1, "n_layers": 1, "mlp_hidden_size": 32}


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe of seconds: a tiny transformer, one step of each lesson, hardly any training of the VQ."""
    fields = recipe.transformer_fields
    monkeypatch.setattr(recipe, "transformer_fields", lambda table: fields(table) | TINY)
    monkeypatch.setattr(recipe, "FIRST_WORDS", 1)
    monkeypatch.setattr(recipe, "ALL_PLACES", 2)
    monkeypatch.setattr(recipe, "named_right", lambda vq: (0, 0))  # takes long, and is only reported


def run(folder: Path, stop_at: str = "") -> list[str]:
    """Builds in a folder and returns the lines of progress; Ctrl-C comes with the one that begins as `stop_at` says."""
    torch.seed()  # a sitting is a process of its own
    lines = []

    def report(line: str) -> None:
        lines.append(line)
        if stop_at and line.startswith(stop_at):
            raise KeyboardInterrupt

    vq = VQTrainSettings(steps=1, batch=2)
    build(folder / "run", folder / "made", report=report, vq_trainings=(vq, vq), training=SHORT)
    return lines


def made(folder: Path) -> dict[str, bytes]:
    return {name: (folder / "made" / name).read_bytes() for name in FILES}


def test_a_build_that_is_stopped_makes_the_weights_of_one_that_is_not(tmp_path: Path, short: None) -> None:
    run(tmp_path / "unbroken")
    stops = {"the VQ names": "the VQ is finished and kept"}
    stops |= {f"transformer {step}/": f"step {step} of 4 is kept" for step in (1, 2, 3)}
    for line, kept in stops.items():
        with pytest.raises(Stopped, match=kept):
            run(tmp_path / "stopped", stop_at=line)
    assert not (tmp_path / "stopped" / "made").exists()
    assert [line.split("/")[0] for line in run(tmp_path / "stopped")[:-1]] == ["transformer 4"]
    assert made(tmp_path / "stopped") == made(tmp_path / "unbroken")
    (tmp_path / "stopped" / "made" / "model.safetensors").unlink()
    assert len(run(tmp_path / "stopped")) == 1, "a finished build is only written again"
    assert made(tmp_path / "stopped") == made(tmp_path / "unbroken")


def test_lessons_follow_one_another_as_the_recipe_says() -> None:
    tokenizer = build_tokenizer()
    lessons = Lessons(TextTokenizer(tokenizer), build_table(tokenizer, len(centres())))

    def stages(training: TrainSettings, **options: Any) -> list[tuple[int, object]]:
        return [(until, batches.draw) for until, batches in course(lessons, training, **options).stages]

    falls = 9600
    assert TRAINING.scale(falls) == 1 > TRAINING.scale(falls + 1) > TRAINING.scale(falls + 2)
    assert stages(TRAINING) == [
        (recipe.FIRST_WORDS, lessons.first_words),
        (recipe.ALL_PLACES, lessons.all_places),
        (falls, lessons.half_of_everything),
        (TRAINING.steps, lessons.everything),
    ]
    assert stages(FURTHER, further=True) == [(FURTHER.steps, lessons.everything)]
