"""App mode, in which newer pages show a template as a form: words in, a picture or words out, no graph in sight."""

from __future__ import annotations

from typing import Any

import pytest

from ..comfyhost import workflow
from ..comfyhost.expect import Results, shows
from ..comfyhost.page import PACK, READY, WATCH, begin, built_by_page, click, wait_for_end
from ..comfyhost.server import Server

PANEL = "[data-testid=linear-center-panel]"
PICTURE = f"{PANEL} img"
LARGE = f"[...document.querySelectorAll('{PICTURE}')].find(({{ naturalWidth }}) => naturalWidth === 128)"
OPEN = "name => app.extensionManager.workflow.activeWorkflow.path.includes(name)"
COMMAND = "command => void app.extensionManager.command.execute(command)"
SAVED = "() => app.graph.serialize().extra.linearData"
SCORES = f"document.querySelector('{PANEL}').innerText.includes('picture 1: ')"
# The names of a form's fields, once it is the form of these inputs.
FIELDS = """inputs => {
    const fields = [...document.querySelectorAll('[data-testid=app-mode-widget-item]')];
    const shown = fields.map(({ dataset }) => dataset.widgetKey.split(':').slice(-2).join(' '));
    return shown.join() === inputs.join()
        && fields.map(field => field.querySelector('[data-testid=builder-widget-label]').innerText);
}"""


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


def test_best_of_is_a_form_that_shows_the_scores_among_its_results(form: Any) -> None:
    page = form("best-of")
    run(page)
    click(page.get_by_test_id("linear-in-progress-item").filter(has_not=page.locator("img")), SCORES)


def test_no_two_fields_of_a_form_have_one_name(form: Any) -> None:
    page = form("text-to-image")
    for name in workflow.names():
        saved = workflow.load(name)
        saved["extra"]["linearMode"] = True
        built_by_page(page, saved)
        inputs = [f"{node} {widget}" for node, widget, *_ in saved["extra"]["linearData"]["inputs"]]
        names = page.wait_for_function(FIELDS, arg=inputs).json_value()
        assert len(set(names)) == len(names), (name, names)


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
