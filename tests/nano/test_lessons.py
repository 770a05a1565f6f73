"""DiMOO-nano's lessons: words and pictures of a sequence belong together, and nothing that is held out is taught."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import permutations, product

import pytest
import torch
from torch import Tensor

from dimoo_core.jobs import Model, plan_image, plan_text
from dimoo_core.model.config import TransformerConfig
from dimoo_core.model.transformer import Transformer
from dimoo_core.nano.build import transformer_fields
from dimoo_core.nano.captions import RELATIONS, Caption, caption, described, parse_caption
from dimoo_core.nano.cases import GENEVAL, Examiner
from dimoo_core.nano.edits import every_edit
from dimoo_core.nano.judge import open_patterns
from dimoo_core.nano.lessons import ANSWER, Course, Lessons, edges_only, figures_unseen
from dimoo_core.nano.recipe import centres, figures_of, labels_of
from dimoo_core.nano.scenes import (
    BOXES,
    COLOURS,
    FORMATS,
    PLACES,
    SHAPES,
    Scene,
    every_scene,
    held_out,
    held_out_pairs,
    random_scene,
)
from dimoo_core.nano.words import QUESTIONS, build_table, build_tokenizer, words
from dimoo_core.sampling.guidance import Guidance
from dimoo_core.sampling.image import ImageSettings, sample_image
from dimoo_core.sampling.text import TextSettings, sample_text
from dimoo_core.sequence.canvas import Canvas
from dimoo_core.sequence.prompt import DESCRIBE, GENERATE, Prompt, Task, edit_task
from dimoo_core.sequence.tokenizer import TextTokenizer
from dimoo_core.training.objective import Batch

from .reading import answer_to, outline_of, scene_of

PLAIN_TOKENIZER = build_tokenizer()
TOKENIZER = TextTokenizer(PLAIN_TOKENIZER)
TABLE = build_table(PLAIN_TOKENIZER, len(centres()))
LESSONS = Lessons(TOKENIZER, TABLE)
EDIT, EDGES, FROM_EDGES = (edit_task(name) for name in ("edit_add", "canny_pred", "canny_control"))
SYSTEMS = {task.system: task for task in (GENERATE, DESCRIBE, EDIT, EDGES, FROM_EDGES)}


@dataclass(frozen=True)
class Taught:
    """One sequence of a lesson: its ids [L], its task (one edit stands for all), the user's words ("" where it learns
    without them), and the scenes of its pictures, of which the last is the one that is asked for."""

    batch: Batch
    ids: Tensor
    task: Task
    said: str
    scenes: tuple[Scene, ...]


def sequences(steps: int, lesson: Callable[[random.Random], list[Batch]]) -> Iterator[Taught]:
    """All sequences of these steps."""
    choose = random.Random(0)
    for _ in range(steps):
        for batch in lesson(choose):
            for ids in batch.ids:
                task, said = asked(ids)
                yield Taught(batch, ids, task, said, tuple(shown(ids, task)))


@pytest.fixture(scope="module")
def everything() -> list[Taught]:
    return list(sequences(30, LESSONS.everything))


def grids(ids: Tensor) -> list[Tensor]:
    """The codes [H,W] of the pictures in a sequence, in order."""
    found = []
    starts, ends = ((ids == token).nonzero().flatten().tolist() for token in (TABLE.image_begin, TABLE.image_end))
    for start, end in zip(starts, ends, strict=True):
        rows = int((ids[start:end] == TABLE.newline).sum())
        found.append(ids[start + 1 : end].view(rows, -1)[:, :-1] - TABLE.code_offset)
    return found


def asked(ids: Tensor) -> tuple[Task, str]:
    """The task of a sequence (one edit stands for all), and the user's words; none where it learns without them."""
    text = TOKENIZER.decode(ids[: int((ids == TABLE.answer_begin).nonzero()[0, 0])].tolist())
    system = max((system for system in SYSTEMS if text.startswith(system)), key=len)
    return SYSTEMS[system], text.removeprefix(system).strip()


