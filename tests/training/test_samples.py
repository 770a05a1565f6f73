"""Samples: what is asked for, one sheet of all of them, and what of an earlier run stays."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from dimoo_core import jobs
from dimoo_core.checkpoint.find import find
from dimoo_core.checkpoint.load import load_tokenizer, load_transformer, load_vq
from dimoo_core.pipeline import PlacedVQ
from dimoo_core.sampling.image import ImageSettings
from dimoo_core.sequence.prompt import DESCRIBE, GENERATE, Prompt
from dimoo_core.training.dataset import Sample, edit_prompt
from dimoo_core.training.samples import Request, Samples, requests_of, sheet

from ..tiny import write_checkpoint

GRID = torch.zeros(2, 3, dtype=torch.int64)
REQUESTS = [Request(Prompt(GENERATE, "a fox"), 2, 3), Request(Prompt(GENERATE, "a hat"), 2, 2, seed=4)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[jobs.Model, PlacedVQ]:
    found = find(write_checkpoint(tmp_path_factory.mktemp("tiny")))
    model = jobs.Model(load_transformer(found), load_tokenizer(found), found.table, found.defaults.sides)
    return model, PlacedVQ(load_vq(found), torch.device("cpu"))


def made(folder: Path, model: tuple[jobs.Model, PlacedVQ], step: int, kept: int = 0) -> list[Image.Image]:
    samples = Samples(folder, REQUESTS, ImageSettings(steps=2), model[1], step=kept)
    return samples.make(step, lambda: model[0], pytest.fail)


def test_requests_are_the_first_different_prompts_that_ask_for_pictures() -> None:
    edit = edit_prompt("remove it", (GRID[None],))
    samples = [
        Sample(Prompt(DESCRIBE, "what is it?", images=(GRID[None],)), "a fox"),
        Sample(Prompt(GENERATE, "a fox"), GRID),
        Sample(Prompt(GENERATE, "a fox"), GRID),
        Sample(edit, GRID),
        Sample(Prompt(GENERATE, "a hat"), GRID),
    ]
    first, second = requests_of(samples, 2, seed=7)
    assert (first.prompt.text, first.height, first.width, first.seed) == ("a fox", 2, 3, 7)
    assert second.prompt is edit and second.seed == 8
    assert requests_of(samples[:1], 2) == []


def test_a_step_is_made_once_and_is_known_to_be(tmp_path: Path, model: tuple[jobs.Model, PlacedVQ]) -> None:
    samples = Samples(tmp_path, REQUESTS, ImageSettings(steps=2), model[1])
    assert not samples.made(0)
    pictures = samples.make(0, lambda: model[0], pytest.fail)
    assert [picture.size for picture in pictures] == [(48, 32), (32, 32)] and samples.made(0)
    again = made(tmp_path / "again", model, 0)
    assert [one.tobytes() for one in again] == [one.tobytes() for one in pictures], "prompts and seeds are fixed"


def test_samples_of_steps_that_are_made_again_are_dropped(tmp_path: Path, model: tuple[jobs.Model, PlacedVQ]) -> None:
    for step in (0, 2, 4):
        made(tmp_path, model, step, kept=step)
    (tmp_path / "samples" / "mine.png").write_bytes(b"not ours")
    made(tmp_path, model, 3, kept=2)
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == ["mine.png", *(f"step-{step:06d}-{number}.png" for step in (0, 2, 3) for number in (1, 2))]


def test_the_sheet_has_a_row_for_each_step_and_shrinks_what_is_large() -> None:
    rows = {20: [Image.new("RGB", (100, 60), "red")], 3: [Image.new("RGB", (100, 60), "blue")] * 2}
    image = sheet(rows)
    assert image.size == (2 * 102, 2 * (18 + 60))
    assert image.getpixel((50, 40)) == (0, 0, 255) and image.getpixel((50, 18 + 60 + 40)) == (255, 0, 0)


def test_large_samples_are_small_on_the_sheet(tmp_path: Path, model: tuple[jobs.Model, PlacedVQ]) -> None:
    samples = Samples(tmp_path, [Request(Prompt(GENERATE, "a fox"), 2, 40)], ImageSettings(steps=2), model[1])
    (picture,) = samples.make(0, lambda: model[0], pytest.fail)
    assert picture.size == (640, 32)
    assert Image.open(tmp_path / "samples.png").size == (258, 18 + 13)
    assert Image.open(tmp_path / "samples" / "step-000000-1.png").size == (640, 32), "the file is as it was made"


def test_where_there_is_nothing_to_make_a_line_says_so(tmp_path: Path, model: tuple[jobs.Model, PlacedVQ]) -> None:
    lines: list[str] = []
    samples = Samples(tmp_path, [], ImageSettings(steps=2), model[1])
    assert samples.make(3, lambda: model[0], lines.append) == [] and samples.made(3)
    assert lines == ["no samples at step 3: there is no prompt to make them of"]


def test_what_cancels_a_sample_passes(tmp_path: Path, model: tuple[jobs.Model, PlacedVQ]) -> None:
    class Cancelled(Exception):
        pass

    def on_step(*_: object) -> None:
        raise Cancelled

    samples = Samples(tmp_path, REQUESTS, ImageSettings(steps=2), model[1])
    with pytest.raises(Cancelled):
        samples.make(0, lambda: model[0], pytest.fail, on_step)
    assert not samples.made(0)
