"""The page that needs no ComfyUI, as a visitor uses it."""

from __future__ import annotations

import json
import re
import socket
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dimoo_core.cli.app.work import MAX_PIXELS
from dimoo_core.nano.judge import judge, matches
from dimoo_core.nano.scenes import Scene, draw
from dimoo_core.pictures.pixels import load_picture, to_pil
from dimoo_core.provenance import read_metadata

from .conftest import Served

CIRCLE = "a large red circle on a cyan background"
STEP, DONE = re.compile(r"Step \d+ of \d+"), re.compile(r"Done: ")
SHOWN = "() => [...document.querySelectorAll('.result img')].find(one => one.offsetParent)?.src"


@pytest.fixture
def circle(tmp_path: Path) -> Path:
    """A picture of nano's world."""
    path = tmp_path / "circle.png"
    to_pil(draw(Scene.one("cyan", "circle", "red", "large", "in the middle"), 8, 8)).save(path)
    return path


def tab(page: Any, name: str) -> Any:
    """The form behind a tab, in front."""
    page.get_by_role("tab", name=name).click()
    return page.get_by_role("tabpanel").filter(visible=True)


def press(form: Any, name: str) -> None:
    form.get_by_role("button", name=name, exact=True).click()


def setting(form: Any, name: str, value: object) -> None:
    """Type a number, in a slider's field or a plain one."""
    field = form.get_by_label(re.compile(rf"^(number input for )?{re.escape(name)}$"))
    field.fill(str(value))
    field.press("Tab")


def upload(form: Any, path: Path) -> None:
    """Put a picture into the first place for one."""
    form.locator("input[type=file]").first.set_input_files(path)


def with_seed(form: Any, seed: int) -> None:
    form.get_by_label("A new seed each time").uncheck()
    setting(form, "Seed", seed)


def sampling(form: Any) -> None:
    """Unfold the settings."""
    form.get_by_role("button", name="More settings").click()


def long_work(form: Any) -> None:
    """Settings with which a job lasts longer than any test, and each of its steps not long."""
    setting(form, "Width (px)", 512)
    setting(form, "Height (px)", 512)
    sampling(form)
    setting(form, "Steps", 128)
    press(form, "Generate")


def downloaded(page: Any, form: Any, to: Path) -> Path:
    """The picture that came out."""
    with page.expect_download() as download:
        form.locator(".result").get_by_label("Download").click()
    path = to / download.value.suggested_filename
    download.value.save_as(path)
    return path


