"""`list`: a picture for every prompt of a list, shared among processes, resumed where it was stopped.

A picture is finished when its file is there and its metadata say that it was made with the same settings; so a list can
be stopped, continued and grown, and only what is missing is made. What comes out does not depend on how many processes
work on it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from .. import provenance
from ..checkpoint.find import Found, find
from ..checkpoint.load import load_tokenizer
from ..devices import Ranks, device
from ..files import atomic_write_text, check_writable
from ..jobs import text_prompt
from ..locks import folder_lock
from ..pictures.sizes import CELL
from ..provenance import KEY
from ..sequence.prompt import prompt_strings
from .command import Command
from .messages import say
from .options import check_image_options, load, sampling_arguments, size_argument
from .output import Output, check_not_read
from .prompt_file import Job, read_jobs
from .settings import PictureSettings
from .vocabulary import name_unknown_words

RESULTS = "results.json"


def prompt_list(args: argparse.Namespace) -> None:
    """A picture for every prompt of a list; several processes of torchrun share the work."""
    found = find(args.checkpoint)
    listed = _listed(args, found)
    folder: Path = args.output.path
    check_writable(folder, [RESULTS])
    ranks = Ranks.from_environment()
    if args.device == "auto":
        args.device = ranks.device
    shared = PictureSettings.from_arguments(args, found)
    work = Work(folder, listed, [replace(shared, **asdict(job)) for job in listed])
    with folder_lock(folder) if ranks.rank == 0 else nullcontext():
        work.refuse_others(again=args.again)
        ranks.wait()  # all have looked before anybody writes
        todo = work.unfinished(ranks)
        if todo:
            pipe = load(args)

            def make(job: Job, path: Path, wanted: PictureSettings) -> None:
                (picture,) = pipe.generate(
                    **asdict(job), guidance_start=args.guidance_start, ml_cache=args.ml_cache, progress=False
                )
                provenance.save(picture, path, wanted.metadata(args))

            with reproducible(args.device):
                work.make(todo, make, ranks)
        ranks.wait()
        if ranks.rank == 0:
            say(str(work.write_results()))
        ranks.wait()
    ranks.leave()


def check_list(args: argparse.Namespace) -> None:
    """Raises ValueError for a setting that is out of range, and where the pictures could not be written."""
    check_image_options(args)
    path = args.output.path
    picture_name = path.suffix.lower() in Image.registered_extensions() and not args.output.is_folder
    if not os.path.isdir(path) and (os.path.exists(path) or picture_name):
        raise ValueError(f"--output is {path}; expected a folder for the pictures, such as pictures.")
    check_writable(path, [RESULTS])
    check_not_read(path / RESULTS, [args.list])


def _listed(args: argparse.Namespace, found: Found) -> list[Job]:
    """The jobs of the list, all of them checked: what the model could not be asked is known before any work."""
    own = found.defaults.own
    job = Job(
        "",
        args.negative,
        own("size", args.size),
        args.seed,
        own("steps", args.steps),
        own("cfg", args.cfg),
        own("temperature", args.temperature),
        corrections=args.corrections,
        polish=args.polish,
        order=args.order,
        shared_noise=args.shared_noise,
    )
    listed = read_jobs(args.list, job, CELL)
    tokenizer = load_tokenizer(found)
    for number, one in enumerate(listed, 1):
        try:
            for string in prompt_strings(text_prompt(one.prompt, one.negative), tokenizer.defuse):
                tokenizer.encode(string)
        except ValueError as error:
            raise ValueError(f"Entry {number} of {args.list}: {error}") from None
    name_unknown_words(args.checkpoint, [text for one in listed for text in (one.prompt, one.negative)])
    return listed


@dataclass(frozen=True)
class Work:
    """The pictures of a list in a folder: `wanted[i]` are the settings of `listed[i]`."""

    folder: Path
    listed: Sequence[Job]
    wanted: Sequence[PictureSettings]

    def refuse_others(self, *, again: bool) -> None:
        """Raises ValueError where pictures are there that were made otherwise, unless they are to be made `again`."""
        if again:
            return
        others = 0
        for index, settings in enumerate(self.wanted):
            path = picture_file(self.folder, index)
            metadata = recorded(path)
            others += metadata is not None and not settings.made(metadata)
        if others:
            raise ValueError(
                f"{others} of {len(self.wanted)} pictures in {self.folder} were made with other settings; pass --again "
                "to replace them, or name another folder with -o."
            )

    def unfinished(self, ranks: Ranks) -> list[int]:
        """The pictures of this process's share, by index, that are still to be made."""
        return [index for index in self._share(ranks) if not self._finished(index)]

    def make(self, todo: Sequence[int], make: Callable[[Job, Path, PictureSettings], None], ranks: Ranks) -> None:
        """Make the pictures of `todo`, under a bar; `make(job, path, settings)` makes one of them."""
        share = self._share(ranks)
        done = len(share) - len(todo)
        with tqdm(total=len(share), initial=done, desc="list", unit="picture", file=sys.stderr) as bar:
            for index in todo:
                try:
                    make(self.listed[index], picture_file(self.folder, index), self.wanted[index])
                except KeyboardInterrupt as stop:
                    kept = f"{bar.n} of {len(share)} pictures are finished and kept; the same command makes the rest"
                    raise KeyboardInterrupt(kept) from stop
                bar.update()

    def write_results(self) -> Path:
        """Writes results.json, which says what each picture shows; returns its path."""
        rows = [
            {"file": picture_file(self.folder, index).name, **job.to_dict()} for index, job in enumerate(self.listed)
        ]
        path = self.folder / RESULTS
        atomic_write_text(path, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
        return path

    def _share(self, ranks: Ranks) -> range:
        return range(ranks.rank, len(self.listed), ranks.size)

    def _finished(self, index: int) -> bool:
        metadata = recorded(picture_file(self.folder, index), whole=True)
        return metadata is not None and self.wanted[index].made(metadata)


def picture_file(folder: Path, index: int) -> Path:
    """Where the picture of entry `index`, from 0, is kept."""
    return folder / f"{index + 1:05d}.png"


def recorded(path: Path, *, whole: bool = False) -> dict[str, Any] | None:
    """What a picture's metadata say of how it was made: nothing ({}) where it was not made here. None where there is no
    picture that can be read; `whole`: to its last pixel."""
    try:
        with Image.open(path) as image:
            try:
                metadata = json.loads(image.info.get(KEY, "null"))
            except (ValueError, TypeError, RecursionError):
                metadata = None
            if whole:
                image.load()
            return metadata if isinstance(metadata, dict) else {}
    except Image.DecompressionBombError:
        return {}
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError):
        return None


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
    parser.add_argument(
        "list",
        type=Path,
        help="a .txt file (a prompt per line; blank lines and lines that begin with # are skipped, \\# begins a prompt "
        "with #), .json, .jsonl or .ndjson, or a .csv or .tsv table with a column prompt",
    )
    size_argument(parser)
    parser.add_argument(
        "-o",
        "--output",
        type=Output.parse,
        metavar="FOLDER",
        default=Output(Path("pictures"), is_folder=True),
        help="the folder of the pictures, 00001.png and so on, and of results.json (pictures)",
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="replace finished pictures that were made with other settings; those made with these settings are kept",
    )
    sampling_arguments(parser)


COMMANDS = (
    Command(
        "list",
        "a picture for every prompt of a list; finished pictures are kept",
        (
            "list prompts.txt -o pictures/",
            "list prompts.jsonl -o more/ --checkpoint models/Lumina-DiMOO --ml-cache balanced",
        ),
        list_arguments,
        prompt_list,
        setup=("echo a purple triangle on a white background > prompts.txt",),
        check=check_list,
    ),
)
