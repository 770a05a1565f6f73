"""What the parts of a report share: the device, the scale, and one network at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch

from dimoo_core.model.transformer import Transformer
from dimoo_core.sampling.ml_cache import PUBLISHED
from dimoo_core.sequence.token_table import TokenTable

from .. import baseline
from ..workload import ImageJob, TextJob
from .released import ReleasedCode
from .scale import Scale, build
from .timing import Run, clear


class Beside(Protocol):
    """What ours is measured beside, on the same weights."""

    name: str

    def image(self, job: ImageJob, steps: int, *, cached: bool) -> Run: ...

    def answer(self, job: TextJob, tokens: int, block: int) -> Run: ...


class Baseline:
    """The project's own baseline, where the released code is not at hand. It has copies of embedding and head."""

    name = "the baseline of this project"

    def __init__(self, transformer: Transformer, table: TokenTable):
        self.table, self.device = table, next(transformer.parameters()).device
        self.network = baseline.Released(transformer)

    def image(self, job: ImageJob, steps: int, *, cached: bool) -> Run:
        """A run of text-to-image or of an edit."""
        sequences, scales = job.sequences(self.table)
        ids = [one.to(self.device) for one in sequences]
        cache = PUBLISHED if cached else None
        how = {"steps": steps, "temperature": 1.0, "seed": 0}
        return lambda: baseline.sample_image(self.network, self.table, ids, scales, cache=cache, **how).tolist()

    def answer(self, job: TextJob, tokens: int, block: int) -> Run:
        """A run of an answer, one token a step."""
        ids = job.sequence(self.table, tokens).to(self.device)
        return lambda: baseline.sample_text(self.network, self.table, ids, steps=tokens, block_length=block)


class Session:
    """One measurement of one device. Of its networks one is there at a time, made when a part first asks for it."""

    def __init__(self, device: torch.device, scale: Scale, released: Path | None = None, pace: float = 1.0):
        """released: a checkout of the released code, if there is one. pace: how many times longer than an H100 the
        device takes."""
        self.device, self.scale, self._folder, self.pace = device, scale, released, pace
        self._kind = ""
        self._network: Transformer | None = None
        self._beside: Beside | None = None

    def network(self, kind: str) -> Transformer:
        """The transformer with weights of a kind: bf16, fp8, int8."""
        if self._network is None or self._kind != kind:
            self.drop()
            self._network, self._kind = build(self.scale, kind, self.device), kind
        return self._network

    def beside(self) -> Beside:
        """The released code, or else the baseline, on the bf16 weights. Where the released code does not start, the
        first call raises what it raised, and the baseline stands in its place from then on."""
        network, table = self.network("bf16"), self.scale.size.table
        if self._beside is None:
            folder, self._folder = self._folder, None
            self._beside = Baseline(network, table) if folder is None else ReleasedCode(folder, network, table)
            self._folder = folder
        return self._beside

    def drop(self) -> None:
        """Let go of the networks."""
        self._network, self._beside = None, None
        clear(self.device)