def paint(page: Any, form: Any) -> None:
    """Draw a stroke through the middle of the red circle, as soon as the editor has it in its place and takes it."""
    canvas = form.locator("#easel canvas").first
    canvas.wait_for()

    def middle() -> tuple[bytes, tuple[int, ...]]:
        page.wait_for_timeout(400)
        picture = canvas.screenshot()
        with Image.open(BytesIO(picture)) as seen:
            return picture, seen.convert("RGB").getpixel((seen.width // 2 - 30, seen.height // 2))

    def settled() -> bool:
        before = middle()
        return before == middle() and before[1][0] > 150 and before[1][2] < 80  # the circle's red

    def until(fine: Callable[[], bool]) -> None:
        assert any(fine() for _ in range(40)), middle()[1]

    until(settled)
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def stroke() -> bool:
        page.mouse.move(x - 40, y)
        page.mouse.down()
        page.mouse.move(x + 40, y, steps=4)
        page.mouse.up()
        return middle()[1][2] > 80  # the brush's pink

    until(stroke)


# A picture from words ------------------------------------------------------------------------------------------------


def test_words_become_a_picture_that_forms_and_says_how_it_was_made(page: Any, tmp_path: Path) -> None:
    form = tab(page, "Text to image")
    form.get_by_label("What the picture should show").fill("a large blue star on a white background")
    with_seed(form, 4)
    sampling(form)
    setting(form, "Steps", 60)
    setting(form, "Polish (passes)", 2)
    form.get_by_label("halton").check()
    press(form, "Generate")
    form.get_by_text(STEP).wait_for()
    page.wait_for_function(SHOWN)
    forming = page.evaluate(SHOWN)
    form.get_by_text(DONE).wait_for()
    page.wait_for_function(f"before => ({SHOWN})() !== before", arg=forming)
    path = downloaded(page, form, tmp_path)
    assert path.name == "generate-4.png"
    verdict = judge(load_picture(path)[0])
    assert matches(verdict.scene, "a large blue star on a white background"), verdict
    made = read_metadata(path)
    assert made is not None and made["command"] == "generate" and made["checkpoint"]["name"] == "DiMOO-nano"
    assert (made["prompt"], made["seed"], made["steps"]) == ("a large blue star on a white background", 4, 60)
    assert (made["polish"], made["order"], made["corrections"], made["shared_noise"]) == (2, "halton", 0, 0)


def test_a_new_seed_is_drawn_and_shown(page: Any) -> None:
    form = tab(page, "Text to image")
    seeds = []
    for _ in range(2):
        press(form, "Generate")
        form.get_by_text(DONE).and_(form.get_by_text(re.compile(f"^(?!.*{seeds[-1] if seeds else 'none'})"))).wait_for()
        seeds.append(form.get_by_label("Seed", exact=True).input_value())
        assert form.get_by_text(DONE).inner_text().endswith(f"seed {seeds[-1]}.")
    assert len({*seeds, "0"}) == 3


def test_words_that_nano_does_not_know_are_named(page: Any) -> None:
    form = tab(page, "Text to image")
    form.get_by_label("What the picture should show").fill("a red fox")
    press(form, "Generate")
    page.get_by_text("DiMOO-nano was not taught 'fox'").wait_for()
    form.get_by_text(DONE).wait_for()


# Waiting and cancelling ----------------------------------------------------------------------------------------------


def test_cancel_stops_within_a_step_and_the_next_picture_comes(page: Any) -> None:
    form = tab(page, "Text to image")
    long_work(form)
    form.get_by_text(STEP).wait_for()
    press(form, "Cancel")
    form.get_by_text(re.compile(r"Cancelled after \d+ step")).wait_for()
    setting(form, "Width (px)", 128)
    setting(form, "Height (px)", 128)
    press(form, "Generate")
    form.get_by_text(DONE).wait_for()


def test_what_has_only_just_begun_can_be_cancelled(page: Any) -> None:
    form = tab(page, "Text to image")
    long_work(form)
    press(form, "Cancel")
    form.get_by_text(re.compile(r"Cancelled after \d+ step")).wait_for()


def test_another_visitor_waits_for_their_turn_and_is_told(visitors: Any) -> None:
    first, second = (tab(visitors(), "Text to image") for _ in range(2))
    long_work(first)
    first.get_by_text(STEP).wait_for()
    press(second, "Generate")
    second.get_by_text("Waiting: one job is before this one.").wait_for()
    press(second, "Cancel")
    second.get_by_text("Cancelled after 0 steps").wait_for()
    assert first.get_by_text(STEP).is_visible(), "only their own job is cancelled"
    press(second, "Generate")
    second.get_by_text("Waiting: one job is before this one.").wait_for()
    press(first, "Cancel")
    second.get_by_text(DONE).wait_for()


def test_nobody_waits_for_a_visitor_who_has_gone(visitors: Any) -> None:
    gone, here = visitors(), visitors()
    long_work(tab(gone, "Text to image"))
    tab(gone, "Text to image").get_by_text(STEP).wait_for()
    gone.close()
    form = tab(here, "Text to image")
    press(form, "Generate")
    form.get_by_text(DONE).wait_for()


# Pictures of one's own -----------------------------------------------------------------------------------------------


def test_what_is_painted_over_changes_and_every_other_pixel_stays(page: Any, circle: Path, tmp_path: Path) -> None:
    form = tab(page, "Inpaint")
    upload(form, circle)
    paint(page, form)
    form.get_by_label("What the whole picture should show").fill("a large green circle on a cyan background")
    press(form, "Inpaint")
    form.get_by_text(DONE).wait_for()
    before, after = load_picture(circle)[0], load_picture(downloaded(page, form, tmp_path))[0]
    changed = (before != after).any(dim=0).view(8, 16, 8, 16).any(dim=3).any(dim=1)  # by cells
    assert changed[3:5, 3:5].all() and 4 <= changed.sum() < 40, changed
    assert not changed[0].any() and not changed[-1].any() and not changed[:, 0].any() and not changed[:, -1].any()


def test_a_mask_can_be_uploaded_and_all_the_rest_repainted(page: Any, circle: Path, tmp_path: Path) -> None:
    mask = torch.zeros(3, 128, 128)
    mask[:, 32:96, 32:96] = 1
    to_pil(mask).save(tmp_path / "mask.png")
    form = tab(page, "Inpaint")
    upload(form, circle)
    form.get_by_role("button", name="A mask from a file").click()
    form.locator("input[type=file]").last.set_input_files(tmp_path / "mask.png")
    form.get_by_label("everything else").check()
    form.get_by_label("What the whole picture should show").fill("a large red circle on a white background")
    press(form, "Inpaint")
    form.get_by_text(DONE).wait_for()
    before, after = load_picture(circle)[0], load_picture(downloaded(page, form, tmp_path))[0]
    inside = mask[0] > 0.5
    assert torch.equal(before[:, inside], after[:, inside]) and not torch.equal(before, after)


def test_a_result_goes_on_to_be_edited_and_described(page: Any) -> None:
    form = tab(page, "Text to image")
    form.get_by_label("What the picture should show").fill(CIRCLE)
    press(form, "Generate")
    form.get_by_text(DONE).wait_for()
    press(form, "Edit this")
    form = tab(page, "Edit")
    form.get_by_label("What to change").fill("make the circle yellow")
    press(form, "Edit")
    form.get_by_text(DONE).wait_for()
    press(form, "Describe this")
    form = tab(page, "Describe")
    press(form, "Describe")
    form.get_by_text(DONE).wait_for()
    assert re.fullmatch(r"a large yellow circle.* on a cyan background", form.locator("textarea").last.input_value())


def test_an_edit_asks_only_for_what_its_kind_takes(page: Any) -> None:
    form = tab(page, "Edit")
    words, second = form.get_by_label("What to change"), form.get_by_text("Picture whose style to take")
    for kind, takes in (
        ("map: canny edges", (False, False)),
        ("style of the reference image", (False, True)),
        ("add something", (True, False)),
    ):
        form.get_by_label("What to do").click()
        page.get_by_role("option", name=kind).click()
        for field, taken in zip((words, second), takes, strict=True):
            field.wait_for(state="visible" if taken else "hidden")


# What goes wrong -----------------------------------------------------------------------------------------------------


def png_header(width: int, height: int) -> bytes:
    """The beginning of a PNG that claims a size."""
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\x00\x00\x00"
    chunk = (13).to_bytes(4, "big") + header + zlib.crc32(header).to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n" + chunk + b"\x00\x00\x00\x00IEND\xaeB`\x82"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b"this is no picture",
            "The file broken.png is not a readable picture (unknown format): save it as PNG or JPEG.",
        ),
        (png_header(30_000, 30_000), "The picture broken.png has "),
        (
            png_header(8_000, 8_000),
            f"The picture has 8000x8000 px; expected at most {MAX_PIXELS // 10**6} million pixels",
        ),
    ],
    ids=["text", "bomb", "large"],
)
def test_a_picture_that_cannot_be_used_is_one_sentence(page: Any, tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "broken.png").write_bytes(content)
    form = tab(page, "Describe")
    upload(form, tmp_path / "broken.png")
    form.locator("button[aria-label='Clear'], button[aria-label='Remove Image']").first.wait_for()
    press(form, "Describe")
    form.get_by_text(said).wait_for()
    assert form.get_by_role("button", name="Describe", exact=True).is_enabled()


def test_what_is_missing_is_said_and_the_form_stays_usable(page: Any, circle: Path) -> None:
    form = tab(page, "Edit")
    press(form, "Edit")
    form.get_by_text("There is no picture: add the one to edit.").wait_for()
    upload(form, circle)
    form.get_by_label("What to change").fill("")
    press(form, "Edit")
    form.get_by_text("There are no words: say what to change.").wait_for()
    form = tab(page, "Inpaint")
    upload(form, circle)
    form.locator("#easel canvas").first.wait_for()
    press(form, "Inpaint")
    form.get_by_text("Nothing is painted: paint over a part of the picture.").wait_for()


def test_a_picture_that_cannot_be_painted_on_is_said_at_once(page: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"this is no picture")
    upload(tab(page, "Inpaint"), tmp_path / "broken.png")
    page.get_by_text("The file broken.png is not a readable picture").wait_for()


def test_a_seed_that_is_none_is_said_and_the_form_goes_on(page: Any) -> None:
    form = tab(page, "Text to image")
    for seed in ("-1", "100000000000000000000"):
        with_seed(form, seed)
        press(form, "Generate")
        form.get_by_text(f"seed is {seed}; expected a whole number from 0 to").wait_for()
    with_seed(form, 7)
    press(form, "Generate")
    form.get_by_text(DONE).wait_for()


def test_half_a_character_is_one_sentence(page: Any) -> None:
    form = tab(page, "Text to image")
    form.get_by_label("What the picture should show").evaluate(
        "box => { box.value = 'a red \\ud83d circle'; box.dispatchEvent(new Event('input')); }"
    )
    press(form, "Generate")
    form.get_by_text("which is half of a character").wait_for()


def test_the_form_can_be_used_again_after_the_server_refused_what_was_sent(page: Any) -> None:
    page.route("**/queue/join*", lambda route: route.continue_(post_data=route.request.post_data.replace("off", "on")))
    form = tab(page, "Text to image")
    press(form, "Generate")
    page.get_by_text("Value: 'on'").wait_for()
    page.unroute("**/queue/join*")
    press(form, "Generate")
    form.get_by_text(DONE).wait_for()


# What the page does not do -------------------------------------------------------------------------------------------


def test_the_page_asks_nobody_but_its_own_server(chromium: Any, served: Served) -> None:
    context = chromium.new_context()
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(served.url)
    for name in ("Edit", "Inpaint", "Describe", "Text to image"):
        tab(page, name)
    press(tab(page, "Text to image"), "Generate")
    page.get_by_text(DONE).wait_for()
    context.close()
    assert asked and [url for url in asked if not url.startswith((served.url, "data:", "blob:"))] == []


@pytest.mark.parametrize("path", ["/etc/passwd", str(Path(__file__)), "errors.txt"])
def test_no_file_of_the_machine_can_be_read(served: Served, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{served.url}gradio_api/file={path}")
    assert refused.value.code in (403, 404)


def test_no_picture_of_the_machine_can_be_used(page: Any, circle: Path, tmp_path: Path) -> None:
    """A path that nobody uploaded, sent by somebody who leaves out what makes gradio check it."""
    secret = tmp_path / "secret.png"
    secret.write_bytes(circle.read_bytes())

    def forge(route: Any) -> None:
        sent = route.request.post_data_json
        forged = [{"path": str(secret)} if isinstance(value, dict) else value for value in sent["data"]]
        route.continue_(post_data=json.dumps({**sent, "data": forged}))

    form = tab(page, "Describe")
    upload(form, circle)
    form.get_by_label("Remove Image").wait_for()
    page.route("**/queue/join*", forge)
    press(form, "Describe")
    page.get_by_text("That picture was not uploaded here.").wait_for()


def uploaded(served: Served, content: bytes, **headers: str) -> int:
    """The status with which the server answers a file that is sent to it."""
    part = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=x", **headers}
    request = urllib.request.Request(
        f"{served.url}gradio_api/upload", data=part + content + b"\r\n--x--\r\n", headers=headers
    )
    try:
        return urllib.request.urlopen(request).status
    except urllib.error.HTTPError as refused:
        return refused.code


def test_an_upload_that_is_too_large_is_refused(served: Served) -> None:
    assert uploaded(served, bytes(64 << 20 >> 10)) == 200
    assert uploaded(served, bytes((64 << 20) + 1)) == 413


def test_no_other_site_can_send_anything(served: Served) -> None:
    assert uploaded(served, b"a", **{"Sec-Fetch-Site": "same-origin"}) == 200
    assert uploaded(served, b"a", **{"Sec-Fetch-Site": "cross-site"}) == 403


def test_other_machines_are_not_let_in(served: Served) -> None:
    port = int(served.url.rstrip("/").rpartition(":")[2])
    with pytest.raises(OSError, match=r"refused"):
        socket.create_connection(("127.0.0.2", port), timeout=5)


def test_ctrl_c_ends_it_quietly_amid_a_job_and_leaves_no_file(page: Any, served: Served) -> None:
    """The last test: it stops what all others use."""
    form = tab(page, "Text to image")
    long_work(form)
    form.get_by_text(STEP).wait_for()
    assert list(served.temporary.iterdir())
    assert served.stop() == (130, "python -m dimoo_core app: stopped; the page is closed.\n")
    assert not list(served.temporary.iterdir())
