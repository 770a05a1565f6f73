"""Renders the generated parts of README.md and of pages in docs/: `python -m bench.docs`.

A part stands between `<!-- generated: NAME -->` and `<!-- end -->`; the function of BLOCKS with that name makes it.
All figures come from docs/quality.json (written by `nox -s judge` and `--replay`) and docs/performance.json (written by
`python -m bench`, `bench.counts`, `bench.cards` and `bench.training`, and by `--gpu` from rows of `bench.gpu`; what was
measured in ComfyUI is entered by hand, with card, versions and commit). `--check` writes nothing and fails if a file is
not up to date.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

from dimoo_core.checkpoint.convert import KINDS
from dimoo_core.evaluation.replay import replay
from dimoo_core.evaluation.table import Result

from .cards import PACES
from .gpu.table import read_rows
from .gpu.table import section as gpu_section
from .record import ROOT, made_with, write_section

DOCS = ROOT / "docs"
QUALITY, PERFORMANCE = DOCS / "quality.json", DOCS / "performance.json"
PAGES = (ROOT / "README.md", *(DOCS / f"{name}.md" for name in ("quality", "performance", "training")))
OURS = ("exact", "quality", "balanced", "fast")
WAYS = ("released", "exact", "released cache", "quality", "balanced", "fast")
QUOTED = ("picture 1024", "edit 512", "answer 1024")  # what README says of times
BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


@dataclass(frozen=True)
class Figures:
    """The contents of both files."""

    quality: dict[str, Any]
    performance: dict[str, Any]

    @classmethod
    def load(cls) -> Figures:
        quality, performance = (json.loads(path.read_text(encoding="utf-8")) for path in (QUALITY, PERFORMANCE))
        return cls(quality, performance)

    @property
    def rows(self) -> dict[str, Result]:
        """The judge's rows by name."""
        return {one["name"]: Result.from_dict(one) for one in self.quality["rows"]}

    @property
    def gpu(self) -> dict[str, Any]:
        """What `python -m bench.gpu` measured on a GPU."""
        return self.performance["gpu"]

    @property
    def comfyui(self) -> dict[str, Any]:
        """What was measured in ComfyUI on a GPU."""
        return self.performance["gpu_comfyui"]


# -------------------------------------------------------------------------------------------------------- formatting


def percent(share: float, digits: int = 1) -> str:
    """A share as "99.5 %" or "100 %"."""
    text = f"{share * 100:.{digits}f}"
    return (text.removesuffix(".0") if digits else text) + " %"


def gigabytes(count: float) -> str:
    """Bytes as "16.2 GB" (10^9 bytes)."""
    return f"{count / 1e9:.1f} GB"


