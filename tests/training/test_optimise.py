"""Optimisers by name, their states kept exactly, and the learning rates of each step."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from dimoo_core.training.engine import Single, state_file
from dimoo_core.training.optimise import OPTIMISERS, OptimiserSettings, Schedule, build_optimisers, set_rate

ENGINE = Single(torch.device("cpu"), mixed=False)
Weights = dict[str, nn.Parameter]


def weights() -> Weights:
    generator = torch.Generator().manual_seed(0)
    return {name: nn.Parameter(torch.randn(6, 8, generator=generator)) for name in ("a", "b")}


def learn(of: Weights, optimisers: list[torch.optim.Optimizer], steps: range) -> list[float]:
    """Towards numbers that differ a little from step to step; the loss of each step."""
    losses = []
    for step in steps:
        target = torch.randn(6, 8, generator=torch.Generator().manual_seed(step)) * 0.1
        loss = torch.stack([(one - target).square().mean() for one in of.values()]).sum()
        loss.backward()
        losses.append(loss.item())
        for optimiser in optimisers:
            optimiser.step()
        for one in of.values():
            one.grad = None
    return losses


class SharedTable(torch.optim.Optimizer):
    """Keeps its state as 8-bit optimisers do: in bytes, with one table of their meanings for all weights, and with a
    count of steps that is a plain number."""

    def __init__(self, params: list[nn.Parameter], lr: float, **_: object):
        super().__init__(params, {"lr": lr})
        self.table = torch.linspace(-1, 1, 256)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                if not state:
                    state |= {"step": 0, "sign": torch.full_like(weight, 128, dtype=torch.uint8), "table": self.table}
                assert type(state["step"]) is int
                state["step"] += 1
                old = state["table"][state["sign"].long()]
                moment = 0.9 * old + 0.1 * weight.grad.sign()
                state["sign"] = ((moment + 1) * 127.5).round().to(torch.uint8)
                weight.sub_(moment, alpha=group["lr"] / (1 - 0.9 ** state["step"]))


@pytest.mark.parametrize("name", ["adamw", "adafactor", "adamw8bit"])
def test_each_learns_and_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    if name == "adamw8bit":
        monkeypatch.setitem(OPTIMISERS, name, lambda of, settings: SharedTable(of, settings.rate))
    settings = OptimiserSettings(name, rate=0.05)
    straight_weights, first, second = weights(), weights(), weights()
    straight = learn(straight_weights, build_optimisers(straight_weights.items(), settings), range(20))
    assert straight[-1] < 0.6 * straight[0]
    optimisers = build_optimisers(first.items(), settings)
    begun = learn(first, optimisers, range(8))
    ENGINE.save(tmp_path, 8, first, optimisers)
    resumed = build_optimisers(second.items(), settings)
    assert ENGINE.resume(tmp_path, second, resumed) == 8
    assert begun + learn(second, resumed, range(8, 20)) == straight
    assert all(torch.equal(one, second[key]) for key, one in straight_weights.items())


class Finding(torch.optim.SGD):
    """Finds out a rate by itself, as Prodigy does, and keeps it beside the settings."""

    def __init__(self, params: list[nn.Parameter], lr: float):
        super().__init__(params, lr=lr)
        self.param_groups[0] |= {"d": 1e-3, "k": 0}

    def step(self) -> None:  # type: ignore[override]
        group = self.param_groups[0]
        group["d"], group["k"] = group["d"] * 1.5, group["k"] + 1
        for weight in group["params"]:
            weight.data.sub_(weight.grad, alpha=group["lr"] * group["d"])


def test_what_an_optimiser_finds_out_is_kept_and_its_rate_is_that_of_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OPTIMISERS, "prodigy", lambda of, settings: Finding(of, settings.rate))
    one, two = weights(), weights()
    optimisers = build_optimisers(one.items(), OptimiserSettings("prodigy", rate=1.0))
    learn(one, optimisers, range(3))
    ENGINE.save(tmp_path, 3, one, optimisers)
    resumed = build_optimisers(two.items(), OptimiserSettings("prodigy", rate=0.5))
    ENGINE.resume(tmp_path, two, resumed)
    (group,) = resumed[0].param_groups
    assert (group["d"], group["k"]) == (1e-3 * 1.5 * 1.5 * 1.5, 3)
    assert (group["lr"], group["peak"]) == (0.5, 0.5)


def test_the_state_of_another_optimizer_is_refused(tmp_path: Path) -> None:
    one = weights()
    optimisers = build_optimisers(one.items(), OptimiserSettings("adamw"))
    learn(one, optimisers, range(1))
    ENGINE.save(tmp_path, 1, one, optimisers)
    with pytest.raises(ValueError, match=r"is a run with AdamW, and this one has Adafactor; take the same optimizer"):
        ENGINE.resume(tmp_path, one, build_optimisers(one.items(), OptimiserSettings("adafactor")))


def test_the_state_holds_what_is_trained_and_the_optimiser(tmp_path: Path) -> None:
    one = weights()
    optimisers = build_optimisers(one.items(), OptimiserSettings("adamw"))
    learn(one, optimisers, range(1))
    ENGINE.save(tmp_path, 1, one, optimisers)
    numbers = sum(weight.nbytes for weight in one.values())
    assert 3 * numbers < state_file(tmp_path).stat().st_size < 3 * numbers + 4096


@pytest.mark.parametrize(
    ("name", "package"), [("adamw8bit", "bitsandbytes"), ("adafactor", "transformers"), ("prodigy", "prodigyopt")]
)
def test_one_that_is_not_installed_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    for module in (package, f"{package}.optim", f"{package}.optimization"):
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not there
    with pytest.raises(ValueError, match=rf"^The optimizer {name} comes with .* {package}, .*pip install {package}`"):
        build_optimisers(weights().items(), OptimiserSettings(name))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"name": "sgd"}, r"^optimizer is 'sgd'; expected one of adamw, adamw8bit, adafactor, prodigy\.$"),
        ({"rate": -1.0}, r"^rate is -1\.0; expected a number from 0 to 1\.$"),
        ({"weight_decay": math.nan}, r"^weight_decay is nan"),
        ({"betas": (0.9, 1.5)}, r"^betas is 1\.5"),
    ],
)
def test_settings_out_of_range_are_refused(given: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        OptimiserSettings(**given)


def test_muon_takes_the_matrices_inside_the_blocks_and_no_others() -> None:
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    named: list[tuple[str, nn.Parameter]] = [
        (name, nn.Parameter(torch.ones(shape)))
        for name, shape in (("x.blocks.0.q.weight", (2, 2)), ("x.blocks.0.norm.weight", (2,)), ("x.wte.weight", (2, 2)))
    ]
    rest, matrices = build_optimisers(named, OptimiserSettings(matrix_rate=0.02))
    assert [[tuple(one.shape) for one in made.param_groups[0]["params"]] for made in (rest, matrices)] == [
        [(2,), (2, 2)],
        [(2, 2)],
    ]
    assert type(matrices).__name__ == "Muon" and matrices.param_groups[0]["peak"] == 0.02


# ---------------------------------------------------------------------------------------------------------------- rates


def test_a_constant_rate_rises_and_stays() -> None:
    rates = [Schedule("constant", steps=10, warm_up=4).scale(step) for step in range(10)]
    assert rates == [0.25, 0.5, 0.75, *[1.0] * 7]


def test_a_cosine_falls_to_its_minimum_and_stays_there() -> None:
    schedule = Schedule("cosine", steps=10, warm_up=2, minimum=0.1)
    assert schedule.scale(0) == 0.5 and schedule.scale(1) == 1.0
    assert schedule.scale(5) == pytest.approx(0.1 + 0.9 * 0.5, abs=1e-9)  # half of the way from 2 to 10
    assert schedule.scale(9) == schedule.scale(20) == pytest.approx(0.1)


def test_a_linear_one_falls_to_0_over_its_last_share() -> None:
    rates = [Schedule("linear", steps=10, warm_up=0, decay=0.4).scale(step) for step in range(10)]
    assert rates[:7] == [1.0] * 7 and rates[7:] == pytest.approx([0.75, 0.5, 0.25])


def test_from_0_on_the_first_update_of_a_warm_up_changes_nothing() -> None:
    schedule = Schedule("cosine", steps=10, warm_up=2, first=0)
    assert [schedule.scale(step) for step in range(3)] == [0.0, 0.5, 1.0]


def test_every_group_follows_from_its_own_peak() -> None:
    made = build_optimisers([("a", nn.Parameter(torch.ones(2)))], OptimiserSettings(rate=0.2))
    set_rate(made, 0.25)
    set_rate(made, 0.5)
    assert made[0].param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize(("given", "name"), [({"kind": "steps"}, "schedule"), ({"minimum": 2.0}, "minimum")])
def test_schedules_out_of_range_are_refused(given: dict, name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name} is"):
        Schedule(**{"kind": "constant", "steps": 10} | given)
