"""What a command of the command line is, and what the program is called."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# as the user called it: the script that `pip install` makes, or the package
PROGRAM = "dimoo" if Path((sys.argv or [""])[0]).stem.lower() == "dimoo" else "python -m dimoo_core"
SHELL = "echo "  # how an example begins that is for the shell, not for the program


def _nothing(_args: argparse.Namespace) -> None:
    pass


@dataclass(frozen=True)
class Command:
    """One subcommand.

    `examples` are command lines without the program's name. They run one after the other in an empty folder, once the
    lines of `setup` have run there. `check(args)` looks at the arguments alone, before anything is loaded; `run(args)`
    does the work. `stopped` says what Ctrl-C leaves where the command itself says nothing of it.
    """

    name: str
    summary: str
    examples: tuple[str, ...]
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]
    setup: tuple[str, ...] = ()
    check: Callable[[argparse.Namespace], None] = _nothing
    stopped: str = "nothing was written"


def run_job(args: argparse.Namespace) -> None:
    """The `run` of a command with jobs, each of whose parsers sets `job_run`."""
    args.job_run(args)


def shown(line: str) -> str:
    """An example as it is typed."""
    return line if line.startswith(SHELL) else f"{PROGRAM} {line}"
