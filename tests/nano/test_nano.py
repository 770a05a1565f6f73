"""DiMOO-nano's world and lessons: what can be distinguished, what training never sees, and the words it knows."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, islice, product

import pytest
import torch
from torch import Tensor

from dimoo_core.model.config import TransformerConfig, VQConfig
from dimoo_core.nano.build import transformer_fields
from dimoo_core.nano.judge import open_patterns
from dimoo_core.nano.lessons import Lessons, edges_only, shape_unseen
from dimoo_core.nano.recipe import centres, edge_scenes, labels_of, vq_batches, vq_fields
from dimoo_core.nano.scenes import (
    BACKGROUNDS,
    COLOURS,
    FORMATS,
    PLACES,
    SHAPES,
    SIZES,
    Scene,
    caption,
    draw,
    draw_edges,
    every_edit,
    every_scene,
    held_out,
    parse_caption,
)
from dimoo_core.nano.words import QUESTIONS, build_table, build_tokenizer, words
from dimoo_core.sequence.prompt import DESCRIBE, GENERATE, UNCONDITION, Task, edit_task
from dimoo_core.sequence.tokenizer import TextTokenizer
from dimoo_core.training.objective import Batch

SCENES = tuple(every_scene())
HELD_OUT = frozenset(scene for scene in SCENES if held_out(scene))
CODES = 400
PLAIN_TOKENIZER = build_tokenizer()
TOKENIZER = TextTokenizer(PLAIN_TOKENIZER)
TABLE = build_table(PLAIN_TOKENIZER, CODES)


def fingerprint(picture: Tensor) -> bytes:
    """A picture as it would be stored: 8 bits a channel."""
    return (picture * 255).round().to(torch.uint8).numpy().tobytes()


@pytest.fixture(scope="module")
def pictures() -> dict[tuple[int, int], dict[bytes, Scene]]:
    """Every scene's picture, by format."""
    return {form: {fingerprint(draw(scene, *form)): scene for scene in SCENES} for form in FORMATS}


# ----------------------------------------------------------------------------------------------------- the scenes


def test_the_world_has_every_combination_once() -> None:
    shown = len(SHAPES) * len(COLOURS) * len(SIZES) * len(PLACES) * len(BACKGROUNDS)
    assert len(SCENES) == len(set(SCENES)) == shown + len(BACKGROUNDS) == 1446


@pytest.mark.parametrize("form", FORMATS)
def test_every_scene_has_a_picture_of_its_own(pictures: dict, form: tuple[int, int]) -> None:
    assert len(pictures[form]) == len(SCENES)


@pytest.mark.parametrize("form", FORMATS)
def test_every_outline_has_an_edge_map_of_its_own(form: tuple[int, int]) -> None:
    maps = {fingerprint(draw_edges(scene, *form)) for scene in edge_scenes()}
    assert len(maps) == len(edge_scenes()) == 1 + len(SHAPES) * len(SIZES) * len(PLACES)
    scene = Scene("cyan", "star", "purple", "large", "at the top")
    assert torch.equal(draw_edges(scene, *form), draw_edges(edges_only(scene), *form)), "colours do not show"


def test_captions_are_distinct_and_tell_all() -> None:
    captions = [caption(scene) for scene in SCENES]
    assert len(set(captions)) == len(SCENES)
    assert [parse_caption(text) for text in captions] == list(SCENES)
    assert parse_caption("  " + captions[-1].replace(" ", "  ")) == SCENES[-1]
    for text in ("", "a circle", captions[-1] + " please", caption(SCENES[-1], ["size"])):
        assert parse_caption(text) is None


def test_open_captions_leave_out_what_they_say_and_no_more() -> None:
    scene = Scene("pink", "star", "blue", "small", "on the left")
    said = {"size": "small", "colour": "blue", "place": "on the left", "background": "on a pink background"}
    for names in open_patterns():
        text = caption(scene, names)
        assert text.startswith("a ") and "star" in text and "  " not in text
        assert all((part in text) == (name not in names) for name, part in said.items())