def shown(ids: Tensor, task: Task) -> Iterator[Scene]:
    """The scenes of a sequence's pictures, in order."""
    pictures = grids(ids)
    for number, grid in enumerate(pictures, 1):
        is_answer = number == len(pictures)
        outline = task is EDGES if is_answer else task is FROM_EDGES
        yield outline_of(grid) if outline else scene_of(grid)


def answered(taught: Taught) -> str:
    """The words of a text answer."""
    answer = taught.ids[int((taught.ids == TABLE.answer_begin).nonzero()[0, 0]) + 1 :].tolist()
    end = answer.index(TABLE.answer_end)
    assert set(answer[end + 1 :]) <= {TABLE.end_of_text, TABLE.answer_end, TABLE.pad}
    return TOKENIZER.decode(answer[:end])


@pytest.mark.parametrize(
    ("lesson", "places", "forms"),
    [(LESSONS.first_words, PLACES, FORMATS[:1]), (LESSONS.all_places, BOXES, FORMATS)],
    ids=["first words", "all places"],
)
def test_first_lessons_say_everything_of_up_to_three_shapes(
    lesson: Callable[[random.Random], list[Batch]], places: tuple[str, ...], forms: tuple[tuple[int, int], ...]
) -> None:
    counts, seen, formats = Counter(), set(), set()
    for one in sequences(30, lesson):
        (scene,) = one.scenes
        assert one.task is GENERATE and (not one.said or described(one.said) == scene) and not held_out(scene)
        counts[len(scene.figures)] += 1
        seen |= {(figure.place, len(scene.figures) > 1) for figure in scene.figures}
        formats |= {tuple(grid.shape) for grid in grids(one.ids)}
    assert counts[1] > 60 and counts[2] > 200 and counts[3] > 200
    assert seen == {*product(places, (False, True))} and formats == {*forms}


def test_no_lesson_shows_or_says_what_is_held_out(everything: list[Taught]) -> None:
    seen, pairs = Counter(), set()
    for one in everything:
        told = described(one.said if one.batch.vocab is not None else answered(one))
        coloured = [] if one.task in (EDGES, FROM_EDGES) else one.scenes  # an edge map's scene stands for many
        assert not any(held_out(scene) for scene in (*coloured, *([told] if told else [])))
        seen.update(one.scenes)
        for scene in one.scenes:
            pairs |= {*permutations([(figure.shape, figure.colour) for figure in scene.figures], 2)}
    taught = [scene for scene in every_scene() if not held_out(scene)]
    assert sum(bool(seen[scene]) for scene in taught) > 0.6 * len(taught), "much of all else of one shape is shown"
    looks = len(SHAPES) * len(COLOURS)
    assert len(pairs) > 0.97 * (looks**2 - len(held_out_pairs())), "and all other pairs"
    assert not pairs & held_out_pairs()


def test_words_and_pictures_of_a_lesson_belong_together(everything: list[Taught]) -> None:
    seen = Counter()
    for one in everything:
        assert len({grid.shape for grid in grids(one.ids)}) == 1, "one format in one sequence"
        *sources, scene = one.scenes
        if one.task is DESCRIBE:
            described_so = one.said in QUESTIONS
            wanted = caption(scene).replace(",", "") if described_so else answer_to(one.said, scene)
            assert answered(one) == wanted, one.said
        elif one.task is EDGES:
            assert not sources or edges_only(sources[0]) == scene
        elif one.task is EDIT:
            if sources and one.said:
                assert (one.said, scene) in [(edit.instruction, edit.result) for edit in every_edit(sources[0])]
        else:
            assert not one.said or parse_caption(one.said).fits(scene), (one.said, scene)
            assert not sources or edges_only(scene) == sources[0]
        seen[one.task, min(len(scene.figures), 2), bool(one.said), bool(sources)] += 1
    assert {task for task, *_ in seen} == set(SYSTEMS.values())
    assert min(seen[EDIT, number, True, True] for number in (1, 2)) > 80
    assert min(seen[task, 1, True, True] for task in (EDGES, FROM_EDGES)) > 30
    without, given = (sum(seen[GENERATE, number, said, False] for number in (1, 2)) for said in (False, True))
    assert 0.03 < without / (without + given) < 0.16, "some without words, for guidance"


