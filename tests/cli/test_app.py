"""What stands behind the page: jobs one at a time, and forms that mean what the command line means. No gradio here."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops

from dimoo_core import pipeline
from dimoo_core.cli.app import command
from dimoo_core.cli.app import work as work_module
from dimoo_core.cli.app.desk import Desk, Done, Job, Step, Stopped, Update, Waiting
from dimoo_core.cli.app.work import Workshop, asked, on_easel
from dimoo_core.cli.commands import build_parser
from dimoo_core.cli.main import main
from dimoo_core.pictures.pixels import to_pil
from dimoo_core.provenance import read_metadata

SAMPLING = {"negative": "", "steps": 3, "cfg": 1.5, "temperature": 1.0, "guidance_start": 0.0, "ml_cache": "off"}
SAMPLING |= {"corrections": 0, "polish": 0, "order": "confidence", "shared_noise": 0.0}
FORM = {"prompt": "a red circle", "seed": 5, **SAMPLING}


@pytest.fixture
def job() -> Job:
    return Job(("visitor", "job"))


@pytest.fixture
def workshop(model: Path, here: Path) -> Workshop:
    args = build_parser().parse_args(["app", "--checkpoint", str(model), "--device", "cpu"])
    return Workshop(pipeline.load(model, device="cpu"), args, here)


def picture(path: Path, width: int = 64, height: int = 48) -> Path:
    to_pil(torch.rand(3, height, width, generator=torch.Generator().manual_seed(width))).save(path)
    return path


def changed_cells(before: Path, after: Path | Image.Image) -> list[tuple[int, int]]:
    """(row, column) of the cells in which a pixel differs."""
    with Image.open(before) as one, Image.open(after) if isinstance(after, Path) else after as other:
        difference = ImageChops.difference(one, other)
    corners = [(y, x) for y in range(0, difference.height, 16) for x in range(0, difference.width, 16)]
    return [(y // 16, x // 16) for y, x in corners if difference.crop((x, y, x + 16, y + 16)).getbbox() is not None]


def same(path: Path, other: Image.Image) -> bool:
    with Image.open(path) as one:
        return one.mode == other.mode and ImageChops.difference(one, other).getbbox() is None


# Forms --------------------------------------------------------------------------------------------------------------


def test_a_form_gives_the_picture_of_python_and_the_metadata_of_the_command_line(
    workshop: Workshop, job: Job, model: Path, here: Path
) -> None:
    path = workshop.generate({**FORM, "width": 64, "height": 32}, job)
    settings: Any = {"seed": 5, "steps": 3, "cfg": 1.5, "temperature": 1.0}
    (expected,) = workshop.pipe.generate("a red circle", size=(64, 32), progress=False, **settings)
    assert same(path, expected) and path.name == "generate-5.png"
    typed = ["--size", "64x32", "--seed", "5", "--steps", "3", "--cfg", "1.5", "--temperature", "1"]
    assert main(["generate", "a red circle", *typed, "--checkpoint", str(model), "--device", "cpu"]) == 0
    assert read_metadata(path) == read_metadata(here / "generate-5.png") is not None


def test_an_edit_and_its_metadata(workshop: Workshop, job: Job, model: Path, here: Path) -> None:
    image = picture(here / "a.png")
    edit = {"image": image, "reference": None, "side": 64, "image_cfg": 1.0, "own_size": False}
    path = workshop.edit({**FORM, **edit, "type": "canny_pred", "prompt": "left over"}, job)
    typed = ["--type", "canny_pred", "--seed", "5", "--steps", "3", "--cfg", "1.5", "--image-cfg", "1"]
    typed += ["--temperature", "1", "--side", "64"]
    assert main(["edit", str(image), *typed, "--checkpoint", str(model), "--device", "cpu"]) == 0
    assert read_metadata(path) == read_metadata(here / "edit-5.png") is not None
    with Image.open(here / "edit-5.png") as expected:
        assert same(path, expected)
    whole = workshop.edit({**FORM, **edit, "type": "edit_add", "own_size": True}, job)
    with Image.open(whole) as one:
        assert one.size == (64, 48)


def test_what_is_painted_in_any_layer_is_repainted(workshop: Workshop, job: Job, here: Path) -> None:
    """The easel shows a picture smaller than it is; the layers have its size there."""
    image = picture(here / "a.png", 128, 64)
    layers = [Image.new("RGBA", (64, 32)) for _ in range(2)]
    layers[0].paste((255, 0, 0, 255), (0, 0, 8, 8))
    layers[1].paste((255, 0, 0, 128), (40, 16, 48, 24))
    layers[1].paste((255, 0, 0, 90), (56, 0, 64, 8))  # a brush's soft edge is no wish
    form = {**FORM, "image": image, "easel": {"layers": layers}, "mask": None, "outpaint": False, "grow": 0}
    path = workshop.inpaint(form, job)
    for made in (path, job.shown):  # the last preview is rough, and only where it is repainted
        assert changed_cells(image, made) == [(0, 0), (2, 5)]


def test_an_answer_and_its_words_so_far(workshop: Workshop, job: Job, here: Path) -> None:
    image = picture(here / "a.png")
    form = {"image": image, "question": "what is this", "seed": 0, "max_tokens": 4, "temperature": 0, "cfg": 0}
    answer = workshop.describe({**form, "speed": "exact"}, job)
    assert answer == workshop.pipe.describe(image, "what is this", max_tokens=4, progress=False) == job.shown


def test_previews_come_at_the_size_of_the_picture(workshop: Workshop, job: Job) -> None:
    workshop.generate({**FORM, "width": 64, "height": 32}, job)
    steps = [job.said.get() for _ in range(job.said.qsize())]
    assert [(step.done, step.total, step.shown.size) for step in steps] == [(n, 3, (64, 32)) for n in (1, 2, 3)]
    assert len({step.shown.tobytes() for step in steps}) == 3


@pytest.mark.parametrize(
    ("name", "form", "said"),
    [
        ("generate", {"prompt": " ", "width": 64, "height": 64}, "say what the picture should show"),
        ("generate", {"width": 64, "height": 60}, "multiples of 16"),
        ("edit", {"type": "edit_add", "image": None}, "add the one to edit"),
        ("edit", {"type": "edit_add", "image": Path("a.png"), "prompt": ""}, "say what to change"),
        ("edit", {"type": "image_ref_transfer", "image": Path("a.png"), "reference": None}, "whose style to take"),
        ("inpaint", {"image": None}, "add the one to repaint"),
        ("inpaint", {"image": Path("a.png"), "mask": None, "easel": None}, "paint over a part"),
        (
            "inpaint",
            {"image": Path("a.png"), "mask": None, "easel": {"layers": [Image.new("RGBA", (9, 9))]}},
            "paint over",
        ),
        ("describe", {"image": None}, "add the one to ask about"),
    ],
)
def test_what_a_form_lacks_is_one_sentence(
    workshop: Workshop, job: Job, here: Path, name: str, form: dict[str, Any], said: str
) -> None:
    picture(here / "a.png")
    with pytest.raises(ValueError, match=said) as raised:
        getattr(workshop, name)({**FORM, **form}, job)
    assert str(raised.value).endswith(".") and "\n" not in str(raised.value)


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(
    workshop: Workshop, job: Job, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work_module, "MAX_PIXELS", 64 * 48 - 1)
    image = picture(here / "a.png")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    for use in (lambda: on_easel(image), lambda: workshop.describe({**FORM, "image": image}, job)):
        with pytest.raises(ValueError, match="64x48 px"):
            use()


def test_files_of_yesterday_are_removed(workshop: Workshop, job: Job, here: Path) -> None:
    old, young = here / "old", here / "young"
    for folder, age in ((old, work_module.KEPT + 60), (young, work_module.KEPT - 60)):
        folder.mkdir()
        (folder / "a.png").touch()
        os.utime(folder, (time.time() - age,) * 2)
    workshop.generate({**FORM, "width": 16, "height": 16}, job)
    assert not old.exists() and young.exists()


def test_words_that_the_model_will_not_read_are_not_asked_about() -> None:
    assert asked({"prompt": "a fox", "negative": "a dog"}) == ["a fox", "", "a dog"]
    assert asked({"prompt": "a fox", "negative": "", "type": "canny_pred"}) == ["", ""]
    assert asked({"question": "what is it"}) == ["", "what is it", ""]


# The desk -----------------------------------------------------------------------------------------------------------


class Slow:
    """Work of many steps that goes on when it is told to."""

    def __init__(self) -> None:
        self.go, self.ended = threading.Semaphore(0), threading.Event()

    def __call__(self, job: Job) -> str:
        try:
            for step in range(1, 100):
                self.go.acquire()
                job.report(step, 100)
            return "all"
        finally:
            self.ended.set()


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.stop()


def working(updates: Iterator[Update], slow: Slow) -> Iterator[Update]:
    """The updates of slow work that has done its first step."""
    slow.go.release()
    assert next(updates) == Waiting(0)
    while not isinstance(next(updates), Step):
        pass
    return updates


def test_a_job_can_be_stopped_as_soon_as_it_is_heard_of(desk: Desk) -> None:
    slow = Slow()
    updates = desk.run(("a", "x"), slow)
    assert next(updates) == Waiting(0)
    desk.stop("a")
    slow.go.release()
    assert isinstance(list(updates)[-1], Stopped)


def test_jobs_work_one_after_the_other_and_those_who_wait_are_told(desk: Desk) -> None:
    slow = Slow()
    first = working(desk.run(("a", "x"), slow), slow)
    second, third = (desk.run((name, "x"), lambda job: job.owner[0]) for name in "bc")
    assert (next(second), next(third)) == (Waiting(1), Waiting(2))
    desk.stop("a", "x")
    slow.go.release()
    assert list(first)[-1] == Stopped(2)
    assert list(second)[-1] == Done("b")
    assert list(third)[-1] == Done("c")


def test_one_who_waits_can_be_stopped_and_no_other_is(desk: Desk) -> None:
    slow = Slow()
    first = working(desk.run(("a", "x"), slow), slow)
    second = desk.run(("b", "x"), lambda job: "b")
    assert next(second) == Waiting(1)
    desk.stop("b")
    assert list(second)[-1] == Stopped(0)
    slow.go.release(100)
    assert list(first)[-1] == Done("all")


def test_a_job_that_nobody_watches_any_more_makes_room(desk: Desk) -> None:
    slow = Slow()
    first = working(desk.run(("a", "x"), slow), slow)
    first.close()
    slow.go.release()
    assert slow.ended.wait(10)
    assert list(desk.run(("b", "x"), lambda job: "b"))[-1] == Done("b")


def test_a_desk_is_closed_once_the_last_job_has_stopped(desk: Desk) -> None:
    slow = Slow()
    first, second = working(desk.run(("a", "x"), slow), slow), desk.run(("b", "x"), lambda job: "b")
    assert next(second) == Waiting(1)
    threading.Timer(0.2, slow.go.release).start()
    desk.close()
    assert slow.ended.is_set()
    assert (list(first)[-1], list(second)[-1]) == (Stopped(2), Stopped(0))


def test_an_error_arrives_where_the_job_is_watched_and_the_next_one_works(desk: Desk) -> None:
    def fails(job: Job) -> None:
        job.report(1, 2)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        list(desk.run(("a", "x"), fails))
    assert list(desk.run(("a", "x"), lambda job: 1))[-1] == Done(1)


# The command --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [None, "5.50.0", "7.0.0"])
def test_without_the_right_gradio_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, version: str | None
) -> None:
    def installed(name: str) -> str:
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(metadata, "version", installed)
    assert main(["app"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert 'run `pip install ".[library,app]"`' in line and (version is None or f"gradio {version}" in line)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("--port 70000", "--port is 70000; expected 1 to 65535."),
        ("--port {taken}", "The port {taken} cannot be used: name another after --port, or none for a free one."),
        ("--host 203.0.113.1", "--host is '203.0.113.1'; expected an address of this machine: use 127.0.0.1 or"),
        ("--host a..b", "--host is 'a..b'; expected an address of this machine"),
    ],
)
def test_an_address_that_cannot_be_served_at_is_named_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, typed: str, said: str
) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "6.0.0")
    monkeypatch.setattr(command, "load", lambda args: pytest.fail("loaded"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        assert main(["app", *typed.format(taken=taken).split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said.format(taken=taken) in line
