"""The demo: every example workflow in a real ComfyUI, judged. `python -m nox -s demo` makes the environment for it.

`--weights fp8` converts DiMOO-nano into one file first, puts it where a user would, and lets every loader take that.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

from dimoo_core.checkpoint.convert import KINDS, convert
from dimoo_core.checkpoint.find import NANO, find

from . import thumbnails, workflow
from .client import Client, Workflow
from .expect import Finding, Results, collect, inspect
from .server import PACK, Server

OUTPUT = PACK / "output"


@dataclass
class Row:
    """A line of the table."""

    name: str
    seconds: float
    findings: list[Finding]

    @property
    def right(self) -> bool:
        return all(finding.right for finding in self.findings)


def run(client: Client, name: str, checkpoint: str | None = None, *, pictured: bool = False) -> Row:
    """One workflow from its file to what the judge says of it; its API form, pictures and texts go to output/.

    `checkpoint`: what the loaders take in place of what the workflow says. `pictured` renews the workflow's
    thumbnail, unless the judge disagrees with what it shows.
    """
    saved = workflow.load(name)
    prompt = workflow.to_api(saved, client.object_info())
    if checkpoint is not None:
        use(prompt, checkpoint)
    (OUTPUT / f"{name}.api.json").write_text(json.dumps(prompt, indent=2) + "\n", encoding="utf-8")
    result = client.run(prompt, extra={"extra_pnginfo": {"workflow": saved}})
    if result.status != "success":
        return Row(name, result.seconds, [Finding("ComfyUI", f"{result.status}: {result.error()}", False)])
    results = collect(client, prompt, result)
    keep(name, results)
    row = Row(name, result.seconds, inspect(name, results))
    if pictured and row.right:
        thumbnails.write(name, results)
    return row


def use(prompt: Workflow, checkpoint: str) -> None:
    """Lets every loader of a prompt take this checkpoint. Raises ValueError where the prompt has no loader."""
    loaders = [node for node in prompt.values() if node["class_type"] == "DimooLoader"]
    if not loaders:
        raise ValueError("The prompt has no DimooLoader; there is nothing to load other weights with.")
    for node in loaders:
        node["inputs"]["checkpoint"] = checkpoint


def keep(name: str, results: Results) -> None:
    """Write all pictures and texts of a workflow to output/."""
    for title, pictures in results.pictures.items():
        for index, picture in enumerate(pictures):
            (OUTPUT / file_name(name, title, index, "png")).write_bytes(picture)
    for title, texts in results.texts.items():
        for index, text in enumerate(texts):
            (OUTPUT / file_name(name, title, index, "txt")).write_text(text + "\n", encoding="utf-8")


def file_name(name: str, title: str, index: int, kind: str) -> str:
    number = f"-{index + 1}" if index else ""
    return f"{name}--{title.lower().replace(' ', '-')}{number}.{kind}"


def table(rows: list[Row]) -> str:
    """Workflow, seconds, what the judge saw; a cross where that is not what was asked."""
    lines = [f"{'workflow':<25}{'seconds':>8}  what the judge saw", "-" * 110]
    for row in rows:
        first = f"{row.name:<25}{row.seconds:>8.1f}"
        for finding in row.findings:
            mark = "ok" if finding.right else "NO"
            seen = textwrap.shorten(f"{finding.place}: {finding.seen}", 300)
            lines.append(f"{first:<33}  {mark}  {seen}")
            first = ""
    return "\n".join(lines)


def say(text: str) -> None:
    print(text, flush=True)


def converted(kind: str, folder: Path) -> str:
    """DiMOO-nano as one file in a model folder; its name there."""
    name = f"DiMOO-nano-{kind}.safetensors"
    size = convert(find(NANO), folder / name, kind)
    say(f"Converted DiMOO-nano to {kind}: {name}, {size / 1e6:.2f} MB.")
    return name


def run_all(client: Client, checkpoint: str | None = None, *, pictured: bool = False) -> bool:
    """Run every workflow and print the table; whether all show what was asked."""
    names = workflow.names()
    rows = []
    for number, name in enumerate(names, 1):
        say(f"[{number}/{len(names)}] {name} ...")
        rows.append(run(client, name, checkpoint, pictured=pictured))
    say(f"\n{table(rows)}\n")
    wrong = [row.name for row in rows if not row.right]
    say(f"The pictures and texts are in {OUTPUT}.")
    say(f"Not what was asked: {', '.join(wrong)}." if wrong else f"All {len(rows)} workflows show what was asked.")
    return not wrong


def wait_for_ctrl_c(server: Server) -> None:
    say(f"\nComfyUI stays up at {server.url} (Templates, then dimoo-nodes, has these workflows). Ctrl-C ends it.")
    try:
        while server.process and server.process.poll() is None:
            time.sleep(0.5)
    except KeyboardInterrupt:
        say("Stopping ComfyUI.")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m nox -s demo --", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave ComfyUI up afterwards and print its address")
    parser.add_argument("--weights", choices=KINDS, help="convert DiMOO-nano to a single file of these first")
    parser.add_argument("--thumbnails", action="store_true", help="renew workflows/*.jpg, for the Templates dialog")
    arguments = parser.parse_args()
    shutil.rmtree(OUTPUT / "comfyui", ignore_errors=True)
    (OUTPUT / "comfyui").mkdir(parents=True)
    server = Server(Path(OUTPUT / "comfyui"))
    kind = arguments.weights
    checkpoint = None if kind is None else converted(kind, server.folder / "models" / "dimoo")
    say(f"Starting a real ComfyUI with the pack in it (its log: {server.log}) ...")
    began = time.monotonic()
    with server:
        say(f"ComfyUI is up after {time.monotonic() - began:.0f} s at {server.url}.")
        right = run_all(Client(server.url), checkpoint, pictured=arguments.thumbnails)
        if arguments.keep:
            wait_for_ctrl_c(server)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
