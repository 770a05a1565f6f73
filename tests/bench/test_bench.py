"""The bench: its baseline does the same job, it says when tokens differ, and all of it runs."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import __main__ as cpu
from bench import baseline, counts, docs
from bench.op_counts import OpCounts
from bench.workload import ImageJob, Size, TextJob
from dimoo_core.sampling.image import ImageSettings
from dimoo_core.sampling.ml_cache import PUBLISHED, CachePolicy
from dimoo_core.sampling.text import TextSettings
from dimoo_core.sampling.text_cache import EXACT, SPEEDS

SIZE = Size(64, 2, 1, 192, 304, 64)
NETWORK, TABLE = SIZE.build("cpu", torch.float32), SIZE.table
RELEASED = baseline.Released(NETWORK)
CACHE = ("image_published_over_cache", "image_balanced_over_cache", "image_fast_over_cache")
RATIOS = ("image_exact", "image_ml_cache", *CACHE, "edit_ml_cache", "understanding_exact", "understanding_cached")


def test_the_baseline_gives_the_same_logits() -> None:
    ids = torch.randint(SIZE.vocabulary, (1, 50), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(RELEASED(ids), NETWORK(ids), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("job", [ImageJob((6, 5), 20), ImageJob((5, 5), 20, picture=(6, 7))], ids=["image", "edit"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_baseline_makes_the_same_pictures(job: ImageJob, temperature: float) -> None:
    sequences, scales = job.sequences(TABLE)
    ours = job.run(NETWORK, TABLE, ImageSettings(8, temperature, seed=3))
    theirs = baseline.sample_image(RELEASED, TABLE, sequences, scales, steps=8, temperature=temperature, seed=3)
    assert theirs.tolist() == ours and len(set(ours)) > 8


@pytest.mark.parametrize("policy", [PUBLISHED, CachePolicy(0.5, 0.1, 3)], ids=["published", "other"])
def test_the_baselines_cache_makes_the_pictures_of_ours(policy: CachePolicy) -> None:
    job = ImageJob((6, 5), 20)
    sequences, scales = job.sequences(TABLE)
    how = {"steps": 12, "temperature": 1.0, "seed": 3}
    ours, exact = (job.run(NETWORK, TABLE, ImageSettings(12, seed=3, cache=cache)) for cache in (policy, None))
    theirs = baseline.sample_image(RELEASED, TABLE, sequences, scales, **how, cache=policy)
    assert theirs.tolist() == ours and ours != exact


def test_what_the_baseline_does_beside_its_passes_does_not_grow_with_the_vocabulary() -> None:
    """It takes the codes of the holes from the logits before it computes with them, as the released code does."""
    beside = []
    for size in (SIZE, replace(SIZE, vocabulary=8304)):
        released = baseline.Released(size.build("cpu", torch.float32))
        sequences, scales = ImageJob((6, 5), 20).sequences(size.table)
        with OpCounts() as passes, torch.no_grad():
            for one in sequences:
                released(one)
        with OpCounts() as whole:
            baseline.sample_image(released, size.table, sequences, scales, steps=1, temperature=1.0, seed=0)
        beside.append(whole.traffic() - passes.traffic())
    assert 0 < beside[1] <= beside[0] * 1.01


@pytest.mark.parametrize("cfg", [0.0, 1.5])
def test_the_baseline_gives_the_same_answers(cfg: float) -> None:
    job = TextJob((6, 6), 20)
    ours = job.run(NETWORK, TABLE, TextSettings(16, 16, 8, cfg=cfg))
    theirs = baseline.sample_text(RELEASED, TABLE, job.sequence(TABLE, 16), steps=16, block_length=8, cfg=cfg)
    assert theirs == ours and len(set(ours)) > 2


def test_the_bench_ends_with_its_ratios_and_writes_what_the_page_says(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    threads, file = torch.get_num_threads(), tmp_path / "performance.json"
    try:
        assert cpu.main(["--tiny", "--repeats", "1", "--json", str(file)]) == 0
    finally:
        torch.set_num_threads(threads)
    *_, printed = capsys.readouterr().out.partition("ratio")
    last = ("ratio" + printed).splitlines()
    assert [re.fullmatch(r"ratio (\w+) \d+\.\d\d", line)[1] for line in last] == list(RATIOS)
    recorded = docs.Figures.load()
    written = {**recorded.performance, **json.loads(file.read_text())}
    page = "\n".join(docs.cpu(docs.Figures(recorded.quality, written)))
    assert "CPU cores, one thread, medians of 1" in page and not re.search(r"\d\.\d{4,}x", page)


def test_a_trial_says_which_tokens_differ_and_what_it_took() -> None:
    kept = []

    def roomy(short: bool) -> list[int]:
        kept.append(short)
        return torch.zeros(1000).int().tolist()

    ways = {
        "baseline": roomy,
        "exact": lambda short: [0] * 1000,
        "other": lambda short: [1],
        "cached": lambda short: [2],
    }
    outcome = cpu.measure(cpu.Trial("x", ways, [("baseline", "exact"), ("baseline", "other")], []), repeats=3)
    assert outcome.wrong == ["other"] and kept == [True, False, False, False]
    assert 4000 <= outcome.peaks["baseline"] <= 16000 and outcome.peaks["exact"] == 0


def test_logits_only_where_they_are_needed_take_less_memory() -> None:
    wide = replace(SIZE, vocabulary=8304)
    trial = cpu.answer_trial(wide, TextJob((10, 10), 10), 8, 4)
    assert trial.equal == [("baseline", "exact")]
    peaks = cpu.measure(trial, repeats=1).peaks
    assert peaks["exact"] < peaks["baseline"] / 5


def test_passes_and_operations_of_an_answer_are_counted() -> None:
    length = 4352  # 64 x 65 + 2 of the picture, 60 of the question, 130 of the answer
    network = Size(64, 2, 1, 192, 640, 64).build("meta", torch.bfloat16)
    price = counts.Price(network, length)
    exact = counts.answer_cost(price, EXACT)
    assert (exact.passes, exact.positions) == (128, 128 * length)
    steady = {name: counts.answer_cost(price, replace(policy, threshold=None)) for name, policy in SPEEDS.items()}
    assert {one.passes for one in steady.values()} == {128}
    assert steady["balanced"].positions == 4 * length + 12 * 130 + 112 * 32
    assert steady["fast"].positions == length + 3 * 130 + 124 * 32
    assert steady["exact"].flops > 20 * steady["balanced"].flops > 40 * steady["fast"].flops
    assert counts.answer_cost(price, SPEEDS["fast"], sure=3).passes == 4 * 11
    assert price(counts.Pass(length, 32)) > 2 * 2 * length * (4 + 3 * 3) * 64**2, "at least its matrices"


def test_the_bench_is_not_shipped() -> None:
    assert "/bench/" in (Path(__file__).parents[2] / ".comfyignore").read_text().splitlines()