def test_edits_change_what_they_say() -> None:
    scene = Scene("pink", "star", "blue", "small", "on the left")
    edits = {edit.instruction: edit.result for edit in every_edit(scene)}
    assert edits["make the star red"] == replace(scene, colour="red")
    assert edits["replace the star with a circle"] == replace(scene, shape="circle")
    assert edits["make the background white"] == replace(scene, background="white")
    assert edits["remove the star"] == Scene("pink")
    assert len(edits) == 1 + 5 + 3 + 5 and scene not in edits.values()
    added = {edit.instruction: edit.result for edit in every_edit(Scene("pink")) if edit.kind == "add"}
    assert added["add a small blue star on the left"] == scene and len(added) == 4 * 6 * 2 * 5


# ------------------------------------------------------------------------------------------------ what is held out


def test_held_out_combinations_are_spread_evenly() -> None:
    kept = {(scene.shape, scene.colour, scene.background) for scene in HELD_OUT}
    assert len(kept) == 12 and len(HELD_OUT) == 12 * len(SIZES) * len(PLACES), "in every size and place"
    for part, names, times in ((0, SHAPES, 3), (1, COLOURS, 2), (2, BACKGROUNDS, 2)):
        assert Counter(combination[part] for combination in kept) == dict.fromkeys(names, times)
    assert not any(held_out(Scene(background)) for background in BACKGROUNDS)
    for one, two in combinations(range(3), 2):
        taught = {(c[one], c[two]) for c in product(SHAPES, COLOURS, BACKGROUNDS) if c not in kept}
        assert len(taught) == len({(c[one], c[two]) for c in product(SHAPES, COLOURS, BACKGROUNDS)}), "pairs are seen"


