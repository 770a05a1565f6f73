"""A list of prompts worked off: read from a file, shared among processes, taken up again where it was stopped.

A picture is done when its file is there and says in its metadata that it was made with the very same settings; so a
list can be stopped, continued, grown and changed, and only what is missing is made. What comes out does not depend on
how many processes work on it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch.distributed
from PIL import Image, UnidentifiedImageError

from .checks import number_in, whole_number
from .devices import accelerators
from .folder import write_whole
from .guidance import MAX_SCALE
from .image import check_size
from .noise import SEEDS
from .prompt import MAX_CHARACTERS
from .provenance import KEY, versions
from .sampling import ImageSettings

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


@dataclass(frozen=True)
class Team:
    """The processes that share a list, as torchrun starts them; alone without it."""

    rank: int = 0
    size: int = 1

    @classmethod
    def from_environment(cls) -> Team:
        """The team that torchrun's variables tell of, joined through gloo; nobody but us without them."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo")
        return cls(torch.distributed.get_rank(), size)

    @property
    def device(self) -> str:
        """Each process has an accelerator of its own, where there are any; otherwise all compute on the CPU."""
        found = accelerators()
        return str(found[int(os.environ.get("LOCAL_RANK", "0")) % len(found)]) if found else "cpu"

    def wait(self) -> None:
        """Until every process has come here."""
        if self.size > 1:
            torch.distributed.barrier()

    def leave(self) -> None:
        if self.size > 1:
            torch.distributed.destroy_process_group()


def work_off(
    jobs: Sequence[Job],
    folder: Path,
    make: Callable[[Job, Path], None],
    *,
    facts: Callable[[Job], dict[str, Any]],
    team: Team,
    on_done: Callable[[int, int], None] | None = None,
) -> Path:
    """Make this process's share of the pictures that are missing in `folder`, then, all together, `results.json`.

    `make(job, path)` makes one picture whose metadata hold `facts(job)`; `on_done(done, own)` is called after each of
    this process's own pictures. Hands back the path of the results.
    """
    folder.mkdir(parents=True, exist_ok=True)
    own = range(team.rank, len(jobs), team.size)
    for done, number in enumerate(own, 1):
        path = picture_file(folder, number)
        if not _same(facts_of(path), facts(jobs[number])):
            make(jobs[number], path)
        if on_done is not None:
            on_done(done, len(own))
    team.wait()
    results = folder / "results.json"
    if team.rank == 0:
        rows = [{"file": picture_file(folder, number).name, **job.to_dict()} for number, job in enumerate(jobs)]
        write_whole(results, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    team.wait()
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
