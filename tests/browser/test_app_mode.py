"""App mode, in which newer pages show a template as a form: words in, a picture or words out, no graph in sight."""

from __future__ import annotations

from typing import Any

import pytest

from ..comfyhost.expect import Results, shows
from ..comfyhost.page import PACK, READY, WATCH, begin, click, wait_for_end
from ..comfyhost.server import Server

PICTURE = "[data-testid=linear-center-panel] img"
LARGE = f"[...document.querySelectorAll('{PICTURE}')].find(({{ naturalWidth }}) => naturalWidth === 128)"
OPEN = "name => app.extensionManager.workflow.activeWorkflow.path.includes(name)"
COMMAND = "command => void app.extensionManager.command.execute(command)"
SAVED = "() => app.graph.serialize().extra.linearData"


@pytest.fixture
def form(newer_window: Any, newer_server: Server) -> Any:
    """Opens a template as a form: call it with the template's name."""

    def open_form(name: str) -> Any:
        begin(newer_window, newer_server.url)
        newer_window.goto(f"{newer_server.url}/?template={name}&source={PACK}&mode=linear")
        newer_window.wait_for_function(READY)
        newer_window.get_by_test_id("linear-widgets").wait_for()
        newer_window.evaluate(WATCH)
        return newer_window

    return open_form


def run(page: Any) -> None:
    button = page.locator("button", has=page.get_by_test_id("linear-run-button-icon"))
    click(button, "seen.queued > 0")
    assert wait_for_end(page) == "execution_success"


def test_text_to_image_is_a_form_that_paints_the_words_typed_into_it(form: Any, newer_server: Server) -> None:
    page = form("text-to-image")
    words = page.get_by_test_id("linear-widgets").locator("textarea").first
    assert words.input_value() == "a large red circle on the left on a white background"
    words.fill("a large blue star in the middle on a white background")
    run(page)
    page.wait_for_function(LARGE)
    shown = page.request.get(page.evaluate(f"{LARGE}.src")).body()
    finding = shows("Picture", "a large blue star in the middle on a white background")(Results({"Picture": [shown]}))
    assert finding.right, finding


def test_describe_is_a_form_whose_answer_is_shown_in_words(form: Any) -> None:
    page = form("describe")
    assert page.get_by_test_id("linear-widgets").locator("textarea").first.input_value() == "Describe the image."
    run(page)
    answer = page.get_by_test_id("linear-center-panel").get_by_text("background").first
    answer.wait_for()
    assert answer.inner_text().startswith("a large red circle in the middle on a cyan")


@pytest.mark.parametrize("name", ["text-to-image", "describe"])
def test_a_template_saved_under_another_name_and_opened_again_still_has_its_form(
    form: Any, newer_server: Server, name: str
) -> None:
    page, own = form(name), f"my own {name}"
    before = page.evaluate(SAVED)
    assert before["inputs"] and before["outputs"]
    page.evaluate(COMMAND, "Comfy.SaveWorkflowAs")
    page.get_by_role("dialog").get_by_role("textbox").fill(own)
    page.keyboard.press("Enter")
    page.wait_for_function(OPEN, arg=own)
    begin(page, newer_server.url)
    click(page.get_by_role("button", name="Workflows").first, "name => document.body.innerText.includes(name)", own)
    click(page.get_by_text(own).first, OPEN, own)
    assert page.evaluate(SAVED) == before
    page.evaluate(COMMAND, "Comfy.ToggleLinear")
    page.get_by_test_id("linear-widgets").locator("textarea").first.wait_for()
