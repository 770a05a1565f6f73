"""What a step of an answer computes anew, and how many tokens it decides: reuse is plumbing, sureness a threshold."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dimoo_core.checkpoint.find import NANO
from dimoo_core.model.config import TransformerConfig
from dimoo_core.model.transformer import Transformer
from dimoo_core.nano.cases import Examiner
from dimoo_core.nano.table import load
from dimoo_core.sampling.branch import Scope
from dimoo_core.sampling.selection import Holes
from dimoo_core.sampling.text import TextSettings, sample_text
from dimoo_core.sampling.text_cache import EXACT, SPEEDS, TextPolicy

from ..tiny import TABLE, TRANSFORMER, random_weights

PREFIX = torch.tensor([[256, 7, 257, 258, 65, 66, 259]])
PREFIXES = torch.cat((PREFIX, PREFIX.flip(1), PREFIX + 1))
KEPT = [TextPolicy(1, 1), TextPolicy(1, 3), TextPolicy(2, 99), TextPolicy(99, 2), TextPolicy(99, 99)]
STEADY = {name: replace(policy, threshold=None) for name, policy in SPEEDS.items()}
EAGER = [TextPolicy(threshold=0.05), TextPolicy(1, 3, 0.05), TextPolicy(2, 99, 0.02), *SPEEDS.values()]


def network(layers: int) -> Transformer:
    transformer = Transformer(TransformerConfig.from_dict(TRANSFORMER | {"n_layers": layers}), code_offset=272)
    random_weights(transformer, 3)
    with torch.no_grad():  # one answer then differs from place to place, and from prompt to prompt
        for name, weight in transformer.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                weight.mul_(2)
    return transformer


SHALLOW, DEEP = network(1), network(3)


def answer(prefix: Tensor = PREFIX, *, transformer=DEEP, on_step=None, **changes) -> list[list[int]]:
    plan = TextSettings(**{"max_tokens": 16, "steps": 16, "block_length": 4} | changes)
    return sample_text(transformer, TABLE, prefix, settings=plan, on_step=on_step)


def recorder(transformer=DEEP) -> SimpleNamespace:
    """A transformer that notes for every pass how many positions it computes, which, and whether it was to store."""
    passes: list[SimpleNamespace] = []

    def call(ids, positions=None, cache=None, **wanted):
        places = None if positions is None else positions.tolist()
        passes.append(SimpleNamespace(computed=ids.shape[1], places=places, stores=cache is not None))
        return transformer(ids, positions=positions, cache=cache, **wanted)

    return SimpleNamespace(call=call, passes=passes)


def scripted(script: dict[int, tuple[int, float]]):
    """A transformer that says token and logit of the script at these places of the answer, whatever it is asked."""

    def call(ids, rows, positions=None, **_):
        places = (rows if positions is None else positions.gather(1, rows)) - PREFIX.shape[1] - 1
        logits = torch.zeros(*rows.shape, TABLE.codes.stop)
        for place, (token, logit) in script.items():
            logits[..., token] += logit * (places == place)
        return logits

    return call


SURE, UNSURE = 20.0, 3.0  # of 304 tokens: a probability of nearly 1, and of 0.06


# What is computed ---------------------------------------------------------------------------------------------------


def test_exact_computes_everything_at_every_step_and_stores_nothing() -> None:
    seen = recorder()
    answer(transformer=seen.call)
    assert [one.computed for one in seen.passes] == [PREFIX.shape[1] + 18] * 16
    assert not any(one.stores for one in seen.passes)


def test_the_default_is_exact() -> None:
    assert TextSettings().policy == EXACT == SPEEDS["exact"] == TextPolicy() and next(iter(SPEEDS)) == "exact"


def test_a_policy_says_what_is_computed_anew() -> None:
    policy = TextPolicy(prefix_refresh=2, answer_refresh=3)
    scopes = [[policy.scope(block, step).name for step in range(5)] for block in range(3)]
    inside = ["PART", "PART", "ANSWER", "PART"]
    assert scopes == [["ALL", *inside], ["ANSWER", *inside], ["ALL", *inside]]
    assert {EXACT.scope(block, step) for block in range(3) for step in range(5)} == {Scope.ALL}


def test_each_scope_computes_its_positions_and_no_others() -> None:
    seen, start = recorder(), PREFIX.shape[1]
    answer(transformer=seen.call, policy=TextPolicy(2, 3), cfg=1.0)
    for number, one in enumerate(seen.passes):
        block, step = divmod(number // 2, 4)  # two branches
        scope = TextPolicy(2, 3).scope(block, step)
        wanted = {Scope.ALL: None, Scope.ANSWER: range(start, start + 18)}
        wanted[Scope.PART] = range(start + 1 + 4 * block, start + 5 + 4 * block)
        assert one.places == (wanted[scope] and [list(wanted[scope])]) and one.stores


@pytest.mark.parametrize("policy", [*KEPT, *STEADY.values()], ids=str)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("cfg", [0.0, 1.5])
def test_what_is_kept_is_what_would_be_computed(policy: TextPolicy, temperature: float, cfg: float) -> None:
    """In one layer keys and values depend on nothing but a token and its place, so nothing kept is ever out of date."""
    how = {"transformer": SHALLOW, "temperature": temperature, "cfg": cfg, "seed": 5}
    exact = answer(PREFIXES, **how)
    assert len({token for one in exact for token in one}) > 5, "answers of some variety"
    assert answer(PREFIXES, policy=policy, **how) == exact


@pytest.mark.parametrize("policy", [*KEPT, *EAGER], ids=str)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("cfg", [0.0, 1.5])
def test_each_answer_of_a_batch_equals_the_single_one(policy: TextPolicy, temperature: float, cfg: float) -> None:
    how = {"policy": policy, "temperature": temperature, "cfg": cfg, "block_length": 8}
    batch = answer(PREFIXES, seed=5, **how)
    for item in range(3):
        assert answer(PREFIXES[item : item + 1], seed=5 + item, **how) == [batch[item]]


def test_kept_keys_and_values_make_a_difference_where_layers_are_many() -> None:
    """Or the tests above would pass without any of them."""
    answers = [answer(PREFIXES, policy=policy, block_length=8) for policy in (EXACT, TextPolicy(99, 99))]
    assert answers[0] != answers[1]


# What is decided ----------------------------------------------------------------------------------------------------


def test_all_that_is_sure_is_decided_at_once_and_the_rest_as_planned() -> None:
    script = {place: (place + 1, SURE if place % 2 else UNSURE) for place in range(16)}
    steps: list[tuple] = []
    policy = TextPolicy(threshold=0.9)
    assert answer(transformer=scripted(script), policy=policy, on_step=lambda *step: steps.append(step)) == [
        list(range(1, 17))
    ]
    assert [done for done, _, _ in steps] == [1, 2, 3, 5, 6, 7, 9, 10, 11, 13, 14, 15], "a block of 4: 2 sure, 1, 1"
    assert {total for _, total, _ in steps} == {16}
    assert [int((tokens != TABLE.mask).sum()) for _, _, tokens in steps[:3]] == [2, 3, 4]


def test_no_block_is_decided_before_its_turn_however_sure() -> None:
    steps: list[list[int]] = []
    script = {place: (place + 1, SURE) for place in range(16)}
    answer(transformer=scripted(script), policy=SPEEDS["fast"], on_step=lambda *step: steps.append(step[2][0].tolist()))
    assert [sum(token != TABLE.mask for token in tokens) for tokens in steps] == [4, 8, 12, 16]


def test_a_finished_answer_waits_for_the_others_of_its_batch() -> None:
    def call(ids, rows, **_):
        sure = scripted({place: (place + 1, SURE) for place in range(16)})(ids, rows)
        unsure = scripted({place: (place + 1, UNSURE + place / 100) for place in range(16)})(ids, rows)
        return torch.cat((sure[:1], unsure[1:]))

    steps: list[Tensor] = []
    policy = TextPolicy(threshold=0.9)
    both = answer(PREFIX.expand(2, -1), transformer=call, policy=policy, on_step=lambda *step: steps.append(step[2]))
    assert both == [list(range(1, 17))] * 2 and len(steps) == 16
    assert [(tokens != TABLE.mask).sum(dim=1).tolist() for tokens in steps[:5]] == [
        [4, 1],
        [4, 2],
        [4, 3],
        [4, 4],
        [8, 5],
    ]


@pytest.mark.parametrize("policy", [EXACT, *EAGER, TextPolicy(99, 99)], ids=str)
def test_a_sampled_mask_id_leaves_its_hole_for_a_later_block(policy: TextPolicy) -> None:
    """The hole is computed again and may be decided there, in place of one of that block's own."""
    ways = {place: (place + 1, SURE - place / 10) for place in range(16)}
    first, later = scripted(ways | {0: (TABLE.mask, UNSURE)}), scripted(ways)
    steps: list[tuple[int, list[int]]] = []

    def call(*ids, **rest):
        in_first_block = not steps or steps[-1][0] < (2 if policy.threshold else 4)
        return (first if in_first_block else later)(*ids, **rest)

    answer(transformer=call, policy=policy, on_step=lambda done, _, tokens: steps.append((done, tokens[0].tolist())))
    at_first = [tokens for done, tokens in steps if done <= 4][-1]
    assert at_first[:4] == [TABLE.mask, 2, 3, 4], "left open in the first block"
    assert steps[-1][1] == [*range(1, 16), TABLE.mask], "then decided, one in each block paying for the one before"


