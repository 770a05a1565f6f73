"""How passes are run: one by one, together, recorded. The tokens are the same, the numbers too but for rounding."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dimoo_core import jobs
from dimoo_core.model.adapters import Adapter, Adapters, Applied, LowRank
from dimoo_core.model.config import TransformerConfig
from dimoo_core.model.text_rows import TextRows
from dimoo_core.model.transformer import Part, RotaryTable, Transformer
from dimoo_core.sampling import passes
from dimoo_core.sampling.branch import Ask, KeyValues, Scope
from dimoo_core.sampling.guidance import Branch, Guidance
from dimoo_core.sampling.image import ImageSettings, sample_image
from dimoo_core.sampling.ml_cache import PRESETS, CachePolicy
from dimoo_core.sampling.passes import Passes, Recorded, Recorder
from dimoo_core.sampling.text import TextSettings, sample_text
from dimoo_core.sampling.text_cache import EXACT, SPEEDS, TextPolicy
from dimoo_core.sequence.canvas import Canvas
from dimoo_core.sequence.layout import answer_length

from ..tiny import TABLE, TRANSFORMER, random_weights

PREFIX = torch.tensor([[256, 7, 257, 258, 65, 66, 259]])
BLIND = torch.tensor([[256, 7, 257, 258, 264, 259]])
PUBLISHED = CachePolicy(0.8, 0.2, 3)
POLICIES = {None: None, "published": PUBLISHED, "balanced": PRESETS["balanced"]}
DEVICE = torch.device("cpu")


def network() -> Transformer:
    transformer = Transformer(TransformerConfig.from_dict(TRANSFORMER), code_offset=TABLE.code_offset)
    random_weights(transformer, 3)
    return transformer.requires_grad_(False)


NET = network()


class Watched:
    """The network, noting of each pass through the layers how many sequences it took."""

    def __init__(self) -> None:
        self.config, self.passes = NET.config, []

    def __call__(self, ids: Tensor, **how) -> Tensor:
        self.passes.append(1)
        return NET(ids, **how)

    def together(self, parts: Sequence[Part], **how) -> list[Tensor]:
        self.passes.append(len(parts))
        return NET.together(parts, **how)


def picture(
    transformer=NET,
    *,
    policy: CachePolicy | None = None,
    batch: int = 1,
    start: float = 0.0,
    sampler: dict | None = None,
    **how,
) -> Tensor:
    """Codes of an edit with two unconditional branches."""
    settings = ImageSettings(steps=8, cache=policy, guidance=Guidance(start=start), **sampler or {})
    branches = [Branch(BLIND, 2.0), Branch(PREFIX[:, :4], 1.5)]
    blank = Canvas.empty(batch, 4, 4)
    return sample_image(transformer, TABLE, blank, PREFIX, branches, settings=settings, **how).codes


def answer(transformer=NET, *, policy: TextPolicy = EXACT, cfg: float = 1.0, **how) -> list[list[int]]:
    settings = TextSettings(max_tokens=16, steps=16, block_length=4, cfg=cfg, policy=policy, temperature=0.5)
    return sample_text(transformer, TABLE, torch.cat((PREFIX, PREFIX + 1)), settings=settings, **how)


# Together -----------------------------------------------------------------------------------------------------------


def test_sequences_that_go_together_have_the_logits_they_have_alone() -> None:
    chance = torch.Generator().manual_seed(1)
    ids = [torch.randint(0, 250, (batch, length), generator=chance) for batch, length in ((1, 9), (2, 5), (3, 1))]
    rows = [torch.tensor([[8, 0]]), None, torch.tensor([[0], [0], [0]])]
    together = NET.together([Part(one, rows=row) for one, row in zip(ids, rows, strict=True)], vocab=TABLE.codes)
    for one, row, found in zip(ids, rows, together, strict=True):
        torch.testing.assert_close(found, NET(one, rows=row, vocab=TABLE.codes), rtol=0, atol=1e-5)


def test_each_of_them_has_keys_and_values_of_its_own() -> None:
    stores, alone = [KeyValues(), KeyValues()], [KeyValues(), KeyValues()]
    whole = [torch.arange(2 * length).view(2, length) % 250 for length in (9, 6)]
    NET.together([Part(ids, cache=store) for ids, store in zip(whole, stores, strict=True)])
    for ids, store in zip(whole, alone, strict=True):
        NET(ids, cache=store)
    fresh, positions = torch.tensor([[7, 8], [9, 7]]), torch.tensor([[4, 1], [0, 5]])
    together = NET.together([Part(fresh, positions, store) for store in stores])
    for store, found in zip(alone, together, strict=True):
        expected = NET(fresh, positions=positions, cache=store)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_angles_made_for_a_run_are_those_of_each_pass() -> None:
    ids, rotary = torch.arange(24).view(2, 12), RotaryTable(40, NET.config, "cpu")
    assert torch.equal(NET(ids, rotary=rotary), NET(ids))
    assert torch.equal(NET(ids[:1], rotary=rotary), NET(ids[:1]))
    places = torch.tensor([[30, 2], [0, 17]])
    stores = [KeyValues(), KeyValues()]
    assert torch.equal(
        *(
            (NET(ids, cache=store), NET(ids[:, :2], positions=places % 12, cache=store, **how))[1]
            for store, how in zip(stores, ({"rotary": rotary}, {}), strict=True)
        )
    )


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("start", [0.0, 0.3])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_picture_is_the_same_with_all_branches_in_one_pass(policy: str | None, start: float, batch: int) -> None:
    how = {"policy": POLICIES[policy], "start": start, "batch": batch}
    apart, packed = Watched(), Watched()
    assert torch.equal(picture(apart, **how), picture(packed, **how, packed=True))
    guided = [3] * (8 - int(8 * start))
    assert packed.passes == [1] * (8 - len(guided)) + guided, "one pass a step"
    if policy is None:
        assert set(apart.passes) == {1}


def test_a_cached_step_is_one_pass_of_all_branches_anyway() -> None:
    watched = Watched()
    picture(watched, policy=PUBLISHED)
    scopes = PUBLISHED.scopes(8)
    assert watched.passes == [one for scope in scopes for one in ([3] if scope is Scope.PART else [1, 1, 1])]


def test_a_function_in_place_of_the_network_is_called_for_each_branch() -> None:
    calls = []

    def call(ids, **how):
        calls.append(ids.shape[1])
        return NET(ids, **how)

    assert torch.equal(picture(call, policy=PUBLISHED, packed=True), picture(policy=PUBLISHED))
    assert len(calls) == 3 * 8


@pytest.mark.parametrize("policy", [EXACT, *SPEEDS.values(), TextPolicy(1, 2)])
def test_an_answer_is_the_same_with_both_branches_in_one_pass(policy: TextPolicy) -> None:
    packed = Watched()
    assert answer(policy=policy) == answer(packed, policy=policy, packed=True)
    assert set(packed.passes) == {2}


# Recorded -----------------------------------------------------------------------------------------------------------


class Tape(TorchDispatchMode):
    """What a CUDA graph is, on the CPU: the same operations on the same tensors, whatever Python has in mind by now."""

    def __init__(self) -> None:
        super().__init__()
        self._operations, self.replays = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self._operations.append((function, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        self.replays += 1
        for function, args, kwargs, result in self._operations:
            for old, new in zip(tree_leaves(result), tree_leaves(function(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():  # neither a view nor in place
                    old.copy_(new)


@pytest.fixture
def tapes(monkeypatch) -> list[Tape]:
    made: list[Tape] = []

    def record(_, run) -> Tape:
        with Tape() as tape:
            run()
        made.append(tape)
        return tape

    monkeypatch.setattr(Recorder, "record", record)
    return made


@pytest.mark.parametrize("sampler", [{}, {"corrections": 2, "corrections_start": 0.2, "polish": 2}])
@pytest.mark.parametrize("start", [0.0, 0.3])
@pytest.mark.parametrize("policy", list(POLICIES)[1:])
def test_a_picture_is_the_same_with_short_passes_recorded(tapes, policy: str, start: float, sampler: dict) -> None:
    how = {"policy": POLICIES[policy], "batch": 2, "start": start, "sampler": sampler}
    plain = picture(**how, graphs=False)
    assert not tapes and torch.equal(picture(**how, graphs=True), plain)
    assert sum(tape.replays for tape in tapes) > 1


@pytest.mark.parametrize("policy", [*list(SPEEDS.values())[1:], TextPolicy(1, 2), TextPolicy(2, 99)])
def test_an_answer_is_the_same_with_short_passes_recorded(tapes, policy: TextPolicy) -> None:
    plain = answer(policy=policy, graphs=False)
    assert not tapes and answer(policy=policy, graphs=True) == plain
    assert sum(tape.replays for tape in tapes) > 1


def test_a_recorded_pass_keeps_the_loras_and_the_text_rows_of_its_job(tapes) -> None:
    base = network()
    layer = "model.transformer.blocks.1.up_proj"
    branch = LowRank(torch.randn(2, 32), torch.randn(48, 2), 2.0)
    adapters = Adapters([Applied(Adapter({layer: branch}).requires_grad_(False), 0.7)])
    expected = answer(jobs.Bound(base, adapters), policy=SPEEDS["balanced"], graphs=False)
    tables = base.set_text_apart()
    rows = TextRows(tables.embedding, range(256, 272), offset=TABLE.code_offset, room=256, device=DEVICE)
    rows.add(torch.cat((PREFIX, PREFIX + 1)).flatten().tolist())
    bound = jobs.Bound(base, adapters, rows)
    assert answer(bound, policy=SPEEDS["balanced"], graphs=True, on_tokens=rows.add) == expected
    assert sum(tape.replays for tape in tapes) > 1


def test_passes_whose_keys_and_values_move_are_not_recorded(monkeypatch) -> None:
    """Before guidance begins a step may be short that is not short later: each full pass would leave a recording with
    old keys and values behind."""
    made = []
    monkeypatch.setattr(passes, "Recorded", lambda *_: made.append(1))
    policy = CachePolicy(0.8, 0.0, 3)
    length = PREFIX.shape[1] + answer_length(4, 4)
    monkeypatch.setattr(passes, "SHORT_ROWS", policy.budget(length, 16, []))
    picture(policy=policy, start=0.9)
    assert not made


class StandInCuda:
    """`torch.cuda` of two devices, as far as a recording needs it. As torch does it, a recording that an operation has
    spoilt ends in an error, with its own stream the current one."""

    def __init__(self) -> None:
        self.stream_now, self.device_now, self.recordings = "caller's", 0, []

    class CUDAGraph:
        def __init__(self) -> None:
            self.own = object()

        def pool(self) -> object:
            return self.own

    def current_stream(self) -> str:
        return self.stream_now

    def current_device(self) -> int:
        return self.device_now

    @contextmanager
    def device(self, device: torch.device):
        before, self.device_now = self.device_now, device.index
        yield
        self.device_now = before

    @contextmanager
    def stream(self, stream: str):
        before, self.stream_now = self.stream_now, stream
        try:
            yield
        finally:
            self.stream_now = before

    @contextmanager
    def graph(self, graph: StandInCuda.CUDAGraph, *, pool: object, stream: str, capture_error_mode: str):
        self.recordings.append((self.device_now, pool))
        graph.own, before, self.stream_now = pool or graph.own, self.stream_now, stream
        try:
            yield
        except BaseException:
            raise RuntimeError("operation failed due to a previous error during capture") from None
        self.stream_now = before


@pytest.fixture
def cuda(monkeypatch) -> StandInCuda:
    stand_in = StandInCuda()
    monkeypatch.setattr(passes, "cuda", stand_in)
    monkeypatch.setattr(passes, "_stream", "recording of {}".format)
    return stand_in


def reads_a_number() -> None:
    raise RuntimeError("operation not permitted when stream is capturing")


def test_a_recording_that_fails_leaves_the_stream_as_it_was(cuda) -> None:
    """On another, nothing would wait for what the caller's computes."""
    recorder = Recorder(torch.device("cuda", 1))
    assert recorder.record(reads_a_number) is None
    assert (cuda.stream_now, cuda.device_now) == ("caller's", 0)
    assert recorder.record(reads_a_number) is None and cuda.recordings == [(1, None)], "it is not tried again"


