"""Records in a file: what may be said, what is refused and how, and that files of any size are read piece by piece."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dimoo_core.sequence.prompt import DESCRIBE, EDITS, GENERATE
from dimoo_core.training import records
from dimoo_core.training.records import Item, Record, Turn, parse_record, read_items

FOLDER = Path("data")
RELEASED: dict[str, Any] = {
    "system_prompt": "Generate an image accroding to the text prompt.",
    "user_prompt": "a red fox\n",
    "user_image": "",
    "answer_text": "",
    "answer_image": "codes/fox.pkl",
    "answer_thinking": "",
    "id": 0,
    "len": 35,
}


def parse(value: Any, **options: bool) -> Record:
    return parse_record(Item("a.jsonl line 3", json.dumps(value)), FOLDER, **options)


def written(folder: Path, text: str | bytes, name: str = "a.jsonl") -> Path:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / name


# Our own records ----------------------------------------------------------------------------------------------------


def test_a_picture_from_words() -> None:
    record = parse({"picture": "in/fox.jpg", "prompt": "a red fox"})
    assert (record.picture, record.prompt, record.task) == (FOLDER / "in/fox.jpg", "a red fox", GENERATE)
    assert record.files == [FOLDER / "in/fox.jpg"]


def test_paths_may_be_written_as_on_windows() -> None:
    record = parse({"picture": "in\\fox.jpg", "sources": ["..\\a\\b.png"], "prompt": "a red fox"})
    assert record.files == [FOLDER / "in/fox.jpg", FOLDER / "../a/b.png"]


def test_an_edit_takes_any_number_of_sources_and_says_which_cells_count() -> None:
    words = {"picture": "b.png", "sources": ["a.png", "c.png"], "prompt": "mix them", "mask": "m.png"}
    record = parse(words)
    assert record.files == [FOLDER / name for name in ("b.png", "a.png", "c.png", "m.png")]
    assert record.task.images == 2 and record.task.system == EDITS["edit_replace"].system
    assert parse(words | {"system": "Mix."}).task.system == "Mix."


def test_an_edit_type_brings_its_own_words_and_its_number_of_sources() -> None:
    record = parse({"picture": "b.png", "sources": ["a.png"], "edit": "canny_pred"})
    assert record.task is EDITS["canny_pred"] and record.task.text
    with pytest.raises(ValueError, match="image_ref_transfer takes 2 in sources, not 1: give it as many"):
        parse({"picture": "b.png", "sources": ["a.png"], "edit": "image_ref_transfer"})
    with pytest.raises(ValueError, match="Unknown edit type 'paint'"):
        parse({"picture": "b.png", "sources": ["a.png"], "edit": "paint"})


def test_a_conversation_has_turns_about_its_sources() -> None:
    turns = [{"question": "What is it?", "answer": "a fox"}, {"question": "Its colour?", "answer": "red"}]
    record = parse({"sources": ["a.png"], "turns": turns})
    assert record.turns == (Turn("What is it?", "a fox"), Turn("Its colour?", "red"))
    assert record.task is DESCRIBE


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ([], "[] stands there; expected a JSON object"),
        (7, "7 stands there; expected a JSON object"),
        ({}, "there is no picture to make and no answer to give"),
        ({"picture": "a.png"}, "the picture has no prompt"),
        ({"picture": "a.png", "prompt": " " * 10_001}, "The prompt has 10001 characters"),
        ({"picture": "a.png", "prompt": 7}, "The prompt is of type int"),
        ({"picture": 7, "prompt": "x"}, "picture is 7; expected the path of a file"),
        ({"picture": "a.png", "sources": [["b.png"]], "prompt": "x"}, "sources is ['b.png']; expected the path"),
        ({"picture": "a.png", "promt": "x"}, "there is no field 'promt'; expected some of picture,"),
        (
            {"picture": "a.png", "prompt": "x", "turns": [{"question": "q", "answer": "a"}]},
            "there are picture and turns",
        ),
        ({"sources": ["a.png"], "turns": [{"question": "q"}]}, "turns has {'question': 'q'}; expected"),
        ({"sources": ["a.png"], "turns": [{"question": "q", "answer": ""}]}, "a question or an answer is empty"),
        ({"sources": ["a.png"], "turns": {}}, "turns is {}; expected a list"),
        ({"sources": ["a.png"], "turns": [{"question": "q", "answer": "a"}], "prompt": "x"}, "prompt, edit and mask"),
        ({"picture": "a.png", "prompt": "\ud800"}, "half of a character"),
    ],
)
def test_a_record_that_cannot_be_taught_is_refused_with_its_place(value: Any, complaint: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse(value)
    message = str(refused.value)
    assert message.startswith("a.jsonl line 3: ") and complaint in message and "\n" not in message


@pytest.mark.parametrize("text", ["{", "nonsense", "[" * 100_000])
def test_what_is_no_json_is_refused_with_its_place(text: str) -> None:
    with pytest.raises(ValueError, match=r"^a\.jsonl line 3 is not valid JSON \("):
        parse_record(Item("a.jsonl line 3", text), FOLDER)


# Released records ---------------------------------------------------------------------------------------------------


def test_which_picture_is_empty_tells_the_task_of_a_released_record() -> None:
    made = parse(RELEASED)
    assert (made.picture, made.sources, made.prompt) == (FOLDER / "codes/fox.pkl", (), "a red fox\n")
    edit = parse(RELEASED | {"user_image": "codes/day.pkl"})
    assert edit.sources == (FOLDER / "codes/day.pkl",) and edit.task.images == 1
    asked = parse(RELEASED | {"user_image": ["a.pkl", "b.pkl"], "answer_image": "", "answer_text": "red"})
    assert asked.picture is None and asked.sources == (FOLDER / "a.pkl", FOLDER / "b.pkl")
    assert asked.turns == (Turn("a red fox\n", "red"),)
    with pytest.raises(ValueError, match="user_image and answer_image are both empty"):
        parse(RELEASED | {"answer_image": ""})


def test_the_released_misspelling_is_kept_only_where_it_is_asked_for() -> None:
    assert parse(RELEASED).task is GENERATE
    assert parse(RELEASED, misspelt=True).task.system == RELEASED["system_prompt"]
    assert parse(RELEASED | {"system_prompt": "Paint."}).task.system == "Paint."


# Files --------------------------------------------------------------------------------------------------------------


def test_lines_are_numbered_as_an_editor_numbers_them(tmp_path: Path) -> None:
    path = written(tmp_path, b'\xef\xbb\xbf{"a": 1}\r\n\n  \n{"b": "\xc3\xa9"}')
    assert list(read_items(path)) == [Item("a.jsonl line 1", '{"a": 1}'), Item("a.jsonl line 4", '{"b": "\u00e9"}')]


def test_a_line_that_is_not_utf8_costs_no_other(tmp_path: Path) -> None:
    path = written(tmp_path, b'{"picture": "a.png", "prompt": "caf\xe9"}\n{"picture": "b.png", "prompt": "b"}\n')
    first, second = read_items(path)
    with pytest.raises(ValueError, match=r"a\.jsonl line 1: The prompt has .*not UTF-8"):
        parse_record(first, FOLDER)
    assert parse_record(second, FOLDER).prompt == "b"


@given(
    st.lists(st.dictionaries(st.text(max_size=5), st.one_of(st.text(), st.floats(allow_nan=False)), max_size=3)),
    st.integers(1, 40),
    st.sampled_from([None, 1]),
)
@settings(max_examples=100, deadline=None)
def test_an_array_is_read_whole_whatever_the_pieces(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any], chunk: int, indent: int | None
) -> None:
    path = written(tmp_path_factory.getbasetemp(), f"\ufeff {json.dumps(values, indent=indent)}\n", "a.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "_CHUNK", chunk)
        items = list(read_items(path))
    assert [json.loads(item.text) for item in items] == values
    assert [item.where for item in items] == [f"a.json record {number + 1}" for number in range(len(values))]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "Before a.json record 1 stands the end instead of '['"),
        ('{"a": 1}', "Before a.json record 1 stands '{' instead of '['"),
        ("[1, 2]", "a.json record 1 is not a JSON object"),
        ('[{"a": 1} {"b": 2}]', "Before a.json record 2 stands '{' instead of ','"),
        ('[{"a": 1}, {"b": ]', "a.json record 2 is not valid JSON ("),
        ('[{"a": 1},', "a.json record 2 is not a JSON object"),
        ('[{"a": 1}] [{"b": 2}]', "a.json stands '['; expected one array alone"),
        ("[] x", "a.json stands 'x'; expected one array alone"),
        (b'[{"a": "\xff"}]', "a.json is not UTF-8 text"),
    ],
)
def test_a_broken_array_is_refused_with_the_record(tmp_path: Path, text: str | bytes, complaint: str) -> None:
    with pytest.raises(ValueError) as refused:
        list(read_items(written(tmp_path, text, "a.json")))
    assert complaint in str(refused.value)


def test_records_in_a_pickle_or_of_an_unknown_kind_are_refused(tmp_path: Path) -> None:
    for name in ("a.pkl", "a.pth"):
        with pytest.raises(ValueError, match="is a pickle"):
            list(read_items(written(tmp_path, b"\x80\x04.", name)))
    with pytest.raises(ValueError, match="is not a file of records by its name"):
        list(read_items(written(tmp_path, "a", "a.csv")))
    with pytest.raises(ValueError, match="cannot be read"):
        list(read_items(tmp_path / "none.jsonl"))


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_lines_in_utf16_are_refused_at_once(tmp_path: Path, encoding: str) -> None:
    path = written(tmp_path, '\ufeff{"a": 1}\n'.encode(encoding) * 2)
    with pytest.raises(ValueError, match=r"a\.jsonl is not UTF-8 text; save it as UTF-8"):
        list(read_items(path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no pipes")
def test_nobody_waits_for_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(ValueError, match=r"pipe\.jsonl is not a file; expected one of records"):
        list(read_items(tmp_path / "pipe.jsonl"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_records_are_never_held_together(tmp_path: Path, name: str) -> None:
    line = json.dumps({"picture": "a.png", "prompt": "x" * 1000})
    lines = [line] * 20_000
    path = written(tmp_path, "\n".join(lines) if name == "a.jsonl" else f"[{','.join(lines)}]", name)
    size = path.stat().st_size
    tracemalloc.start()
    assert sum(1 for _ in read_items(path)) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size / 3
