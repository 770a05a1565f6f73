"""App mode, in which newer pages show a template as a form: words in, a picture or words out, no graph in sight.

The page of 0.3.75 has none. nox's browser session unpacks a newer page, which 0.3.75 can serve, and names its folder in
DIMOO_NEWER_PAGE; where COMFYUI_FRONT_END names a page, that one is tested.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from ..comfyhost.client import Client
from ..comfyhost.expect import Results, shows
from ..comfyhost.page import PACK, READY, WATCH, begin, click, open_page, wait_for_end
from ..comfyhost.server import Server

NEWER = os.environ.get("COMFYUI_FRONT_END") or os.environ.get("DIMOO_NEWER_PAGE")
KNOWS = "app.extensionManager && 'linearMode' in app.canvas"  # whether a page has App mode
PICTURE = "[data-testid=linear-center-panel] img"
LARGE = f"[...document.querySelectorAll('{PICTURE}')].find(({{ naturalWidth }}) => naturalWidth === 128)"
SAVED = "() => app.graph.serialize().extra.linearData"


@pytest.fixture(scope="module")
def app_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a page that has App mode."""
    if NEWER is None:
        pytest.skip("No page with App mode here: set COMFYUI_FRONT_END, or run nox -s browser.")
    with Server(tmp_path_factory.mktemp("app_mode"), arguments=("--front-end-root", NEWER)) as server:
        yield server


@pytest.fixture(scope="module")
def app_window(chromium: Any, app_server: Server) -> Iterator[Any]:
    window = open_page(chromium, app_server.url)
    yield window
    window.context.close()


@pytest.fixture
def form(app_window: Any, app_server: Server) -> Any:
    """Opens a template as a form: call it with the template's name."""

    def open_form(name: str) -> Any:
        begin(app_window, app_server.url)
        app_window.goto(f"{app_server.url}/?template={name}&source={PACK}&mode=linear")
        app_window.wait_for_function(READY)
        app_window.get_by_test_id("linear-widgets").wait_for()
        app_window.evaluate(WATCH)
        return app_window

    return open_form


def run(page: Any) -> None:
    button = page.locator("button", has=page.get_by_test_id("linear-run-button-icon"))
    click(button, "seen.queued > 0")
    assert wait_for_end(page) == "execution_success"


def test_text_to_image_is_a_form_that_paints_the_words_typed_into_it(form: Any, app_server: Server) -> None:
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
def test_a_template_saved_under_another_name_still_has_its_form(form: Any, app_server: Server, name: str) -> None:
    page = form(name)
    before = page.evaluate(SAVED)
    assert before["inputs"] and before["outputs"]
    page.evaluate("() => void app.extensionManager.command.execute('Comfy.SaveWorkflowAs')")
    field = page.get_by_role("dialog").get_by_role("textbox")
    field.fill(f"my own {name}")
    page.keyboard.press("Enter")
    stored = f"userdata/workflows%2Fmy%20own%20{name}"
    page.wait_for_function(f"app.extensionManager.workflow.activeWorkflow.path.includes('my own {name}')")
    path = page.evaluate("app.extensionManager.workflow.activeWorkflow.path")
    saved = Client(app_server.url).get(stored + path[path.index(".", path.index("my own")) :]).json()
    assert saved["extra"]["linearData"] == before
