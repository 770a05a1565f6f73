"""The program: `dimoo` where the pack was installed with pip, else `python -m dimoo_core`. It needs no ComfyUI.

    command.py   what a command is            pictures.py     generate, edit, inpaint
    commands.py  all of them, the parser      words.py        describe, caption
    options.py   options that they share      prompt_list.py  list; prompt_file.py reads the lists
    settings.py  what decides a picture       weights.py      download, convert
    output.py    files, metadata, progress    lora.py         lora info, merge
    app/         the page, with gradio        train*.py       train encode, lora, tune, nano

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0, 2 where the user has to change something, 130 when stopped with
    Ctrl-C, 143 when stopped by SIGTERM."""
    spell_anything()
    with _stops() as stops:
        try:
            return _run(arguments, stops)
        finally:  # --help leaves as SystemExit
            flush()


class Stops:
    """The signals that have arrived to stop the program. While `waiting`, the first does nothing yet: what is being
    imported might swallow the exception, or print it."""

    def __init__(self) -> None:
        self.arrived: list[int] = []
        self.waiting = False

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        """The signal handler."""
        self.arrived.append(number)
        if not self.waiting or len(self.arrived) > 1:
            raise KeyboardInterrupt

    def end_waiting(self) -> None:
        """Raises KeyboardInterrupt if a signal has arrived."""
        self.waiting = False
        if self.arrived:
            raise KeyboardInterrupt


def _run(arguments: Sequence[str] | None, stops: Stops) -> int:
    args, stopped = argparse.Namespace(command=None), "nothing was written"
    try:
        stops.waiting = True
        from .commands import COMMANDS, build_parser

        stops.end_waiting()
        args = build_parser().parse_args(arguments)
        command = COMMANDS[args.command]
        stopped = command.stopped
        command.check(args)
        command.run(args)
    except KeyboardInterrupt as stop:
        say(f"{_title(args)}: stopped; {str(stop) or stopped}.", sys.stderr)
        return TERMINATED if signal.SIGTERM in stops.arrived else STOPPED
    except BrokenPipeError:  # nobody reads the progress bar any more
        return STOPPED
    except (ValueError, OSError) as error:
        say(f"{_title(args)}: {sentence(error, args)}", sys.stderr)
        return FAILED
    except (RuntimeError, MemoryError) as error:
        from ..devices import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        remedy = "a smaller picture, --batch 1, an int8 file (see `convert`) or --device cpu takes less"
        say(f"{_title(args)}: the device has too little memory; {remedy}.", sys.stderr)
        return FAILED
    return 0


def _title(args: argparse.Namespace) -> str:
    return PROGRAM if args.command is None else f"{PROGRAM} {args.command}"


@contextmanager
def _stops() -> Iterator[Stops]:
    """SIGINT and SIGTERM, the stop of a job scheduler, both raise KeyboardInterrupt. A handler of the process's own
    stays. Signals are the main thread's business."""
    stops, replaced = Stops(), list[int]()
    if threading.current_thread() is threading.main_thread():
        usual = (signal.SIG_DFL, signal.default_int_handler)
        replaced = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) in usual]
    handlers = {number: signal.signal(number, stops) for number in replaced}
    try:
        yield stops
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
