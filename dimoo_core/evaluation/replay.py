"""Replay recorded numbers: `python -m dimoo_core.evaluation.replay FOLDER`, FOLDER laid out like `tests/golden`.

Every case goes through the functions that the nodes call. Prints one line per case, then `N of M cases equal`; the exit
status is 1 if any differs. No size is assumed: networks come from the folder's `model/`, ids from `golden.json`, and
the cases are those that the two files name. A folder laid out like `tests/golden_training` is replayed in
`replay_training`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..checkpoint.load import read_transformer, read_vq
from ..model.transformer import Transformer
from ..pictures.masks import RECTANGLE, centred_rectangle, mask_to_cells
from ..pictures.sizes import CELL, buckets, fit_size
from ..sampling.guidance import Branch
from ..sampling.image import ImageSettings, sample_image
from ..sampling.ml_cache import CachePolicy
from ..sampling.noise import gumbel
from ..sampling.selection import gumbel_argmax, least_confident
from ..sampling.text import TextSettings, sample_text
from ..sequence.canvas import Canvas
from ..sequence.layout import cut_answer, image_answer, image_ids, prompt_prefix, text_answer
from ..sequence.prompt import DESCRIBE, GENERATE, Prompt, Task, edit_task, prompt_strings
from ..sequence.token_table import RELEASED
from .recorded import NAMES, differs, far, token_table
from .recorded_training import TRAINING, TrainingRecord
from .replay_training import report

Case = tuple[str, Callable[[], str]]  # its name, and a function that says how it differs ("" where it is equal)


class Replay:
    """A folder of recorded numbers and the networks they were recorded from."""

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        self.folder = folder
        self.record: dict[str, Any] = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
        self.tensors = load_file(folder / "golden.safetensors")
        noise = folder / "noise.safetensors"
        self.noise = load_file(noise) if noise.exists() else {}
        self.table = token_table(self.record["vocab"])
        self._transformer: Transformer | None = None

    @property
    def transformer(self) -> Transformer:
        """Read from the folder when a case first needs it."""
        if self._transformer is None:
            offset = self.table.code_offset
            self._transformer = read_transformer(self.folder / "model", code_offset=offset, dtype=torch.float32)
        return self._transformer

    def cases(self) -> Iterator[Case]:
        """Every case that the folder names."""
        tensors = self.tensors
        for name in sorted({key.rsplit(".", 1)[0] for key in tensors if key.startswith("forward.")}):
            yield name, partial(self.forward, name)
        replays: dict[str, Callable[[str, Mapping[str, Any]], str]] = {
            "t2i": self.text_to_image,
            "i2i": self.edit,
            "mmu": self.describe,
        }
        for name, settings in self.record.get("cases", {}).items():
            yield name, partial(replays.get(name.split(".")[0], unknown), name, settings)
        for name in sorted({key.rsplit(".", 1)[0] for key in tensors if key.startswith("vq.")}):
            yield name, partial(self.vq, name)
        for settings in self.record.get("paint", ()):
            yield settings["key"], partial(self.paint, settings)
        yield from self.tables()
        for kind in sorted({key.split(".")[1] for key in self.noise}):
            for name in self.noise:
                if re.fullmatch(rf"noise\.{kind}\.(gumbel|sampled\..*|remask\..*)", name):
                    yield name, partial(self.random, name)

    def tables(self) -> Iterator[Case]:
        """The cases of `golden.json` that need no tensor."""
        record = self.record
        for width, height, side, *expected in record.get("crops", ()):
            yield f"crops.{width}x{height}.{side}", partial(crop_differs, width, height, side, expected)
        for side, count in record.get("crop_buckets", {}).items():
            yield f"crop_buckets.{side}", partial(bucket_count_differs, int(side), count)
        prompts = record.get("prompts", {})
        if "t2i" in prompts:
            yield "prompts.t2i", partial(prompt_differs, GENERATE, prompts["t2i"], user_text(prompts["t2i"][0]))
        if "mmu" in prompts:
            yield "prompts.mmu", partial(prompt_differs, DESCRIBE, [prompts["mmu"]], user_text(prompts["mmu"]))
        for name, expected in prompts.get("i2i", {}).items():
            yield f"prompts.i2i.{name}", partial(prompt_differs, edit_task(name), expected, prompts["text"])
        if "released_ids" in record:
            yield "released_ids", partial(released_differ, record["released_ids"])
        for name in record:
            if size := re.fullmatch(r"released_sequence_(\d+)x(\d+)", name):
                height, width = map(int, size.groups())
                yield name, partial(sequence_differs, (height, width), record[name])

    def forward(self, name: str) -> str:
        """One pass of the transformer."""
        with torch.no_grad():
            logits = self.transformer(self.tensors[f"{name}.ids"])
        return far(logits, self.tensors[f"{name}.logits"])

    def text_to_image(self, name: str, settings: Mapping[str, Any]) -> str:
        """Text-to-image and inpaint, with and without ML-Cache."""
        sequence = self.tensors[f"{name}.sequence"]
        height, width = settings["height"], settings["width"]
        start = settings["code_start"] - 2
        if f"{name}.mask" in self.tensors:
            given, holes = (self.tensors[f"{name}.{part}"].reshape(1, height, width) for part in ("given", "mask"))
            canvas = Canvas.from_codes(self.codes(given), holes.bool())
        else:
            canvas = self.recorded_canvas(sequence[:, start:], height, width)
        prefix = prompt_prefix(sequence[0, :start].tolist(), (), self.table)
        branches = [Branch(self.tensors[f"{name}.uncond"], settings["cfg_scale"])]
        return self.sequence_differs(prefix, canvas, sequence) or self.image(name, settings, canvas, prefix, branches)

    def edit(self, name: str, settings: Mapping[str, Any]) -> str:
        """Edits, with one image or two, guided by text, by image or by both."""
        recorded = [self.tensors[f"{name}.image_ids"]]
        if f"{name}.ref_image_ids" in self.tensors:
            recorded.append(self.tensors[f"{name}.ref_image_ids"])
        images = [self.image_codes(ids[0].tolist()) for ids in recorded]
        text, twin = (self.tensors[f"{name}.{part}"][0].tolist() for part in ("prompt_ids", "uncond_prompt_ids"))
        prefix = prompt_prefix(text, images, self.table)
        branches = [
            Branch(prompt_prefix(twin, images, self.table), settings["cfg_scale"]),
            Branch(prompt_prefix(text, (), self.table), settings["cfg_img"]),
        ]
        wrong = differs(branches[0].prefix, self.tensors[f"{name}.uncond_text"])
        wrong = wrong or differs(branches[1].prefix, self.tensors[f"{name}.uncond_image"])
        for codes, ids in zip(images, recorded, strict=True):
            wrong = wrong or differs(image_ids(codes, self.table), ids)
        sequence = self.tensors[f"{name}.sequence"]
        canvas = self.recorded_canvas(sequence[:, prefix.shape[1] :], settings["height"], settings["width"])
        wrong = wrong or self.sequence_differs(prefix, canvas, sequence)
        return wrong or self.image(name, settings, canvas, prefix, branches)

    def image(
        self, name: str, settings: Mapping[str, Any], canvas: Canvas, prefix: Tensor, branches: Sequence[Branch]
    ) -> str:
        """The image loop on a case's inputs, compared with its codes."""
        policy = None
        if settings.get("use_cache"):
            policy = CachePolicy(settings["cache_ratio"], settings["warmup_ratio"], settings["refresh_interval"])
        plan = ImageSettings(settings["steps"], settings["temperature"], cache=policy)
        result = sample_image(self.transformer, self.table, canvas, prefix, branches, settings=plan)
        return differs(result.codes[0], self.codes(self.tensors[f"{name}.codes"]))

    def describe(self, name: str, settings: Mapping[str, Any]) -> str:
        """Answers about images; compared up to the first end token, where sampling may stop."""
        sequence, length = self.tensors[f"{name}.sequence"], settings["gen_length"]
        start = settings["text_start"]
        prefix = self.parsed_prefix(sequence[0, : start - 1].tolist())
        blank = torch.full((1, length), self.table.mask)
        wrong = differs(torch.cat((prefix, text_answer(blank, self.table)), dim=1), sequence)
        plan = TextSettings(
            max_tokens=length,
            steps=settings["steps"],
            block_length=settings["block_length"],
            temperature=settings["temperature"],
            cfg=settings["cfg_scale"],
        )
        (answer,) = sample_text(self.transformer, self.table, prefix, settings=plan)
        recorded = self.tensors[f"{name}.output"][0, start : start + length].tolist()
        return wrong or differs(answer, cut_answer(recorded, self.table))

    def vq(self, name: str) -> str:
        """Latents, codes and pixels of one of the folder's VQ models."""
        vq, part = read_vq(self.folder / "model" / name.removeprefix("vq.")), self.tensors
        with torch.no_grad():
            wrong = far(vq.latents(part[f"{name}.pixels"]), part[f"{name}.latents"])
        indices = part[f"{name}.indices"].reshape(1, *part[f"{name}.latents"].shape[2:])
        wrong = wrong or differs(vq.encode(part[f"{name}.pixels"]), indices)
        with torch.no_grad():  # recorded before the clipping to 0..1 that decode does
            wrong = wrong or far(vq.reconstruct(indices), part[f"{name}.decoded"])
        return wrong or far(vq.decode(indices), part[f"{name}.decoded"].clamp(0, 1))

    def paint(self, settings: Mapping[str, Any]) -> str:
        """Centred rectangles, their outsides and their growth, on 16 px cells."""
        width, height = settings["width"], settings["height"]
        ratios = {"width_ratio": settings["mask_w_ratio"], "height_ratio": settings["mask_h_ratio"]}
        mask = centred_rectangle(width, height, **ratios)
        if settings["mode"] == "outpainting":
            mask = 1 - mask
        cells = mask_to_cells(mask, (height // CELL, width // CELL), coverage=RECTANGLE, grow=settings["dilate"])
        return differs(cells[0], self.tensors[settings["key"]].bool())

    def random(self, name: str) -> str:
        """The random choices for given uniforms, in the dtype they were recorded in."""
        kind, what = name.split(".")[1:3]
        part = {key.removeprefix(f"noise.{kind}."): value for key, value in self.noise.items() if f".{kind}." in key}
        if what == "gumbel":
            # Processors round fp32 logarithms differently in the last place; rounded to bf16 they agree.
            return (far if kind == "fp32" else differs)(gumbel(part["uniform"]), part["gumbel"])
        value = name.split(".", 3)[3]
        if what == "sampled":
            noise = gumbel(part["uniform"])
            return differs(gumbel_argmax(part["logits"], noise, float(value)), part[f"sampled.{value}"])
        certain = torch.log(part["confidence"].clamp_min(1e-20))
        masked = least_confident(certain, torch.tensor([int(value)]), gumbel(part["uniform2"]), 1.0)
        return differs(masked, part[f"remask.{value}"])

    def codes(self, values: Tensor) -> Tensor:
        """Recorded codes, with or without the offset, as codes 0..K-1."""
        offset = self.table.code_offset
        return torch.where(values >= offset, values - offset, values)

    def recorded_canvas(self, answer: Tensor, height: int, width: int) -> Canvas:
        """The canvas of a recorded image answer [1,A]."""
        cells = answer[:, 2:-2].reshape(1, height, width + 1)[:, :, :-1]
        unknown = cells == self.table.mask
        return Canvas((cells - self.table.code_offset).masked_fill(unknown, 0), unknown)

    def image_codes(self, ids: Sequence[int]) -> Tensor:
        """Codes [1,H,W] of a recorded image, begin to end."""
        width = ids.index(self.table.newline) - 1
        rows = torch.tensor(ids[1:-1]).reshape(1, -1, width + 1)
        return rows[:, :, :-1] - self.table.code_offset

    def parsed_prefix(self, ids: Sequence[int]) -> Tensor:
        """A recorded prefix taken apart into prompt and images, and built again by layout."""
        text: list[int] = []
        images: list[Tensor] = []
        position = 0
        while position < len(ids):
            if ids[position] == self.table.image_begin:
                stop = ids.index(self.table.image_end, position) + 1
                images.append(self.image_codes(ids[position:stop]))
                position = stop
            else:
                text.append(ids[position])
                position += 1
        return prompt_prefix(text, images, self.table)

    def sequence_differs(self, prefix: Tensor, canvas: Canvas, sequence: Tensor) -> str:
        """How the sequence that layout builds differs from the recorded one."""
        return differs(torch.cat((prefix, image_answer(canvas, self.table)), dim=1), sequence)


def unknown(name: str, _: Mapping[str, Any]) -> str:
    """For a case of an unknown kind, which must not pass unnoticed."""
    return f"there is no replay for cases like {name}"


def crop_differs(width: int, height: int, side: int, expected: Sequence[int]) -> str:
    """How the size that a picture is fitted to differs."""
    return differs(list(fit_size(width, height, side)), list(expected))


def bucket_count_differs(side: int, count: int) -> str:
    """How the number of buckets around a side differs."""
    return differs(len(buckets(side)), count)


def user_text(prompt: str) -> str:
    """The user's text in a recorded prompt."""
    return prompt.split("<user>", 1)[1].removesuffix("</user>")


def prompt_differs(task: Task, expected: Sequence[str], text: str) -> str:
    """How prompt, unconditional prompt and system prompt (as many as are recorded) differ."""
    images = (torch.zeros(1, 1, 1, dtype=torch.int64),) * task.images
    built = [*prompt_strings(Prompt(task, text, images=images), str), task.system]
    return differs(built[: len(expected)], list(expected))


def released_differ(expected: Mapping[str, int]) -> str:
    """How the published checkpoint's ids differ."""
    ids = RELEASED.to_dict() | {"vocab_size": RELEASED.codes.stop}
    return differs({name: ids.get(NAMES.get(name, name)) for name in expected}, dict(expected))


def sequence_differs(grid: tuple[int, int], expected: Sequence[int]) -> str:
    """How a blank answer in published ids differs, after the prompt ids that are recorded with it."""
    answer = image_answer(Canvas.empty(1, *grid), RELEASED)
    prompt = list(expected[: len(expected) - answer.shape[1]])
    return differs(torch.cat((prompt_prefix(prompt, (), RELEASED), answer), dim=1)[0].tolist(), list(expected))


def replay(folder: str | Path) -> Iterator[tuple[str, str]]:
    """(name, how it differs) of every case; a case that fails to run differs too."""
    for name, run in Replay(folder).cases():
        try:
            yield name, run()
        except (ValueError, RuntimeError, KeyError, IndexError) as error:
            yield name, f"{type(error).__name__}: {error}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line per case and the sum, or per part of a training's record; 0 if all are equal, otherwise 1."""
    parser = argparse.ArgumentParser(prog="python -m dimoo_core.evaluation.replay", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="a folder laid out like tests/golden, or like tests/golden_training")
    folder = parser.parse_args(arguments).folder
    try:
        if (folder / TRAINING).exists():
            return report(TrainingRecord(folder), sys.stdout.write)
        return _report(folder)
    except (OSError, ValueError, KeyError) as error:
        sys.stderr.write(f"{folder} cannot be replayed: {error}\n")
        return 1


def _report(folder: Path) -> int:
    equal = total = 0
    for name, wrong in replay(folder):
        total += 1
        equal += not wrong
        sys.stdout.write(f"{'differs' if wrong else 'equal  '}  {name}{f': {wrong}' if wrong else ''}\n")
    sys.stdout.write(f"{equal} of {total} cases equal\n")
    return int(equal < total or not total)


if __name__ == "__main__":
    sys.exit(main())
