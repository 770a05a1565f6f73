"""Teaches DiMOO-nano a habit by LoRA and judges it: `python -m bench.habit FOLDER`, or `nox -s lora`.

The habit: a star of which nothing is said is large, yellow, in the middle and on black. The plain nano has no such
habit. It is taught from drawn pictures by the commands that users type, once beside the base as it ships and once
beside an int8 file of it; full captions of other scenes are taught along, so that words keep their meaning.

Printed are, in percent: `rate lora_habit_base` without the LoRA; `rate lora_habit_trained` and `rate lora_habit_int8`
with it; `rate lora_elsewhere_base` and `rate lora_elsewhere_trained`, full captions that were not taught, without and
with it; and `equal lora_removed 1` where without the LoRA every code is what it was before. Exit 1 if one misses its
limit.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from dimoo_core.checkpoint.adapter_file import read_adapter
from dimoo_core.checkpoint.find import NANO, find
from dimoo_core.checkpoint.load import load_tokenizer, load_transformer, load_vq
from dimoo_core.evaluation.runner import Runner, Setup
from dimoo_core.jobs import Model, text_prompt
from dimoo_core.model.adapters import Applied
from dimoo_core.nano.captions import caption
from dimoo_core.nano.cases import Examiner, NanoCase, taught_scenes
from dimoo_core.nano.scenes import FORMATS, Scene, draw
from dimoo_core.nano.table import right
from dimoo_core.pictures.pixels import to_pil
from dimoo_core.sequence.canvas import Canvas

from .record import ROOT

PROMPT = "a star"
HABIT = Scene.one("black", "star", "yellow", "large", "in the middle")
ASKED = "a yellow star on a black background"  # all that is judged
REPEATS = 24  # of the habit's picture among OTHERS pictures that keep their words' meaning
OTHERS = 24
CASES = 200
TRAINING = (
    "--steps 300 --rate 1e-3 --rank 16 --batch 16 --warm-up 10 --schedule cosine --sample-every 100 --save-every 300"
)
LIMITS = {"habit_base": (0, 40), "habit_trained": (95, 100), "habit_int8": (95, 100)}
ELSEWHERE = 2  # points by which full captions may fall


def draw_folder(folder: Path) -> list[Scene]:
    """A training folder with the habit, and with other scenes, which are returned."""
    height, width = FORMATS[0]
    others = random.Random(0).sample([scene for scene in taught_scenes() if scene != HABIT], OTHERS)
    pictures = {f"{REPEATS}_habit/star": (HABIT, PROMPT)}
    pictures |= {f"others/{number:02d}": (scene, caption(scene)) for number, scene in enumerate(others)}
    for name, (scene, words) in pictures.items():
        file = folder / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        to_pil(draw(scene, height, width)).save(file)
        file.with_suffix(".txt").write_text(f"{words}\n", encoding="utf-8")
    return others


def run(*words: str, folder: Path) -> None:
    """A command of the program, as a user types it in `folder`."""
    print(f"$ python -m dimoo_core {' '.join(words)}", flush=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "dimoo_core", *words], cwd=folder, env=environment, check=True)


def load(checkpoint: Path) -> tuple[Runner, Setup]:
    """A checkpoint as it is stored, and its usual settings."""
    found = find(checkpoint)
    model = Model(load_transformer(found), load_tokenizer(found), found.table, found.defaults.sides, found.formats)
    return Runner(model, load_vq(found)), Setup.usual(found.defaults, FORMATS[0])


def with_lora(runner: Runner, file: Path) -> Runner:
    """The same with the LoRA of a file."""
    model = runner.model
    adapter = read_adapter(file, model.transformer.config, model.table.code_offset).adapter
    return Runner(model.with_adapters([Applied(adapter.to(torch.bfloat16))]), runner.vq)


def habit_cases(count: int) -> list[NanoCase]:
    return [NanoCase(text_prompt(PROMPT), ASKED, Canvas.empty(1, *FORMATS[0])) for _ in range(count)]


def full_cases(runner: Runner, count: int, taught: Sequence[Scene]) -> list[NanoCase]:
    """Full captions that were not taught to the LoRA."""
    examiner, known = Examiner(runner.encode, *FORMATS[0]), {caption(scene) for scene in taught}
    cases: list[NanoCase] = []
    while len(cases) < count:
        case = examiner.full(len(cases))
        if case.asked not in known:
            cases.append(case)
    return cases


def rate(runner: Runner, cases: Sequence[NanoCase], setup: Setup) -> float:
    """Right and clean, in percent."""
    return 100 * right(runner, cases, setup).rate


def codes(runner: Runner, cases: Sequence[NanoCase], setup: Setup) -> torch.Tensor:
    return torch.cat([canvas.codes for canvas in runner.fill(cases, setup)])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 1 where a line misses its limit."""
    parser = argparse.ArgumentParser(prog="python -m bench.habit", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where pictures, runs and LoRAs are kept; emptied first")
    parser.add_argument("--cases", type=int, default=CASES, metavar="N", help=f"cases of each line ({CASES})")
    options = parser.parse_args(arguments)
    folder, count = options.folder.absolute(), options.cases
    shutil.rmtree(folder, ignore_errors=True)
    others = draw_folder(folder / "stars")
    run("convert", str(NANO), "nano-int8.safetensors", "--dtype", "int8", folder=folder)
    for name, checkpoint in (("base", str(NANO)), ("int8", "nano-int8.safetensors")):
        given = ("--checkpoint", checkpoint, "--run", f"runs/{name}", "--output", f"{name}.safetensors")
        run("train", "lora", "stars", *given, *TRAINING.split(), folder=folder)

    base, usual = load(NANO)
    int8, _ = load(folder / "nano-int8.safetensors")
    trained, trained_int8 = with_lora(base, folder / "base.safetensors"), with_lora(int8, folder / "int8.safetensors")
    habit, full = habit_cases(count), full_cases(base, count, others)
    before = codes(base, habit, usual)
    rates = {
        "habit_base": rate(base, habit, usual),
        "habit_trained": rate(trained, habit, usual),
        "habit_int8": rate(trained_int8, habit, usual),
        "elsewhere_base": rate(base, full, usual),
        "elsewhere_trained": rate(trained, full, usual),
    }
    removed = Runner(replace(trained.model, adapters=type(trained.model.adapters)()), base.vq)
    same = torch.equal(before, codes(removed, habit, usual))
    for name, percent in rates.items():
        print(f"rate lora_{name} {percent:.1f}")
    print(f"equal lora_removed {int(same)}")
    within = [low <= rates[name] <= high for name, (low, high) in LIMITS.items()]
    within.append(rates["elsewhere_trained"] >= rates["elsewhere_base"] - ELSEWHERE)
    return 0 if same and all(within) else 1


if __name__ == "__main__":
    sys.exit(main())
