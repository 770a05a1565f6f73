"""Where jobs of all visitors wait for their turn: one works at a time, in a thread of its own, and can be stopped."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Waiting:
    """So many jobs come first; 0: it is this one's turn, and its first step has not ended."""

    ahead: int


@dataclass(frozen=True)
class Step:
    """A job has done a step; `shown` is what it last had to show."""

    done: int
    total: int
    shown: Any


@dataclass(frozen=True)
class Stopped:
    """A job was stopped after so many steps."""

    done: int


@dataclass(frozen=True)
class Done:
    """A job has ended."""

    result: Any


@dataclass(frozen=True)
class _Failed:
    error: BaseException


Update = Waiting | Step | Stopped | Done
Work = Callable[["Job"], Any]


class _Stop(Exception):
    """Raised in a job that is to stop."""


@dataclass(eq=False)
class Job:
    """A job that waits or works, and whose it is. The work calls `show` with what there is to see, and `report`, which
    ends it where it is to stop."""

    owner: tuple[str, ...]
    stop: threading.Event = field(default_factory=threading.Event)
    said: queue.SimpleQueue = field(default_factory=queue.SimpleQueue)
    shown: Any = None
    done: int = 0

    def show(self, shown: Any) -> None:
        """`preview` of a pipeline."""
        self.shown = shown

    def report(self, done: int, total: int) -> None:
        """`progress` of a pipeline."""
        self.done = done
        if self.stop.is_set():
            raise _Stop
        self.said.put(Step(done, total, self.shown))


class Desk:
    """Lets jobs work one after the other, in the order in which they came. Each has a thread, in which it waits too, so
    that one whose visitor asks for no more holds nobody up."""

    def __init__(self) -> None:
        self._line: list[Job] = []
        self._moved = threading.Condition()

    def run(self, owner: tuple[str, ...], work: Work) -> Iterator[Update]:
        """What happens to a job until it has ended. The first update is `Waiting`: from then on `stop` finds the job;
        the last one is `Stopped` or `Done`. An error of `work` is raised here. Where this iterator is closed, the job
        stops at its next step."""
        job = Job(owner)
        with self._moved:
            ahead = len(self._line)
            self._line.append(job)
        threading.Thread(target=self._work, args=(job, work), daemon=True).start()
        try:
            yield Waiting(ahead)
            yield from _latest(job)
        finally:
            self._stop([job])

    def stop(self, *owner: str) -> None:
        """Stop the jobs whose owner begins so; with no owner all of them."""
        with self._moved:
            self._stop([job for job in self._line if job.owner[: len(owner)] == owner])

    def close(self) -> None:
        """Stop all jobs, and wait until the last one has."""
        self.stop()
        with self._moved:
            self._moved.wait_for(lambda: not self._line)

    def _stop(self, jobs: list[Job]) -> None:
        with self._moved:
            for job in jobs:
                job.stop.set()
            self._moved.notify_all()

    def _work(self, job: Job, work: Work) -> None:
        try:
            self._wait(job)
            job.said.put(Done(work(job)))
        except _Stop:
            job.said.put(Stopped(job.done))
        except BaseException as error:
            job.said.put(_Failed(error))
        finally:
            with self._moved:
                self._line.remove(job)
                self._moved.notify_all()

    def _wait(self, job: Job) -> None:
        """Until it is the job's turn; raises _Stop where it is to stop."""
        with self._moved:
            while not job.stop.is_set():
                ahead = self._line.index(job)
                job.said.put(Waiting(ahead))
                if not ahead:
                    return
                self._moved.wait()
        raise _Stop


def _latest(job: Job) -> Iterator[Update]:
    """The updates of a job; of those that came while nobody asked, the last one."""
    while True:
        update = job.said.get()
        while not job.said.empty():
            update = job.said.get()
        if isinstance(update, _Failed):
            raise update.error
        yield update
        if isinstance(update, (Stopped, Done)):
            return