def span(values: Sequence[float] | None) -> str:
    """One value, or the least and the greatest."""
    if not values:
        return "-"
    return f"{min(values)}" if min(values) == max(values) else f"{min(values)} to {max(values)}"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The lines of a Markdown table."""
    yield f"| {' | '.join(heads)} |"
    yield "|" + "---|" * len(heads)
    yield from (f"| {' | '.join(row)} |" for row in rows)


def paragraph(*sentences: str, prefix: str = "") -> Iterator[str]:
    """Sentences as lines of at most 120 characters, each with a prefix."""
    width = 120 - len(prefix)
    lines = wrap(" ".join(sentences), width, break_long_words=False, break_on_hyphens=False)
    yield from (prefix + line for line in lines)


def source(made: dict[str, Any]) -> str:
    """How figures were made: command, commit, versions, date."""
    command = [f"`{made['command']}`"] if "command" in made else []
    versions = [f"{name} {made[name]}" for name in ("torch", "transformers", "python") if name in made]
    date = [made["date"]] if "date" in made else []
    return ", ".join([*command, f"commit {made['commit']}", *versions, *date])


# ------------------------------------------------------------------------------------------------------------- README


def status(figures: Figures) -> Iterator[str]:
    """What is verified and what is not."""
    replayed = figures.quality["replay"]
    rate = {name: percent(one.measured.rate) for name, one in figures.rows.items()}
    yield from paragraph(
        f"**Verified:** {replayed['equal']} of {replayed['cases']} recorded results of the released code are",
        "reproduced, and both networks equal their twins in transformers and diffusers. The built-in tiny model is",
        f"judged by its pixels: right and clean are {rate['generate full']} of the pictures from full captions,",
        f"{rate['generate open']} from captions that leave something open, {rate['edit']} of edits and",
        f"{rate['inpaint']} of inpaints; {rate['describe']} of its descriptions are exact",
        "([docs/quality.md](docs/quality.md)).",
        prefix="> ",
    )
    yield ">"
    yield from paragraph(
        "**Not verified: the published 8B weights have not been run by us.** Times and memory are measured on one",
        f"{figures.gpu['card']} with random weights of that size, or computed; each figure says which",
        "([docs/performance.md](docs/performance.md)).",
        prefix="> ",
    )


def sizes(figures: Figures) -> Iterator[str]:
    """The files and their sizes."""
    cards = figures.performance["cards"]
    weights, vq = cards["weights"], cards["vq"]
    cache, decode = cards["sampling"]["balanced"] - cards["sampling"]["off"], cards["decode"]
    yield from paragraph(
        f"The download is {gigabytes(weights['bf16'] + vq)}. As one file the transformer takes",
        f"{gigabytes(weights['bf16'])} in bf16, {gigabytes(weights['fp8'])} in fp8 and {gigabytes(weights['int8'])} in",
        f"int8; the VQ adds {gigabytes(vq)}. ML-Cache needs {gigabytes(cache)} more on the card. Before and after",
        f"sampling the VQ needs {gigabytes(decode['whole'])} there for a picture of 1024x1024 px, or, where there is",
        f"not so much, {gigabytes(decode['tiles'])} in tiles.",
    )


def cards(figures: Figures) -> Iterator[str]:
    """Which file fits on which card; bold is the one to use."""
    section = figures.performance["cards"]
    rows = []
    for card in section["rows"]:
        fits = [fit(card["fits"][kind], bold=kind == card["kind"]) for kind in section["weights"]]
        close = [one for one in figures.comfyui["streaming"] if one["free_gib"] == card["gib"]]
        measured = ", ".join(f"{one['file']} {span(one['exact'])} ms" for one in close)
        rows.append((f"{card['gib']} GB", *fits, f"{card['ram_gb']} GB", f"{card['disk_gb']} GB", measured or "-"))
    yield from table(("card", *section["weights"], "RAM", "disk", "a step at 512x512 px, measured"), rows)


def fit(one: dict[str, int], *, bold: bool) -> str:
    """How a file fits, in words."""
    if one["streamed"]:
        words = f"streams {gigabytes(one['streamed'])} a pass"
    else:
        words = "fits without ML-Cache" if one["streamed_cached"] else "fits, also with ML-Cache"
    return f"**{words}**" if bold else words


def paces(figures: Figures) -> Iterator[str]:
    """Which file is fast and which is small on which generation of cards."""
    yield from table(
        ("card", *KINDS),
        ((name, *(f"{kinds[kind].words} ({kinds[kind].known})" for kind in KINDS)) for name, kinds in PACES.items()),
    )
    yield ""
    made = figures.comfyui
    steps = ", ".join(f"{one['file']} {span(one['step_ms'])} ms" for one in made["kinds"])
    yield from paragraph(
        f"Measured at commit {made['commit']}, in ComfyUI with its own layers for fp8 and int8, a step at 512x512 px:",
        f"{steps}. Counted and guessed from what the layers launch and what the cards' products can do. ComfyUI's fast",
        "kernels for int8 need a torch for CUDA 13 or newer (`cu130`).",
    )


def times(figures: Figures) -> Iterator[str]:
    """What to expect of the time, and how it compares."""
    gpu = figures.gpu
    jobs = {job["name"]: job["ways"] for job in gpu["core"]}
    picture, edit, answer = (jobs[name] for name in QUOTED)
    yield from paragraph(
        f"Measured on the {gpu['card']} with all weights on the card, bf16, commit {gpu['commit']}: a 1024x1024 px",
        f"picture takes {picture['exact']['s']} s, or {picture['balanced']['s']} s with `ml_cache` balanced; an edit",
        f"at 512x512 px {edit['exact']['s']} s; an answer of 128 tokens {answer['exact']['s']} s, or",
        f"{answer['balanced']['s']} s with `speed` balanced.",
        *_compared(gpu),
    )


def _compared(gpu: Mapping[str, Any]) -> Iterator[str]:
    """Ratios to what was measured beside, as far as there are any."""
    large, small = (gpu["ratios"].get(f"picture {side}", {}) for side in (1024, 512))
    if not {"exact", "balanced", "fast"} <= large.keys() or not {"exact", "balanced"} <= small.keys():
        return
    yield f"Exact pictures are {large['exact']:.2f} times as fast there as with {gpu['beside']}, at 512x512 px"
    yield f"{small['exact']:.2f} times; those with ML-Cache {large['balanced']:.2f} (`balanced`) to {large['fast']:.2f}"
    yield f"(`fast`) times as fast as with its ML-Cache, at 512x512 px {small['balanced']:.2f} times (`balanced`)."


# ------------------------------------------------------------------------------------------------------------ quality


def replayed(figures: Figures) -> Iterator[str]:
    """How many recorded cases are equal."""
    made = figures.quality["replay"]
    yield from paragraph(f"**{made['equal']} of {made['cases']} cases are equal** ({source(made)}).")


def same_tokens(figures: Figures) -> Iterator[str]:
    """Tokens of the released code beside ours."""
    made = figures.performance["cpu_released"]
    names = {"image_exact": "picture", "image_ml_cache": "picture with the published cache", "edit_exact": "edit"}
    names["understanding_exact"] = "answer"
    counts = (f"{names[name]} {same} of {total}" for name, (same, total) in made["equal_tokens"].items())
    yield from paragraph(f"Equal tokens: {', '.join(counts)} (commit {made['commit']}, torch {made['torch']}).")


def judged(figures: Figures) -> Iterator[str]:
    """The judge's table."""
    rows = figures.rows
    missed = [name for name, one in rows.items() if not one.passes]
    below = f"; below them: {'; '.join(missed)}" if missed else ""
    made = figures.quality["rows"][0]["made_with"]
    yield from paragraph(
        f"{len(rows) - len(missed)} of {len(rows)} rows are within their limits{below}.",
        f"Measured with {source(made)}, pack {made['version']}.",
    )
    yield ""
    heads = ("task", "key", "cases", "exact", "and clean", "limit", "settings")
    yield from table(heads, map(judged_row, rows.values()))


