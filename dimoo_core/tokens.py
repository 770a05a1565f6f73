"""Token ids: the one table of special ids, and a thin wrapper of the text tokenizer.

No other file holds a literal id. A checkpoint may bring its own table (key `dimoo_token_ids` of its `config.json`);
otherwise `RELEASED`, the table of the published checkpoint, holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from tokenizers import Encoding, Tokenizer

# Added tokens that the published tokenizer names; where a tokenizer knows the string, its id must be the table's.
_NAMED = {"uncondition": "<uncondition>", "mask": "<|mdm_mask|>", "end_of_text": "<|endoftext|>"}


@dataclass(frozen=True)
class TokenTable:
    """Every special id; image code k stands as id `code_offset + k`, k in 0..`codebook_size` - 1."""

    mask: int
    newline: int
    image_begin: int
    image_end: int
    uncondition: int
    answer_begin: int
    answer_end: int
    end_of_text: int
    pad: int
    code_offset: int
    codebook_size: int

    @classmethod
    def from_dict(cls, ids: Mapping[str, int]) -> TokenTable:
        """The table of a checkpoint; raises ValueError where a name is missing, unknown or no whole number."""
        names = [field.name for field in fields(cls)]
        missing, unknown = sorted(set(names) - set(ids)), sorted(set(ids) - set(names))
        if missing or unknown:
            raise ValueError(
                f"The token id table lacks {missing} and has unknown names {unknown}; it must name exactly {names}."
            )
        for name in names:
            if isinstance(ids[name], bool) or not isinstance(ids[name], int) or ids[name] < 0:
                raise ValueError(f"The token id table says {name} = {ids[name]!r}; a whole number from 0 is needed.")
        return cls(**{name: ids[name] for name in names})

    def to_dict(self) -> dict[str, int]:
        """The table as JSON fields; `from_dict` reads it back."""
        return asdict(self)

    @property
    def specials(self) -> tuple[int, ...]:
        """The nine special ids, codes not among them."""
        return tuple(value for name, value in asdict(self).items() if name not in ("code_offset", "codebook_size"))

    @property
    def ends(self) -> tuple[int, ...]:
        """Ids that end a text answer."""
        return (self.answer_end, self.end_of_text, self.pad)

    @property
    def codes(self) -> slice:
        """The vocabulary rows of the image codes."""
        return slice(self.code_offset, self.code_offset + self.codebook_size)

    def check(self, vocab_size: int) -> None:
        """Raises ValueError unless ids are distinct, outside the codes, and all of it fits `vocab_size` rows."""
        if self.codes.stop > vocab_size or self.codebook_size < 1:
            raise ValueError(
                f"The vocabulary has {vocab_size} rows, but {self.codebook_size} image codes start at row "
                f"{self.code_offset}; at least {self.codes.stop} rows are needed: these weights or this config.json "
                "are of another model."
            )
        specials = self.specials
        outside = [value for value in specials if value >= vocab_size or self.codes.start <= value < self.codes.stop]
        if outside or len(set(specials)) < len(specials):
            raise ValueError(
                f"The special token ids {sorted(specials)} must be distinct, below {vocab_size} and outside the image "
                f"codes {self.codes.start}..{self.codes.stop - 1}: correct dimoo_token_ids in config.json."
            )


RELEASED = TokenTable(
    mask=126336,
    newline=126084,
    image_begin=126349,
    image_end=126350,
    uncondition=126351,
    answer_begin=126354,
    answer_end=126355,
    end_of_text=126081,
    pad=126339,
    code_offset=126356,
    codebook_size=8192,
)


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
