"""Who follows a run while it goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from .. import jobs
from .loop import Step


@dataclass(frozen=True)
class Watch:
    """What a run tells, in its first process: lines of text, each step, the samples of a step, and the steps of a
    sample that forms. What they raise to cancel ends the run, and what was learnt is kept; see `Samples.make` for what
    a sample may raise."""

    report: Callable[[str], None] = print
    on_step: Callable[[Step], None] = lambda step: None
    on_samples: Callable[[int, list[Image.Image]], None] = lambda step, pictures: None
    on_forming: jobs.ImageStep | None = None


PRINTING = Watch()
