"""Low-rank branches: right on weights of every kind, in any order, gone without a trace; and their gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dimoo_core.checkpoint.convert import KINDS
from dimoo_core.checkpoint.find import NANO, find
from dimoo_core.checkpoint.load import load_transformer
from dimoo_core.model import adapters as branching
from dimoo_core.model.adapters import TARGETS, Adapter, Adapters, Applied, LowRank, digest_of
from dimoo_core.model.transformer import Transformer

from ..adapters import logits, random_adapter

IDS = torch.randint(0, 534, (1, 40), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def networks(nano_files: dict[str, Path]) -> dict[str, Transformer]:
    """DiMOO-nano, loaded as it is stored; computing in bf16."""
    return {kind: load_transformer(find(path)) for kind, path in nano_files.items()}


@pytest.fixture(scope="module")
def adapter(networks: dict[str, Transformer]) -> Adapter:
    return random_adapter(networks["bf16"], size=0.3).to(torch.bfloat16)


def merged(adapter: Adapter, strength: float = 1.0) -> Transformer:
    """Nano in fp32 with an adapter in its weights."""
    network = load_transformer(find(NANO), dtype=torch.float32)
    for name, branch in adapter.branches.items():
        layer = network.get_submodule(name)
        layer.weight.data = layer.weight + strength * branch.scale * branch.up.float() @ branch.down.float()
    return network


def rms(x: Tensor) -> float:
    return float(x.float().square().mean().sqrt())


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_gives_what_it_gave_and_the_branches_sum(nano_files: dict[str, Path], kind: str) -> None:
    network = load_transformer(find(nano_files[kind]), dtype=torch.float32)  # quantised weights stay as they are
    layer = network.get_submodule("model.transformer.blocks.0.q_proj")
    generator = torch.Generator().manual_seed(0)
    outputs, inputs = layer.weight.shape
    branch = LowRank(torch.randn(3, inputs, generator=generator), torch.randn(outputs, 3, generator=generator), 6.0)
    branch.requires_grad_(False)
    x = torch.randn(2, 5, inputs, generator=generator)
    added = branching.linear(layer, x, [(branch, 0.5)]) - layer(x)
    torch.testing.assert_close(added, 0.5 * 2.0 * x @ branch.down.t() @ branch.up.t(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_on_every_base_the_error_is_the_bases_own(
    networks: dict[str, Transformer], adapter: Adapter, kind: str
) -> None:
    """What comes out is as far from fp32, merged, as the base alone is from fp32; measured: up to 1.3 times as far."""
    plain = load_transformer(find(NANO), dtype=torch.float32)
    right, without = logits(merged(adapter), ids=IDS), logits(plain, ids=IDS)
    assert rms(right - without) > 0.05 * rms(without), "it changes something"
    own = rms(logits(networks[kind], ids=IDS) - without)
    assert rms(logits(networks[kind], (adapter, 1.0), ids=IDS) - right) <= 1.6 * own


@pytest.mark.parametrize("kind", KINDS)
def test_strength_zero_and_removal_give_the_base_bit_for_bit(
    networks: dict[str, Transformer], adapter: Adapter, kind: str
) -> None:
    network = networks[kind]
    before, weights = logits(network), {name: part.clone() for name, part in network.state_dict().items()}
    with_it = logits(network, (adapter, 1.0))
    assert not torch.equal(with_it, before)
    assert torch.equal(logits(network, (adapter, 0.0)), before) and torch.equal(logits(network), before)
    assert torch.equal(logits(network, (adapter, 1.0)), with_it), "the same again"
    after = network.state_dict()
    assert after.keys() == weights.keys()
    assert all(
        torch.equal(part.reshape(-1).view(torch.uint8), after[name].reshape(-1).view(torch.uint8))
        for name, part in weights.items()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_several_in_any_order_give_the_same_bits(networks: dict[str, Transformer], kind: str) -> None:
    network = networks[kind]
    three = [
        (random_adapter(network, seed=seed, size=0.1), strength) for seed, strength in ((1, 1.0), (2, -0.5), (3, 2))
    ]
    first = logits(network, *three)
    for order in ((0, 2, 1), (1, 0, 2), (2, 1, 0)):
        assert torch.equal(logits(network, *(three[index] for index in order)), first)
    assert not torch.equal(logits(network, *three[:2]), first)
    twice = [(three[0][0], 0.5), (three[0][0], 0.25)]
    assert torch.equal(logits(network, *twice), logits(network, *twice[::-1]))


@pytest.mark.parametrize("kind", KINDS)
def test_one_given_several_times_acts_once_with_the_sum_of_its_strengths(
    networks: dict[str, Transformer], adapter: Adapter, kind: str
) -> None:
    network = networks[kind]
    copy = Adapter(adapter.branches, adapter.digest)  # read a second time
    assert torch.equal(logits(network, (adapter, 0.75), (copy, 0.25)), logits(network, (adapter, 1.0)))
    assert torch.equal(logits(network, (adapter, 1.0), (copy, -1.0)), logits(network)), "the base, bit for bit"
    fractions = [(adapter, strength) for strength in (0.1, 0.7, 0.2)]
    assert torch.equal(logits(network, *fractions), logits(network, *fractions[::-1]))
    trained = [Adapter(random_adapter(network, seed=seed).branches) for seed in (1, 2)]  # which have no digest
    assert not torch.equal(logits(network, (trained[0], 1.0), (trained[1], -1.0)), logits(network))


def test_strength_scales_and_a_negative_one_takes_away(networks: dict[str, Transformer]) -> None:
    network = load_transformer(find(NANO), dtype=torch.float32)
    adapter = random_adapter(network, size=0.1)
    for strength in (0.3, -1.0, 2.0):
        torch.testing.assert_close(
            logits(network, (adapter, strength)), logits(merged(adapter, strength)), rtol=1e-3, atol=1e-3
        )


def test_embedding_and_head_take_branches_in_both_their_parts() -> None:
    network = load_transformer(find(NANO), dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    branches = {}
    for name in ("wte.text", "wte.codes", "ff_out.text", "ff_out.codes"):
        rows, width = network.get_submodule(f"model.transformer.{name}").weight.shape
        down, up = torch.randn(2, width, generator=generator), torch.randn(rows, 2, generator=generator)
        branches[f"model.transformer.{name}"] = LowRank(down * 0.1, up * 0.1, 2.0)
    adapter = Adapter(branches, "all").requires_grad_(False)
    ids = torch.randint(0, network.config.vocab_size, (1, 200), generator=generator)
    assert (ids < network.code_offset).any() and (ids >= network.code_offset).any()
    torch.testing.assert_close(
        logits(network, (adapter, 1.0), ids=ids), logits(merged(adapter), ids=ids), rtol=1e-4, atol=1e-4
    )


def test_a_blank_one_stands_beside_the_targets_and_changes_nothing(networks: dict[str, Transformer]) -> None:
    network = networks["bf16"]
    blank = Adapter.blank(network, rank=4, alpha=2.0)
    assert len(blank.branches) == len(TARGETS) * network.config.n_layers and blank.rank == 4
    assert torch.equal(logits(network, (blank, 1.0)), logits(network))
    some = Adapter.blank(network, rank=2, alpha=2.0, targets=("q_proj",))
    assert {name.rpartition(".")[2] for name in some.branches} == {"q_proj"}
    count = sum(part.numel() for part in some.parameters())
    assert some.nbytes == 4 * count == 4 * 2 * 2 * network.config.d_model * network.config.n_layers


def test_a_digest_tells_names_numbers_and_dtypes_apart() -> None:
    one = {"a": torch.ones(2, 3)}
    others = (
        {"b": torch.ones(2, 3)},
        {"a": torch.ones(3, 2)},
        {"a": torch.zeros(2, 3)},
        {"a": torch.ones(2, 3).half()},
    )
    assert len({digest_of(state) for state in (one, *others)}) == 5
    assert digest_of(one) == digest_of({"a": torch.ones(3, 2).t()}), "of the numbers, not of how they lie"


# Gradients ----------------------------------------------------------------------------------------------------------


def gradients(network: Transformer, adapter: Adapter) -> dict[str, Tensor]:
    adapter.zero_grad()
    out = network(IDS, adapters=Adapters([Applied(adapter)]))
    out.float().log_softmax(-1)[..., :7].mean().backward()
    return {name: part.grad.clone() for name, part in adapter.named_parameters() if part.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_through_a_stored_base_are_those_of_what_it_stands_for(
    nano_files: dict[str, Path], kind: str
) -> None:
    found = find(nano_files[kind])
    stored = load_transformer(found, dtype=torch.float32)
    plain = load_transformer(found, dtype=torch.float32, dequantised=True)
    branches = random_adapter(plain, size=0.1).branches
    width = plain.config.d_model  # beside the embedding, too: then autograd follows what enters the first layer
    branches["model.transformer.wte.text"] = LowRank(torch.ones(1, width), torch.zeros(plain.code_offset, 1), 1.0)
    adapter = Adapter(branches).requires_grad_(True)
    wanted, came = gradients(plain, adapter), gradients(stored, adapter)
    assert len(wanted) == 2 * len(branches)
    for name, gradient in wanted.items():
        torch.testing.assert_close(came[name], gradient, rtol=1e-3, atol=5e-5 * float(gradient.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [True, False], ids=["all blocks", "the last block alone"])
def test_recomputing_gives_equal_gradients(nano_files: dict[str, Path], kind: str, first: bool) -> None:
    """Where only the last block has branches, the input of every block needs no gradient."""
    network = load_transformer(find(nano_files[kind]), dtype=torch.float32)
    adapter = random_adapter(network, size=0.1)
    last = f"model.transformer.blocks.{network.config.n_layers - 1}."
    kept = {name: branch for name, branch in adapter.branches.items() if first or name.startswith(last)}
    adapter = Adapter(kept).requires_grad_(True)
    straight = gradients(network, adapter)
    again = gradients(network.recompute(True), adapter)
    assert straight.keys() == again.keys() and len(straight) == 2 * len(kept)
    assert all(torch.equal(again[name], gradient) for name, gradient in straight.items())
