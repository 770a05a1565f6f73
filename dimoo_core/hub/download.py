"""A published checkpoint, downloaded into a folder of the user's: only when asked, only what is needed, checked.

Files go to `FOLDER/NAME/`, as plain files, and nowhere else. While they arrive they end in `.part`, and so does what a
broken connection, a cancel or a crash leaves; the next download resumes from there. An empty `.download.lock` stays.
Every byte is hashed against what the hub lists. Files get their names only when all of them are complete and right, so
that a loader never sees half a checkpoint and a checkpoint that worked stays as it was until then.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from ..checks import printable
from ..files import check_room, size_in_words
from .background import POLL_SECONDS, run_in_background
from .client import ConnectionLost, RemoteFile, Repo, listing, repository, stream

REPO = "Alpha-VLLM/Lumina-DiMOO"
VQ = "vqvae"
LOCK = ".download.lock"
LAYOUT = "config.json, tokenizer.json, all *.safetensors with their index, and vqvae/ with its two files"

_TRIES = 5  # failures in a row, without a byte between them, before it gives up
_PAUSE = 1.0  # seconds before the next try, twice as long each time
_BLOCK = 1 << 20  # bytes that are read from the disk at a time

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Transfer:
    """A repository, and the folder that its files go into."""

    repo: Repo
    target: Path

    def path(self, file: RemoteFile) -> Path:
        """Where a complete file lies."""
        return self.target.joinpath(*file.name.split("/"))

    def part(self, file: RemoteFile) -> Path:
        """Where a file grows; its name has some of the hash, so that pieces of two versions never mix."""
        path = self.path(file)
        return path.with_name(f"{path.name}.{file.digest[:8]}.part")


def download(
    repo: str = REPO,
    folder: str | Path = "models",
    *,
    revision: str = "main",
    endpoint: str | None = None,
    spare: float = 0.0,
    on_progress: OnProgress | None = None,
) -> Path:
    """Downloads what a checkpoint needs of `repo` ("OWNER/NAME") into `folder`/NAME, and returns that folder.

    Files that are there and right are kept. `endpoint` is the address of a mirror (None: HF_ENDPOINT, else the hub).
    There must be room for the files and for `spare` times their size, which is for what is made of them.
    `on_progress` gets (bytes done, bytes in all) about every 0.1 s, also while nothing arrives, and may raise to stop:
    its exception comes out unchanged, what has arrived is kept for the next time. A bar is shown on stderr. Raises
    ValueError where the hub cannot be reached or refuses, where bytes are wrong and where the folder cannot take them.
    """
    remote = repository(repo, revision, endpoint)
    transfer = Transfer(remote, Path(os.path.expanduser(folder)) / remote.name.split("/")[1])
    with _Meter(remote.name, on_progress) as meter:
        transfer, files = _listed(transfer, meter)
        with _explain_os_errors(transfer.target, files, meter):
            missing = [file for file in files if not _is_there(transfer.path(file), file, meter)]
            if missing:
                transfer.target.mkdir(parents=True, exist_ok=True)
                with _folder_lock(transfer.target):
                    _fetch_all(transfer, missing, round(spare * meter.total), meter)
        meter.finish()
    return transfer.target


def needed(repo: Repo, files: list[RemoteFile]) -> list[RemoteFile]:
    """Those files that a checkpoint consists of, small ones first: never code, never a pickle, no hidden files.

    Raises ValueError where the repository is not a checkpoint of this layout.
    """
    kept = [file for file in files if _belongs(file.name.split("/"))]
    names = [file.name for file in kept]
    absent = [name for name in ("config.json", "tokenizer.json", f"{VQ}/config.json") if name not in names]
    for prefix, depth in (("", 0), (f"{VQ}/", 1)):
        if not any(name.endswith(".safetensors") and name.count("/") == depth for name in names):
            absent.append(f"{prefix}*.safetensors")
    if absent:
        raise ValueError(f"{repo.name} is not a checkpoint of this kind: it has no {', '.join(absent)}; give another.")
    return sorted(kept, key=lambda file: (file.size, file.name))


def _belongs(parts: list[str]) -> bool:
    if parts[-1].startswith("."):
        return False
    weights = parts[-1].endswith((".safetensors", ".safetensors.index.json"))
    if len(parts) == 1:
        return weights or parts[0] in ("config.json", "tokenizer.json")
    return len(parts) == 2 and parts[0] == VQ and (weights or parts[1] == "config.json")


# Its steps ----------------------------------------------------------------------------------------------------------


def _listed(transfer: Transfer, meter: _Meter) -> tuple[Transfer, list[RemoteFile]]:
    """The transfer, now of one commit, and the files that it needs."""

    def ask() -> Generator[tuple[Repo, list[RemoteFile]], None, None]:
        yield listing(transfer.repo)

    try:
        with closing(run_in_background(ask(), meter.tick)) as answers:
            repo, files = next(answers)
    except ConnectionLost as lost:
        raise ValueError(
            f"{transfer.repo.endpoint} cannot be reached ({lost}); try again later, name a mirror in HF_ENDPOINT, or "
            f"put the files of {transfer.repo.name} into {transfer.target} by hand: {LAYOUT}."
        ) from None
    files = needed(repo, files)
    meter.total = sum(file.size for file in files)
    return Transfer(repo, transfer.target), files


def _is_there(path: Path, file: RemoteFile, meter: _Meter) -> bool:
    """Whether a file is there with the right bytes, which are read for that."""
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    hasher = file.hasher()
    with path.open("rb") as stored:
        for block in iter(lambda: stored.read(_BLOCK), b""):
            hasher.update(block)
            meter.add(len(block))
    if hasher.hexdigest() == file.digest:
        return True
    meter.add(-file.size)
    return False


def _fetch_all(transfer: Transfer, missing: list[RemoteFile], spare: int, meter: _Meter) -> None:
    """Downloads the missing files, and gives them their names when all are there; there must be `spare` bytes more."""
    _check_room(transfer, missing, spare)
    for file in missing:
        _fetch(transfer, file, meter)
    for file in sorted(missing, key=lambda file: file.name == "config.json"):  # last: it makes it a checkpoint
        os.replace(transfer.part(file), transfer.path(file))


def _check_room(transfer: Transfer, missing: list[RemoteFile], spare: int) -> None:
    parts = [transfer.part(file) for file in missing]
    here = sum(part.stat().st_size for part in parts if part.is_file() and not part.is_symlink())
    name = f"{transfer.repo.name}, with what is made of it," if spare else transfer.repo.name
    check_room(transfer.target, sum(file.size for file in missing) - here + spare, name)


def _fetch(transfer: Transfer, file: RemoteFile, meter: _Meter) -> None:
    """Downloads one file, complete and checked, to its `.part`."""
    path, part = transfer.path(file), transfer.part(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    versions = re.compile(re.escape(path.name) + r"\.[0-9a-f]{8}\.part")
    for stale in path.parent.iterdir():  # the full name: another file's may begin with this one's
        if versions.fullmatch(stale.name) and stale != part:
            stale.unlink()
    meter.show_title(printable(file.name))
    with _PartialFile(part, file, meter) as partial:
        _grow(partial, transfer, meter)
        right = partial.is_right()
    if not right:
        part.unlink()
        raise ValueError(
            f"The checksum of {printable(file.name)} from {transfer.repo.endpoint} is wrong; the file was discarded, "
            "so try again, or use a mirror."
        )


def _grow(partial: _PartialFile, transfer: Transfer, meter: _Meter) -> None:
    """Asks for the rest of a file until it is there. Raises ValueError when that fails too often in a row."""
    file, failures = partial.file, 0
    while partial.size < file.size:
        before, reason = partial.size, "it ended early"
        try:
            with closing(run_in_background(stream(transfer.repo, file, partial.size), meter.tick)) as pieces:
                for offset, piece in pieces:
                    partial.write(offset, piece)
                    if partial.size == file.size:
                        return
        except ConnectionLost as lost:
            reason = str(lost)
        failures = 1 if partial.size > before else failures + 1
        if failures > _TRIES:
            name = printable(file.name)
            raise ValueError(
                f"The connection to {transfer.repo.endpoint} failed {failures} times in a row ({reason}) at "
                f"{size_in_words(partial.size)} of {size_in_words(file.size)} of {name}; what has arrived is kept, so "
                f"try again later, or put {name} of {transfer.repo.name} into {transfer.path(file).parent} by hand."
            )
        meter.pause(_PAUSE * 2 ** (failures - 1))


class _PartialFile:
    """A file that is not complete yet, open: `size` bytes of it are there. What was there before is hashed first."""

    def __init__(self, path: Path, file: RemoteFile, meter: _Meter) -> None:
        self.file, self.size = file, 0
        self._meter, self._hasher = meter, file.hasher()
        self._stored = _open_to_append(path)

    def __enter__(self) -> _PartialFile:
        try:
            there = self._stored.tell()  # opened to append, it stands at its end
            if there > self.file.size:
                there = self._stored.truncate(0)
            self._stored.seek(0)
            while self.size < there and (block := self._stored.read(min(_BLOCK, there - self.size))):
                self._count(block)
        except BaseException:
            self._stored.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stored.close()

    def write(self, offset: int, piece: bytes) -> None:
        """Adds a piece; one for the start begins the file again, what is beyond its end is left out."""
        if offset == 0 and self.size:
            self._stored.truncate(0)
            self._meter.add(-self.size)
            self.size, self._hasher = 0, self.file.hasher()
        piece = piece[: self.file.size - self.size]
        self._stored.write(piece)
        self._count(piece)

    def is_right(self) -> bool:
        """Whether all of it is there, with the right hash; then it is on the disk as well."""
        self._stored.flush()
        os.fsync(self._stored.fileno())
        return self.size == self.file.size and self._hasher.hexdigest() == self.file.digest

    def _count(self, piece: bytes) -> None:
        self._hasher.update(piece)
        self.size += len(piece)
        self._meter.add(len(piece))


def _open_to_append(path: Path) -> BinaryIO:
    """A file to read and to append to. A link of that name is replaced, not followed: it may point anywhere."""
    if path.is_symlink():
        path.unlink()

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)  # less the umask, as for any new file

    return open(path, "a+b", opener=opener)


class _Meter:
    """Progress, for the terminal and for `on_progress`, which is called about every 0.1 s."""

    def __init__(self, title: str, on_progress: OnProgress | None) -> None:
        self.done = self.total = 0
        self.stopped_by: BaseException | None = None
        self._title, self._on_progress, self._last = title, on_progress, 0.0
        self._bar: tqdm | None = None

    def __enter__(self) -> _Meter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show_title(self, title: str) -> None:
        self._title = title
        if self._bar is not None:
            self._bar.set_description(title, refresh=False)

    def add(self, count: int) -> None:
        self.done += count
        if time.monotonic() - self._last >= POLL_SECONDS:
            self.tick()

    def tick(self) -> None:
        """Shows the progress; raises what `on_progress` raises."""
        self._last = time.monotonic()
        if self.total and self._bar is None:
            self._bar = tqdm(total=self.total, desc=self._title, unit="B", unit_scale=True, file=sys.stderr)
        if self._bar is not None:
            self._bar.update(self.done - self._bar.n)
        if self._on_progress is None:
            return
        try:
            self._on_progress(self.done, max(self.total, 1))
        except BaseException as stop:
            self.stopped_by = stop
            raise

    def pause(self, seconds: float) -> None:
        """Sleeps, polling for a cancel."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(POLL_SECONDS, left))
            self.tick()

    def finish(self) -> None:
        self.tick()


