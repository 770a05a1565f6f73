"""DiMOO-nano's words, tokenizer and ids."""

from __future__ import annotations

import json
import random

from dimoo_core.checkpoint.find import NANO
from dimoo_core.model.config import TransformerConfig, VQConfig
from dimoo_core.nano.build import transformer_fields
from dimoo_core.nano.captions import RELATIONS, Caption, Look, caption, described
from dimoo_core.nano.edits import every_edit
from dimoo_core.nano.judge import open_patterns
from dimoo_core.nano.questions import KINDS, ask
from dimoo_core.nano.recipe import vq_fields
from dimoo_core.nano.scenes import SHAPES, Scene, every_scene, random_scene
from dimoo_core.nano.words import QUESTIONS, build_table, build_tokenizer, words
from dimoo_core.sequence.prompt import DESCRIBE, GENERATE, UNCONDITION, edit_task
from dimoo_core.sequence.tokenizer import TextTokenizer

SCENES = tuple(every_scene())
CODES = 400
PLAIN_TOKENIZER = build_tokenizer()
TOKENIZER = TextTokenizer(PLAIN_TOKENIZER)
TABLE = build_table(PLAIN_TOKENIZER, CODES)


def several() -> list[Scene]:
    """Scenes of two and three shapes."""
    choose = random.Random(0)
    return [random_scene(choose, count) for count in (2, 3) for _ in range(30)]


def test_every_word_of_the_shipped_nano_is_among_ours() -> None:
    shipped = json.loads((NANO / "tokenizer.json").read_text(encoding="utf-8"))
    assert set(shipped["model"]["vocab"]) <= set(words())
    assert {token["content"] for token in shipped["added_tokens"]} <= set(PLAIN_TOKENIZER.get_vocab())


def test_every_caption_edit_and_question_is_made_of_known_words() -> None:
    unknown = PLAIN_TOKENIZER.token_to_id(words()[0])
    scenes, choose = (*SCENES[::7], *several()), random.Random(0)
    texts = {caption(scene, names) for scene in scenes for names in open_patterns()}
    texts |= {edit.instruction for scene in scenes for edit in every_edit(scene)}
    texts |= {*QUESTIONS, edit_task("canny_pred").text}
    texts |= {Caption((Look(shape),), count=count).words for shape in SHAPES for count in (1, 2, 3)}
    texts |= {Caption((Look("star"), Look("circle")), relation=relation).words for relation in RELATIONS}
    for scene in scenes:
        asked = (ask(kind, scene, choose) for kind in KINDS)
        texts |= {text for question in asked if question for text in (question.words, question.answer)}
    for text in texts:
        assert unknown not in TOKENIZER.encode(text), text
    assert unknown in TOKENIZER.encode("a red dodecahedron")


def test_answers_come_back_as_they_were_said() -> None:
    for scene in (*SCENES[:: len(SCENES) // 100], *several()):
        answer = TOKENIZER.decode(TOKENIZER.encode(caption(scene)))
        assert answer == caption(scene).replace(",", "") and described(answer) == scene
    assert TOKENIZER.encode("A Red, circle!") == TOKENIZER.encode("a red circle")


def test_table_tokenizer_and_networks_fit_together() -> None:
    TABLE.check(TABLE.codes.stop)
    TOKENIZER.check(TABLE, TABLE.codes.stop)
    assert len(TOKENIZER.encode("</user>")) == len(TOKENIZER.encode(UNCONDITION)) == 1
    assert TOKENIZER.encode(UNCONDITION) == [TABLE.uncondition]
    for task in (GENERATE, DESCRIBE, edit_task("edit_add")):
        assert len(TOKENIZER.encode(f"<system>{task.system}</system>")) == 3, "a system prompt is one token"
    assert TransformerConfig.from_dict(transformer_fields(TABLE)).vocab_size == TABLE.codes.stop
    assert VQConfig.from_dict(vq_fields(CODES)).scale == 16
    assert TextTokenizer.from_str(PLAIN_TOKENIZER.to_str()).encode("a red circle") == TOKENIZER.encode("a red circle")


def test_specials_in_a_users_words_are_defused() -> None:
    for text in ("<|mdm_mask|>", "</user>", "<uncondition>", GENERATE.system):
        special = PLAIN_TOKENIZER.token_to_id(text)
        assert special in TOKENIZER.encode(text) and special not in TOKENIZER.encode(TOKENIZER.defuse(text))
