"""The program: `dimoo` where the pack was installed with pip, else `python -m dimoo_core`. It needs no ComfyUI.

    command.py   what a command is            pictures.py     generate, edit, inpaint
    commands.py  all of them, the parser      words.py        describe, caption
    options.py   options that they share      prompt_list.py  list; prompt_file.py reads the lists
    settings.py  what decides a picture       weights.py      download, convert
    output.py    files, metadata, progress    train.py        train encode, tune, nano

What a user got wrong is a ValueError or OSError of one sentence and ends the program with status 2. Everything heavy
is imported inside `main`, so that Ctrl-C ends the program quietly in its first seconds too.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from .command import PROGRAM
from .messages import flush, say, sentence, spell_anything

FAILED, STOPPED, TERMINATED = 2, 130, 143


class _Terminated(KeyboardInterrupt):
    """SIGTERM, as a job scheduler sends it: to be left like Ctrl-C, whatever has to be kept is kept."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0, 2 where the user has to change something, 130 when stopped with
    Ctrl-C, 143 when stopped by SIGTERM."""
    spell_anything()
    args = argparse.Namespace(command=None)
    try:
        with _terminable():
            from .commands import COMMANDS, build_parser

            args = build_parser().parse_args(arguments)
            command = COMMANDS[args.command]
            command.check(args)
            command.run(args)
        status = 0
    except KeyboardInterrupt as stop:
        kept = str(stop) or ("nothing was written" if args.command is None else COMMANDS[args.command].stopped)
        say(f"{_title(args)}: stopped; {kept}.", sys.stderr)
        status = TERMINATED if isinstance(stop, _Terminated) or isinstance(stop.__cause__, _Terminated) else STOPPED
    except BrokenPipeError:  # nobody reads the progress bar any more
        status = STOPPED
    except (ValueError, OSError) as error:
        say(f"{_title(args)}: {sentence(error, args)}", sys.stderr)
        status = FAILED
    flush()
    return status


def _title(args: argparse.Namespace) -> str:
    return PROGRAM if args.command is None else f"{PROGRAM} {args.command}"


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM raises, as SIGINT does; where the process has a handler of its own for it, that one stays."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def terminate(_number: int, _frame: FrameType | None) -> None:
        raise _Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