# The folder ---------------------------------------------------------------------------------------------------------


@contextmanager
def _explain_os_errors(target: Path, files: list[RemoteFile], meter: _Meter) -> Iterator[None]:
    """Explains in a sentence why a folder cannot take the files."""
    try:
        yield
    except OSError as error:
        if error is meter.stopped_by:
            raise
        code, total = error.errno, size_in_words(sum(file.size for file in files))
        if code in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
            reason = f"There is no space left for {target}, which needs {total} in all"
            raise ValueError(f"{reason}; make room and try again, what has arrived is kept.") from None
        if code == errno.EFBIG:
            largest = size_in_words(max(file.size for file in files))
            reason = f"The disk of {target} takes no file of {largest} (FAT32 ends at 4 GB)"
            raise ValueError(f"{reason}; choose a folder on another disk.") from None
        reason = f"{target} cannot be written ({error.strerror or error})"
        raise ValueError(f"{reason}; make it writable or choose another folder with {total} free.") from None


@contextmanager
def _folder_lock(target: Path) -> Iterator[None]:
    """Keeps others from downloading into the folder; raises ValueError where somebody does already.

    The empty file that is locked stays there: removing it could take it from somebody who has just locked it, and a
    third would lock a new one of that name.
    """
    from filelock import FileLock, Timeout  # comes with huggingface_hub, which is imported as late

    path = target / LOCK
    if path.is_symlink():  # locking empties the file
        raise ValueError(f"{path} is a link, expected a file of its own; remove it.")
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(f"Another download into {target} is running; wait for it or stop it.") from None
    except NotImplementedError:  # some network drives cannot lock; a clash there ends as a wrong checksum
        yield
        return
    try:
        yield
    finally:
        lock.release()
