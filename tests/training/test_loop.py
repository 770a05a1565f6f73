"""The training loop with its one-device engine: what a step is, however it was split, and what is never lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dimoo_core.model.config import TransformerConfig
from dimoo_core.model.transformer import Transformer
from dimoo_core.training import loop as loop_module
from dimoo_core.training.engine import Single, attention_for_training, state_file
from dimoo_core.training.loop import Step, Trainer, TrainSettings
from dimoo_core.training.objective import HiddenBatch

from ..tiny import TABLE, TRANSFORMER, random_weights

CPU = torch.device("cpu")
PLAN = TrainSettings(steps=4, rate=1e-2, matrix_rate=0.0, warm_up=0, save_every=2, clip=1e6)


def sequence(seed: int, hidden: int, length: int = 12) -> HiddenBatch:
    """One, with its last ids hidden."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(TABLE.code_offset, TABLE.codes.stop, (1, length), generator=generator)
    rows = torch.arange(length - hidden, length)[None]
    shown = ids.scatter(1, rows, TABLE.mask)
    return HiddenBatch(shown, rows, ids.gather(1, rows), torch.ones(1, hidden), float(hidden), TABLE.codes)


FOUR = [sequence(0, 3), sequence(1, 7), sequence(2, 1), sequence(3, 5)]


class Same:
    """Data that are the same at every step."""

    def __init__(self, batches: Sequence[HiddenBatch]):
        self.batches = batches

    def step(self, number: int) -> Sequence[HiddenBatch]:
        return self.batches


def trainer_of(
    folder: Path, batches: Sequence[HiddenBatch], plan: TrainSettings = PLAN, engine: Single | None = None
) -> Trainer:
    network = Transformer(TransformerConfig.from_dict(TRANSFORMER), code_offset=TABLE.code_offset)
    random_weights(network, 1)
    engine = engine or Single(CPU, mixed=False)
    return Trainer(network, dict(network.named_parameters()), Same(batches), plan, engine=engine, folder=folder)


def run(folder: Path, batches: Sequence[HiddenBatch], plan: TrainSettings = PLAN) -> tuple[list[Step], Trainer]:
    trainer, steps = trainer_of(folder, batches, plan), list[Step]()
    trainer.run(steps.append)
    return steps, trainer


# ------------------------------------------------------------------------------------------------------------ a step


