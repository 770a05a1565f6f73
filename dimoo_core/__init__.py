"""Lumina-DiMOO in Python: `import dimoo_core as dimoo`, then `dimoo.load()`.

Nothing heavy is imported until it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pipeline import Pipeline, load

__all__ = ["Pipeline", "load"]


def __getattr__(name: str) -> Any:
    """`load` and `Pipeline`, imported at first use (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import pipeline

    return getattr(pipeline, name)


def __dir__() -> list[str]:
    return [*__all__]