def judged_row(one: Result) -> Sequence[str]:
    """A line of the judge's table."""
    exact, clean = right(one)
    limit = one.limit.replace("%", " %") + ("" if one.passes else ", missed")
    return one.name, f"`{one.key}`" if one.key else "-", str(one.measured.count), exact, clean, limit, one.settings


def right(one: Result) -> tuple[str, str]:
    """Shares that are exact, and clean, of each set of cases."""
    exact = ("-" if part.exact is None else percent(part.exact) for part in one.sets)
    return ", ".join(exact), ", ".join(percent(part.rate) for part in one.sets)


def samplers(figures: Figures) -> Iterator[str]:
    """What samplers give and cost nano."""
    rows = {one.key: one for one in figures.rows.values()}
    names = [key.removeprefix("open_") for key, one in rows.items() if key.startswith("open_") and one.measured.work]
    opens, spreads = ({name: rows[f"{part}_{name}"] for name in names} for part in ("open", "spread"))
    if not names:
        yield "Not measured since samplers stand in the table."
        return
    heads = ("sampler", "work", "open captions: exact", "and clean", "evenness", "passes a clean picture", "beaten by")
    lines = []
    for name, one in opens.items():
        cost = "-" if one.cost is None else f"{one.cost:.1f}"
        evenness = percent(spreads[name].rate, 0) + ("" if spreads[name].passes else ", missed")
        beaten = sorted(better(name, opens, spreads), key=lambda other: opens[other].rate, reverse=True)
        lines.append(
            (f"`{name}`", percent(work_share(one), 0), *right(one), evenness, cost, ", ".join(beaten[:1]) or "-")
        )
    yield from table(heads, lines)


