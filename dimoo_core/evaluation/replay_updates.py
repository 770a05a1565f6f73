"""Replay losses, gradients and updates of the released training. See `replay_training`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..model.transformer import Transformer, module_to_hub
from ..training.objective import HiddenBatch, loss_sum
from ..training.optimise import OptimiserSettings, Schedule, build_optimisers, set_rate
from .recorded import Check, differs, far
from .recorded_training import TrainingRecord, World

LOSS, GRADIENT, PARAMETER, SUM = 1e-5, 1e-5, 2e-7, 1e-3  # absolute tolerances
NORM, RATE = 1e-5, 1e-9  # relative


def losses(world: World) -> Iterator[Check]:
    """Losses, logits and gradients of micro-batches."""
    record, network = world.own("loss"), world.network()
    for name, case in record["cases"].items():
        batch = world.batch(case["sequences"])
        network.zero_grad(set_to_none=True)
        loss = loss_sum(network, batch) / batch.count
        loss.backward()
        yield f"{name}.loss", far(loss.detach(), case["loss"], LOSS)
        yield f"{name}.masked", differs((batch.weights > 0).sum(dim=1).tolist(), case["masked"])
        key = f"loss.{name}"
        yield from _named(name, _gradients(world, key, network, case["grad_norm"], case["grad_norms"]))
        yield from _named(name, _logits(world, key, network, batch))
        if "alone" in case:
            yield from _named(name, _alone(world, network, case))


def _gradients(
    world: World, key: str, network: Transformer, norm: float, norms: Mapping[str, float]
) -> Iterator[Check]:
    gradients = _published({name: weight.grad for name, weight in network.named_parameters()})
    found = {name: float(gradient.double().norm()) for name, gradient in gradients.items()}
    yield "grad_norm", far(torch.tensor(list(found.values())).norm() / norm, 1.0, NORM)
    for name, expected in norms.items():
        yield f"grad_norms.{name}", far(found[name] / expected, 1.0, NORM)
    slices = world.own("loss")["gradient_slices"]
    yield from _named("grad", _slices(world, f"{key}.grad", gradients, slices, GRADIENT))


@torch.no_grad()
def _logits(world: World, key: str, network: Transformer, batch: HiddenBatch) -> Iterator[Check]:
    """What makes the losses where tokens are hidden, and the logits of some rows at some places."""
    recorded = {name: world.tensor(f"{key}.{name}") for name in _LOGITS}
    rows, where = world.own("loss")["logit_rows"], recorded["logit_places"].long()
    found: dict[str, list[Tensor]] = {name: [] for name in _LOGITS}
    for item, ids in enumerate(batch.ids):
        order = batch.rows[item].argsort()
        order = order[batch.weights[item][order] > 0]
        places, targets = batch.rows[item][order], batch.targets[item][order]
        asked = where[where[:, 0] == item][:, 1]
        logits, some = network(ids[None], rows=torch.cat((places, asked))[None])[0].split([len(places), len(asked)])
        found["where"].append(torch.stack((torch.full_like(places, item), places), dim=1))
        found["target_logit"].append(logits.gather(1, targets[:, None])[:, 0])
        found["logsumexp"].append(logits.logsumexp(dim=1))
        found["logits"].append(some[:, rows])
    yield "where", differs(torch.cat(found["where"]), recorded["where"].long())
    for name in ("target_logit", "logsumexp", "logits"):
        yield name, far(torch.cat(found[name]), recorded[name])


_LOGITS = ("where", "target_logit", "logsumexp", "logits", "logit_places")


@torch.no_grad()
def _alone(world: World, network: Transformer, case: Mapping[str, Any]) -> Iterator[Check]:
    """The losses of a pair's sequences in passes of their own, as our training has it, and their mean over tokens."""
    batches = [world.batch([name]) for name in case["sequences"]]
    sums = [float(loss_sum(network, batch)) for batch in batches]
    counts = [batch.count for batch in batches]
    means = [total / count for total, count in zip(sums, counts, strict=True)]
    yield "alone", far(torch.tensor(means), torch.tensor(case["alone"]), LOSS)
    yield "alone_mean_over_tokens", far(sum(sums) / sum(counts), case["alone_mean_over_tokens"], LOSS)


def updates(world: World) -> Iterator[Check]:
    """Runs of AdamW: rates, losses, gradients, moments and weights after each update."""
    record = world.own("adamw")
    start = _published(dict(_start(world).named_parameters()))
    yield from _named("start", _slices(world, "adamw.start", start, record["slices"], 0.0, needed=True))
    for name, run in record["runs"].items():
        yield from _named(name, _run(world, f"adamw.{name}", record, run))


