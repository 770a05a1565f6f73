"""The figures in README and docs/: rendered from the recorded ones, up to date, and nothing typed in by hand."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from bench import cards, docs
from bench.docs import BLOCK, BLOCKS, PAGES, Figures, rendered
from dimoo_core.checkpoint.defaults import Defaults
from dimoo_core.checkpoint.find import NANO, find
from dimoo_core.checkpoint.load import load_tokenizer
from dimoo_core.evaluation.replay import Replay
from dimoo_core.evaluation.runner import Setup
from dimoo_core.evaluation.table import Measured, Result, Work
from dimoo_core.nano.scenes import FORMATS
from dimoo_core.nano.table import CASES, rows

ROOT = Path(__file__).parents[2]
FIGURES = Figures.load()
# a number with a unit that something was measured, counted or computed in
FIGURE = re.compile(
    r"(?<![\w.])\d[\d.,]*(?: to \d[\d.]*)?\s?(?:%|GB|GiB|MB|TFLOP|PFLOP|(?:ms|s|seconds?|minutes?|hours?|x)\b)"
)
DOWNLOAD = "download: Lumina-DiMOO (16 GB)"  # an entry of the loader, by name


def figures_in(text: str) -> set[str]:
    """The numbers with units in a text."""
    return {re.sub(r"\s+", " ", found.group()) for found in FIGURE.finditer(text)}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_page_is_up_to_date(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert rendered(text, FIGURES) == text, "run python -m bench.docs"


def test_every_block_stands_on_a_page() -> None:
    named = {found[2] for path in PAGES for found in BLOCK.finditer(path.read_text(encoding="utf-8"))}
    assert named == set(BLOCKS)
    with pytest.raises(ValueError, match="unknown_part"):
        rendered("<!-- generated: unknown_part -->\n<!-- end -->", FIGURES)


def test_check_tells_a_page_that_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    monkeypatch.setattr(docs, "PAGES", (page,))
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    page.write_text("Words.\n<!-- generated: sizes -->\nby hand\n<!-- end -->\nMore words.\n")
    assert docs.main(["--check"]) == 1 and "by hand" in page.read_text()
    assert "page.md is not up to date" in capsys.readouterr().out
    assert docs.main([]) == 0 and "by hand" not in page.read_text()
    assert page.read_text().startswith("Words.\n") and page.read_text().endswith("<!-- end -->\nMore words.\n")
    assert docs.main(["--check"]) == 0


def test_readme_states_no_figure_of_its_own() -> None:
    """All numbers with units are generated, or repeat one that is."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    known = {figure for path in PAGES for part in BLOCK.finditer(path.read_text()) for figure in figures_in(part[3])}
    assert "100 %" in known and len(known) > 50
    assert DOWNLOAD in text and DOWNLOAD in (ROOT / "nodes" / "checkpoints.py").read_text(encoding="utf-8")
    without = r"```.*?```|\]\([^)]*\)|src=\"[^\"]*\""  # code and addresses
    prose = re.sub(without, "", BLOCK.sub("", text).replace(DOWNLOAD, ""), flags=re.DOTALL)
    assert figures_in(prose) <= known
    assert figures_in("takes 3.5 s, 12 GB and 99.5 % in 1024x1024 px, 2x as fast") == {"3.5 s", "12 GB", "99.5 %", "2x"}


def test_a_figure_that_changes_changes_the_pages() -> None:
    changed = copy.deepcopy(FIGURES)
    next(row for row in changed.quality["rows"] if row["name"] == "edit")["measured"]["rate"] = 0.4321
    changed.performance["gpu"]["core"][0]["ways"]["exact"]["s"] = 98.7
    changed.performance["cards"]["rows"][0]["fits"]["int8"]["streamed"] = 5_400_000_000
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert figures_in(rendered(text, changed)) - figures_in(text) == {"43.2 %", "98.7 s", "5.4 GB"}


