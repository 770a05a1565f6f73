"""How often the host waits for the device in a step, and what it sends there: DiMOO-nano's jobs, rehearsed.

A figure is the most of any step but the first, between two calls of `on_step`: what a run needs for all of its steps
belongs before its loop. Previews are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from dimoo_core import jobs
from dimoo_core.pipeline import Pipeline, load
from dimoo_core.sampling.image import ImageSettings
from dimoo_core.sampling.ml_cache import PRESETS, CachePolicy
from dimoo_core.sampling.text_cache import EXACT, SPEEDS, TextPolicy
from dimoo_core.sequence.canvas import Canvas
from dimoo_core.sequence.prompt import EDITS, Prompt

from .rehearsal import Rehearsal

GRID = 8, 8
STEPS, CACHED_STEPS = 4, 8
SHORT_ANSWER: dict[str, int] = {"max_tokens": 8, "steps": 8, "block_length": 4}
_CAPTION = "a large red circle on the left on a white background"
Counts = dict[str, int]
Look = Callable[[object], object]  # what a user of `on_step` does with a canvas or with tokens


@dataclass
class Steps:
    """An `on_step` that notes what was counted since it was called last; `look` sees what a step has made."""

    seen: Rehearsal
    look: Look | None = None
    each: dict[int, Counts] = field(default_factory=dict)  # by the steps done
    _before: Counts | None = None

    def __call__(self, done: int, total: int, state: object) -> None:
        now = self.seen.counts()
        if self._before is not None:
            self.each[done] = {kind: count - self._before[kind] for kind, count in now.items()}
        self._before = now
        if self.look is not None:
            self.look(state)


def most(steps: Iterable[Counts], kind: str) -> int:
    """The most of a kind that a step has."""
    return max(counts[kind] for counts in steps)


def image_steps(policy: CachePolicy | None = None, look: Look | None = None, **sampler: Any) -> dict[str, list[Counts]]:
    """The `full` and `cached` steps of a picture from words with two branches, and of an edit with three, each with
    further settings of the `sampler`."""
    found: dict[str, list[Counts]] = {"full": [], "cached": []}
    total = STEPS if policy is None else CACHED_STEPS
    picture = torch.arange(GRID[0] * GRID[1]).view(1, *GRID)
    for prompt in (jobs.text_prompt(_CAPTION), Prompt(EDITS["edit_replace"], "make it blue", images=(picture,))):
        with Rehearsal() as seen:
            pipeline = load(device=seen.device)
            settings = pipeline.image_settings(steps=total, cfg=2.0, image_cfg=2.0, ml_cache=policy or "off", **sampler)
            steps = Steps(seen, look)
            _fill(pipeline, prompt, settings, steps)
        for done, counts in steps.each.items():
            full = policy is None or policy.is_full(done - 1, total)
            found["full" if full else "cached"].append(counts)
    return found


def _fill(pipeline: Pipeline, prompt: Prompt, settings: ImageSettings, on_step: Steps) -> None:
    plan = jobs.plan_image(pipeline.model, prompt, Canvas.empty(1, *GRID), settings)
    plan.run(pipeline.place(plan), on_step)


def text_steps(look: Look | None = None) -> list[Counts]:
    """The steps of answers: exact, with keys and values kept, and with tokens decided before their turn."""
    found: list[Counts] = []
    picture = torch.arange(GRID[0] * GRID[1]).view(1, *GRID)
    kept = TextPolicy(prefix_refresh=1, answer_refresh=SHORT_ANSWER["block_length"])
    for speed, temperature in ((EXACT, 0.7), (kept, 0.0), (kept, 0.7), (SPEEDS["balanced"], 0.0)):
        with Rehearsal() as seen:
            pipeline = load(device=seen.device)
            settings = pipeline.text_settings(**SHORT_ANSWER, temperature=temperature, speed=speed)
            plan = jobs.plan_text(pipeline.model, [picture], "Describe the image.", settings)
            steps = Steps(seen, look)
            plan.run(pipeline.place(plan), steps)
        found += steps.each.values()
    return found


def figures() -> dict[str, int]:
    """The counts of a step, by the names that `nox -s counts` prints."""
    exact, cached, text = image_steps()["full"], image_steps(PRESETS["balanced"]), text_steps()
    every = [*exact, *cached["full"], *cached["cached"]]
    return {
        "waits_image_step": most([*exact, *cached["full"]], "waits"),
        "waits_cached_step": most(cached["cached"], "waits"),
        "waits_text_step": most(text, "waits"),
        "copies_to_device_image_step": most(every, "copies_to_device"),
        "copies_to_device_text_step": most(text, "copies_to_device"),
    }