def test_lessons_teach_every_kind_of_caption_and_question(everything: list[Taught]) -> None:
    kinds, lengths = Counter(), set()
    for one in everything:
        if one.task is DESCRIBE:
            kinds[" ".join(one.said.split()[:2])] += 1
            lengths.add((one.said in QUESTIONS, len(one.batch.positions)))
        elif one.task is GENERATE and (found := parse_caption(one.said)):
            kinds["count" if found.count else found.relation or f"{len(found.looks)} listed"] += 1
    assert {"how many", "what colour", "where is", "is there", "is the", "which of"} <= set(kinds)
    assert min(kinds[name] for name in (*RELATIONS, "count", "1 listed", "2 listed", "3 listed")) > 20, kinds
    assert {length for described_so, length in lengths if not described_so} == {1, 16, 32}, "in one token, too"
    assert {length for described_so, length in lengths if described_so} == {16, 32, 64, 128}


def test_rare_codes_count_more_only_where_the_words_decide_the_picture(everything: list[Taught]) -> None:
    """Where several pictures are right, this would teach that rare codes are likelier than they are."""
    seen = Counter()
    for one in everything:
        if one.task is GENERATE:
            weighed = one.batch.weights is not None
            assert weighed == bool(one.said and described(one.said)), one.said
            seen[weighed] += 1
    assert min(seen.values()) > 100


def test_lessons_are_sequences_of_known_tokens(everything: list[Taught]) -> None:
    unknown = PLAIN_TOKENIZER.token_to_id(words()[0])
    for one in everything:
        assert int(one.ids.min()) >= 0 and int(one.ids.max()) < TABLE.codes.stop
        assert unknown not in one.ids and TABLE.mask not in one.ids
        weights, maskable = one.batch.weights, one.batch.maskable
        assert weights is None or bool((weights >= 0).all() and (weights.sum(dim=1) > 0).all())
        assert maskable is None or bool(maskable.any(dim=1).all())
    longest = max(len(one.ids) for one in everything)
    assert longest <= transformer_fields(TABLE)["max_sequence_length"]


def first_pass(taught: Taught) -> list[Tensor]:
    """What the sampler gives the network to compute in its first pass over what the sequence asks for: the ids [L] of
    the prompt, and for pictures those without its words, and without its pictures."""
    small = {"d_model": 32, "n_heads": 1, "n_kv_heads": 1, "n_layers": 1, "mlp_hidden_size": 32}
    config = TransformerConfig.from_dict(transformer_fields(TABLE) | small)
    network, seen = Transformer(config, code_offset=TABLE.code_offset), []

    def recording(ids: Tensor, **how: object) -> Tensor:
        seen.append(ids[0])
        return network(ids, **how)

    pictures, model = [grid[None] for grid in grids(taught.ids)], Model(network, TOKENIZER, TABLE, (128, 160))
    if taught.task is DESCRIBE:
        length = len(taught.batch.positions)
        settings = TextSettings(max_tokens=length, steps=1, block_length=length)
        plan = plan_text(model, pictures, taught.said, settings)
        sample_text(recording, TABLE, plan.prefix, settings=settings)
        return seen
    *sources, answer = pictures
    words = "" if taught.task.text else taught.said or "a circle"
    prompt = Prompt(taught.task, words, images=tuple(sources or [answer])[: taught.task.images])
    settings = ImageSettings(steps=1, guidance=Guidance(1.0, 1.0))
    plan = plan_image(model, prompt, Canvas.empty(1, *answer.shape[1:]), settings)
    sample_image(recording, TABLE, plan.canvas, plan.prefix, plan.branches, settings=settings)
    return seen


