"""A LoRA taught inside ComfyUI: what it is taught of, where its run and its file lie, and what the page sees of it."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..dimoo_core import jobs, memory, provenance
from ..dimoo_core.checks import shown
from ..dimoo_core.devices import free_bytes
from ..dimoo_core.files import atomic_write_text, check_writable
from ..dimoo_core.locks import folder_lock
from ..dimoo_core.pictures.sizes import CELL, fit_size
from ..dimoo_core.sequence.canvas import Canvas
from ..dimoo_core.sequence.prompt import GENERATE, Prompt
from ..dimoo_core.training.code_cache import OnStep, codec_name, content_key, encode_folder, encode_list
from ..dimoo_core.training.dataset import Dataset, split
from ..dimoo_core.training.folder import Fitted, Item, survey, with_trigger
from ..dimoo_core.training.loop import Step
from ..dimoo_core.training.lora import LoraBase, LoraData, LoraSettings, Taught, load_base, train_lora
from ..dimoo_core.training.plan import check_memory, plan_lines, step_cost, time_in_words
from ..dimoo_core.training.run_log import CURVE
from ..dimoo_core.training.run_settings import SETTINGS
from ..dimoo_core.training.samples import SHEET, Request, requests_of, sheet
from ..dimoo_core.training.watch import Watch
from . import host, pixels
from .sockets import LoadedModel, LoadedVQ

RUNS = Path("dimoo", "train")  # below ComfyUI's output folder
_RUN = "run.json"  # in the folder of a run: which one it is
_NAME = re.compile(r"\w(?:[\w .+-]*[\w+-])?")
_RESERVED = re.compile(r"(?:con|prn|aux|nul|(?:com|lpt)[0-9])(?: *\..*)?", re.IGNORECASE)
_LONGEST = 200  # bytes of a name; numbers and an ending come on top, and a system takes 255
_FOLLOWING = ("sample_every", "check_every")  # settings that change nothing of what is learnt
_SAID_EVERY = 0.5  # seconds between two texts on the node

Report = Callable[[str], None]
Encode = Callable[[jobs.Autoencoder, Path, Report, OnStep], Dataset]


@dataclass(frozen=True, eq=False)
class Material:
    """What a LoRA is taught of: items, and what to tell of them. digest: another one for other pictures or texts.
    encode: makes a dataset with a VQ; codes are kept in a folder, where there are files to know them by."""

    items: Sequence[Item]
    report: list[str]
    digest: str
    encode: Encode

    @property
    def samples(self) -> int:
        """How many there are in one pass over everything."""
        return sum(item.repeats for item in self.items)


def from_folder(folder: Path, vq: LoadedVQ, *, side: int, sides: tuple[int, int], trigger: str) -> Material:
    """A folder, read as `train lora` reads it; raises ValueError where nothing in it can be taught. sides: of the
    buckets of pictures that are asked about."""
    seen = survey(folder, side=side, sides=sides, trigger=trigger)

    def encode(outside: jobs.Autoencoder, cache: Path, report: Report, on_step: OnStep) -> Dataset:
        return encode_folder(seen, outside, cache, codec=codec_name(vq.found), report=report, on_step=on_step)

    return Material(seen.items, seen.report(), _digest(part for item in seen.items for part in _parts(item)), encode)


def from_lists(images: Sequence[Any], texts: Sequence[str], *, side: int, trigger: str) -> Material:
    """Pictures, each IMAGE one or a batch, and their texts: one for each picture, or one for all. Raises ValueError
    where there is nothing to learn from them."""
    pictures = [picture for image in images for picture in pixels.channels_to_core(image, "images")]
    empty = [text for text in texts if not str(text).strip()]
    if len(empty) == len(texts) and not trigger:
        raise ValueError(
            f"None of {len(pictures)} pictures has a text; connect texts that say what they show, or set trigger."
        )
    worded = "one text for all" if len(texts) == 1 else f"{len(texts)} texts, {len(empty)} of them empty"

    def encode(vq: jobs.Autoencoder, _cache: Path, _report: Report, on_step: OnStep) -> Dataset:
        return encode_list(pictures, texts, vq, side=side, trigger=trigger, on_step=on_step)

    longest = with_trigger(max(map(str, texts), key=len), trigger)  # of any picture: what is counted is the largest
    sizes = [(picture.shape[2], picture.shape[1]) for picture in pictures]
    items = [Item("", longest, (), Fitted(Path(), size, fit_size(*size, side))) for size in sizes]
    return Material(items, [f"pictures: {len(pictures)}; {worded}"], _digest([side, *texts, *pictures]), encode)


def _parts(item: Item) -> Iterator[Any]:
    """All that decides what an item teaches."""
    yield from (item.text, item.repeats, item.answer if isinstance(item.answer, str) else "")
    if item.weights is not None:
        yield item.weights
    for picture in item.fitted:
        try:
            yield content_key(picture)
        except OSError:  # it will be named, and left out, when it is encoded
            yield ""


def _digest(parts: Any) -> str:
    """Hex digits that other parts would change: tensors, and what JSON can say."""
    digest = hashlib.sha256()
    for part in parts:
        tensor = isinstance(part, Tensor)
        content = part.contiguous().cpu().numpy().tobytes() if tensor else json.dumps(part).encode()
        digest.update(f"{list(part.shape) if tensor else len(content)}:".encode() + content)
    return digest.hexdigest()


# Where it lies ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """The folder of a run, and the file of its LoRA."""

    run: Path
    file: Path


def check_name(name: Any) -> str:
    """A name that a file can have on every system, without its ending. Raises ValueError for another."""
    named = name.strip() if isinstance(name, str) else ""
    if not _NAME.fullmatch(named) or len(named.encode()) > _LONGEST:
        raise ValueError(
            f"The name is {shown(name)}; expected the name of a file, of letters, digits, spaces and - _ + . between "
            f"them, up to {_LONGEST} bytes."
        )
    if _RESERVED.fullmatch(named):
        raise ValueError(f"The name is {shown(name)}, which Windows keeps for a device; choose another.")
    return named


def place_of(name: str, key: str) -> Place:
    """Where the run `key` lies: where it was begun, else NAME, or the first of NAME-2, NAME-3 and so on that neither
    another run has, unless that one never came to its first step, nor a file in any of ComfyUI's LoRA folders.

    Raises ValueError where the run or the LoRA could not be written there.
    """
    check_writable(host.output_folder() / RUNS)
    check_writable(host.lora_folder())
    for number in count(1):
        stem = name if number == 1 else f"{name}-{number}"
        place = Place(host.output_folder() / RUNS / stem, host.lora_folder() / f"{stem}.safetensors")
        known = _run_in(place.run)
        if known == key:
            return place
        never_begun = known is None or (known and not (place.run / SETTINGS).exists())
        if never_begun and host.lora_path(place.file.name) is None:
            place.run.mkdir(parents=True, exist_ok=True)
            atomic_write_text(place.run / _RUN, json.dumps({"run": key}) + "\n")
            return place
    raise AssertionError("numbers do not end")


def _run_in(folder: Path) -> str | None:
    """Which run a folder holds; None: none yet, "": one that is not known."""
    try:
        found = json.loads((folder / _RUN).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "" if (folder / SETTINGS).exists() else None
    except (ValueError, OSError):
        return ""
    return str(found.get("run", "")) if isinstance(found, dict) else ""


def run_key(base: dict[str, str], material: Material, settings: LoraSettings, held_back: float) -> str:
    """16 hex digits, the same for runs that learn the same, however long, and however they are followed."""
    deciding = {name: value for name, value in asdict(settings).items() if name not in _FOLLOWING}
    deciding["train"] = {name: one for name, one in deciding["train"].items() if name not in ("steps", "save_every")}
    return _digest([base["fingerprint"], material.digest, held_back, deciding])[:16]


# What the page sees -------------------------------------------------------------------------------------------------


class Follower:
    """Shows a run on its node: progress, time left, the sample that forms, and lines of text. A cancel arrives in each
    of its calls but `report`, as ComfyUI's own exception."""

    def __init__(self, node: str | None, steps: int, colours: Tensor | None):
        self.node, self.steps, self.colours = node, steps, colours
        self.lines: list[str] = []
        self.done = 0
        self._encoding, self._bar = host.progress(), host.progress()  # newer ones hold back what goes down again
        self._began: tuple[float, int] | None = None  # when, and after which step
        self._said = 0.0
        self._first: dict[int, list[Image.Image]] = {}  # the samples to compare with, by their step

    def report(self, line: str) -> None:
        host.log("DiMOO Train LoRA: %s", line)
        self.lines.append(line)
        self._show(line)

    def on_encoding(self, done: int, total: int, name: str) -> None:
        self._encoding(done, total, None)
        self._show(f"encoding {name}, {done + 1} of {total}", often=True)

    def on_step(self, step: Step) -> None:
        now = time.monotonic()
        began, before = self._began = self._began or (now - step.seconds, step.number - 1)
        left = (step.steps - step.number) * (now - began) / (step.number - before)
        self.done = step.number
        self._show(f"step {step.number} of {step.steps}, loss {step.loss:.4f}, {time_in_words(left)} left", often=True)
        self._bar(step.number, step.steps, None)

    def on_samples(self, step: int, pictures: list[Image.Image]) -> None:
        self.done = step
        self._first = self._first or {step: pictures}
        self._bar(self.done, self.steps, sheet({**self._first, step: pictures}))

    def on_forming(self, _done: int, _total: int, canvas: Canvas) -> None:
        picture = None
        if self.colours is not None:
            picture = pixels.preview(canvas.codes, canvas.unknown, self.colours, host.preview_size())
        self._bar(self.done, self.steps, picture)

    def _show(self, now: str, *, often: bool = False) -> None:
        """What happens now, above all that was reported."""
        if often and time.monotonic() - self._said < _SAID_EVERY:
            return
        self._said = time.monotonic()
        host.show_text("\n\n".join([now, *(line for line in self.lines if line != now)]), self.node)


