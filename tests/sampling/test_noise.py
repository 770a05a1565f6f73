"""Randomness: reproducible, independent where it should be, and distributed as the released code's on a GPU."""

from __future__ import annotations

import pytest
import torch

from bench.op_counts import OpCounts
from dimoo_core.sampling import noise
from dimoo_core.sampling.noise import SEEDS, Noise, gumbel
from dimoo_core.sampling.selection import least_confident

STEPS = 8


def tokens(seed: int, *, step: int = 0, cells: int = 64, codes: int = 512, batch: int = 1) -> torch.Tensor:
    """Noise [B,cells,codes] of one step."""
    index = torch.arange(cells).expand(batch, -1)
    return torch.cat([part for _, part in Noise(seed, batch, "cpu", STEPS).for_tokens(step, index, codes)], dim=1)


def uniform(seed: int, *, step: int = 0, cells: int = 256, codes: int = 1024) -> torch.Tensor:
    """The fp64 uniforms [cells,codes] behind the noise of text."""
    index = torch.arange(cells)[None]
    drawn = torch.cat([part for _, part in Noise(seed, 1, "cpu", STEPS).for_text(step, index, codes)], dim=1)
    return torch.exp(-torch.exp(-drawn))[0]


def test_a_seed_gives_the_same_numbers_wherever_and_in_whatever_parts_they_are_drawn() -> None:
    whole = tokens(7, cells=64)
    assert torch.equal(whole, tokens(7, cells=64))
    some = torch.tensor([[3, 60, 17]])
    drawn = torch.cat([part for _, part in Noise(7, 1, "cpu", STEPS).for_tokens(0, some, 512)], dim=1)
    assert torch.equal(drawn, whole[:, some[0]])
    assert torch.equal(tokens(7, codes=100), whole[:, :, :100])


def test_large_draws_come_in_parts_that_cover_all(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tokens(1, cells=50, codes=300, batch=2)
    monkeypatch.setattr("dimoo_core.sampling.noise._DRAWS_CHUNK", 300 * 2 * 7)
    parts = list(Noise(1, 2, "cpu", STEPS).for_tokens(0, torch.arange(50).expand(2, -1), 300))
    assert len(parts) == 8 and torch.equal(torch.cat([part for _, part in parts], dim=1), whole)
    assert [index for part, _ in parts for index in range(50)[part]] == list(range(50))


def test_item_i_of_a_batch_draws_as_a_single_run_with_seed_plus_i() -> None:
    for seed in (0, 5, SEEDS - 2):
        batch = tokens(seed, batch=3)
        for item in range(3):
            assert torch.equal(batch[item : item + 1], tokens((seed + item) % SEEDS))


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63, 2**64 - 1])
def test_every_64_bit_seed_serves_and_differs_from_its_neighbours(seed: int) -> None:
    mine = tokens(seed)
    for other in ((seed + 1) % SEEDS, seed ^ 2**32, seed ^ 2**63):
        assert (mine == tokens(other)).float().mean() < 0.03


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, None, True, float("nan")])
def test_other_seeds_are_refused(seed: object) -> None:
    with pytest.raises(ValueError, match=r"seed is .* expected a whole number from 0 to 18446744073709551615"):
        Noise(seed, 1, "cpu", STEPS)


def test_uniforms_are_uniform() -> None:
    drawn = uniform(3)
    counts = torch.histc(drawn.float(), 64, 0, 1)
    expected = drawn.numel() / 64
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert 30 < chi_square < 115, "63 degrees of freedom: beyond that only once in 10^4"
    assert abs(float(drawn.mean()) - 0.5) < 0.003 and abs(float(drawn.var()) - 1 / 12) < 0.001


def test_neighbours_in_code_cell_step_and_seed_are_uncorrelated() -> None:
    def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
        return abs(float(torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1]))

    drawn = uniform(11)
    limit = 5 / drawn.numel() ** 0.5
    for distance in (1, 2, 64):
        assert correlation(drawn[:, distance:], drawn[:, :-distance]) < limit
        assert correlation(drawn[distance:], drawn[:-distance]) < limit
    assert correlation(drawn, uniform(11, step=1)) < limit
    assert correlation(drawn, uniform(12)) < limit


def test_cells_win_their_codes_independently() -> None:
    # noise that is not rounded: among equal logits, rounded noise ties and the first code wins
    winners = uniform(5, cells=2048, codes=256).argmax(dim=-1)
    counts = torch.bincount(winners, minlength=256).float()
    assert float(((counts - 8) ** 2 / 8).sum()) < 380, "255 degrees of freedom: beyond that only once in 10^6"


def test_image_noise_is_that_of_bf16_uniforms() -> None:
    # on a GPU bf16 uniforms end at 0.9961, so the noise ends at 5.53 and 1 of 256 codes ties for it
    drawn = tokens(9, cells=256, codes=2048)
    assert float(drawn.max()) == float(gumbel(torch.tensor(0.99609375, dtype=torch.bfloat16)))
    assert abs(float((drawn == drawn.max()).float().mean()) * 256 - 1) < 0.1
    assert drawn.dtype == torch.bfloat16
    assert abs(float(drawn.float().mean()) - 0.555) < 0.01, "0.577 less what is cut off"


