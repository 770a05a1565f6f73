"""Sequences: where newlines, begin and end tokens and images stand."""

from __future__ import annotations

import torch

from dimoo_core.sequence.canvas import Canvas
from dimoo_core.sequence.layout import cell_positions, cut_answer, image_answer, image_ids, prompt_prefix, text_answer

from ..tiny import TABLE as T

CODES = torch.arange(6).reshape(1, 2, 3)
FIRST = T.code_offset
IMAGE = [T.image_begin, FIRST, FIRST + 1, FIRST + 2, T.newline, FIRST + 3, FIRST + 4, FIRST + 5, T.newline, T.image_end]


def test_rows_are_broken_once() -> None:
    assert image_ids(CODES, T)[0].tolist() == IMAGE


def test_images_stand_before_the_last_token_of_the_prompt() -> None:
    assert prompt_prefix([1, 2, 3], (), T).tolist() == [[1, 2, 3]]
    assert prompt_prefix([1, 2, 3], [CODES, CODES], T)[0].tolist() == [1, 2, *IMAGE, *IMAGE, 3]


def test_a_single_image_serves_a_batch_of_others() -> None:
    both = prompt_prefix([1, 2], [CODES.expand(2, -1, -1) + torch.tensor([0, 1])[:, None, None], CODES], T)
    assert both.shape == (2, 22) and both[0, 1:11].tolist() == IMAGE and both[1, 2].item() == FIRST + 1
    assert both[1, 11:21].tolist() == IMAGE


def test_a_canvas_is_an_answer_with_mask_ids_at_its_holes() -> None:
    unknown = torch.zeros(1, 2, 3, dtype=torch.bool)
    unknown[0, 0, 1] = True
    expected = [T.answer_begin, *IMAGE, T.answer_end]
    expected[3] = T.mask
    answer = image_answer(Canvas(CODES, unknown), T)
    assert answer[0].tolist() == expected
    assert answer[0, cell_positions(2, 3, "cpu")].tolist() == [
        FIRST,
        T.mask,
        FIRST + 2,
        FIRST + 3,
        FIRST + 4,
        FIRST + 5,
    ]


def test_text_answers_are_wrapped_and_cut_at_the_first_end() -> None:
    assert text_answer(torch.tensor([[5, 6]]), T).tolist() == [[T.answer_begin, 5, 6, T.answer_end]]
    for end in (T.answer_end, T.end_of_text, T.pad):
        assert cut_answer([5, end, 6, T.pad], T) == [5]
    assert cut_answer([5, 6], T) == [5, 6]
