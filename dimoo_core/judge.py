"""Whether a picture shows what was asked, in the model's own judgement: how the best of several is chosen.

A model that both paints and reads can check itself (self-verification, as in dMLLM-TTS, arXiv 2512.19433). The question
takes the same path as any other about a picture.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .jobs import Model, Placement, TextPlan, plan_text
from .sampling.selection import check_finite
from .sampling.text import TextSettings, TextStep
from .sequence.layout import text_answer

QUESTION = 'Does the image show exactly this: "{}"? Answer yes or no.'
ANSWER_TOKENS = 8  # masked tokens that the one pass of a yes-or-no question sees
_ONE_PASS = TextSettings(max_tokens=ANSWER_TOKENS, steps=ANSWER_TOKENS, block_length=ANSWER_TOKENS)
_ANSWERS = (("Yes", "yes", " Yes", " yes"), ("No", "no", " No", " no"))
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Judgement:
    """How well a picture shows a text, 0..1, and the model's own description where it was asked for one."""

    score: float
    description: str = ""


def plan_yes_or_no(model: Model, images: Sequence[Tensor], text: str) -> TextPlan:
    """The question whether the images, codes [1 or B,h,w] each, show `text`."""
    return plan_text(model, images, QUESTION.format(text), _ONE_PASS)


@torch.no_grad()
def yes_or_no(plan: TextPlan, placement: Placement | None = None) -> list[Judgement]:
    """P(yes) / (P(yes) + P(no)) as the first word of the answer to a plan of `plan_yes_or_no`; one judgement per batch
    item, from one pass. Raises ValueError where the model does not know the two words, or computes numbers that are not
    finite."""
    placement, model = placement or Placement(), plan.model
    yes, no = _answer_ids(model)
    if not yes or not no:
        raise ValueError("This model's vocabulary has no words for yes and no; let it judge by its description.")
    device = placement.device or model.device
    network, prefix = model.network_with(model.text_rows([plan.prefix], device)), plan.prefix.to(device)
    masked = prefix.new_full((len(prefix), plan.settings.max_tokens), model.table.mask)
    sequence = torch.cat((prefix, text_answer(masked, model.table)), dim=1)
    first = torch.full_like(prefix[:, :1], prefix.shape[1] + 1)
    logits = network(sequence, rows=first, chunk_rows=placement.chunk_rows)[:, 0].float()
    check_finite(bool(logits.logsumexp(dim=1).isfinite().all()), step=0)
    # of logits, since both shares of the vocabulary may be too small for fp32
    shares = (logits[:, yes].logsumexp(dim=1) - logits[:, no].logsumexp(dim=1)).sigmoid()
    return [Judgement(share) for share in shares.tolist()]


def by_description(
    plan: TextPlan, text: str, placement: Placement | None = None, on_step: TextStep | None = None
) -> list[Judgement]:
    """The share of the words of `text` that are in the model's answer to `plan`, a request to describe; one judgement
    per batch item. For models that were not taught to say yes and no; it also shows why a score is low."""
    return [Judgement(words_kept(text, answer), answer) for answer in plan.run(placement, on_step)]


def words_kept(text: str, answer: str) -> float:
    """The share, 0..1, of the words of `text` that are in `answer`; a word counts as often as it occurs. 1 where `text`
    has no words."""
    wanted, kept = (Counter(_WORD.findall(part.lower())) for part in (text, answer))
    return (wanted & kept).total() / wanted.total() if wanted else 1.0


def _answer_ids(model: Model) -> tuple[list[int], list[int]]:
    """Ids that stand for yes, and ids that stand for no: the spellings that are one token."""
    encoded = [[model.tokenizer.encode(word) for word in words] for words in _ANSWERS]
    yes, no = ({ids[0] for ids in spellings if len(ids) == 1} for spellings in encoded)
    unknown = yes & no  # a small vocabulary has one id for all words that it does not know
    return sorted(yes - unknown), sorted(no - unknown)