def test_the_judges_rows_are_those_of_the_table() -> None:
    """Every row, in order, with today's cases and limits; and the replay has as many cases as are recorded."""
    if not load_tokenizer(find(NANO)).knows("two"):
        pytest.skip("this nano has learnt scenes of one figure")
    every = rows(Setup.usual(find(NANO).defaults, FORMATS[0]))
    noted = FIGURES.rows
    assert list(noted) == [row.name for row in every]
    for row in every:
        result = noted[row.name]
        assert (result.least, result.most, result.measured.count) == (row.least, row.most, CASES * row.times), row.name
        assert (result.key, result.seeds) == (row.key, row.seeds), row.name
    made = {json.dumps(row["made_with"]) for row in FIGURES.quality["rows"]}
    assert len(made) == 1, "all rows of one commit"
    assert FIGURES.quality["replay"]["cases"] == len(list(Replay(ROOT / "tests" / "golden").cases()))
    assert FIGURES.quality["replay"]["equal"] == FIGURES.quality["replay"]["cases"]


def test_the_table_of_samplers_says_what_each_costs_and_which_is_better() -> None:
    def measured(key: str, rate: float, share: float | None = None, again: float | None = None) -> dict[str, Any]:
        work = None if share is None else Work(share, 1.0, 16)
        second = () if again is None else (Measured(9, again, 1.0),)
        return asdict(Result(key, Measured(9, rate, 1.0, work=work), "", 0.5, 1.0, key, (0, 1000), second))

    made = (
        *(measured("open_exact_16", 0.8, 1.0, again=0.6), measured("spread_exact_16", 0.9)),
        *(measured("open_quick", 0.75, 0.375), measured("spread_quick", 0.6)),
        *(measured("open_narrow", 0.9, 0.375), measured("spread_narrow", 0.4)),
        *(measured("open_never", 0.0, 0.5), measured("spread_never", 0.0)),
        measured("full", 1.0),
    )
    assert list(docs.samplers(Figures({"rows": made}, {})))[2:] == [
        "| `exact_16` | 100 % | 100 %, 100 % | 80 %, 60 % | 90 % | 22.9 | quick |",
        "| `quick` | 38 % | 100 % | 75 % | 60 % | 8.0 | - |",
        "| `narrow` | 38 % | 100 % | 90 % | 40 %, missed | 6.7 | - |",
        "| `never` | 50 % | 100 % | 0 % | 0 %, missed | - | quick |",
    ]
    (line,) = docs.samplers(Figures({"rows": made[-1:]}, {}))
    assert line.startswith("Not measured")


def test_the_table_of_cards_is_what_the_estimates_say() -> None:
    noted = FIGURES.performance["cards"]
    assert noted["rows"] == json.loads(json.dumps([asdict(card) for card in cards.cards()])), "run nox -s docs"
    assert noted["vq"] == cards.vq_bytes()
    assert noted["weights"] == {kind: cards.weight_bytes(kind) for kind in ("bf16", "fp8", "int8")}
    assert [round(size / 1e9, 1) for size in noted["weights"].values()] == [16.2, 10.8, 9.2]


def test_a_file_fits_or_streams_what_is_too_much() -> None:
    assert cards.fit(10, 12.5, 1, 5) == cards.Fit(0, 3, 1)
    assert cards.fit(10, 15.0, 1, 5) == cards.Fit(0, 0, 4)
    assert cards.fit(10, 8.0, 1, 5) == cards.Fit(3, 7, 0)
    by_size = {card.gib: card for card in cards.cards()}
    assert list(by_size) == [8, 12, 16, 24]
    assert by_size[24].kind == "bf16" and by_size[8].kind == "int8"
    for card in by_size.values():
        chosen = card.fits[card.kind]
        assert chosen.spare >= cards.SPARE or all(one.spare < cards.SPARE for one in card.fits.values())


def test_readme_names_the_settings_of_the_8b() -> None:
    text, usual = (ROOT / "README.md").read_text(encoding="utf-8"), Defaults()
    width, height = usual.size
    settings = f"{width}x{height}, {usual.steps} steps, cfg {usual.cfg:g}, image_cfg {usual.image_cfg:g}"
    assert f"{settings}, temperature {usual.temperature:g}." in " ".join(text.split())