def work_share(one: Result) -> float:
    """The work of a case beside exact sampling's; 1 where none was counted."""
    return one.measured.work.share if one.measured.work is not None else 1.0


def better(name: str, opens: Mapping[str, Result], spreads: Mapping[str, Result]) -> Iterator[str]:
    """The samplers with at most as much work that are clean more often and still choose."""
    for other, one in opens.items():
        if work_share(one) <= work_share(opens[name]) and one.rate > opens[name].rate and spreads[other].passes:
            yield other


def parts(figures: Figures) -> Iterator[str]:
    """Rows whose cases are of several kinds."""
    yield from table(
        ("task", "kind of case", "cases", "exact", "and clean"),
        (
            (name, part, str(one.count), percent(one.exact or 0), percent(one.rate))
            for name, row in figures.rows.items()
            for part, one in row.measured.parts.items()
        ),
    )


def remarks(figures: Figures) -> Iterator[str]:
    """What the judge says besides."""
    yield from (f"- {name}: {remark}" for name, row in figures.rows.items() for remark in row.measured.remarks)


CACHES = {
    "off": "",
    "published": ", ML-Cache",
    "quality": ", cache quality",
    "balanced": ", cache balanced",
    "fast": ", cache fast",
}


def caches(figures: Figures) -> Iterator[str]:
    """What ML-Cache costs nano and saves the 8B."""
    rows, shares = figures.rows, figures.performance["counted"]["shares"]
    heads = (
        "`ml_cache`",
        "open captions: exact, and clean",
        "edits: exact, and clean",
        "work at 1024 px",
        "edit at 512 px",
    )
    lines = []
    for preset, suffix in CACHES.items():
        pair = [rows[f"{task}{suffix}"].measured for task in ("generate open", "edit")]
        work = [shares[preset][job] if preset in shares else 1.0 for job in ("words", "edit")]
        right = (f"{percent(one.exact or 0)}, {percent(one.rate)}" for one in pair)
        lines.append((preset, *right, *(percent(share, 0) for share in work)))
    yield from table(heads, lines)


# -------------------------------------------------------------------------------------------------------- performance


def gpu_made(figures: Figures) -> Iterator[str]:
    """What was measured on a GPU, and with what."""
    gpu = figures.gpu
    host = f"; host: {gpu['host']}" if "host" in gpu else ""
    yield from paragraph(
        f"Card: {gpu['card']}{host}. Weights: {gpu['weights']}. Beside it: {gpu['beside']}.",
        f"Measured with {source(gpu)}.",
    )


def gpu_times(figures: Figures) -> Iterator[str]:
    """Seconds of jobs on a GPU, and how much faster they are."""
    gpu = figures.gpu
    core = ((job["job"], *(_time(job["ways"].get(way)) for way in WAYS)) for job in gpu["core"])
    yield from table(("job", *WAYS), core)
    yield ""
    words = {job["name"]: job["job"] for job in gpu["core"]}
    faster = {words[name]: ratios for name, ratios in gpu["ratios"].items() if ratios}
    rows = ((job, *(f"{ratios[way]:.2f}x" if way in ratios else "-" for way in OURS)) for job, ratios in faster.items())
    yield from table((f"faster than {gpu['beside']}", *OURS), rows)


