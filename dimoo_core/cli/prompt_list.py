"""A list of prompts worked off: read from a file, shared among processes, taken up again where it was stopped.

A picture is done when its file is there and says in its metadata that it was made with the very same settings; so a
list can be stopped, continued, grown and changed, and only what is missing is made. What comes out does not depend on
how many processes work on it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from .. import provenance
from ..checkpoint.find import find
from ..checks import number_in, whole_number
from ..devices import Ranks, device
from ..files import atomic_write_text
from ..pictures.sizes import CELL, check_size
from ..provenance import KEY, versions
from ..sampling.guidance import MAX_SCALE
from ..sampling.image import ImageSettings
from ..sampling.noise import SEEDS
from ..sequence.prompt import MAX_CHARACTERS
from .options import image_options, load, sampling_arguments, size
from .output import check_folder, facts

MAX_BYTES = 64 << 20


@dataclass(frozen=True)
class Job:
    """One picture of a list: what it should show and how it is sampled. size: (width, height) px."""

    prompt: str
    negative: str = ""
    size: tuple[int, int] = (1024, 1024)
    seed: int = 0
    steps: int = 64
    cfg: float = 4.0
    temperature: float = 1.0

    def check(self, scale: int) -> None:
        """Raises ValueError for what could not be sampled: before the work begins, not in the middle of it."""
        for name in ("prompt", "negative"):
            if not isinstance(text := getattr(self, name), str) or len(text) > MAX_CHARACTERS:
                raise ValueError(f"{name} is {text!r:.60}; text of at most {MAX_CHARACTERS} characters is wanted.")
        if not isinstance(self.size, (list, tuple)) or len(self.size) != 2:
            raise ValueError(f"size is {self.size!r:.60}; [width, height] in px is wanted.")
        for side in self.size:
            whole_number("size", side, 1)
        check_size(*self.size, scale)
        number_in("cfg", self.cfg, 0, MAX_SCALE)
        ImageSettings(self.steps, self.temperature, self.seed)

    def to_dict(self) -> dict[str, Any]:
        """The job as JSON knows it."""
        return {**asdict(self), "size": list(self.size)}


_FIELDS = [field.name for field in fields(Job)]


def read_jobs(path: str | Path, usual: Job, scale: int) -> list[Job]:
    """The jobs of a list: a text file (a prompt per line), a JSON array or JSON lines; each entry is a prompt or an
    object with "prompt" and other fields of `Job`. What an entry leaves out is as `usual`, but the seed: entry i, from
    0, has the usual one + i. Raises ValueError, naming the entry, for what cannot be meant."""
    jobs = []
    for number, entry in enumerate(_entries(Path(path))):
        try:
            job = _job(entry, replace(usual, seed=(usual.seed + number) % SEEDS))
            job.check(scale)
        except ValueError as error:
            raise ValueError(f"Entry {number + 1} of {path}: {error}") from None
        jobs.append(job)
    if not jobs:
        raise ValueError(f"{path} holds no prompts; write one per line.")
    return jobs


def _entries(path: Path) -> Iterator[Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{path} has more than {MAX_BYTES >> 20} MB; split the list.")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"The list {path} cannot be read ({error.strerror}): check the path.") from None
    except UnicodeDecodeError:
        raise ValueError(f"The list {path} is no UTF-8 text; save it as such.") from None
    lines = [line.strip() for line in text.split("\n") if line.strip()]  # JSON may hold other ends of lines
    try:
        if path.suffix.lower() == ".json":
            listed = json.loads(text)
            if not isinstance(listed, list):
                raise ValueError(f"{path} holds a JSON {type(listed).__name__}; an array of prompts is wanted.")
            return iter(listed)
        return iter([json.loads(line) for line in lines] if path.suffix.lower() == ".jsonl" else lines)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not usable JSON ({error}); mend it.") from None


def _job(entry: Any, usual: Job) -> Job:
    if isinstance(entry, str):
        return replace(usual, prompt=entry)
    if not isinstance(entry, Mapping) or "prompt" not in entry:
        raise ValueError(f'{entry!r:.60} came; a prompt is wanted, or an object with "prompt" in it.')
    unknown = sorted(set(entry) - set(_FIELDS))
    if unknown:
        raise ValueError(f"there is no field {unknown[0]!r:.60}; there are {', '.join(_FIELDS)}.")
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()}
    return replace(usual, **given)


def work_off(
    jobs: Sequence[Job],
    folder: Path,
    make: Callable[[Job, Path], None],
    *,
    facts: Callable[[Job], dict[str, Any]],
    ranks: Ranks,
    on_done: Callable[[int, int], None] | None = None,
) -> Path:
    """Make this process's share of the pictures that are missing in `folder`, then, all together, `results.json`.

    `make(job, path)` makes one picture whose metadata hold `facts(job)`; `on_done(done, own)` is called after each of
    this process's own pictures. Hands back the path of the results.
    """
    folder.mkdir(parents=True, exist_ok=True)
    own = range(ranks.rank, len(jobs), ranks.size)
    for done, number in enumerate(own, 1):
        path = picture_file(folder, number)
        if not _same(facts_of(path), facts(jobs[number])):
            make(jobs[number], path)
        if on_done is not None:
            on_done(done, len(own))
    ranks.wait()
    results = folder / "results.json"
    if ranks.rank == 0:
        rows = [{"file": picture_file(folder, number).name, **job.to_dict()} for number, job in enumerate(jobs)]
        atomic_write_text(results, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    ranks.wait()
    return results


def _same(made: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> bool:
    """Whether a picture was made as it is wanted; other versions of this code or of torch make none anew, nor does
    another name of the same checkpoint."""
    return made is not None and _lasting(made) == _lasting(wanted)


def _lasting(said: Mapping[str, Any]) -> dict[str, Any]:
    """What tells one picture from another, of all that is said of how it was made."""
    kept = {name: value for name, value in said.items() if name not in versions()}
    if isinstance(checkpoint := kept.get("checkpoint"), Mapping):
        kept["checkpoint"] = checkpoint.get("fingerprint")
    return kept


def picture_file(folder: Path, number: int) -> Path:
    """Where entry `number`, from 0, of a list is kept."""
    return folder / f"{number + 1:05d}.png"


def facts_of(path: Path) -> dict[str, Any] | None:
    """What a picture's metadata say of how it was made; None where there is no such picture, half of one, or one that
    was not made here."""
    try:
        with Image.open(path) as image:
            said = json.loads(image.info.get(KEY, "null"))
            image.load()
            return said if isinstance(said, dict) else None
    except (OSError, ValueError, SyntaxError, RecursionError, UnidentifiedImageError, Image.DecompressionBombError):
        return None


def prompt_list(args: argparse.Namespace) -> None:
    """A picture for every prompt of a list; several processes of torchrun share the work."""
    defaults = find(args.checkpoint).defaults
    check_folder(args.output)
    job = Job(
        "",
        args.negative,
        args.size or defaults.size,
        args.seed,
        defaults.steps if args.steps is None else args.steps,
        defaults.cfg if args.cfg is None else args.cfg,
        defaults.temperature if args.temperature is None else args.temperature,
    )
    listed = read_jobs(args.list, job, CELL)
    ranks = Ranks.from_environment()
    if args.device == "auto":
        args.device = ranks.device
    pipe = load(args)
    shared = facts(args, pipe.checkpoint)

    def said(one: Job) -> dict[str, Any]:
        return {**shared, **one.to_dict()}

    def make(one: Job, path: Path) -> None:
        options = {**image_options(args), "seed": one.seed, "steps": one.steps, "cfg": one.cfg}
        options["temperature"] = one.temperature
        (picture,) = pipe.generate(one.prompt, negative=one.negative, size=one.size, progress=False, **options)
        provenance.save(picture, path, said(one))

    own = len(listed[ranks.rank :: ranks.size])
    with reproducible(args.device), tqdm(total=own, desc="list", unit="picture", file=sys.stderr) as bar:
        results = work_off(listed, args.output, make, facts=said, ranks=ranks, on_done=lambda *_: bar.update())
    ranks.leave()
    if ranks.rank == 0:
        print(results)


@contextmanager
def reproducible(name: str) -> Iterator[None]:
    """On a CPU one thread computes: the last bits of a sum depend on how many share it, and torchrun gives each of
    its processes another number of them than a process has that is alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if device(name).type == "cpu" else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def list_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("list", type=Path, help="a .txt (a prompt per line), .json or .jsonl file")
    parser.add_argument(
        "--size", type=size, metavar="WxH", help="px, in steps of 16 (the checkpoint's, else 1024x1024)"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FOLDER",
        default=Path("pictures"),
        help="the folder of the pictures, 00001.png and so on, and of results.json (pictures)",
    )
    sampling_arguments(parser)
