"""The command: `python -m bench.gpu --budget SECONDS --out rows.jsonl`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

import torch

from dimoo_core.checkpoint.convert import KINDS
from dimoo_core.devices import device as device_called

from ..docs import gpu_tables
from ..record import made_with
from . import __doc__ as about
from .plan import plan
from .released import check_checkout
from .report import Report
from .scale import FULL, SMALL
from .session import Session
from .table import read_rows, section
from .timing import clear

CANCELLED = 130  # as a shell names Ctrl-C


def machine(device: torch.device, commit: str | None, command: str) -> dict[str, Any]:
    """What rows are measured on, and with what."""
    made = made_with(command) if commit is None else {**made_with(command), "commit": commit}
    if device.type != "cuda":
        return {"card": "CPU, which says nothing about a GPU", **made}
    card = torch.cuda.get_device_properties(device)
    return {"card": f"{card.name} ({card.total_memory / 1e9:.0f} GB)", "cuda": torch.version.cuda, **made}


def measure(options: argparse.Namespace, report: Report, command: str) -> None:
    """Write all rows that fit."""
    device = torch.device(options.device)
    scale = SMALL if options.tiny else FULL
    session = Session(device, scale, options.released, pace=0.0 if options.tiny else 1.0)
    report.write("machine", machine(device, options.commit, command))
    for part in plan(session, options.weights):
        if options.only and not any(word in part.name for word in options.only):
            continue
        report.add(part, session.pace)
        clear(device)


def opened(path: Path) -> TextIO:
    """A file to append rows to, at the start of a line whatever a killed run left behind."""
    file = path.open("a+", encoding="utf-8")
    file.seek(0)
    if not (file.read() or "\n").endswith("\n"):
        file.write("\n")
    return file


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 1 where something that must be equal is not, or failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=(about or "").splitlines()[0])
    parser.add_argument("--budget", type=float, default=480, metavar="SECONDS", help="how long it may take (480)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="append the rows to this file too")
    parser.add_argument("--released", type=Path, metavar="FOLDER", help="a checkout of the released code, at 81344e6")
    parser.add_argument("--weights", nargs="+", choices=KINDS, default=KINDS, help="kinds of weights (all)")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="only parts whose name has one of these words")
    parser.add_argument("--device", default="cuda", help="where to run (cuda)")
    parser.add_argument("--commit", help="the pack's commit, where there is no git to ask")
    parser.add_argument("--tiny", action="store_true", help="tiny networks and pictures, which measure nothing")
    parser.add_argument("--table", type=Path, metavar="FILE", help="only print the rows of this file as tables")
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)
    try:
        if options.table:
            print(*gpu_tables(section(read_rows(options.table))), sep="\n")
            return 0
        device_called(options.device)
        if options.released:
            check_checkout(options.released)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    with ExitStack() as stack:
        file = stack.enter_context(opened(options.out)) if options.out else None
        report = Report(options.budget, file)
        try:
            measure(options, report, " ".join(["python -m bench.gpu", *given]))
        except KeyboardInterrupt:
            return CANCELLED
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
