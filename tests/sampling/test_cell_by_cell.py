"""The sampler gives the pictures of a second one, written from its description: one picture, exact, cell by cell."""

from __future__ import annotations

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dimoo_core.sampling.guidance import Guidance
from dimoo_core.sampling.image import ImageSettings
from dimoo_core.sampling.noise import Noise
from dimoo_core.sampling.orders import halton_ranks
from dimoo_core.sampling.polish import LEAST_SHARE
from dimoo_core.sampling.schedule import cosine
from dimoo_core.sequence.canvas import Canvas
from dimoo_core.sequence.layout import cell_positions, image_answer

from ..tiny import CODES, TABLE
from .test_corrections import BLIND, NET, PREFIX, SCALE, image, painted


class Picture:
    """A canvas that is filled as docs/samplers.md and the released code say."""

    def __init__(self, canvas: Canvas, plan: ImageSettings):
        _, self.height, self.width = canvas.codes.shape
        self.codes = canvas.codes.flatten().tolist()
        self.holes = canvas.unknown.flatten().nonzero()[:, 0].tolist()
        self.open, self.seen = set(self.holes), {cell: [] for cell in self.holes}
        self.plan, self.noise = plan, Noise(plan.seed, 1, "cpu", 20)

    def filled(self) -> list[int]:
        plan, kept = self.plan, cosine(len(self.holes), self.plan.steps)
        for step, keep in enumerate(kept):
            logits = self.logits(self.open, guided=step >= int(plan.guidance.start * len(kept)))
            shared = step < int(plan.shared_noise * len(kept))
            drawn = {cell: self.draw(logits[cell], step, cell, shared) for cell in self.open}
            probs = {cell: float(logits[cell].softmax(0)[drawn.get(cell, self.codes[cell])]) for cell in self.holes}
            for cell in self.holes:
                self.seen[cell] = [] if cell in self.open else [*self.seen[cell], probs[cell]]
            doubtful = sorted(set(self.holes) - self.open, key=lambda cell: (self.mean(cell), cell))
            may = plan.corrections if step >= int(plan.corrections_start * len(kept)) else 0
            again = set(doubtful[: min(may, keep)])
            last = sorted(self.open, key=lambda cell: self.turn(cell, step, probs[cell]), reverse=True)
            masked = set(last[: keep - len(again)])
            for cell in self.open - masked:
                self.codes[cell] = drawn[cell]
            self.open = masked | again
        for number in range(plan.polish):
            hidden = {cell for cell in self.holes if (cell // self.width + cell % self.width) % 2 == number % 2}
            for cell, logits in self.logits(hidden, guided=True).items():
                probs = logits.softmax(0)
                if cell in hidden and probs[self.codes[cell]] < LEAST_SHARE * probs.max():
                    self.codes[cell] = self.draw(logits, number, cell, polish=True)
        return self.codes

    def logits(self, hidden: set[int], *, guided: bool) -> dict[int, Tensor]:
        """Of each former hole, [K], where `hidden` cells are masked."""
        unknown = torch.tensor([cell in hidden for cell in range(len(self.codes))]).view(1, self.height, self.width)
        answer = image_answer(Canvas(torch.tensor(self.codes).view_as(unknown), unknown), TABLE)
        places = cell_positions(self.height, self.width, "cpu")

        def branch(prefix: Tensor) -> Tensor:
            ids = torch.cat((prefix, answer), dim=1)
            return NET(ids, rows=prefix.shape[1] + places[None], vocab=TABLE.codes)[0].float()

        logits = branch(PREFIX)
        if guided:
            logits = logits + SCALE * (logits - branch(BLIND))
        return {cell: logits[cell] for cell in self.holes}

    def draw(self, logits: Tensor, step: int, cell: int, shared: bool = False, polish: bool = False) -> int:
        if self.plan.temperature == 0:
            return int(logits.argmax())
        own = self.noise.for_polish if polish else self.noise.for_tokens
        ((_, noise),) = [(0, self.noise.shared(step, CODES))] if shared else own(step, torch.tensor([[cell]]), CODES)
        return int((logits / self.plan.temperature + noise[0, 0]).argmax())

    def mean(self, cell: int) -> float:
        return sum(self.seen[cell]) / len(self.seen[cell])

    def turn(self, cell: int, step: int, prob: float) -> float:
        """The cells of the highest ones wait for another step."""
        place = torch.tensor([[cell]])
        if self.plan.order == "halton":
            return float(halton_ranks(self.height, self.width, place.device)[cell])
        if self.plan.order == "random":
            return float(self.noise.for_order(step, place))
        return -float(torch.tensor(prob).log() + self.plan.temperature * self.noise.for_remask(step, place))


SETTINGS = {
    "steps": st.integers(1, 12),
    "temperature": st.sampled_from([0.0, 1.0]),
    "start": st.sampled_from([0.0, 0.3]),
    "corrections": st.sampled_from([0, 1, 3, 50]),
    "corrections_start": st.sampled_from([0.0, 0.6]),
    "polish": st.integers(0, 3),
    "order": st.sampled_from(["confidence", "halton", "random"]),
    "shared_noise": st.sampled_from([0.0, 0.5]),
}
ALL = {"steps": 12, "temperature": 1.0, "start": 0.3, "corrections": 3, "corrections_start": 0.0, "polish": 3}


@given(holes=st.integers(1, 30), chosen=st.fixed_dictionaries(SETTINGS))
@example(30, {**ALL, "order": "confidence", "shared_noise": 0.5})
@example(30, {**ALL, "order": "halton", "shared_noise": 0.0, "temperature": 0.0})
@example(29, {**ALL, "order": "random", "shared_noise": 0.5, "corrections_start": 0.6})
@settings(max_examples=25, deadline=None)
def test_the_picture_is_the_one_that_its_description_gives(holes: int, chosen: dict) -> None:
    canvas, how = painted(holes), chosen | {"seed": 9}
    plan = ImageSettings(guidance=Guidance(start=how["start"]), **{key: how[key] for key in how if key != "start"})
    assert image(canvas, **how).codes.flatten().tolist() == Picture(canvas, plan).filled()