def _time(one: Mapping[str, Any] | None) -> str:
    if one is None:
        return "-"
    aims = [f"; aim {one[name]} {unit}" for name, unit in (("aim_s", "s"), ("aim_ms", "ms")) if name in one]
    return f"{one['s']} s ({one['ms']} ms{''.join(aims)})"


def gpu_memory(figures: Figures) -> Iterator[str]:
    """Peak memory of jobs on a GPU."""
    gpu = figures.gpu
    rows = ((one["job"], *(_with(one[way], "GB") for way in ("released", "exact", "cached"))) for one in gpu["peak_gb"])
    yield from table(("beside the weights", "released", "exact", "with a cache"), rows)
    yield ""
    vq = ((one["way"], f"{one['ms']} ms", _with(one["peak_gb"], "GB")) for one in gpu["vq"])
    yield from table(("VQ, 1024x1024 px", "time", "peak"), vq)


def gpu_passes(figures: Figures) -> Iterator[str]:
    """Passes on a GPU: what of them is the host's."""
    heads = {"ms": "eager", "host_ms": "host alone", "kernel_ms": "kernels", "captured_ms": "replayed as a CUDA graph"}
    rows = []
    for one in figures.gpu["passes"]:
        branches = one.get("branches", 1)
        each = f" of each of {branches} branches" if branches > 1 else ""
        where = f"{one['positions']} of {one['of']} positions{each}"
        times = (_with(one.get(name), "ms") for name in heads)
        rows.append((one["kind"], where, *times, str(one.get("kernels", "-"))))
    yield from table(("weights", "a pass over", *heads.values(), "launches"), rows)


def gpu_kinds(figures: Figures) -> Iterator[str]:
    """Weights of one byte on a GPU, the core alone."""
    rows = []
    for one in figures.gpu["kinds"]:
        aim = f" (aim {one['aim_of_bf16']})" if "aim_of_bf16" in one else ""
        share = "-" if one["of_bf16"] is None else f"{one['of_bf16']:.2f}{aim}"
        rows.append((one["kind"], one["job"], one["way"], f"{one['ms']} ms", share))
    yield from table(("weights", "job", "way", "a step or a token", "of bf16"), rows)


def _with(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value} {unit}"


def gpu_tables(section: Mapping[str, Any]) -> Iterator[str]:
    """All that is measured on a GPU by `python -m bench.gpu`, as text."""
    figures = Figures({}, {"gpu": section})
    for block in (gpu_made, gpu_times, gpu_memory, gpu_passes, gpu_kinds):
        yield from (*block(figures), "")
    right = section["right"]
    yield f"Equal to the CPU: {right['equal']} of {right['compared']}{_listed('; not', right['wrong'])}."
    for part in ("ceilings", "waits", "attention", "between", "products"):
        rows = (", ".join(f"{name} {value}" for name, value in row.items()) for row in section[part])
        yield from (f"{part}: {row}" for row in rows)
    yield f"Left out: {', '.join(section['left_out']) or 'nothing'}."


def _listed(words: str, names: Sequence[str]) -> str:
    return f"{words} {', '.join(names)}" if names else ""


def comfyui_made(figures: Figures) -> Iterator[str]:
    """What was measured in ComfyUI, and whether results were right."""
    made, run = figures.comfyui, figures.comfyui["templates"]
    yield from paragraph(
        f"ComfyUI {made['comfyui']} on the {made['card']}, pack commit {made['commit']}, torch {made['torch']};",
        f"{made['date']}. There {run['right']} of {run['run']} template runs were right, DiMOO-nano as int8 and fp8",
        f"among them. Nano's tokens on the GPU equal those on the CPU: {made['nano_equal']}.",
    )