def _start(world: World) -> Transformer:
    """The published weights are exact in bf16, which the released loader reads; the toy ones are not."""
    return world.network(rounded=bool(world.prefix))


def _run(world: World, key: str, record: Mapping[str, Any], run: Mapping[str, Any]) -> Iterator[Check]:
    hyper, accumulate, schedule = record["hyper"], run["accumulate"], _schedule(record["hyper"], run)
    network = _start(world)
    weights = dict(network.named_parameters())
    settings = OptimiserSettings(
        rate=hyper["lr"], betas=tuple(hyper["betas"]), eps=hyper["eps"], weight_decay=hyper["weight_decay"]
    )
    (optimiser,) = build_optimisers(weights.items(), settings)
    for number, expected in enumerate(run["updates"], 1):
        found = []
        for names in run["batches"][(number - 1) * accumulate : number * accumulate]:
            batch = world.batch(names)
            loss = loss_sum(network, batch) / batch.count  # each micro-batch counts alike, as released
            (loss / accumulate).backward()
            found.append(float(loss.detach()))
        state = {"grads_before_clip": _published({name: weight.grad for name, weight in weights.items()})}
        norm = torch.nn.utils.clip_grad_norm_(weights.values(), hyper["clip"])
        set_rate([optimiser], schedule.scale(expected["iteration"]))
        rate = optimiser.param_groups[0]["lr"]
        optimiser.step()
        network.zero_grad(set_to_none=True)
        state["params"] = _published(weights)
        for moment in ("exp_avg", "exp_avg_sq"):
            state[moment] = _published({name: optimiser.state[weight][moment] for name, weight in weights.items()})
        yield f"{number}.lr", far(rate / hyper["lr"], expected["lr"] / hyper["lr"], RATE)
        yield f"{number}.grad_norm", far(norm / expected["grad_norm"], 1.0, NORM)
        yield f"{number}.losses", far(torch.tensor(found), torch.tensor(expected["losses"]), LOSS)
        for name, tensor in state["params"].items():
            numbers = tensor.double()
            yield f"{number}.param_sums.{name}", far(numbers.sum(), expected["param_sums"][name], SUM)
            yield f"{number}.param_squares.{name}", far(numbers.square().sum(), expected["param_squares"][name], SUM)
        for kind, tensors in state.items():
            values, tolerance = kind == "params", PARAMETER if kind == "params" else GRADIENT
            slices = _slices(world, f"{key}.{number}.{kind}", tensors, record["slices"], tolerance, needed=values)
            yield from _named(f"{number}.{kind}", slices)


def schedules(record: TrainingRecord) -> Iterator[Check]:
    """Learning rates at the micro-batches where an update comes."""
    for number, case in enumerate(record.content["schedule"]):
        schedule = _schedule(case, case)
        for iteration, rate in zip(case["iterations"], case["rates"], strict=True):
            yield f"{number}.{iteration}", far(schedule.scale(iteration), rate / case["lr"], RATE)


def _schedule(hyper: Mapping[str, Any], run: Mapping[str, Any]) -> Schedule:
    """The released schedule, which counts micro-batches from 0."""
    length = run["loader_length"]
    steps, warm_up = hyper["epochs"] * length, run["warmup_epochs"] * length
    return Schedule("cosine", steps, warm_up, hyper["min_lr"] / hyper["lr"], first=0)


def _published(tensors: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """Copies of tensors by parameter, by the published names."""
    return module_to_hub({name: tensor.detach().clone() for name, tensor in tensors.items() if tensor is not None})


def _slices(
    world: World,
    key: str,
    tensors: Mapping[str, Tensor],
    slices: Mapping[str, Sequence[int] | str],
    tolerance: float,
    *,
    needed: bool = False,
) -> Iterator[Check]:
    """The rows of tensors that were recorded under `key`: those of all `slices` or, unless they are needed, of none."""
    recorded = {name: world.record.tensors.get(f"{world.prefix}{key}.{name}") for name in slices}
    if not needed and all(rows is None for rows in recorded.values()):
        return
    for name, rows in slices.items():
        expected, found = recorded[name], tensors[name] if slices[name] == "all" else tensors[name][list(rows)]
        yield name, "it is not recorded" if expected is None else far(found, expected, tolerance)


def _named(name: str, checks: Iterable[Check]) -> Iterator[Check]:
    return ((f"{name}.{what}", wrong) for what, wrong in checks)