# What it costs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prefix_refresh": -1}, "prefix_refresh is -1"),
        ({"answer_refresh": 0}, "answer_refresh is 0"),
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"threshold": float("nan")}, "threshold is nan"),
    ],
)
def test_policies_that_make_no_sense_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextPolicy(**values)


class Waits(TorchDispatchMode):
    """Counts the operations for which the host waits until a GPU is done."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        boolean = name == "index" and any(part is not None and part.dtype == torch.bool for part in args[1])
        self.count += boolean or name in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("policy", [EXACT, TextPolicy(99, 99), STEADY["balanced"]], ids=str)
@pytest.mark.parametrize("layers", [1, 6])
def test_the_host_waits_once_a_step_and_once_in_the_end_however_deep_the_model(
    policy: TextPolicy, layers: int, monkeypatch
) -> None:
    transformer, reads, read = network(layers), [], Holes.read

    def noted(holes: Holes, *counts: Tensor) -> list[int]:
        reads.append(len(counts))
        return read(holes, *counts)

    monkeypatch.setattr(Holes, "read", noted)
    with Waits() as waits:  # beside the reads, which hand several numbers over in one copy
        answer(PREFIXES, transformer=transformer, policy=policy, cfg=1.0)
    assert len(reads) == 16 and waits.count == 1


@pytest.mark.parametrize("speed", [name for name in SPEEDS if name != "exact"])
def test_nano_describes_as_well_at_every_speed(speed: str) -> None:
    runner, usual = load(NANO)
    examiner = Examiner(runner.encode, *usual.grid)
    cases = [examiner.describe(number) for number in range(20)]
    setup = replace(usual, text=replace(usual.text, policy=SPEEDS[speed], block_length=8))
    right = [said == case.asked for said, case in zip(runner.answer(cases, setup), cases, strict=True)]
    assert sum(right) >= 19