def test_vq_batches_show_nothing_held_out(pictures: dict) -> None:
    kept = {mark for form in FORMATS for mark, scene in pictures[form].items() if scene in HELD_OUT}
    known = {mark for form in FORMATS for mark in pictures[form]}
    shown = 0
    for pixels, labels in islice(vq_batches(12, seed=3), 40):
        marks = [fingerprint(picture) for picture in pixels]
        assert not kept.intersection(marks)
        shown += sum(mark in known for mark in marks)
        assert labels.shape == (12, pixels.shape[2] // 16, pixels.shape[3] // 16)
    assert shown >= 400, "the check knows the pictures it is shown"


# How a scene is marked in the grids below: its number in the first two cells, the kind of picture in the third.
KEYS = [(scene, False, *form) for scene in SCENES for form in FORMATS]
KEYS += [(scene, True, *form) for scene in edge_scenes() for form in FORMATS]


def marked_grid(number: int) -> Tensor:
    _, _, height, width = KEYS[number]
    grid = torch.full((height, width), 7)
    grid[0, 0], grid[0, 1] = divmod(number, CODES)
    return grid


LESSONS = Lessons(TOKENIZER, TABLE, {key: marked_grid(number) for number, key in enumerate(KEYS)})


def keys_of(ids: Tensor) -> list[tuple[Scene, bool, int, int]]:
    """Which pictures stand in a sequence, in order."""
    starts = (ids == TABLE.image_begin).nonzero().flatten().tolist()
    return [KEYS[int((ids[at + 1] - TABLE.code_offset) * CODES + ids[at + 2] - TABLE.code_offset)] for at in starts]


def sequences(steps: int) -> Iterator[tuple[Batch, Tensor]]:
    for step in range(steps):
        for batch in LESSONS.draw(random.Random(step)):
            yield from ((batch, ids) for ids in batch.ids)


SYSTEMS = {
    task.system: task for task in (GENERATE, DESCRIBE, *map(edit_task, ("edit_add", "canny_pred", "canny_control")))
}


def asked(ids: Tensor) -> tuple[Task, str]:
    """The task of a sequence (one edit stands for all), and the user's words; none where it learns without them."""
    text = TOKENIZER.decode(ids[: int((ids == TABLE.answer_begin).nonzero()[0, 0])].tolist())
    system = max((system for system in SYSTEMS if text.startswith(system)), key=len)
    return SYSTEMS[system], text.removeprefix(system).strip()


def answered(batch: Batch, ids: Tensor) -> Scene | None:
    """The scene that a text answer tells of."""
    answer = ids[batch.positions].tolist()
    end = answer.index(TABLE.answer_end)
    assert set(answer[end + 1 :]) <= {TABLE.end_of_text}
    return parse_caption(TOKENIZER.decode(answer[:end]))


def test_no_lesson_shows_or_says_what_is_held_out() -> None:
    shown, said = Counter(), set()
    for batch, ids in sequences(120):
        for scene, edges, _, _ in keys_of(ids):
            assert edges or scene not in HELD_OUT, scene
            shown[scene, edges] += 1
        assert parse_caption(asked(ids)[1]) not in HELD_OUT
        if batch.vocab is None:
            assert answered(batch, ids) not in HELD_OUT
            said.add(answered(batch, ids))
    taught = [scene for scene in SCENES if scene not in HELD_OUT]
    assert sum(bool(shown[scene, False]) for scene in taught) > 0.97 * len(taught), "all else is shown"
    assert len(said) > 300 and sum(edges for _, edges in shown) == len(edge_scenes()) - 1


def test_words_and_pictures_of_a_lesson_belong_together() -> None:
    seen = Counter()
    for batch, ids in sequences(40):
        task, words = asked(ids)
        (*sources, target) = keys_of(ids)
        assert all(source[2:] == target[2:] for source in sources), "one format in one sequence"
        scene, source = target[0], sources[0][0] if sources else None
        if task is DESCRIBE:
            assert words in QUESTIONS and answered(batch, ids) == scene
        elif task is SYSTEMS[edit_task("canny_pred").system]:
            assert target[1] and (source is None or edges_only(source) == scene)
        elif task is SYSTEMS[edit_task("edit_add").system]:
            if source and words:
                assert (words, scene) in [(edit.instruction, edit.result) for edit in every_edit(source)]
        else:
            captions = [caption(scene, names) for names in open_patterns()]
            assert not words or words in captions
            assert source is None or edges_only(scene) == source
        seen[task.name, bool(words), bool(sources)] += 1
    assert {name for name, _, _ in seen} == {task.name for task in SYSTEMS.values()}
    assert min(seen[name, True, True] for name in ("edit_add", "canny_pred", "canny_control")) > 50
    unsaid = seen["text_to_image", False, False]
    assert 0.05 < unsaid / (unsaid + seen["text_to_image", True, False]) < 0.2, "about a tenth without words"


def test_lessons_are_sequences_of_known_tokens() -> None:
    unknown = PLAIN_TOKENIZER.token_to_id(words()[0])
    sizes = []
    for batch, ids in sequences(30):
        assert int(ids.min()) >= 0 and int(ids.max()) < TABLE.codes.stop
        assert unknown not in ids and TABLE.mask not in ids and TABLE.pad not in ids
        assert batch.weights is None or bool((batch.weights >= 0).all() and (batch.weights.sum(dim=1) > 0).all())
        assert batch.maskable is None or bool(batch.maskable.any(dim=1).all())
        sizes.append(len(ids))
    assert max(sizes) <= transformer_fields(TABLE)["max_sequence_length"]


@pytest.mark.parametrize("form", FORMATS)
def test_half_made_pictures_of_open_words_show_background_alone_or_any_cells(form: tuple[int, int]) -> None:
    choose, shown, every = random.Random(0), [], 0
    for scene in SCENES[6::3]:
        hidden, whole = shape_unseen(choose, scene, *form)
        assert hidden.shape == form and (whole or hidden.all()), "any cells may be hidden: a share of them will be"
        every += not whole
        behind = labels_of(scene, *form) == labels_of(Scene(scene.background), *form)
        assert hidden[~behind].all(), "nothing of the shape is given away"
        shown.append((~hidden).sum() / behind.sum())
    shares = torch.stack(shown)
    assert 0.33 < every / len(shares) < 0.47
    # of the background 1 - cos(pi r / 2) stands, r uniform: 1 - 2 / pi in the mean, times three in five
    assert abs(shares.mean() - 0.6 * (1 - 2 / math.pi)) < 0.04 and shares.max() > 0.95


def test_one_seed_is_one_lesson() -> None:
    first, again = (LESSONS.draw(random.Random(5)) for _ in range(2))
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(first, again, strict=True))


