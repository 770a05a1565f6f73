"""Words that DiMOO-nano was never taught: it answers them with something, so they are named."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from ..checkpoint.find import NANO, find
from ..checkpoint.load import load_tokenizer
from ..nano.scenes import BACKGROUNDS, COLOURS, SHAPES
from ..sequence.tokenizer import TextTokenizer
from .messages import say

_MOST = 8  # named at once
_WORD = re.compile(r"[^\s.,;:!?]+")  # as nano's tokenizer splits
# Both words of these are known, but never stood together: shapes and backgrounds have colours of their own.
_PAIRS = re.compile(
    rf"\b(?:{'|'.join(COLOURS)}) background\b|\bbackground (?:{'|'.join(COLOURS)})\b|"
    rf"\b(?:{'|'.join(BACKGROUNDS)}) (?:{'|'.join(SHAPES)})s?\b|\b(?:{'|'.join(SHAPES)}) (?:{'|'.join(BACKGROUNDS)})\b"
)


KNOWN = f"It knows the shapes {', '.join(SHAPES)} in {', '.join(COLOURS)} on backgrounds in {', '.join(BACKGROUNDS)}."


def name_unknown_words(checkpoint: Path, texts: Iterable[str]) -> None:
    """Say on stderr which words of `texts` the built-in nano does not know, and what it knows; of another checkpoint
    say nothing."""
    remark = unknown_words(checkpoint, texts)
    if remark:
        say(remark, sys.stderr)


def is_nano(checkpoint: Path) -> bool:
    """Whether a checkpoint is the built-in nano."""
    return checkpoint.absolute() == NANO.absolute()


def unknown_words(checkpoint: Path, texts: Iterable[str]) -> str:
    """The sentences that name the words of `texts` that the built-in nano does not know; "" where it knows all, and for
    another checkpoint."""
    if not is_nano(checkpoint):
        return ""
    unknown = [word for text in dict.fromkeys(texts) for word in untaught(text)]
    unknown = list(dict.fromkeys(unknown))
    if not unknown:
        return ""
    named = ", ".join(f"'{word:.40}'" for word in unknown[:_MOST])
    more = f" and {len(unknown) - _MOST} more" if len(unknown) > _MOST else ""
    return f"DiMOO-nano was not taught {named}{more}; the result may show something else. {KNOWN}"


def untaught(text: str) -> list[str]:
    """The words of a text that nano does not know, and pairs of words that it knows only apart."""
    whole = text.encode("utf-8", "ignore").decode()  # half a character is for the job to refuse
    found, tokenizer = _WORD.findall(whole.lower()), _tokenizer()
    return [word for word in found if not tokenizer.knows(word)] + _PAIRS.findall(" ".join(found))


@cache
def _tokenizer() -> TextTokenizer:
    return load_tokenizer(find(NANO))