def gpu_streaming(figures: Figures) -> Iterator[str]:
    """A step with less free memory, and by kind of file."""
    made = figures.comfyui
    free = {None: "all"} | {gib: f"{gib} GiB" for gib in (6, 8, 12)}
    rows = ((free[o["free_gib"]], o["file"], span(o["exact"]), span(o["balanced"])) for o in made["streaming"])
    yield from table(("free", "file", "exact, ms a step", "`balanced`, ms a step"), rows)
    yield ""
    yield from paragraph(
        f"Weights that do not fit stream over the bus, here at {made['pinned_gb_per_s']} GB/s, and that sets the time:",
        "a cached step streams as much as a full one, so ML-Cache gains nothing there. A slower bus takes",
        "proportionally longer.",
    )
    yield ""
    kinds = ((one["file"], f"{one['pass_ms']} ms", f"{span(one['step_ms'])} ms") for one in made["kinds"])
    yield from table(("file", "GPU time of a pass", "wall time of a step"), kinds)


def cards_made(figures: Figures) -> Iterator[str]:
    """How the table of cards is computed, and the memory beside the weights."""
    section = figures.performance["cards"]
    sampling, decode = section["sampling"], section["decode"]
    yield from paragraph(
        f"Computed ({source(section)}). Beside the weights, sampling takes {gigabytes(sampling['off'])} exact and",
        f"{gigabytes(sampling['balanced'])} with ML-Cache (`balanced`); decoding with the VQ takes",
        f"{gigabytes(decode['whole'])}, in tiles {gigabytes(decode['tiles'])}.",
    )


def quantised(figures: Figures) -> Iterator[str]:
    """What weights of one byte launch and lose."""
    made = figures.performance["quantised"]
    yield from paragraph(f"Counted: {source(made)}. Launches of a pass of one branch, in the pack's own layers:")
    yield ""
    bf16 = made["launches"]["bf16"]
    rows = []
    for kind, one in made["launches"].items():
        rows.append((kind, *(f"{one[way]} ({one[way] / bf16[way]:.2f} of bf16)" for way in ("picture", "short"))))
    yield from table(("weights", "a picture of 1024x1024 px", "32 positions"), rows)
    yield ""
    yield from paragraph(
        "What a product as wide as the feed-forward's last one loses, root mean square beside the exact one, where",
        "some channels of its input are larger than the rest:",
    )
    yield ""
    heads = next(iter(made["errors"].values()))
    lines = ((way, *(percent(error, 2) for error in row.values())) for way, row in made["errors"].items())
    yield from table(("", *heads), lines)
    judged = figures.performance.get("quantised_nano")  # takes long, and is made now and then
    if judged is None:
        return
    yield ""
    yield from paragraph(f"What DiMOO-nano gets right and clean ({judged['cases']} cases; {source(judged)}):")
    yield ""
    tasks = next(iter(judged["rates"].values()))
    rates = ((name, *(percent(rate) for rate in row.values())) for name, row in judged["rates"].items())
    yield from table(("", *tasks), rates)


def passes(figures: Figures) -> Iterator[str]:
    """A counted pass."""
    counted = figures.performance["counted"]
    yield from paragraph(f"Counted: {source(counted)}.")
    yield ""
    pair = [counted["passes"][name] for name in ("ours", "released")]
    yield from table(
        ("a pass over a picture of 1024x1024 px, bf16", "here", "released code"),
        (
            ("arithmetic", *(f"{one['flops'] / 1e12:.1f} TFLOP" for one in pair)),
            ("traffic between the matrix products", *(f"{one['traffic'] / 1e9:.0f} GB" for one in pair)),
            ("logits", *(f"{one['logits'] / 1e9:.2f} GB" for one in pair)),
        ),
    )