# --------------------------------------------------------------------------------------------------------- words


def test_every_caption_edit_and_question_is_made_of_known_words() -> None:
    unknown = PLAIN_TOKENIZER.token_to_id(words()[0])
    texts = {caption(scene, names) for scene in SCENES for names in open_patterns()}
    texts |= {edit.instruction for scene in SCENES for edit in every_edit(scene)}
    texts |= {*QUESTIONS, edit_task("canny_pred").text}
    for text in texts:
        assert unknown not in TOKENIZER.encode(text), text
    assert unknown in TOKENIZER.encode("a red dodecahedron")


def test_answers_come_back_as_they_were_said() -> None:
    for scene in SCENES[:: len(SCENES) // 100]:
        assert TOKENIZER.decode(TOKENIZER.encode(caption(scene))) == caption(scene)
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


# --------------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize("form", FORMATS)
def test_cells_of_one_look_share_a_label_on_every_background(form: tuple[int, int]) -> None:
    for shape, size, place in product(SHAPES, SIZES, PLACES):
        grids = {name: labels_of(Scene(name, shape, "red", size, place), *form) for name in BACKGROUNDS}
        plain = {name: labels_of(Scene(name), *form) for name in BACKGROUNDS}
        behind = {name: grids[name] == plain[name][0, 0] for name in BACKGROUNDS}
        for name in BACKGROUNDS:
            assert len(plain[name].unique()) == 1
            assert torch.equal(behind[name], behind["white"]) and behind[name].any() and not behind[name].all()
            assert torch.equal(grids[name][~behind[name]], grids["white"][~behind[name]])
    assert len({int(labels_of(Scene(name), *form)[0, 0]) for name in BACKGROUNDS}) == len(BACKGROUNDS)


@pytest.mark.parametrize("form", FORMATS)
def test_labels_tell_every_scene_apart(form: tuple[int, int]) -> None:
    grids = {tuple(labels_of(scene, *form).flatten().tolist()) for scene in SCENES}
    assert len(grids) == len(SCENES)
    maps = {tuple(labels_of(scene, *form, edges=True).flatten().tolist()) for scene in edge_scenes()}
    empty = tuple(labels_of(Scene("black"), *form).flatten().tolist())
    assert len(maps) == len(edge_scenes()) and maps & grids == {empty}


def test_labels_are_codes_and_each_is_used() -> None:
    grids = [labels_of(scene, *form) for scene in SCENES for form in FORMATS]
    grids += [labels_of(scene, *form, edges=True) for scene in edge_scenes() for form in FORMATS]
    used = torch.cat([grid.flatten() for grid in grids]).unique()
    assert torch.equal(used, torch.arange(len(centres())))


def test_a_label_stands_where_the_shape_stands() -> None:
    scene = Scene("white", "square", "blue", "small", "on the left")
    behind = labels_of(scene, 8, 8) == labels_of(Scene("white"), 8, 8)
    assert (~behind).nonzero().tolist() == [[3, 0], [3, 1], [4, 0], [4, 1]]
