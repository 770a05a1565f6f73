"""Rows of `python -m bench.gpu` as the section `gpu` of docs/performance.json."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .report import Row
from .work import EXACT, RELEASED, RELEASED_CACHE

_MACHINE = ("card", "cuda", "torch", "python", "transformers", "commit", "date", "command")
_SAME = ("card", "cuda", "torch", "commit")  # what rows of one table have in common
_PASS = ("job", "kind", "branches", "positions", "of", "ms", "host_ms", "kernel_ms", "kernels", "captured_ms")
_WORDS = {"picture": ("picture", "step"), "edit": ("edit", "step"), "answer": ("answer about a picture", "token")}

_AS_THEY_ARE = ("ceilings", "waits", "attention", "between", "products")

Jobs = dict[tuple[str, str, str], Row]  # rows by job ("picture 1024"), kind of weights and way


def read_rows(path: Path) -> list[Row]:
    """The rows of a file; one that a killed run left unfinished is passed over. Raises ValueError where there are none,
    and where they come of machines, versions or commits that differ."""
    rows = list(_parsed(path.read_text(encoding="utf-8").splitlines()))
    machines = [row for row in rows if row["part"] == "machine"]
    if not machines or rows[0]["part"] != "machine":
        raise ValueError(
            f"{path} does not begin with the row of a machine; expected what python -m bench.gpu --out wrote."
        )
    for one in machines[1:]:
        differing = [name for name in _SAME if one.get(name) != machines[0].get(name)]
        if differing:
            values = " and ".join(str(row.get(differing[0])) for row in (machines[0], one))
            raise ValueError(f"{path} has rows of {differing[0]} {values}; expected one table: give each its own file.")
    return rows


def _parsed(lines: Iterable[str]) -> Iterator[Row]:
    for line in lines:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and "part" in row:
            yield row


def section(rows: list[Row]) -> dict[str, Any]:
    """The section; where a part was measured again, the later rows count."""
    left_out = [name for name, part in _latest(rows).items() if all(map(_is_missing, part))]
    rows = [row for part in _latest(rows).values() for row in part if not _is_missing(row)]
    machine = {name: row[name] for row in rows for name in _MACHINE if row.get(name) is not None}
    timed = {(row["job"], row["kind"], row["way"]): row for row in rows if "ms" in row and "way" in row}
    jobs = {key: row for key, row in timed.items() if "planned" in row}
    passes: dict[tuple[str, str], Row] = {}
    for row in rows:
        if row["part"].startswith("pass, ") and "job" in row:
            passes.setdefault((row["job"], row["kind"]), {}).update(row)
    core = {job: _ways(jobs, job) for job in dict.fromkeys(job for job, kind, _ in jobs if kind == "bf16")}
    beside = {row["by"] for row in rows if "by" in row}
    return {
        **machine,
        "weights": "random, of the 8B's size, bf16 unless said otherwise",
        "beside": ", ".join(sorted(beside)) or "nothing",
        "core": [_job(name, ways) for name, ways in core.items()],
        "ratios": {name: _ratios(ways) for name, ways in core.items()},
        "peak_gb": [_peaks(name, ways) for name, ways in core.items() if EXACT in ways],
        "vq": [
            {"way": f"{way}, {kind}", "ms": _round(row["ms"]), "peak_gb": _round(row["peak_gb"])}
            for (job, kind, way), row in timed.items()
            if job.startswith("VQ")
        ],
        "kinds": list(_kinds(jobs)),
        "training": [
            {"kind": kind, "ms": _round(row["ms"]), "peak_gb": _round(row["peak_total_gb"])}
            for (job, kind, _), row in timed.items()
            if job.startswith("train")
        ],
        "passes": [{name: _round(row[name]) for name in _PASS if name in row} for row in passes.values()],
        **{part: [_figures(row) for row in rows if row["part"] == part] for part in _AS_THEY_ARE},
        "right": _right(rows),
        "left_out": left_out,
    }


def _is_missing(row: Row) -> bool:
    return bool(row.keys() & {"skipped", "failed", "stopped"})


def _latest(rows: list[Row]) -> dict[str, list[Row]]:
    """The rows of each part from the last run that knows something of it."""
    runs: list[dict[str, list[Row]]] = []
    for row in rows:
        if row["part"] == "machine":
            runs.append({})
        runs[-1].setdefault(row["part"], []).append(row)
    latest: dict[str, list[Row]] = {}
    for run in runs:
        latest |= {name: part for name, part in run.items() if name not in latest or not all(map(_is_missing, part))}
    return latest


def _ways(jobs: Jobs, name: str) -> dict[str, Row]:
    return {way: row for (job, kind, way), row in jobs.items() if job == name and kind == "bf16"}


def _words(name: str) -> tuple[str, str]:
    """A job as a page names it, and what its milliseconds are of."""
    what, _, side = name.partition(" ")
    words, unit = _WORDS[what]
    return f"{words}, {side}x{side} px", unit


def _job(name: str, ways: dict[str, Row]) -> dict[str, Any]:
    words, unit = _words(name)
    planned = next(iter(ways.values()))["planned"]
    figures = {
        way: {"ms": _round(row["ms"]), "s": _round(row["s"])} | {key: row[key] for key in row if key.startswith("aim")}
        for way, row in ways.items()
    }
    return {"name": name, "job": f"{words}, {planned} {unit}s", "unit": unit, "units": planned, "ways": figures}


def _ratios(ways: dict[str, Row]) -> dict[str, float]:
    """How many times faster ours is: exact than released, and each cache than the released cache."""
    found = {}
    for way, row in ways.items():
        slow = ways.get(RELEASED if way == EXACT else RELEASED_CACHE)
        if slow is not None and way not in (RELEASED, RELEASED_CACHE):
            found[way] = round(slow["ms"] / row["ms"], 2)
    return found


def _peaks(name: str, ways: dict[str, Row]) -> dict[str, Any]:
    cached = [row["peak_gb"] for way, row in ways.items() if way not in (EXACT, RELEASED, RELEASED_CACHE)]
    peaks = {"released": ways.get(RELEASED, {}).get("peak_gb"), "exact": ways[EXACT]["peak_gb"]}
    highest = max((peak for peak in cached if peak is not None), default=None)
    rounded = {way: _round(peak) for way, peak in (peaks | {"cached": highest}).items()}
    return {"job": _words(name)[0], **rounded}


def _kinds(jobs: Jobs) -> Iterator[dict[str, Any]]:
    for (job, kind, way), row in jobs.items():
        same = jobs.get((job, "bf16", way))
        if kind != "bf16":
            share = None if same is None else round(row["ms"] / same["ms"], 2)
            aims = {key: row[key] for key in row if key.startswith("aim")}
            yield {"kind": kind, "job": job, "way": way, "ms": _round(row["ms"]), "of_bf16": share, **aims}


def _figures(row: Row) -> dict[str, Any]:
    return {name: _round(value) for name, value in row.items() if name not in ("part", "at_s")}


def _right(rows: list[Row]) -> dict[str, Any]:
    compared = {(row["job"], row["way"]): row["equal"] for row in rows if "equal" in row}
    wrong = [f"{job}, {way}" for (job, way), equal in compared.items() if not equal]
    return {"equal": len(compared) - len(wrong), "compared": len(compared), "wrong": wrong}


def _round(value: Any) -> Any:
    return float(f"{value:.3g}") if isinstance(value, float) else value
