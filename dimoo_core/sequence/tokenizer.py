"""Text to ids and back: a thin wrapper of the checkpoint's `tokenizer.json`."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Encoding, Tokenizer

from ..checks import rust_errors
from .token_table import TokenTable

# Added tokens that the published tokenizer names; where a tokenizer knows the string, its id must be the table's.
_NAMED = {"uncondition": "<uncondition>", "mask": "<|mdm_mask|>", "end_of_text": "<|endoftext|>"}
_MAX_ROUNDS = 100  # of breaking tokens up; with an honest tokenizer one or two do


class TextTokenizer:
    """Text to ids and back, by the checkpoint's `tokenizer.json`.

    The file is a stranger's: whatever the library raises because of it, its panics included, is a ValueError here.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        with rust_errors(_unusable):
            added = tokenizer.get_added_tokens_decoder()
        self._added = {id for id, token in added.items() if len(token.content.strip()) > 1}

    @classmethod
    def from_str(cls, text: str) -> TextTokenizer:
        """From the contents of a `tokenizer.json`; raises ValueError where it is not one."""
        with rust_errors(lambda message: f"not a tokenizer.json: {message}"):
            tokenizer = Tokenizer.from_str(text)
        return cls(tokenizer)

    def encode(self, prompt: str) -> list[int]:
        """Ids of a whole prompt string, tokenised at once as the released code does; nothing is added around it.

        Raises ValueError where the text is not Unicode or the tokenizer fails at it.
        """
        return self._encoding(prompt).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens and ids that the tokenizer does not know leave nothing.

        Raises ValueError where the tokenizer fails at them.
        """
        with rust_errors(_unusable):
            return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def knows(self, word: str) -> bool:
        """Whether a word of plain text comes back as it was. Raises ValueError as `encode` and `decode` do."""
        return self.decode(self.encode(self.defuse(word))) == word

    def defuse(self, text: str) -> str:
        """User's text in which nothing is control: every string that the tokenizer would take for an added token
        (`</user>`, a mask, ...) gets a space after its first character, until none is left.

        Raises ValueError as `encode` does, and where the tokenizer ignores the spaces and finds ever more tokens.
        """
        for _ in range(_MAX_ROUNDS):
            encoding = self._encoding(text)
            spans = [span for id, span in zip(encoding.ids, encoding.offsets, strict=True) if id in self._added]
            cuts = [self._first_visible(text, *span) + 1 for span in spans]
            if not cuts:
                return text
            for cut in reversed(cuts):
                text = f"{text[:cut]} {text[cut:]}"
        raise ValueError(_unusable("it takes plain text for control tokens"))

    def _encoding(self, text: str) -> Encoding:
        half = next((index for index, sign in enumerate(text) if "\ud800" <= sign <= "\udfff"), None)
        if half is not None:
            raise ValueError(
                f"Character {half + 1} of the text is half of a surrogate pair ({text[half]!a}), which is not a "
                "character of its own; delete it."
            )
        with rust_errors(_unusable):
            return self._tokenizer.encode(text, add_special_tokens=False)

    @staticmethod
    def _first_visible(text: str, start: int, stop: int) -> int:
        # A token may swallow white space on its left; a space put after that would not take the token apart.
        span = text[start:stop]
        return start + len(span) - len(span.lstrip())

    def check(self, table: TokenTable, vocab_size: int) -> None:
        """Raises ValueError unless this tokenizer goes with the table and the vocabulary size."""
        closing = self.encode("</user>")
        if len(closing) != 1:
            raise ValueError(
                f"The tokenizer splits '</user>' into {len(closing)} tokens, but images are placed before it as one "
                "token: use the tokenizer.json that belongs to this checkpoint."
            )
        for name, content in _NAMED.items():
            with rust_errors(_unusable):
                id = self._tokenizer.token_to_id(content)
            if id is not None and id != getattr(table, name):
                raise ValueError(
                    f"The tokenizer gives '{content}' the id {id}, the token id table says {name} = "
                    f"{getattr(table, name)}: tokenizer.json and config.json are of different checkpoints."
                )
        with rust_errors(_unusable):
            highest = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        if highest >= vocab_size:
            raise ValueError(
                f"The tokenizer knows ids up to {highest}, the model only {vocab_size} rows: tokenizer.json and the "
                "weights are of different checkpoints."
            )


def _unusable(message: str) -> str:
    return (
        f"The tokenizer.json of this checkpoint cannot be applied ({message}); download the one that belongs to the "
        "checkpoint."
    )
