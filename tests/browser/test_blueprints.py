"""The pack's blueprints in the page: found by their names, filled in from outside, run."""

from __future__ import annotations

from typing import Any

import pytest

from ..comfyhost import expect
from ..comfyhost.client import Client
from ..comfyhost.page import add_by_name, press_run, shown, wait_for_end

# Puts a node of ComfyUI's own beside the blueprint's and joins [slot of the one, slot of the other] each.
FEED = """([picture, slots]) => {
    const job = app.graph.nodes[0], node = LiteGraph.createNode('LoadImage');
    app.graph.add(node);
    node.widgets.find(({ name }) => name === 'image').value = picture;
    for (const [from, to] of slots)
        node.connect(from, job, job.inputs.findIndex(({ name }) => name === to));
}"""
SHOW = """type => {
    const job = app.graph.nodes[0], node = LiteGraph.createNode(type);
    node.title = 'Result';
    app.graph.add(node);
    job.connect(0, node, 0);
}"""
# By a widget's label, since pages name a widget of an inner node each in their own way.
SET = """([label, value]) => {
    const named = name => name === label || name.endsWith(`: ${label}`);
    app.graph.nodes[0].widgets.find(({ name }) => named(name)).value = value;
}"""
SEEDS = """() => {
    window.seeds = [];
    const queue = app.api.queuePrompt;
    app.api.queuePrompt = function (number, { output }) {
        seeds.push(...Object.values(output).map(({ inputs }) => inputs.seed).filter(seed => seed !== undefined));
        return queue.apply(this, arguments);
    };
}"""
INNER = "() => app.graphToPrompt().then(({ output }) => Object.values(output))"


def choose(page: Any, **values: Any) -> None:
    for label, value in values.items():
        page.evaluate(SET, [label, value])


def words(page: Any) -> Any:
    """The text field outside; newer pages keep the inner node's, hidden. With Nodes 2.0 its name stands beside it."""
    within, beside = page.get_by_placeholder("text", exact=True), page.get_by_label("text", exact=True)
    return within.or_(beside).locator("visible=true")


def results(page: Any, client: Client) -> expect.Results:
    press_run(page)
    assert wait_for_end(page) == "execution_success"
    return shown(page, client)


def assert_shows(found: expect.Results, wanted: str) -> None:
    finding = expect.shows("Result", wanted)(found)
    assert finding.right, finding


def test_text_to_picture_paints_the_words_that_are_typed(page: Any, client: Client) -> None:
    add_by_name(page, "DiMOO text to picture")
    page.evaluate(SHOW, "PreviewImage")
    words(page).fill("a large blue star in the middle on a white background")
    assert_shows(results(page, client), "a large blue star in the middle on a white background")


def test_edit_does_what_is_chosen_outside_to_the_picture_at_its_own_size(page: Any, client: Client) -> None:
    add_by_name(page, "DiMOO edit")
    page.evaluate(FEED, ["dimoo-circle.png", [[0, "image"]]])
    page.evaluate(SHOW, "PreviewImage")
    choose(page, edit_type="remove something", text="remove the circle")
    found = results(page, client)
    assert_shows(found, "an empty cyan background")
    assert found.pixels("Result").shape == (128, 128, 3)


def test_inpaint_repaints_the_hole_of_a_large_picture(page: Any, client: Client) -> None:
    add_by_name(page, "DiMOO inpaint")
    page.evaluate(FEED, ["dimoo-large.png", [[0, "image"], [1, "mask"]]])
    page.evaluate(SHOW, "PreviewImage")
    choose(page, text="a large blue star in the middle on a white background")
    found = results(page, client)
    assert found.pixels("Result").shape == (256, 512, 3)
    star = expect.shows("Result", "a large blue star in the middle on a white background", (352, 64, 480, 192))(found)
    assert star.right, star


def test_describe_says_what_a_picture_shows(page: Any, client: Client) -> None:
    add_by_name(page, "DiMOO describe")
    page.evaluate(FEED, ["dimoo-circle.png", [[0, "image"]]])
    page.evaluate(SHOW, "PreviewAny")
    assert results(page, client).texts["Result"] == ["a large red circle in the middle on a cyan background"]


def test_randomize_gives_another_seed_and_another_picture_at_each_run(page: Any, client: Client) -> None:
    add_by_name(page, "DiMOO text to picture")
    page.evaluate(SHOW, "PreviewImage")
    words(page).fill("a small green star")
    page.evaluate(SEEDS)
    pictures = [results(page, client).pictures["Result"] for _ in range(2)]
    first, second = page.evaluate("seeds")
    assert first != second
    assert pictures[0] != pictures[1]


@pytest.mark.parametrize(
    ("label", "value"), [("checkpoint", "tiny"), ("width", 256), ("negative", "a circle"), ("seed", 77)]
)
def test_what_is_changed_outside_arrives_inside(page: Any, label: str, value: Any) -> None:
    add_by_name(page, "DiMOO text to picture")
    page.evaluate(SHOW, "PreviewImage")
    choose(page, **{label: value})
    assert value in [node["inputs"].get(label) for node in page.evaluate(INNER)]