CARD = {
    "waits_image_step": "host waits for the card, a step of a picture, previews aside",
    "waits_cached_step": "the same, a cached step",
    "waits_text_step": "the same, a step of an answer",
    "copies_to_device_image_step": "copies to the card that block the host, a step of a picture",
    "launches_edit_cached_step": "kernels of a cached step of an edit, three branches",
    "python_calls_32_positions_over_617129e": "calls of Python in a pass over 32 positions, of those at 617129e",
    "gb_between_products_1024": "GB between the products of a pass at 1024x1024 px, plain torch",
    "gb_between_products_1024_with_kernels": "the same, with kernels for rotation and SwiGLU",
    "gb_noise_1024": "GB of a step's noise and decisions at 1024x1024 px",
    "streamed_gib_int8_6": "GiB streamed in a pass, int8, 6 GiB for weights",
    "streamed_gib_bf16_10": "the same, bf16, 10 GiB for weights",
    "streamed_passes_edit_step": "times that a step of an edit brings in a weight that streams",
    "vq_tiles_flops_over_whole": "work of the VQ in tiles, of that at once",
    "palette_flops_over_before": "work of the colours of previews, of that at 617129e",
}


def card(figures: Figures) -> Iterator[str]:
    """What a card is made to do, counted without one."""
    made = figures.performance["card"]
    yield from paragraph(f"Counted: {source(made)}.")
    yield ""
    yield from table(("", "counted"), ((label, f"{made['figures'][name]:.3g}") for name, label in CARD.items()))


def answers(figures: Figures) -> Iterator[str]:
    """Counted answers."""
    costs = figures.performance["counted"]["answers"]
    released, exact = costs["released"]["flops"], costs["exact, 1 token a step"]["flops"]
    rows = []
    for name, one in costs.items():
        work = (f"1/{whole / one['flops']:.1f}" for whole in (released, exact))
        rows.append((name, str(one["passes"]), str(one["positions"]), f"{one['flops'] / 1e15:.2f}", *work))
    yield from table(("`speed`", "passes", "positions", "PFLOP", "of released", "of exact"), rows)


BASELINE = {
    "image_exact": "picture, exact",
    "image_ml_cache": "picture, `balanced`, against an exact baseline",
    "image_published_over_cache": "picture, published cache on both sides",
    "image_balanced_over_cache": "picture, `balanced`, against the baseline with the published cache",
    "image_fast_over_cache": "picture, `fast`, against the baseline with the published cache",
    "edit_exact": "edit, exact",
    "edit_ml_cache": "edit, `balanced`, against an exact baseline",
    "understanding_exact": "answer, exact",
    "understanding_cached": "answer about 1024x1024 px, `balanced`, against our exact",
    "understanding_fast": "answer about 1024x1024 px, `fast`, against our exact",
}
RELEASED = {
    "image_exact": "picture, exact",
    "image_ml_cache": "picture, published cache on both sides",
    "image_ml_cache_quality": "picture, `quality`, against released exact",
    "image_ml_cache_balanced": "picture, `balanced`, against released exact",
    "image_ml_cache_fast": "picture, `fast`, against released exact",
    "edit_exact": "edit, exact",
    "edit_ml_cache_balanced": "edit, `balanced`, against released exact",
    "edit_ml_cache_fast": "edit, `fast`, against released exact",
    "understanding_exact": "answer, exact",
}


def cpu(figures: Figures) -> Iterator[str]:
    """Ratios on a CPU, against the baseline and against the released code."""
    ours, released = figures.performance["cpu"], figures.performance["cpu_released"]
    yield from paragraph(
        f"Against the baseline in `bench/` ({source(ours)}; {ours['machine']}, medians of {ours['repeats']}):"
    )
    yield ""
    yield from table(("job", "faster"), _ratios(BASELINE, ours))
    yield ""
    yield from paragraph(
        f"Against the released code itself (commit {released['commit']}, torch {released['torch']}, transformers",
        f"{released['transformers']}; {released['machine']}, medians of {released['repeats']}):",
    )
    yield ""
    yield from table(("job", "faster"), _ratios(RELEASED, released))


