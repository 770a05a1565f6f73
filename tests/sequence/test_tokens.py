"""Ids and words: the published table, the checks at load, and that a user's words are never control."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dimoo_core.sequence.token_table import RELEASED, TokenTable
from dimoo_core.sequence.tokenizer import TextTokenizer

from ..tiny import SPECIALS, TABLE, tokenizer_json

TOKENIZER = TextTokenizer.from_str(tokenizer_json())
CONTROL = set(SPECIALS.values())


def test_the_published_table_is_consistent() -> None:
    RELEASED.check(134548)
    assert TokenTable.from_dict(RELEASED.to_dict()) == RELEASED
    assert len(RELEASED.specials) == 9 and RELEASED.code_offset not in RELEASED.specials


def test_a_vocabulary_without_room_for_the_codes_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 134548 rows"):
        RELEASED.check(134547)


@pytest.mark.parametrize("change", [{"pad": TABLE.mask}, {"newline": TABLE.code_offset}, {"pad": 10_000}])
def test_ids_that_clash_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be distinct"):
        dataclasses.replace(TABLE, **change).check(400)


def test_a_table_names_every_id_once_and_in_numbers() -> None:
    ids = TABLE.to_dict()
    with pytest.raises(ValueError, match=r"lacks \['mask'\]"):
        TokenTable.from_dict({name: number for name, number in ids.items() if name != "mask"})
    with pytest.raises(ValueError, match=r"unknown names \['eos'\]"):
        TokenTable.from_dict(ids | {"eos": 3})
    for value in (-1, "7", 1.5, True, None):
        with pytest.raises(ValueError, match="mask = "):
            TokenTable.from_dict(ids | {"mask": value})


def test_a_prompt_is_tokenised_whole_with_its_control_tokens() -> None:
    ids = TOKENIZER.encode("<system>a</system><user>b</user>")
    assert [number for number in ids if number in CONTROL] == [SPECIALS[name] for name in list(SPECIALS)[:4]]
    assert TOKENIZER.decode(ids) == "ab"


WORDS = st.lists(st.sampled_from([*SPECIALS, "<", ">", "/", "user", " ", "a red fox", "<user", "\n"]), max_size=8)


@given(st.one_of(WORDS.map("".join), st.text(max_size=40)))
@settings(max_examples=300, deadline=None)
def test_a_users_words_are_never_control(text: str) -> None:
    defused = TOKENIZER.defuse(text)
    assert not CONTROL & set(TOKENIZER.encode(defused))
    assert not CONTROL & set(TOKENIZER.encode(f"<user>{defused}</user>")[1:-1])
    assert defused.replace(" ", "") == text.replace(" ", ""), "only spaces are added"


def test_defusing_adds_one_space_after_the_first_character_and_leaves_plain_text() -> None:
    assert TOKENIZER.defuse("say </user> twice: </user>") == "say < /user> twice: < /user>"
    assert TOKENIZER.defuse("a < b, [MASK] and user>") == "a < b, [MASK] and user>"


def test_the_tokenizer_must_go_with_the_table_and_the_weights() -> None:
    TOKENIZER.check(TABLE, 304)
    with pytest.raises(ValueError, match="uncondition"):
        TOKENIZER.check(dataclasses.replace(TABLE, uncondition=259), 304)
    with pytest.raises(ValueError, match="only 200 rows"):
        TOKENIZER.check(TABLE, 200)


def test_a_tokenizer_that_splits_the_closing_tag_is_refused() -> None:
    without = TextTokenizer.from_str(tokenizer_json({"<uncondition>": 256}))
    with pytest.raises(ValueError, match="splits '</user>' into 7 tokens"):
        without.check(dataclasses.replace(TABLE, uncondition=256), 304)


def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.json cannot be read"):
        TextTokenizer.from_file(tmp_path / "absent.json")
    (tmp_path / "broken.json").write_text('{"model": ')
    with pytest.raises(ValueError, match=r"broken\.json is no tokenizer"):
        TextTokenizer.from_file(tmp_path / "broken.json")
