"""From samples to the sequences that are trained on, in the layout that a checkpoint learnt.

L sequence, P prefix, H W cells of an answer. What the released training cannot do is done here: answers of 1024 tokens
or more are kept whole, several pictures stand one after another, and a prompt that is cut keeps its `</user>`, before
which pictures stand.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..checks import number_in, printable, shown, whole_number
from ..sequence.canvas import Canvas
from ..sequence.layout import cell_positions, image_answer, prompt_prefix, text_answer
from ..sequence.prompt import GENERATE, Prompt, prompt_strings
from ..sequence.token_table import RELEASED, TokenTable
from ..sequence.tokenizer import TextTokenizer
from .dataset import Sample
from .examples import WHOLE_PROMPT, Condition, draw_condition, ended_answer
from .objective import Section, TrainingSequence

MAX_PROMPT = 1024  # tokens of a prompt's words, as released; pictures come on top
ANSWER_PLACES = 1024  # of a text answer of the published checkpoint
_SPARE = 32  # a text answer of another checkpoint has fewer places than that beyond its end
_MISSPELT = ("according", "accroding")


@dataclass(frozen=True)
class Layout:
    """How samples become sequences.

    places: a text answer is `</answer>` and then pads up to so many places, and nothing closes it, as the published
    checkpoint learnt it; 0: answer end, a few times end of text, and answer end again, as our sampler asks. rows: image
    answers are told from "codes", the code rows, or from "all" rows of the vocabulary, as released. unconditional: the
    share of image answers that learn without a part of their prompt: what one of the guidance branches of the sampler
    leaves out or, `together`, text and pictures at once, as released. misspelt: "accroding to the text prompt", as the
    released training data say. loses_end: a prompt that is cut loses its `</user>`, as released.
    Raises ValueError for a value out of range.
    """

    places: int = 0
    rows: str = "codes"
    unconditional: float = 0.1
    together: bool = False
    misspelt: bool = False
    loses_end: bool = False

    def __post_init__(self) -> None:
        whole_number("places", self.places, 0)
        number_in("unconditional", self.unconditional, 0, 1)
        if self.rows not in ("codes", "all"):
            raise ValueError(f"rows is {shown(self.rows)}; expected codes or all.")

    @classmethod
    def of(cls, table: TokenTable) -> Layout:
        """The layout for a checkpoint with these ids: the published one's text answers for its table, ours else."""
        return cls(places=ANSWER_PLACES if table == RELEASED else 0)


# All as in the released training; its records bring the misspelt system prompt themselves.
RELEASED_LAYOUT = Layout(places=ANSWER_PLACES, rows="all", together=True, loses_end=True)