def test_doubt_noise_is_not_the_noise_of_any_code() -> None:
    cells = torch.arange(4096)[None]
    doubt = Noise(4, 1, "cpu", STEPS).for_remask(0, cells)
    assert doubt.shape == (1, 4096)
    assert (doubt == tokens(4, cells=4096, codes=1)[:, :, 0]).float().mean() < 0.02
    assert not torch.equal(doubt, Noise(4, 1, "cpu", STEPS).for_remask(1, cells))


def test_the_least_certain_stay_masked_and_ties_are_decided() -> None:
    certain = torch.tensor([[0.1, 0.5, 0.5, 0.5, 0.9]]).log()
    still = torch.zeros_like(certain)
    assert least_confident(certain, torch.tensor([1]), still, 1.0).tolist() == [[True, False, False, False, False]]
    assert least_confident(certain, torch.tensor([3]), still, 1.0).tolist() == [[True, False, False, False, False]]
    assert least_confident(certain, torch.tensor([4]), still, 1.0).tolist() == [[True, True, True, True, False]]
    assert not least_confident(certain, torch.tensor([0]), still, 1.0).any()


def mixed(word: int) -> int:
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        word = (word ^ word >> shift) * factor % 2**32
    return word ^ word >> 16


def key(seed: int, *counters: int) -> int:
    for counter in counters:
        seed = (seed + 0x9E3779B97F4A7C15 * (counter + 1)) % SEEDS
        seed = (seed ^ seed >> 30) * 0xBF58476D1CE4E5B9 % SEEDS
        seed = (seed ^ seed >> 27) * 0x94D049BB133111EB % SEEDS
        seed ^= seed >> 31
    return seed >> 32


def word(seed: int, stream: int, step: int, cell: int, token: int | None) -> int:
    """The 32-bit word behind a number, in whole numbers as large as they need to be."""
    keys = [key(seed, stream, step, which) for which in range(4)]
    stride, offset = mixed(mixed(cell ^ keys[0]) ^ keys[1]) | 1, mixed(mixed(cell ^ keys[2]) ^ keys[3])
    return mixed(stride ^ offset if token is None else (token * stride + offset) % 2**32)


@pytest.mark.parametrize("seed", [0, 3, 2**31, 2**32 + 5, 0x9E3779B97F4A7C15, 2**64 - 1])
def test_every_number_is_the_one_that_whole_numbers_of_any_size_give(seed: int) -> None:
    steps, cells, some = 300, torch.tensor([[0, 4095, 70_000], [9, 2**20, 1]]), [0, 1, 999]
    uniforms = ((torch.arange(2**16) + 0.5) / 2**16).to(torch.bfloat16)
    table = gumbel(uniforms.masked_fill(uniforms == 1, 0))
    drawn = Noise(seed, 2, "cpu", steps)
    for step in (0, 299):
        ((_, coded),) = drawn.for_tokens(step, cells, 1000)
        ((_, exact),) = drawn.for_text(step, cells, 1000)
        doubt = drawn.for_remask(step, cells)
        for item in range(2):
            for place, cell in enumerate(cells[item].tolist()):
                words = [word((seed + item) % SEEDS, 1, step, cell, token) for token in some]
                assert torch.equal(coded[item, place, some], table[[one >> 16 for one in words]])
                assert torch.equal(exact[item, place, some], gumbel((torch.tensor(words).double() + 0.5) / 2**32))
                assert doubt[item, place] == table[word((seed + item) % SEEDS, 2, step, cell, None) >> 16].float()


def test_cells_may_lie_in_memory_as_they_like() -> None:
    cells = torch.arange(12).view(4, 3)
    apart = torch.cat([part for _, part in Noise(2, 3, "cpu", STEPS).for_tokens(1, cells.T, 5)], dim=1)
    whole = torch.cat([part for _, part in Noise(2, 3, "cpu", STEPS).for_tokens(1, cells.T.contiguous(), 5)], dim=1)
    assert torch.equal(apart, whole)


def test_the_table_is_made_once_per_process_and_the_keys_once_per_sampling() -> None:
    one, other = Noise(1, 1, "cpu", STEPS), Noise(2, 1, torch.device("cpu"), STEPS)
    assert one._table is other._table
    assert noise._keys(1, 3, 10_000).nbytes == 10_000 * 3 * 4 * 4 * 4, "of four streams, four words of 32 bits"


def test_a_step_moves_few_bytes_and_nothing_that_is_64_bits_wide() -> None:
    drawn, cells, codes = Noise(1, 1, "cpu", STEPS), torch.arange(512)[None], 8192
    with OpCounts() as counts:
        list(drawn.for_tokens(0, cells, codes))
    assert counts.traffic() < 90 * cells.numel() * codes, "256 in 64-bit words"