# The run ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _VQOutside:
    """A loaded VQ for work outside torch's inference mode, inside which its weights were made. It leaves the card after
    each picture that it decodes, since the training takes all of it."""

    vq: LoadedVQ

    @property
    def scale(self) -> int:
        return self.vq.scale

    @property
    def codebook_size(self) -> int:
        return self.vq.codebook_size

    def encode(self, picture: Tensor) -> Tensor:
        with torch.inference_mode():
            codes = self.vq.encode(picture)
        return codes.clone()

    def decode(self, codes: Tensor) -> Tensor:
        try:
            with torch.inference_mode():
                picture = self.vq.decode(codes)
            return picture.clone()
        finally:
            host.make_room()


@dataclass(frozen=True, eq=False)
class Lesson:
    """A LoRA to be taught beside a loaded model. prompts: what samples show; none: the first texts."""

    model: LoadedModel
    vq: LoadedVQ
    material: Material
    settings: LoraSettings
    name: str
    side: int
    follower: Follower
    prompts: Sequence[str] = ()
    held_back: float = 0.0

    def teach(self) -> tuple[Taught, Place]:
        """Teach it, or go on where it was stopped. Raises ValueError where it does not fit into memory, and as
        `train_lora` does; whatever ends it, a cancel included, what was learnt is kept."""
        follower, vq, found = self.follower, _VQOutside(self.vq), self.model.found
        base = provenance.identified_checkpoint(found)
        for line in self.material.report:
            follower.report(line)
        with host.training(), ExitStack() as held:
            self._check_memory()
            place = place_of(self.name, run_key(base, self.material, self.settings, self.held_back))
            held.enter_context(folder_lock(place.run))  # another ComfyUI may have the same output folder
            cache = host.output_folder() / RUNS / self.name  # the runs of one name mostly have the same pictures
            dataset = self.material.encode(vq, cache, follower.report, follower.on_encoding)
            taught, held_back = split(dataset, self.held_back, self.settings.train.seed)
            host.make_room()
            lora_base = LoraBase(self._base(), vq, base, jobs.image_settings(self.model.found.defaults), self._place)
            data = LoraData(taught, held_back, self._requests(dataset))
            watch = Watch(follower.report, follower.on_step, follower.on_samples, follower.on_forming)
            try:
                done = train_lora(lora_base, data, self.settings, run=place.run, output=place.file, watch=watch)
            except BaseException:
                if place.file.is_file():
                    follower.report(f"stopped; what it has learnt is in {place.file}, and queueing it again goes on")
                raise
        return done, place

    @property
    def _device(self) -> torch.device:
        return self.model.patcher.load_device

    @property
    def _dtype(self) -> torch.dtype | None:
        """That of the loaded weights; None: as they are stored."""
        norm = next(self.model.core.transformer.layers["ln_f"].parameters())  # never quantised
        return None if self.model.core.formats else norm.dtype

    @property
    def _recompute(self) -> bool:
        return self._device.type != "cpu"

    def _base(self) -> jobs.Model:
        """The model's weights once more, read from its files: those that are loaded were made in inference mode."""
        return load_base(self.model.found, device=self._device, dtype=self._dtype, recompute=self._recompute)

    def _check_memory(self) -> None:
        """Counts what a step takes, which takes seconds itself, where it is known what there is."""
        if free_bytes(self._device) is None:
            return
        material, settings = self.material, self.settings
        cost = step_cost(self.model.found, material.items, settings, self._dtype, recompute=self._recompute)
        check_memory(cost, self._device)
        for line in plan_lines(material.samples, settings, cost, self._device):
            self.follower.report(line)

    def _place(self, plan: jobs.Plan) -> jobs.Placement:
        """Beside the training, where what it holds does not move; in chunks where the memory is short."""
        fits = plan.scratch_bytes(self.model.itemsize) <= host.free_bytes(self._device)
        return jobs.Placement(self._device, None if fits else memory.CHUNK_ROWS)

    def _requests(self, dataset: Dataset) -> list[Request]:
        seed = self.settings.train.seed
        if not self.prompts:
            return requests_of(dataset, 2, seed)
        width, height = fit_size(self.side, self.side, self.side)
        first = Request(Prompt(GENERATE, ""), height // CELL, width // CELL, seed)
        return [
            replace(first, prompt=Prompt(GENERATE, text), seed=seed + number)
            for number, text in enumerate(self.prompts)
        ]


def pictures_of(place: Place) -> list[Path]:
    """What a run shows when it is over: its samples, and the curve of its loss."""
    return [place.run / SHEET, place.run / CURVE]