class Sequences:
    """Builds sequences in the vocabulary of one checkpoint; without a layout in that of `Layout.of`."""

    def __init__(self, tokenizer: TextTokenizer, table: TokenTable, *, layout: Layout | None = None):
        self.tokenizer, self.table = tokenizer, table
        self.layout = Layout.of(table) if layout is None else layout

    def draw(self, sample: Sample, choose: random.Random) -> TrainingSequence:
        """The sequence of a sample; `choose` decides what an image answer's prompt leaves out, and how far behind its
        end a text answer goes on."""
        if isinstance(sample.answer, str):
            return self.build(sample, spare=0 if self.layout.places else int(choose.random() * _SPARE))
        return self.build(sample, self._condition(sample, choose))

    def build(self, sample: Sample, condition: Condition = WHOLE_PROMPT, *, spare: int = 0) -> TrainingSequence:
        """The sequence of a sample that shows what `condition` says of its prompt. `spare`: places behind the end of a
        text answer, where the layout does not fix them.

        Raises ValueError, with the sample's name, where a picture has codes that the checkpoint does not know.
        """
        prefix, cut = self._prefix(sample, condition)
        if isinstance(sample.answer, str):
            return replace(self._text(prefix, sample.answer, spare), cut=cut)
        codes = self._checked(sample.answer[None], sample).codes
        return replace(self._image(prefix, codes, sample.weights), cut=cut)

    def _image(self, prefix: Tensor, codes: Tensor, weights: Tensor | None) -> TrainingSequence:
        """After prefix [P] an image answer, codes [1,H,W] with weights [H,W]."""
        ids = torch.cat((prefix, image_answer(Canvas.from_codes(codes), self.table)[0]))
        _, height, width = codes.shape
        positions = cell_positions(height, width, codes.device) + len(prefix)
        vocab = self.table.codes if self.layout.rows == "codes" else None
        return TrainingSequence(ids, (Section(positions),), vocab, _placed(weights, positions, len(ids)))

    def _text(self, prefix: Tensor, answer: str, spare: int) -> TrainingSequence:
        """After prefix [P] a text answer."""
        words = self.tokenizer.encode(self.tokenizer.defuse(answer))
        if self.layout.places:
            return self._padded(prefix, [*words, self.table.answer_end])
        tokens, weights = ended_answer(words, len(words) + 1 + spare, self.table)
        ids = torch.cat((prefix, text_answer(tokens[None], self.table)[0]))
        positions = torch.arange(len(tokens)) + len(prefix) + 1
        return TrainingSequence(ids, (Section(positions),), weights=_placed(weights, positions, len(ids)))

    def _padded(self, prefix: Tensor, tokens: list[int]) -> TrainingSequence:
        """After prefix [P] an answer as the published checkpoint learnt it."""
        pads = max(0, self.layout.places - len(tokens))
        answer = torch.tensor([self.table.answer_begin, *tokens, *[self.table.pad] * pads])
        own, filling = (torch.arange(len(answer))[1:] + len(prefix)).split([len(tokens), pads])
        sections = [Section(own)]
        if pads:
            sections.append(Section(filling, whole_up_to=0))
        return TrainingSequence(torch.cat((prefix, answer)), tuple(sections))

    def _condition(self, sample: Sample, choose: random.Random) -> Condition:
        if not self.layout.together:
            return draw_condition(choose, self.layout.unconditional, images=bool(sample.prompt.images))
        seen = choose.random() >= self.layout.unconditional
        return Condition(text=seen, images=seen)

    def _prefix(self, sample: Sample, condition: Condition) -> tuple[Tensor, int]:
        """The prefix [P] of a sample, and how many tokens of its words were left out."""
        prompt = self._spelt(sample.prompt)
        text, twin = prompt_strings(prompt, self.tokenizer.defuse)
        ids = self.tokenizer.encode(text if condition.text else twin)
        cut = max(0, len(ids) - MAX_PROMPT)
        if cut:
            ids = ids[:MAX_PROMPT] if self.layout.loses_end else [*ids[: MAX_PROMPT - 1], ids[-1]]
        images = [self._checked(image, sample).codes for image in prompt.images] if condition.images else []
        return prompt_prefix(ids, images, self.table)[0], cut

    def _spelt(self, prompt: Prompt) -> Prompt:
        if not self.layout.misspelt or prompt.task is not GENERATE:
            return prompt
        return replace(prompt, task=replace(prompt.task, system=prompt.task.system.replace(*_MISSPELT)))

    def _checked(self, codes: Tensor, sample: Sample) -> Canvas:
        """A picture of a sample, codes [1,H,W], all of which the checkpoint knows."""
        try:
            canvas = Canvas.from_codes(codes)
            canvas.check(self.table.codebook_size)
        except ValueError as error:
            raise ValueError(f"{printable(sample.name or 'A sample')}: {error}") from None
        return canvas


def _placed(weights: Tensor | None, positions: Tensor, length: int) -> Tensor | None:
    """Weights [...] of the positions [n] in a sequence [length]."""
    if weights is None:
        return None
    return torch.zeros(length).index_copy(0, positions, weights.flatten().float())
