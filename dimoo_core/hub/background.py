"""Running a generator in a thread of its own while the caller polls, for example for a cancel."""

from __future__ import annotations

from collections.abc import Callable, Generator
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any, TypeVar

Item = TypeVar("Item")

POLL_SECONDS = 0.1  # seconds between two polls


def run_in_background(work: Generator[Item, Any, Any], poll: Callable[[], object]) -> Generator[Item, None, None]:
    """What `work` yields, made in a thread of its own; while there is nothing to yield, `poll` is called every 0.1 s.

    Whatever `work` raises is raised here. `poll` may raise to give up: its exception comes out unchanged, at once. The
    thread then ends as soon as `work` lets it, which may take as long as a connection may stay silent; nothing that it
    makes until then is used.
    """
    items: Queue[tuple[str, Any]] = Queue(maxsize=16)
    given_up = Event()

    def hand_over(kind: str, value: Any) -> bool:
        while not given_up.is_set():
            try:
                items.put((kind, value), timeout=POLL_SECONDS)
                return True
            except Full:
                continue
        return False

    def run() -> None:
        try:
            for item in work:
                if not hand_over("item", item):
                    break
            hand_over("end", None)
        except BaseException as error:
            hand_over("error", error)
        finally:
            work.close()

    Thread(target=run, name="dimoo-download", daemon=True).start()
    try:
        yield from _arriving(items, poll)
    finally:
        given_up.set()


def _arriving(items: Queue[tuple[str, Any]], poll: Callable[[], object]) -> Generator[Any, None, None]:
    while True:
        try:
            kind, value = items.get(timeout=POLL_SECONDS)
        except Empty:
            poll()
            continue
        if kind == "end":
            return
        if kind == "error":
            raise value
        yield value
