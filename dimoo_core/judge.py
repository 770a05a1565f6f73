"""Whether a picture shows what was asked, in the model's own judgement: how the best of several is chosen.

A model that both paints and reads can check itself (self-verification, as in dMLLM-TTS, arXiv 2512.19433). It is asked
through the same path as any other question about a picture.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .jobs import Model, describe
from .sampling.text import TextSettings
from .sequence.layout import prompt_prefix, text_answer
from .sequence.prompt import DESCRIBE, Prompt, prompt_strings

QUESTION = 'Does the image show exactly this: "{}"? Answer yes or no.'
_ANSWERS = (("Yes", "yes", " Yes", " yes"), ("No", "no", " No", " no"))
_WORD = re.compile(r"\w+")


def _answer_ids(model: Model) -> tuple[list[int], list[int]]:
    """Ids that stand for yes, and ids that stand for no: the spellings that are one token."""
    encoded = [[model.tokenizer.encode(word) for word in words] for words in _ANSWERS]
    yes, no = ({ids[0] for ids in spellings if len(ids) == 1} for spellings in encoded)
    unknown = yes & no  # a small vocabulary has one id for all words that it does not know
    return sorted(yes - unknown), sorted(no - unknown)


@torch.no_grad()
def yes_share(
    model: Model,
    images: Sequence[Tensor],
    text: str,
    *,
    places: int = 8,
    device: torch.device | str | None = None,
    chunk_rows: int | None = None,
) -> list[float]:
    """P(yes) / (P(yes) + P(no)) as the first word of the answer to whether the images, codes [1 or B,h,w] each, show
    `text`; one number per batch item. One pass over an answer of `places` masked tokens, on `device` (None: where the
    weights are), `chunk_rows` as for the transformer.

    Raises ValueError where the model does not know the two words.
    """
    ids = _answer_ids(model)
    if not all(ids):
        raise ValueError("This model's vocabulary has no words for yes and no; let it judge by its description.")
    prompt = Prompt(DESCRIBE, QUESTION.format(text), images=tuple(images))
    string, _ = prompt_strings(prompt, model.tokenizer.defuse)
    prefix = prompt_prefix(model.tokenizer.encode(string), prompt.images, model.table)
    prefix = prefix.to(next(model.transformer.parameters()).device if device is None else device)
    masked = prefix.new_full((len(prefix), places), model.table.mask)
    sequence = torch.cat((prefix, text_answer(masked, model.table)), dim=1)
    first = torch.full_like(prefix[:, :1], prefix.shape[1] + 1)
    logits = model.transformer(sequence, rows=first, chunk_rows=chunk_rows)[:, 0].float()
    yes, no = (logits[:, wanted].logsumexp(dim=1) for wanted in ids)
    return (yes - no).sigmoid().tolist()  # of logits, since both shares of the vocabulary may be too small for fp32


def description_share(
    model: Model, images: Sequence[Tensor], text: str, *, question: str, settings: TextSettings, **options: Any
) -> list[tuple[float, str]]:
    """The share of the words of `text` that the model's own description of the images has, and the description; one
    pair per batch item; `options` go to `describe`. For models that were not taught to say yes and no, and for those
    who want to see why."""
    answers = describe(model, images, question, settings=settings, **options)
    return [(words_kept(text, answer), answer) for answer in answers]


def words_kept(text: str, answer: str) -> float:
    """The share, 0..1, of the words of `text` that `answer` has, each as often as it stands there; 1 without words."""
    wanted, said = (Counter(_WORD.findall(part.lower())) for part in (text, answer))
    return (wanted & said).total() / wanted.total() if wanted else 1.0
