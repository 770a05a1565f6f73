"""Runs that are stopped: with Ctrl-C, with SIGTERM, or by a file in the run's folder."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(KeyboardInterrupt):
    """A run that was stopped with Ctrl-C or SIGTERM; the text says what is kept of it."""


@contextmanager
def keeping(what: str) -> Iterator[None]:
    """A stop inside the `with` says `what` is kept, unless it says something itself."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if str(stop):
            raise
        raise Stopped(what) from stop


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the end of the `with`. They arrive in the main thread only; elsewhere this does
    nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[tuple[int, FrameType | None]] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.signal(number, lambda *one: arrived.append(one)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
    for arrival, frame in arrived[:1]:
        handler = handlers[signal.Signals(arrival)]
        if callable(handler):
            handler(arrival, frame)
        elif handler != signal.SIG_IGN:
            os.kill(os.getpid(), arrival)