@pytest.mark.parametrize("split", [[4], [1, 1, 1, 1], [3, 1]], ids=str)
def test_however_a_step_is_split_its_loss_is_the_mean_over_all_hidden_tokens(tmp_path: Path, split: list[int]) -> None:
    parts = iter(FOUR)
    batches = [HiddenBatch.stack([next(parts) for _ in range(count)]) for count in split]
    trainer = trainer_of(tmp_path, FOUR)
    with torch.no_grad():
        logits = [trainer.network(one.ids, rows=one.rows, vocab=one.vocab) for one in FOUR]
    targets = torch.cat([one.targets[0] for one in FOUR]) - TABLE.code_offset
    mean = nn.functional.cross_entropy(torch.cat([one[0] for one in logits]), targets)  # 16 tokens of 4 sequences
    (first, *_), split_run = run(tmp_path / "split", batches)
    (_, *_), whole_run = run(tmp_path / "whole", FOUR)
    assert first.loss == pytest.approx(float(mean), rel=1e-6)
    for one, two in zip(split_run.weights.values(), whole_run.weights.values(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=2e-5)  # AdamW turns roundings of tiny gradients into steps


def test_a_batch_and_its_parts_give_one_gradient(tmp_path: Path) -> None:
    def gradients(batches: Sequence[HiddenBatch]) -> tuple[float, list[Tensor]]:
        trainer = trainer_of(tmp_path, batches)
        loss = trainer._accumulate()
        return loss, [weight.grad for weight in trainer.weights.values() if weight.grad is not None]

    whole, parts = gradients([HiddenBatch.stack(FOUR)]), gradients(FOUR)
    assert whole[0] == pytest.approx(parts[0], rel=1e-6) and len(whole[1]) == len(parts[1]) > 10
    for one, two in zip(whole[1], parts[1], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_the_gradient_is_clipped_and_its_norm_before_is_told(tmp_path: Path) -> None:
    (free, *_), _ = run(tmp_path / "free", FOUR)
    (clipped, *_), trainer = run(tmp_path / "clipped", FOUR, replace(PLAN, steps=1, clip=free.gradient_norm / 10))
    assert clipped.gradient_norm == free.gradient_norm > 0
    moment = torch.stack([one["exp_avg"].square().sum() for one in trainer.optimisers[0].state.values()]).sum().sqrt()
    # AdamW's first moment after a step is 1 - beta times the gradient that it got
    assert float(moment) == pytest.approx(0.1 * free.gradient_norm / 10, rel=1e-4)


def test_what_a_step_reads_from_the_device_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reading waits for a GPU, so there is none for each pass of a step."""
    read: list[str] = []
    for name in ("item", "tolist", "__float__"):
        method = getattr(Tensor, name)

        def noting(self: Tensor, method=method, name=name) -> Any:
            read.append(name)
            return method(self)

        monkeypatch.setattr(Tensor, name, noting)
    trainer = trainer_of(tmp_path, FOUR, engine=NeverSaving(CPU, mixed=False))
    counts = []
    for parts in (FOUR[:1], FOUR):
        trainer.batches, trainer.step = Same(parts), 0
        read.clear()
        trainer._accumulate()
        counts.append(len(read))
    assert counts == [1, 1]


class NeverSaving(Single):
    def save(self, *_: Any) -> None:
        pass


def test_a_step_keeps_to_the_device_of_the_engine(tmp_path: Path) -> None:
    """On meta, where a tensor that was left on the CPU is an error, as it would be on a GPU."""
    network = Transformer(TransformerConfig.from_dict(TRANSFORMER), code_offset=TABLE.code_offset, device="meta")
    engine = NeverSaving(torch.device("meta"), mixed=False)
    trainer = Trainer(network, dict(network.named_parameters()), Same(FOUR), PLAN, engine=engine, folder=tmp_path)
    batch = FOUR[1].to(engine.device)
    (loop_module.loss_sum(network, batch) / batch.count).backward()
    assert trainer.engine.norms(list(trainer.weights.values())).shape == (len(trainer.weights),)
    trainer._update()
    assert trainer.step == 1 and trainer.whole


# --------------------------------------------------------------------------------------------------- what is kept


def test_each_step_is_recorded_before_anything_can_stop_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[tuple[str, int]] = []
    trainer = trainer_of(tmp_path, FOUR)
    save = trainer.save

    def record(step: Step) -> None:
        os.kill(os.getpid(), signal.SIGINT)  # it arrives here, and waits
        happened.append(("recorded", step.number))

    monkeypatch.setattr(trainer, "save", lambda: (happened.append(("saved", trainer.step)), save()))
    with pytest.raises(KeyboardInterrupt, match=r"step 1 of 4 is kept in .*, the same command continues there"):
        trainer.run(lambda step: happened.append(("told", step.number)), record)
    assert happened == [("recorded", 1), ("saved", 1)]


def test_the_state_is_saved_before_a_step_is_told_where_that_is_due(tmp_path: Path) -> None:
    saved: list[bool] = []
    trainer_of(tmp_path, FOUR).run(lambda step: saved.append(state_file(tmp_path).exists()))
    assert saved == [False, True, True, True]


def test_half_an_update_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, FOUR, replace(PLAN, steps=2))
    before = state_file(tmp_path).read_bytes()
    trainer = trainer_of(tmp_path, FOUR)

    def broken(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(trainer.optimisers[0], "step", broken)
    with pytest.raises(MemoryError):
        trainer.run()
    assert not trainer.whole and state_file(tmp_path).read_bytes() == before


def test_a_run_that_is_ended_early_is_saved_and_goes_on(tmp_path: Path) -> None:
    straight, whole = run(tmp_path / "straight", FOUR)
    trainer = trainer_of(tmp_path / "ended", FOUR)
    trainer.run(lambda step: trainer.end() if step.number == 3 else None)
    assert trainer.step == 3
    (last,), resumed = run(tmp_path / "ended", FOUR)
    assert (last.number, last.loss) == (4, straight[-1].loss)
    assert all(torch.equal(one, resumed.weights[name]) for name, one in whole.weights.items())


def test_attention_is_torchs_own_where_nothing_is_learnt() -> None:
    queries, keys, values = torch.randn(3, 1, 2, 9, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.no_grad():
        plain = nn.functional.scaled_dot_product_attention(queries, keys, values)
        assert torch.equal(attention_for_training(queries, keys, values), plain)
