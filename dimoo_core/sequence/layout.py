"""Token sequences: the only module that knows newlines, begin and end tokens and the code offset.

prompt: text ids, with images before the LAST of them; image: begin, rows each ended by a newline, end;
answer: answer begin, then an image or N text tokens, answer end. B batch, P prefix, H W cells, N text tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .canvas import Canvas
from .token_table import TokenTable


def image_ids(codes: Tensor, table: TokenTable, unknown: Tensor | None = None) -> Tensor:
    """Ids [B, H*(W+1) + 2] of an image: codes [B,H,W] in 0..K-1, `unknown` cells (bool [B,H,W]) as mask ids.

    Rows are broken once. The released understanding script breaks them twice and so loses the last rows; training
    and the authors' evaluation code break once.
    """
    ids = codes + table.code_offset
    if unknown is not None:
        ids = ids.masked_fill(unknown, table.mask)
    batch, height, _ = ids.shape
    rows = torch.cat((ids, ids.new_full((batch, height, 1), table.newline)), dim=2).flatten(1)
    return _wrap(rows, table.image_begin, table.image_end)


def prompt_prefix(prompt_ids: Sequence[int], images: Sequence[Tensor], table: TokenTable) -> Tensor:
    """Prefix ids [B,P]: prompt ids with images (codes [1 or B,h,w] each) before the last of them."""
    batch = max([len(codes) for codes in images], default=1)
    text = torch.tensor(prompt_ids, dtype=torch.int64, device=images[0].device if images else None).expand(batch, -1)
    parts = [image_ids(codes, table).expand(batch, -1) for codes in images]
    return torch.cat((text[:, :-1], *parts, text[:, -1:]), dim=1)


def image_answer(canvas: Canvas, table: TokenTable) -> Tensor:
    """Answer ids [B, H*(W+1) + 4] of a canvas, holes as mask ids."""
    return _wrap(image_ids(canvas.codes, table, canvas.unknown), table.answer_begin, table.answer_end)


def answer_length(height: int, width: int) -> int:
    """How many ids an image answer of height x width cells has."""
    return height * (width + 1) + 4


def cell_positions(height: int, width: int, device: torch.device | str) -> Tensor:
    """Positions [H*W] int64 of the cells, row by row, in an image answer, counted from its answer begin."""
    cells = torch.arange(height * width, device=device)
    return 2 + cells + cells // width  # two begin tokens, and one newline per row above


def text_answer(tokens: Tensor, table: TokenTable) -> Tensor:
    """Answer ids [B,N+2] around text tokens [B,N]; token i is at position 1 + i."""
    return _wrap(tokens, table.answer_begin, table.answer_end)


def one_token_answer(tokens: Tensor, pads: int, table: TokenTable) -> Tensor:
    """Answer ids [B,3+pads] around one text token each, [B]: answer begin, the token at position 1, answer end, pads.

    As in the sequences of the released training, where shorter answers are filled up behind their end; the authors'
    figures for understanding were made so, with one mask and 1023 pads.
    """
    return torch.cat((text_answer(tokens[:, None], table), tokens.new_full((len(tokens), pads), table.pad)), dim=1)


def cut_answer(tokens: Sequence[int], table: TokenTable) -> list[int]:
    """Text tokens up to the first answer end, end of text or pad."""
    ends = [index for index, token in enumerate(tokens) if token in table.ends]
    return list(tokens[: ends[0]] if ends else tokens)


def _wrap(ids: Tensor, begin: int, end: int) -> Tensor:
    column = ids.new_full((len(ids), 1), begin)
    return torch.cat((column, ids, torch.full_like(column, end)), dim=1)
