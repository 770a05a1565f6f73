"""From prompts and answers to training batches, in the very sequences that the sampler builds.

The model has no attention mask, hence no padding: all sequences of a batch must be equally long, which the caller
ensures by giving pictures of one size and prompts of one length. B batch, H W cells, h w cells of a prompt's image.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..sequence.canvas import Canvas
from ..sequence.layout import cell_positions, image_answer, one_token_answer, prompt_prefix, text_answer
from ..sequence.prompt import Prompt, prompt_strings
from ..sequence.token_table import TokenTable
from ..sequence.tokenizer import TextTokenizer
from .objective import Batch

FILLER_WEIGHT = 3.0  # of all that follows an answer's end, together: it says nothing and would be most of the loss


@dataclass(frozen=True)
class Condition:
    """What a batch shows of its prompts: the text or its unconditional twin, the images or none."""

    text: bool = True
    images: bool = True


WHOLE_PROMPT = Condition()


def draw_condition(choose: random.Random, unconditional: float, *, images: bool) -> Condition:
    """All of the prompts, or with chance `unconditional` what one of the guidance branches sees of them."""
    chance = choose.random()
    if chance >= unconditional:
        return WHOLE_PROMPT
    return Condition(images=False) if images and chance < unconditional / 2 else Condition(text=False)


def rarity(codes: Tensor) -> Tensor:
    """Weights [B,H,W] for codes [B,H,W]: one by the root of how often the code stands in its own picture.

    Plain background is most of a picture and soon learnt. Only for answers that the prompt decides: where several are
    right, weighing by what came true would teach that rare codes are likelier than they are.
    """
    flat = codes.flatten(1)
    counts = (flat[:, :, None] == flat[:, None, :]).sum(dim=2)
    return counts.float().rsqrt().view(codes.shape)


def ended_answer(words: list[int], length: int, table: TokenTable) -> tuple[Tensor, Tensor]:
    """The tokens [N] of a text answer, and how much each counts: the words, answer end and, up to `length` tokens, end
    of text."""
    filler = length - len(words) - 1
    tokens = torch.tensor([*words, table.answer_end, *[table.end_of_text] * filler])
    weights = torch.ones(length)
    weights[len(words) + 1 :] = min(0.3, FILLER_WEIGHT / max(filler, 1))
    return tokens, weights


class Examples:
    """Builds batches in the vocabulary of one checkpoint."""

    def __init__(self, tokenizer: TextTokenizer, table: TokenTable):
        self.tokenizer, self.table = tokenizer, table

    def images(
        self,
        prompts: Sequence[Prompt],
        codes: Tensor,
        *,
        condition: Condition,
        maskable: Tensor | None = None,
        whole: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Batch:
        """Answers that are pictures: codes [B,H,W]; `maskable` bool [B,H,W] is what may be hidden (None: all),
        `whole` bool [B] of which all of that is, `weights` [B,H,W] how much each cell counts (None: alike)."""
        prefix = torch.cat([self._prefix(prompt, condition) for prompt in prompts])
        ids = torch.cat((prefix, image_answer(Canvas.from_codes(codes), self.table)), dim=1)
        height, width = codes.shape[1:]
        positions = cell_positions(height, width, codes.device) + prefix.shape[1]
        maskable, weights = (None if part is None else part.flatten(1) for part in (maskable, weights))
        return Batch(ids, positions, vocab=self.table.codes, maskable=maskable, whole=whole, weights=weights)

    def texts(self, prompts: Sequence[Prompt], answers: Sequence[str], *, length: int, share: float = 1.0) -> Batch:
        """Answers that are words, each followed by answer end and, up to `length` tokens, by end of text."""
        prefix = torch.cat([self._prefix(prompt, WHOLE_PROMPT) for prompt in prompts])
        rows = [self.words(answer) for answer in answers]
        for answer, row in zip(answers, rows, strict=True):
            if len(row) >= length:
                raise ValueError(f"The answer {answer!r:.80} has {len(row) + 1} tokens; at most {length} fit.")
        tokens, weights = zip(*(ended_answer(row, length, self.table) for row in rows), strict=True)
        ids = torch.cat((prefix, text_answer(torch.stack(tokens), self.table)), dim=1)
        positions = torch.arange(length) + prefix.shape[1] + 1
        return Batch(ids, positions, weights=torch.stack(weights), share=share)

    def one_token(self, prompts: Sequence[Prompt], answers: Sequence[str], *, pads: int, share: float = 1.0) -> Batch:
        """Answers of one token, each with its end and `pads` behind it. Raises ValueError for a longer answer."""
        rows = [self.words(answer) for answer in answers]
        for answer, row in zip(answers, rows, strict=True):
            if len(row) != 1:
                raise ValueError(f"The answer {answer!r:.80} has {len(row)} tokens; expected one.")
        prefix = torch.cat([self._prefix(prompt, WHOLE_PROMPT) for prompt in prompts])
        ids = torch.cat((prefix, one_token_answer(torch.tensor(rows)[:, 0], pads, self.table)), dim=1)
        return Batch(ids, torch.tensor([prefix.shape[1] + 1]), share=share)

    def words(self, text: str) -> list[int]:
        """Ids of an answer's words, in which nothing is control."""
        return self.tokenizer.encode(self.tokenizer.defuse(text))

    def _prefix(self, prompt: Prompt, condition: Condition) -> Tensor:
        text, twin = prompt_strings(prompt, self.tokenizer.defuse)
        ids = self.tokenizer.encode(text if condition.text else twin)
        return prompt_prefix(ids, prompt.images if condition.images else (), self.table)
