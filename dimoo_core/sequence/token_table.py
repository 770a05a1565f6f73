"""Token ids: the one table of special ids. No other file holds a literal id.

A checkpoint may bring its own table (key `dimoo_token_ids` of its `config.json`); otherwise `RELEASED`, the table of
the published checkpoint, holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields


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
