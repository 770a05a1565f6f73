"""The soak: 200 mixed prompts through one real server. `python -m nox -s soak` makes the environment for it.

Every example workflow takes its turn with ever new seeds. Memory must stay where it is once everything has been used,
nothing may fail, and the pictures of the first round must come out again, bit for bit, at the end.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from . import workflow
from .client import Client, Workflow
from .expect import Results, collect
from .server import Server

PROMPTS = 200
WARM_UP = 0.25  # of the prompts: until then every workflow has run several times
WINDOW = 12  # prompts whose median memory is compared, so that one large picture at the end does not count
MOST_GROWTH = 0.02
MEGABYTE = 1 << 20
TRACE = 3000  # characters of the log that are shown where something went wrong


def prompts(client: Client) -> dict[str, Workflow]:
    """Every example workflow in API form."""
    known = client.object_info()
    return {name: workflow.to_api(workflow.load(name), known) for name in workflow.names()}


def reseeded(prompt: Workflow, choose: random.Random) -> Workflow:
    """The prompt with other seeds, so that all of it runs again."""
    changed = {node: {**content, "inputs": dict(content["inputs"])} for node, content in prompt.items()}
    for content in changed.values():
        if "seed" in content["inputs"]:
            content["inputs"]["seed"] = choose.randrange(2**64)
    return changed


def finished(client: Client, name: str, prompt: Workflow) -> Results:
    """What a prompt gave. Raises RuntimeError where it failed."""
    result = client.run(prompt)
    if result.status != "success":
        raise RuntimeError(f"{name} ended with {result.status}: {result.error()}")
    return collect(client, prompt, result)


def first_round(client: Client, every: dict[str, Workflow]) -> dict[str, Any]:
    """Pixels and texts of every workflow as it stands, each really run."""
    client.free(unload_models=True, free_memory=True)
    found = {}
    for name, prompt in every.items():
        results = finished(client, name, prompt)
        pixels = {title: results.pixels(title).tobytes() for title in results.pictures}
        found[name] = (pixels, results.texts)
    return found


def memory(client: Client) -> int:
    """Bytes that the server holds."""
    return client.get("dimoo-probe").json()["memory"]


def soak(client: Client, count: int) -> tuple[list[int], list[str]]:
    """Memory after each of `count` prompts, and what was wrong."""
    every, choose = prompts(client), random.Random(0)
    before = first_round(client, every)
    used, began = [], time.monotonic()
    for number in range(count):
        name = list(every)[number % len(every)]
        finished(client, name, reseeded(every[name], choose))
        used.append(memory(client))
        if (number + 1) % 20 == 0:
            spent = time.monotonic() - began
            print(f"{number + 1:>5} prompts  {spent:>6.0f} s  {used[-1] / MEGABYTE:>7.0f} MB", flush=True)
    after = first_round(client, every)
    return used, [f"{name} gives other pictures than at the start" for name in every if before[name] != after[name]]


def verdict(used: list[int], wrong: list[str]) -> tuple[float, list[str]]:
    """The growth of memory between the end of the warm-up and the end, a share, and all that is wrong."""
    warm = int(len(used) * WARM_UP)
    early, late = (statistics.median(part) for part in (used[warm : warm + WINDOW], used[-WINDOW:]))
    growth = late / early - 1
    said = [f"memory grew by {growth:.1%}, at most {MOST_GROWTH:.0%} is allowed"] if growth > MOST_GROWTH else []
    return growth, [*wrong, *said]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m nox -s soak --", description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=PROMPTS, metavar="N", help=f"how many ({PROMPTS})")
    arguments = parser.parse_args()
    if arguments.prompts < 4 * WINDOW:
        parser.error(f"at least {4 * WINDOW} prompts are needed to see whether memory grows")
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder), probe=True) as server:
        print(f"{arguments.prompts} prompts through one server ...", flush=True)
        started = len(server.text())  # what ComfyUI says of nodes of its own that it could not load is not ours
        used, wrong = soak(Client(server.url), arguments.prompts)
        growth, wrong = verdict(used, wrong)
        _, found, trace = server.text()[started:].partition("Traceback")
        if found:
            wrong.append(f"the server's log has a traceback in it:\n{found}{trace[:TRACE]}\n")
    print(f"Memory after the warm-up {used[int(len(used) * WARM_UP)] / MEGABYTE:.0f} MB, at the end", end=" ")
    print(f"{used[-1] / MEGABYTE:.0f} MB, growth of the medians {growth:+.2%}.")
    print("Not as it should be: " + "; ".join(wrong) + "." if wrong else "No error, and every picture came out again.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
