"""Rows of the text embedding, looked up where that table waits: a job meets some hundred of its rows.

So the table itself, which takes 1 GB at the published size, never needs to be on the device that computes.

Shapes: D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


class TextRows:
    """The rows that a job has met so far, on its device. Used like the embedding, for ids that were added before."""

    def __init__(
        self, embedding: Callable[[Tensor], Tensor], ids: Iterable[int], *, offset: int, room: int, device: torch.device
    ):
        """embedding: ids [n] on the CPU to rows [n,D]. ids: those that are known from the start; ids from `offset` on
        are no text and left out. room: how many more may be added."""
        self._embedding, self._offset, self._device = embedding, offset, device
        self._known: set[int] = set()
        first = self._new(ids)
        rows = self._looked_up(first)
        self._rows = rows.new_zeros(len(first) + room, rows.shape[1], device=device)
        self._slots = torch.zeros(offset, dtype=torch.int64, device=device)  # where the row of an id stands
        self._write(first, rows)

    def add(self, ids: Iterable[int]) -> None:
        """Looks further ids up; those that are known, and those of no text, cost nothing. Raises RuntimeError where
        there is no room."""
        new = self._new(ids)
        if new:
            self._write(new, self._looked_up(new))

    def __call__(self, ids: Tensor) -> Tensor:
        """ids [...] below the offset, all of them added -> rows [...,D]"""
        return torch.nn.functional.embedding(self._slots[ids], self._rows)

    @torch.no_grad()
    def _looked_up(self, ids: list[int]) -> Tensor:
        return self._embedding(torch.tensor(ids, dtype=torch.int64))

    def _new(self, ids: Iterable[int]) -> list[int]:
        return sorted({token for token in ids if token < self._offset} - self._known)

    def _write(self, ids: list[int], rows: Tensor) -> None:
        start = len(self._known)
        if start + len(ids) > len(self._rows):
            raise RuntimeError(f"Got {start + len(ids)} ids of text, and there is room for {len(self._rows)}.")
        slots = torch.arange(start, start + len(ids), device=self._device)
        self._rows[start : start + len(ids)] = self._sent(rows)
        self._slots.index_copy_(0, self._sent(torch.tensor(ids, dtype=torch.int64)), slots)
        self._known.update(ids)

    def _sent(self, data: Tensor) -> Tensor:
        """From the host to the device; to CUDA without making the host wait."""
        if self._device.type != "cuda" or data.device.type != "cpu":
            return data.to(self._device)  # others may read from memory that is no longer there
        return data.pin_memory().to(self._device, non_blocking=True)
