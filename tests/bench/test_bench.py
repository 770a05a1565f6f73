"""The bench: its baseline does the same job, it says when tokens differ, and all of it runs."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import __main__ as cpu
from bench import baseline, counts, docs, gpu
from bench.workload import ImageJob, Size, TextJob
from dimoo_core.checkpoint.convert import KINDS, convert
from dimoo_core.checkpoint.find import find
from dimoo_core.sampling.image import ImageSettings
from dimoo_core.sampling.text import TextSettings
from dimoo_core.sampling.text_cache import EXACT, SPEEDS

from ..tiny import write_checkpoint

SIZE = Size(64, 2, 1, 192, 304, 64)
NETWORK, TABLE = SIZE.build("cpu", torch.float32), SIZE.table
RELEASED = baseline.Released(NETWORK)
RATIOS = ("image_exact", "image_ml_cache", "edit_ml_cache", "understanding_exact", "understanding_cached")


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
    outcome = cpu.measure(cpu.Trial("x", ways, ["exact", "other"], []), repeats=3)
    assert outcome.wrong == ["other"] and kept == [True, False, False, False]
    assert 4000 <= outcome.peaks["baseline"] <= 16000 and outcome.peaks["exact"] == 0


def test_logits_only_where_they_are_needed_take_less_memory() -> None:
    wide = replace(SIZE, vocabulary=8304)
    trial = cpu.answer_trial(wide, TextJob((10, 10), 10), 8, 4)
    assert trial.exact == ["exact"]
    peaks = cpu.measure(trial, repeats=1).peaks
    assert peaks["exact"] < peaks["baseline"] / 5


def test_the_gpu_bench_runs_and_prints_a_table(capsys: pytest.CaptureFixture) -> None:
    assert gpu.main(["--device", "cpu", "--tiny"]) == 0
    device, commit, _, *table = capsys.readouterr().out.splitlines()
    assert device.startswith("Device: CPU") and re.match(r"Commit \S+, \d{4}-", commit)
    assert {line.count("|") for line in table} == {10}
    named = {tuple(part.strip() for part in line.split("|")[2:5]) for line in table[2:]}
    jobs = {("image", "exact"), ("edit", "exact"), ("understanding", "exact"), ("understanding", "fast")}
    assert named >= {(kind, *job) for kind in KINDS for job in jobs} | {("fp32", "VQ decode", "whole")}
    assert named >= {(kind, "train LoRA", "rank 16, 4 steps") for kind in KINDS}
    assert named >= {("bf16", job, "baseline") for job in ("image", "edit", "understanding")}


@pytest.mark.parametrize("kind", KINDS)
def test_the_gpu_bench_measures_the_model_that_convert_writes(kind: str, tmp_path: Path) -> None:
    output = tmp_path / "one" / "model.safetensors"
    convert(find(write_checkpoint(tmp_path / "hub")), output, kind)
    written = {name.removesuffix(".weight"): entry.quantisation for name, entry in find(output).weights.items()}
    network = gpu.build(gpu.SMALL, kind, torch.device("cpu"))
    built = {name: getattr(layer, "quantisation", None) for name, layer in network.named_modules()}
    assert {name: layer for name, layer in built.items() if layer} == {n: one for n, one in written.items() if one}
    assert kind == "bf16" or any(built.values())


def test_what_the_baseline_holds_is_made_before_it_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    made, honest = [], baseline.Released
    monkeypatch.setattr(baseline, "Released", lambda network: made.append(network) or honest(network))
    network, timed = gpu.build(gpu.SMALL, "bf16", torch.device("cpu")), 0
    for runs in (gpu.picture_runs, gpu.answer_runs):
        for _, way, run in runs(network, gpu.SMALL, (4, 6), released=True):
            if way == "baseline":
                timed += 1
                assert len(made) == timed and run() == run() and len(made) == timed


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
