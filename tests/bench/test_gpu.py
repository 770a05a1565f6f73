"""`python -m bench.gpu`: all of it runs, what is known stays known, and what is wrong is told."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import baseline, docs
from bench.gpu import right, session, work
from bench.gpu.__main__ import CANCELLED, machine, main
from bench.gpu.plan import plan
from bench.gpu.released import ReleasedCode, check_checkout
from bench.gpu.report import Measurement, Report
from bench.gpu.scale import FULL, SMALL, build
from bench.gpu.session import Session
from bench.gpu.table import read_rows, section
from dimoo_core.checkpoint.convert import KINDS, convert
from dimoo_core.checkpoint.find import find

from ..tiny import write_checkpoint

CPU = torch.device("cpu")
JOBS = ("picture 96", "edit 64", "answer 96", "picture 64")


@dataclass(frozen=True)
class Finished:
    """A run of the command: what it returned and printed, and its file."""

    code: int
    printed: list[str]
    file: Path

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.file.read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    """All of it at the tiny scale, once."""
    file = tmp_path_factory.mktemp("gpu") / "rows.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr(sys, "stdout", _Lines(printed))
        code = main(["--device", "cpu", "--tiny", "--out", str(file), "--commit", "abc1234"])
    yield Finished(code, printed, file)


class _Lines:
    """A stream that keeps its lines."""

    def __init__(self, lines: list[str]):
        self.lines = lines

    def write(self, text: str) -> None:
        self.lines += text.splitlines()

    def flush(self) -> None:
        pass


# ------------------------------------------------------------------------------------------------------ the whole run


def test_all_of_it_runs_and_says_on_what(finished: Finished) -> None:
    assert finished.code == 0
    assert finished.printed == finished.file.read_text().splitlines()
    first = finished.rows[0]
    assert first["part"] == "machine" and first["card"].startswith("CPU") and first["commit"] == "abc1234"
    assert [row for row in finished.rows if row.keys() & {"failed", "skipped", "stopped"}] == []
    named = list(dict.fromkeys(row["part"] for row in finished.rows))
    assert named[1:] == [part.name for part in plan(Session(CPU, SMALL), KINDS)]
    assert all("at_s" in row for row in finished.rows)


def test_every_job_is_compared_with_the_cpu_in_every_way(finished: Finished) -> None:
    compared = {(row["job"], row["way"]) for row in finished.rows if "equal" in row}
    samplers, ways = ("ml_cache off", "ml_cache balanced", "corrected"), ("plain", "captured", "packed")
    pictures = {
        (f"{job}, {sampler}", way) for job in ("picture", "edit", "inpaint") for sampler in samplers for way in ways
    }
    answers = {(f"describe, {speed}", way) for speed in ("exact", "balanced", "fast") for way in ways[:2]}
    codes = {(job, way) for job in ("VQ encode", "VQ decode") for way in ("whole", "in tiles")}
    assert compared == pictures | answers | codes
    assert all(row["device"] == row["beside"] == "cpu" for row in finished.rows if "equal" in row), "and says so"


def test_the_baseline_stands_where_there_is_no_released_code_and_rows_say_so(finished: Finished) -> None:
    beside = [row for row in finished.rows if row.get("way", "").startswith("released")]
    assert {row["by"] for row in beside} == {"the baseline of this project"}
    assert {(row["job"], row["way"]) for row in beside} == {
        *((job, "released") for job in JOBS),
        ("picture 96", "released cache"),
        ("picture 64", "released cache"),
    }


def test_the_rows_become_tables(finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--table", str(finished.file)]) == 0
    text = capsys.readouterr().out
    assert "| faster than the baseline of this project | exact |" in text and "Equal to the CPU: 37 of 37." in text
    made = section(read_rows(finished.file))
    assert [job["name"] for job in made["core"]] == list(JOBS)
    assert made["ratios"]["picture 96"].keys() == {"exact", "balanced", "fast", "quality"}
    assert made["ratios"]["answer 96"].keys() == {"exact"}, "the released code answers without a cache"
    assert {(row["kind"], row["job"]) for row in made["kinds"]} == {
        (kind, job) for kind in ("fp8", "int8") for job in ("picture 96", "picture 64", "answer 96")
    }
    assert {row["waits"] for row in made["waits"]} == {None}, "a CPU has none"
    assert len(made["attention"]) == len(made["products"]) == 2 and made["between"][0]["rotation_ms"] > 0
    assert len(made["passes"]) == 7 + 2 + 2 and all(row["kernels"] > 0 for row in made["passes"])
    assert made["left_out"] == [] and made["commit"] == "abc1234"


# -------------------------------------------------------------------------------------------- budget, cancel, failures


def part(name: str, rows: Iterable[dict[str, Any]], seconds: float = 0) -> Measurement:
    return Measurement(name, seconds, lambda: rows)


def test_a_row_is_in_the_file_before_the_next_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"

    def rows() -> Iterator[dict[str, Any]]:
        yield {"ms": 1.23456789}
        assert json.loads(path.read_text()) == {"part": "one", "ms": 1.2346, "at_s": 0.0}
        yield {"ms": 2}

    with path.open("a", encoding="utf-8") as file:
        Report(60, file).add(part("one", rows()))
    assert [json.loads(line)["ms"] for line in path.read_text().splitlines()] == [1.2346, 2]


def test_a_part_that_does_not_fit_is_left_out_and_a_shorter_one_measured(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(60)
    report.add(part("long", [{"ms": 1}], 61))
    report.add(part("short", [{"ms": 1}], 20))
    report.add(part("slow device", [{"ms": 1}], 20), pace=4)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["part"], row.get("skipped"), row.get("ms")) for row in lines] == [
        ("long", "about 61 s are needed, 60 s are left", None),
        ("short", None, 1),
        ("slow device", "about 80 s are needed, 60 s are left", None),
    ]


def test_no_budget_builds_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(session, "build", lambda *_: pytest.fail("built a network"))
    assert main(["--device", "cpu", "--tiny", "--budget", "0"]) == 0
    first, *others = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["part"] == "machine" and others and all("skipped" in row for row in others)


def test_a_part_that_fails_says_so_and_the_next_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    def short_of_memory() -> Iterator[dict[str, Any]]:
        yield {"ms": 1}
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20 GiB")

    report = Report(60)
    report.add(part("large", short_of_memory()))
    report.add(part("small", [{"ms": 2}]))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row.get("failed") for row in lines] == [None, "OutOfMemoryError: CUDA out of memory.", None]
    assert report.wrong == 1


def test_a_cancel_keeps_what_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def cancelled(_: Session) -> Iterator[dict[str, Any]]:
        yield {"job": "picture", "way": "plain", "equal": True}
        raise KeyboardInterrupt

    monkeypatch.setattr(right, "right", cancelled)
    path = tmp_path / "rows.jsonl"
    assert main(["--device", "cpu", "--tiny", "--out", str(path), "--only", "right", "VQ"]) == CANCELLED
    known = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["part"] for row in known] == ["machine", "right", "right"] and "stopped" in known[-1]


def test_other_tokens_fail_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    honest = right.Nano.load(CPU)
    for weight in honest.other.model.transformer.parameters():
        weight.data.neg_()
    for weight in honest.other.vq.parameters():
        weight.data.neg_()
    monkeypatch.setattr(right.Nano, "load", lambda _: honest)
    assert main(["--device", "cpu", "--tiny", "--only", "right"]) == 1
    wrong = [json.loads(line) for line in capsys.readouterr().out.splitlines()[1:]]
    jobs = {row["job"] for row in wrong if row["equal"] is False}
    pictures = {"picture, ml_cache off", "picture, corrected", "edit, ml_cache balanced"}
    assert pictures | {"describe, fast", "VQ encode", "VQ decode"} <= jobs


def test_no_git_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert machine(CPU, None, "x")["commit"] == "unknown"
    assert machine(CPU, "abc1234", "x")["commit"] == "abc1234"


# ------------------------------------------------------------------------------------------------------------- tables


def rows_of(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


MACHINE = {"part": "machine", "card": "X", "torch": "2.11", "commit": "abc1234", "date": "2026-12-01", "command": "c"}


def job(name: str, way: str, ms: float, **more: Any) -> dict[str, Any]:
    row = {"part": f"{name}, {way}", "job": name, "kind": "bf16", "way": way, "ms": ms, "s": ms * 64 / 1e3}
    return row | {"planned": 64, "peak_gb": 0.4, "peak_total_gb": 16.6} | more


def test_a_second_run_adds_to_the_first_and_wins(tmp_path: Path) -> None:
    first = (MACHINE, job("picture 1024", "exact", 300), {"part": "picture 1024, released", "skipped": "no time"})
    second = (MACHINE, job("picture 1024", "exact", 200), job("picture 1024", "released", 300, by="the released code"))
    made = section(read_rows(rows_of(tmp_path / "rows.jsonl", *first, *second)))
    assert made["ratios"]["picture 1024"] == {"exact": 1.5} and made["left_out"] == []
    assert made["beside"] == "the released code"


def test_rows_of_two_machines_make_no_table(tmp_path: Path) -> None:
    path = rows_of(tmp_path / "rows.jsonl", MACHINE, MACHINE | {"commit": "0000000"})
    with pytest.raises(ValueError, match="rows of commit abc1234 and 0000000"):
        read_rows(path)
    with pytest.raises(ValueError, match="does not begin with the row of a machine"):
        read_rows(rows_of(path, job("picture 1024", "exact", 300)))


def test_a_line_that_a_killed_run_left_unfinished_is_passed_over(tmp_path: Path) -> None:
    path = rows_of(tmp_path / "rows.jsonl", MACHINE, job("picture 1024", "exact", 300))
    path.write_text(path.read_text() + '{"part": "picture 1024, rel', encoding="utf-8")
    assert [row["part"] for row in read_rows(path)] == ["machine", "picture 1024, exact"]


def test_what_a_killed_run_left_costs_the_next_one_nothing(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(MACHINE) + '\n{"part": "picture 1024, rel', encoding="utf-8")
    assert main(["--device", "cpu", "--tiny", "--out", str(path), "--only", "products"]) == 0
    assert [row["part"] for row in map(json.loads, path.read_text().splitlines()[2:])] == [
        *("machine", "products", "products"),
    ]


@pytest.mark.parametrize("given", [["--table", "none.jsonl"], ["--device", "nowhere"]])
def test_what_is_not_there_is_told_in_a_sentence(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(given)
    assert given[1] in capsys.readouterr().err


def test_rows_are_put_onto_the_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written, page = tmp_path / "performance.json", tmp_path / "page.md"
    written.write_text(docs.PERFORMANCE.read_text(encoding="utf-8"), encoding="utf-8")
    page.write_text("<!-- generated: times -->\n<!-- end -->\n<!-- generated: gpu_times -->\n<!-- end -->\n")
    monkeypatch.setattr(docs, "PERFORMANCE", written)
    monkeypatch.setattr(docs, "PAGES", (page,))
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    quoted = [(name, way) for name in docs.QUOTED for way in ("exact", "balanced")]
    some = rows_of(tmp_path / "rows.jsonl", MACHINE, *(job(*one, 218.75, aim_ms=215) for one in quoted))
    assert docs.main(["--gpu", str(some)]) == 0
    assert "on the X with all weights on the card" in page.read_text()
    assert "| 14.0 s (219.0 ms; aim 215 ms) |" in page.read_text(), "exact is 14 s"
    with pytest.raises(SystemExit):
        docs.main(["--gpu", str(rows_of(some, MACHINE, job("picture 1024", "exact", 218.75)))])


def test_every_aim_is_of_a_part_that_is_measured() -> None:
    parts = {one.name for one in plan(Session(CPU, FULL), KINDS)}
    for kind, name, way in work.AIMS:
        assert f"{name}, {way}, {kind}" in parts


def test_the_parts_fit_the_time_that_a_card_is_lent_for() -> None:
    parts = list(plan(Session(CPU, FULL), KINDS))
    first = next(index for index, one in enumerate(parts) if one.name == "weights, fp8")
    before = sum(one.seconds for one in parts[:first])
    assert before <= 150 and sum(one.seconds for one in parts) - before <= 2 * 60
    assert [one.name for one in parts[:2]] == ["ceilings", "right"]


# -------------------------------------------------------------------------------------------- measured, and beside what


@pytest.mark.parametrize("kind", KINDS)
def test_it_measures_the_model_that_convert_writes(kind: str, tmp_path: Path) -> None:
    output = tmp_path / "one" / "model.safetensors"
    convert(find(write_checkpoint(tmp_path / "hub")), output, kind)
    entries = [(name, entry) for name, entry in find(output).weights.items() if entry.quantisation is not None]
    written = {name.removesuffix(".weight"): (entry.quantisation, entry.input_scale is None) for name, entry in entries}
    layers = [
        (n, layer) for n, layer in build(SMALL, kind, CPU).named_modules() if getattr(layer, "quantisation", None)
    ]
    built = {name: (layer.quantisation, layer.input_scale is None) for name, layer in layers}
    assert built == written
    assert kind == "bf16" or built


def test_what_the_baseline_holds_is_made_once_and_before_it_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    made, honest = [], baseline.Released
    monkeypatch.setattr(baseline, "Released", lambda network: made.append(network) or honest(network))
    beside = Session(CPU, SMALL).beside()
    picture, answer = beside.image(SMALL.picture(64), 2, cached=False), beside.answer(SMALL.question(64), 4, 4)
    assert picture() == picture() and answer() == answer() and len(made) == 1


STAND_IN = {
    "model/__init__.py": """
        from torch import nn
        class LLaDAForMultiModalGeneration(nn.Module):
            def __init__(self, config, model):
                super().__init__()
                print("a configuration")
                self.config, self.inner = config, model
            def load_state_dict(self, weights, assign):
                assert assign
                self.weights = weights
            def caching(self, enable):
                self.cached = enable
    """,
    "model/modeling_xllmx_dimoo.py": "",
    "model/configuration_llada.py": """
        class LLaDAConfig:
            def __init__(self, **fields):
                self.__dict__.update(fields)
    """,
    "model/modeling_llada.py": """
        def create_model_config_from_pretrained_config(config):
            return config
        def LLaDAModel(config, init_params):
            return None
    """,
    "generators/image_generation_generator.py": """
        import torch
        def generate_image(model, ids, **given):
            assert given["use_cache"] in (True, False) and (ids[0, given["code_start"]] == given["mask_token_id"])
            return torch.full((1, given["seq_len"]), given["timesteps"] + given["use_cache"])
    """,
    "generators/image_to_image_generator.py": """
        import torch
        def generate_i2i(model, ids, **given):
            assert len(given["uncon_text"][0]) != len(given["uncon_image"][0])
            return torch.full((1, given["seq_len"]), -given["timesteps"])
    """,
    "generators/text_understanding_generator.py": """
        def generate_text_understanding(model, ids, **given):
            holes = ids == given["mask_id"]
            assert holes[0, given["code_start"]] and holes.sum() == given["gen_length"] == given["steps"]
            ids[holes] = given["block_length"]
            return ids
    """,
    "utils/generation_utils.py": "",
}


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder laid out as the released code is; what of it was imported is forgotten again."""
    for name, text in STAND_IN.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("\n".join(line[8:] for line in text.splitlines()))
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in [one for one in sys.modules if one.partition(".")[0] in ("model", "generators", "utils")]:
        monkeypatch.delitem(sys.modules, name)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("model", "generators", "utils"):
            del sys.modules[name]