def _ratios(names: Mapping[str, str], section: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    return ((names[name], f"{ratio:.3g}x") for name, ratio in section["ratios"].items())


# ----------------------------------------------------------------------------------------------------------- training


def training(figures: Figures) -> Iterator[str]:
    """What a step of a LoRA takes at the 8B's size."""
    made = figures.performance["training"]
    kinds: dict[str, dict[str, dict[str, int]]] = {}
    for name, cost in made["lora"].items():
        kind, _, side = name.rpartition("_")
        kinds.setdefault(kind, {})[side] = cost
    sides = sorted(next(iter(kinds.values())), key=int)
    heads = [f"{side}x{side} px" for side in sides]
    yield from table(
        ("base", *heads, *(f"work at {head}" for head in heads)),
        (
            (
                kind,
                *(gigabytes(costs[side]["bytes"]) for side in sides),
                *(f"{costs[side]['flops'] / 1e12:.0f} TFLOP" for side in sides),
            )
            for kind, costs in kinds.items()
        ),
    )
    yield ""
    yield from paragraph(f"Rank {made['rank']} on all linears, batch 1, AdamW; counted by {source(made)}.")


# ------------------------------------------------------------------------------------------------------------ command

BLOCKS: dict[str, Callable[[Figures], Iterator[str]]] = {
    one.__name__: one
    for one in (
        *(status, sizes, cards, paces, times),
        *(replayed, same_tokens, judged, samplers, parts, remarks, caches),
        *(gpu_made, gpu_times, gpu_memory, gpu_passes, gpu_kinds, comfyui_made, gpu_streaming),
        *(cards_made, passes, card, quantised, answers, cpu),
        training,
    )
}


def rendered(text: str, figures: Figures) -> str:
    """A page with its generated parts made from the figures. Raises ValueError for a part of an unknown name."""

    def block(found: re.Match[str]) -> str:
        start, name, _, end = found.groups()
        if name not in BLOCKS:
            raise ValueError(f"Got a generated part {name!r}, expected one of {', '.join(BLOCKS)}.")
        return start + "".join(f"{line}\n" for line in BLOCKS[name](figures)) + end

    return BLOCK.sub(block, text)


def record_replay(folder: Path) -> None:
    """Replay recorded numbers and note the outcome in docs/quality.json."""
    outcome = [wrong for _, wrong in replay(folder)]
    made = made_with(f"python -m dimoo_core.evaluation.replay {folder.as_posix()}")
    write_section(QUALITY, "replay", {**made, "equal": outcome.count(""), "cases": len(outcome)})


def record_gpu(rows: Path) -> None:
    """Note rows of `bench.gpu` in docs/performance.json. Raises ValueError where what README quotes is missing."""
    made = gpu_section(read_rows(rows))
    ways = {job["name"]: job["ways"].keys() for job in made["core"]}
    missing = [name for name in QUOTED if not {"exact", "balanced"} <= ways.get(name, set())]
    if missing:
        raise ValueError(
            f"{rows} has no rows of {missing[0]}, exact and balanced; README quotes them: measure once more with "
            f"--out {rows.name} --only '{missing[0]}'."
        )
    write_section(PERFORMANCE, "gpu", made)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 1 if `--check` finds a page that is not up to date."""
    parser = argparse.ArgumentParser(prog="python -m bench.docs", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--replay", type=Path, metavar="FOLDER", help="first replay this folder and note the outcome")
    parser.add_argument("--gpu", type=Path, metavar="FILE", help="first note the rows that `bench.gpu --out` wrote")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is not up to date")
    options = parser.parse_args(arguments)
    if options.replay:
        record_replay(options.replay)
    if options.gpu:
        try:
            record_gpu(options.gpu)
        except ValueError as error:
            parser.error(str(error))
    figures, stale = Figures.load(), 0
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        new = rendered(text, figures)
        if new != text:
            stale += 1
            if options.check:
                print(f"{path.relative_to(ROOT)} is not up to date; run python -m bench.docs")
            else:
                path.write_text(new, encoding="utf-8")
                print(f"{path.relative_to(ROOT)} written")
    return int(options.check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())
