"""Settings that a checkpoint was made for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..checks import shown

FAR = 4  # times the area, or a quarter of it: each side twice or half as long as any that the checkpoint was made for


@dataclass(frozen=True)
class Defaults:
    """Settings that a checkpoint was made for, used where nobody says otherwise; these are the published model's.

    A checkpoint brings its own as "dimoo_defaults" in its config.json. Lengths are in px: `size` (width, height) of a
    new picture, `side` of the square whose area an edited picture is fitted to, `sides` of the smallest and the
    largest picture that is described.
    """

    size: tuple[int, int] = (1024, 1024)
    side: int = 512
    sides: tuple[int, int] = (512, 1024)
    steps: int = 64
    cfg: float = 4.0
    image_cfg: float = 4.0
    temperature: float = 1.0
    max_tokens: int = 128
    text_steps: int = 128
    block_length: int = 32

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Defaults:
        """Raises ValueError for a name that is not above, and for a value of another kind, below 0 or infinite."""
        known = {field.name: field.default for field in fields(cls)}
        for name, value in settings.items():
            if name not in known:
                raise ValueError(f"dimoo_defaults names {shown(name)}; there are {', '.join(known)}.")
            parts, pair = (value if isinstance(value, list) else [value]), isinstance(known[name], tuple)
            number = (int, float) if isinstance(known[name], float) else int
            fine = all(isinstance(part, number) and not isinstance(part, bool) and 0 <= part < 2**63 for part in parts)
            if not fine or isinstance(value, list) != pair or (pair and len(parts) != 2):
                raise ValueError(f"dimoo_defaults says {name} = {shown(value)}; expected a value like {known[name]!r}.")
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()}
        return cls(**values)

    def own(self, name: str, value: Any = None) -> Any:
        """`value` or, where that is None, the checkpoint's own setting of that name; None where it has none."""
        return getattr(self, name, None) if value is None else value

    @property
    def area_side(self) -> int:
        """The side, px, of the square that has the area of a new picture."""
        return round(math.sqrt(math.prod(self.size)))

    def is_far(self, width: int, height: int) -> bool:
        """Whether a picture of width x height px has at least `FAR` times the area of those that the checkpoint was
        made for, new ones and edited ones, or at most that fraction of it."""
        least, most = sorted((math.prod(self.size), self.side**2))
        return width * height * FAR <= least or width * height >= most * FAR