def test_lessons_are_the_sequences_that_the_sampler_builds(everything: list[Taught]) -> None:
    seen, one_of_each = Counter(), {id(one.batch): one for one in everything}.values()
    for one in list(one_of_each)[:160]:
        begin = int((one.ids == TABLE.answer_begin).nonzero()[0, 0])
        if len(one.batch.positions) == 1:
            one_token = [TABLE.answer_begin, int(one.ids[begin + 1]), TABLE.answer_end, *[TABLE.pad] * (ANSWER - 1)]
            assert one.ids[begin:].tolist() == one_token and one.batch.positions.tolist() == [begin + 1]
            assert torch.equal(one.ids[:begin], first_pass(one)[0][:begin])
            seen["one token"] += 1
            continue
        hidden = one.ids.clone()
        hidden[one.batch.positions] = TABLE.mask
        whole = one.said and len(one.scenes) > one.task.images - (one.task is DESCRIBE)
        passes = first_pass(one)
        assert any(torch.equal(hidden, ids) for ids in (passes[:1] if whole else passes[1:])), one.said
        seen[one.task if whole else "guidance"] += 1
    assert set(seen) == {*SYSTEMS.values(), "guidance", "one token"}


def parts_said(said: Caption) -> tuple[object, ...]:
    """What a caption says, whatever it says there."""
    looks = tuple((look.size is None, look.colour is None, look.place is None) for look in said.looks)
    return looks, said.background is None, said.count is None, RELATIONS.index(said.relation or "above") // 2


def test_the_examiner_asks_in_captions_that_lessons_have() -> None:
    """Whether a combination is new is to be told from whether the way to say it is."""
    drawn = (LESSONS.one, LESSONS.open, LESSONS.two_or_three, LESSONS.open_pair, LESSONS.counted, LESSONS.related)
    lessons = sequences(120, lambda choose: [lesson(choose, 1) for lesson in drawn])
    taught = {parts_said(parse_caption(one.said)) for one in lessons if one.said}
    examiner = Examiner(lambda picture: labels_of(Scene("white"), *FORMATS[0])[None], *FORMATS[0])
    kinds = ["full", "held_out", "open", "bare", "full_pairs", "held_out_pairs", "hole"]
    for kind in [*kinds, *GENEVAL, *(f"{kind}_held_out" for kind in GENEVAL)]:
        for number in range(15):
            text = getattr(examiner, kind)(number).prompt.text
            assert parts_said(parse_caption(text)) in taught, (kind, text)


@pytest.mark.parametrize("form", FORMATS)
def test_half_made_pictures_hide_whole_figures_or_any_cells(form: tuple[int, int]) -> None:
    choose, bare, every = random.Random(0), [], 0
    figures = Counter()
    scenes = [random_scene(choose, count) for count in (1, 2, 3) for _ in range(200)]
    for scene in scenes:
        hidden, whole = figures_unseen(choose, scene, *form)
        assert hidden.shape == form and hidden.any() and (whole or hidden.all()), "a share of all cells is hidden"
        every += not whole
        if whole:
            owner = figures_of(scene, *form)
            bare.append(hidden[owner == 0].float().mean())
            for number in range(1, len(scene.figures) + 1):
                part = hidden[owner == number]
                figures["unseen" if part.all() else "in part" if part.any() else "seen"] += 1
    assert 0.27 < every / len(scenes) < 0.39
    assert abs(torch.stack(bare).mean() - 2 / math.pi) < 0.04, "of the background cos(pi r / 2) is hidden, r uniform"
    assert figures["unseen"] > 3 * figures["seen"] > figures["in part"] > 0


def test_one_seed_is_one_lesson() -> None:
    first, again = (LESSONS.everything(random.Random(5)) for _ in range(2))
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(first, again, strict=True))


def test_a_course_goes_from_lesson_to_lesson_and_stays_with_the_last() -> None:
    class Named:
        def __init__(self, name: str):
            self.name = name

        def step(self, number: int) -> str:
            return f"{self.name} {number}"

    course = Course([(2, Named("words")), (5, Named("places"))])
    assert [course.step(number) for number in (0, 1, 2, 4, 5, 90)] == [
        *("words 0", "words 1", "places 2", "places 4", "places 5", "places 90"),
    ]


def test_open_captions_of_one_shape_leave_any_part_unsaid() -> None:
    said = {one.said: one.scenes[0] for one in sequences(120, lambda choose: [LESSONS.open(choose, 4)]) if one.said}
    seen = {names for text, scene in said.items() for names in open_patterns() if text == caption(scene, names)}
    assert seen == {*open_patterns()} - {()}
