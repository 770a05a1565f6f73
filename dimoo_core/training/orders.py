"""What can be asked of a run while it runs: a file of that name in its folder, which is gone once it was read."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from .engine import Engine

ORDERS = ("save", "sample", "stop")


def take_orders(folder: Path) -> set[str]:
    """The orders that lie in a run's folder, with or without a suffix (Windows' editor adds .txt); they are removed."""
    taken = set()
    for order in ORDERS:
        for file in (folder / order, folder / f"{order}.txt"):
            if file.is_file():
                taken.add(order)
                with suppress(OSError):  # somebody still holds it open: it is taken again at the next step
                    file.unlink()
    return taken


def orders_for_all(folder: Path, engine: Engine) -> set[str]:
    """The orders, as the first process finds them, in every process of a run."""
    found = take_orders(folder) if engine.rank == 0 else set()
    given = engine.most(sum(1 << number for number, order in enumerate(ORDERS) if order in found))
    return {order for number, order in enumerate(ORDERS) if given >> number & 1}
