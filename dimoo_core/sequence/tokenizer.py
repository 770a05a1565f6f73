"""Text to ids and back: a thin wrapper of the checkpoint's `tokenizer.json`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Encoding, Tokenizer

from .token_table import TokenTable

# Added tokens that the published tokenizer names; where a tokenizer knows the string, its id must be the table's.
_NAMED = {"uncondition": "<uncondition>", "mask": "<|mdm_mask|>", "end_of_text": "<|endoftext|>"}


class TextTokenizer:
    """Text to ids and back, by the checkpoint's `tokenizer.json`."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._added = {number for number, token in added.items() if len(token.content.strip()) > 1}

    @classmethod
    def from_file(cls, path: str | Path) -> TextTokenizer:
        """Reads `tokenizer.json`; raises ValueError where the file is absent or is no tokenizer."""
        try:
            return cls.from_str(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"The tokenizer file {path} cannot be read ({error.strerror}): download it.") from error
        except ValueError as error:
            raise ValueError(f"The file {path} is no tokenizer ({error}): download it again.") from error

    @classmethod
    def from_str(cls, text: str) -> TextTokenizer:
        """From the contents of a `tokenizer.json`; raises ValueError where it is none."""
        try:
            return cls(Tokenizer.from_str(text))
        except Exception as error:  # the Rust side raises bare Exception for every kind of bad file
            raise ValueError(f"not a tokenizer.json: {error}") from error

    def encode(self, prompt: str) -> list[int]:
        """Ids of a whole prompt string, tokenised at once as the released code does; nothing is added around it."""
        return self._encoding(prompt).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens and ids that the tokenizer does not know leave nothing."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def defuse(self, text: str) -> str:
        """User's text in which nothing is control: every string that the tokenizer would take for an added token
        (`</user>`, a mask, ...) gets a space after its first character, until none is left."""
        while True:
            encoding = self._encoding(text)
            spans = [span for number, span in zip(encoding.ids, encoding.offsets, strict=True) if number in self._added]
            cuts = [self._first_visible(text, *span) + 1 for span in spans]
            if not cuts:
                return text
            for cut in reversed(cuts):
                text = f"{text[:cut]} {text[cut:]}"

    def _encoding(self, text: str) -> Encoding:
        try:
            return self._tokenizer.encode(text, add_special_tokens=False)
        except BaseException as error:  # a panic of the Rust side is no Exception and would end a server's thread
            if type(error).__name__ != "PanicException":
                raise
            raise ValueError(
                "The tokenizer.json of this checkpoint cannot be applied to this text (its patterns are broken or too "
                "slow): fetch the one that belongs to the checkpoint."
            ) from None

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
            number = self._tokenizer.token_to_id(content)
            if number is not None and number != getattr(table, name):
                raise ValueError(
                    f"The tokenizer gives '{content}' the id {number}, the token id table says {name} = "
                    f"{getattr(table, name)}: tokenizer.json and config.json are of different checkpoints."
                )
        highest = max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        if highest >= vocab_size:
            raise ValueError(
                f"The tokenizer knows ids up to {highest}, the model only {vocab_size} rows: tokenizer.json and the "
                "weights are of different checkpoints."
            )