def test_the_released_code_is_given_the_same_job_and_the_same_weights(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_checkout(checkout)
    made = Session(CPU, SMALL, checkout)
    network, beside = made.network("bf16"), made.beside()
    assert isinstance(beside, ReleasedCode) and capsys.readouterr().out == ""
    ours = {weight.data_ptr() for weight in network.parameters()}
    shared = [one for name, one in beside.model.weights.items() if "blocks" in name]
    assert len(shared) == 9 * SMALL.size.layers and all(one.data_ptr() in ours for one in shared)
    assert beside.image(SMALL.picture(64), 5, cached=True)() == [6] * 16 and not beside.model.cached
    assert beside.image(SMALL.edit(64), 5, cached=False)() == [-5] * 16
    assert beside.answer(SMALL.question(64), 4, 2)() == [2] * 4


def test_where_the_released_code_does_not_start_the_baseline_stands(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkout / "model" / "__init__.py").write_text("raise ImportError('transformers is too new')")
    given = ["--device", "cpu", "--tiny", "--weights", "bf16", "--released", str(checkout)]
    assert main([*given, "--only", "beside", "released"]) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "transformers is too new" in rows[1]["failed"]
    assert {row["by"] for row in rows[2:]} == {"the baseline of this project"}


def test_a_folder_that_is_no_checkout_is_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--device", "cpu", "--tiny", "--released", str(tmp_path)])
    said = capsys.readouterr()
    assert "has no model/modeling_xllmx_dimoo.py; expected a checkout of the released code" in said.err
    assert said.out == ""