def test_recordings_share_their_memory_while_one_of_them_lives(cuda) -> None:
    recorder = Recorder(torch.device("cuda", 1))
    first = recorder.record(lambda: None)
    second = recorder.record(lambda: None)
    del first
    third = recorder.record(lambda: None)
    shared = third.pool()
    del second, third
    assert recorder.record(lambda: None).pool() is not shared, "torch has given that up"
    assert cuda.recordings == [(1, None), (1, shared), (1, shared), (1, None)]


def test_a_recorded_pass_always_works_from_the_same_memory() -> None:
    seen = []

    def run(parts: Sequence[Part]) -> list[Tensor]:
        seen.append([(part.ids.data_ptr(), part.positions.data_ptr(), id(part.cache)) for part in parts])
        return [part.ids * 2 for part in parts]

    store = KeyValues()
    given = [[Part(torch.tensor([[step, 5]]), torch.tensor([[0, step]]), store)] for step in (1, 2, 3)]
    recorded = Recorded(run, given[0], Recorder(DEVICE))
    assert [recorded(parts)[0].tolist() for parts in given] == [[[2, 10]], [[4, 10]], [[6, 10]]]
    assert all(before == after for before, after in pairwise(seen))


def test_keys_and_values_stay_where_they_are_when_all_are_computed_again() -> None:
    store, parts = KeyValues(fixed=True), [torch.randn(1, 2, 5, 4) for _ in range(4)]
    first = store.update(0, None, *(part.clone() for part in parts[:2]))
    again = store.update(0, None, *(part.clone() for part in parts[2:]))
    assert [one.data_ptr() for one in again] == [one.data_ptr() for one in first]
    assert all(torch.equal(*pair) for pair in zip(again, parts[2:], strict=True))


def test_long_passes_are_not_recorded(monkeypatch) -> None:
    made = []
    monkeypatch.setattr(passes, "Recorded", lambda *_: made.append(1))
    monkeypatch.setattr(passes, "SHORT_ROWS", 4)
    picture(policy=PUBLISHED)
    assert not made


def test_no_more_than_a_few_shapes_stay_recorded_and_those_in_use_do(monkeypatch) -> None:
    made = []
    monkeypatch.setattr(passes, "Recorded", lambda *given: made.append(1) or Recorded(*given))
    run, store = Passes(NET, length=40, device=DEVICE), KeyValues(fixed=True)
    NET(torch.zeros(1, 20, dtype=torch.int64), cache=store)

    def over(length: int) -> None:
        positions = torch.arange(length)[None]
        run.run([Ask(Scope.PART, Part(positions, positions, store))])

    for length in range(2, 12):
        over(1), over(length)
    assert len(run._recorded) == passes.MOST_RECORDED and len(made) == 11
