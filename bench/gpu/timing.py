"""Seconds and bytes of a run, and what of a pass is the device's and what the host's."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

Run = Callable[[], Any]


@dataclass(frozen=True)
class Taken:
    """Seconds of a run, and its peak bytes: beside what was allocated before it, and in all (None: unknown)."""

    seconds: float
    beside: int | None
    total: int | None

    @property
    def memory(self) -> dict[str, float | None]:
        """The peaks in GB (10^9 bytes), for a row."""
        named = {"peak_gb": self.beside, "peak_total_gb": self.total}
        return {name: None if count is None else count / 1e9 for name, count in named.items()}


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clear(device: torch.device) -> None:
    """Give back memory of a GPU that nothing uses any more."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def once(run: Run, device: torch.device) -> Taken:
    """Time one run."""
    on_gpu, before = device.type == "cuda", 0
    synchronise(device)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    start = time.perf_counter()
    run()
    synchronise(device)
    seconds = time.perf_counter() - start
    total = torch.cuda.max_memory_allocated(device) if on_gpu else None
    return Taken(seconds, None if total is None else total - before, total)


def wall_ms(run: Run, device: torch.device, repeats: int = 20) -> float:
    """Milliseconds of a run, the median; on a GPU after three more, by its own clock."""
    if device.type != "cuda":
        return once(run, device).seconds * 1e3
    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return median(times)


def host_ms(run: Run, device: torch.device, repeats: int = 5) -> float:
    """Milliseconds until the host has asked for a run, the device's work not waited for."""
    synchronise(device)
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    took = time.perf_counter() - start
    synchronise(device)
    return took / repeats * 1e3


def kernels(run: Run, device: torch.device) -> tuple[int, float]:
    """Kernels that a run launches and the milliseconds that they take; on a CPU operators and theirs."""
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as seen:
        run()
        synchronise(device)
    where = DeviceType.CUDA if on_gpu else DeviceType.CPU
    events = [event for event in seen.events() or () if event.device_type == where]
    taken = (event.self_device_time_total if on_gpu else event.self_cpu_time_total for event in events)
    return len(events), sum(taken) / 1e3


def waits(run: Run, device: torch.device) -> int | None:
    """How often the host waits for the device in a run, as torch notices it; None where there is no such device."""
    if device.type != "cuda":
        run()
        return None
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in seen)


def captured_ms(run: Run, device: torch.device, repeats: int = 20) -> float | None:
    """Milliseconds of a run that is captured as a CUDA graph and replayed; None on another device."""
    if device.type != "cuda":
        return None
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        run()  # kernels load and workspaces are made outside the capture
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return wall_ms(graph.replay, device, repeats)
