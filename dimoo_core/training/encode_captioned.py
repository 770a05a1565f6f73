"""A folder of captioned pictures to one file of codes, for `train tune`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .. import provenance
from ..checkpoint.find import Found
from ..checkpoint.load import load_vq
from ..pictures.captions import caption_file
from .pretokenise import captioned_pictures, encode_pictures, read_captioned, read_codes, write_codes
from .stopping import Stopped

Report = Callable[[str], None]
_SAVE_EVERY = 300.0  # seconds


@dataclass(frozen=True)
class Encoded:
    """How many of the `total` pictures are in the file of codes, and a sentence about each file with a problem."""

    count: int
    total: int
    problems: list[str]


def encode(found: Found, pictures: Path, output: Path, *, side: int, report: Report) -> Encoded:
    """Encode the captioned pictures of a folder, fitted to about `side` x `side` px, into one file of codes.

    A picture that cannot be read is left out. Stopped, the codes made so far are kept beside the output and used by the
    next run. Raises ValueError where no picture can be read, and `Stopped` on Ctrl-C.
    """
    files = captioned_pictures(pictures)
    names = {path.relative_to(pictures).as_posix(): path for path in files}
    partial = PartialCodes(output.with_name(f"{output.name}.partial"), f"{provenance.fingerprint(found.files)} {side}")
    partial.resume(names)
    problems: list[str] = []

    def fitted() -> Iterator[tuple[str, Tensor]]:
        for number, (name, path) in enumerate(names.items(), 1):
            if name in partial.codes:
                continue
            try:
                pixels, words = read_captioned(path, side, problems.append)
            except (ValueError, OSError) as error:
                problems.append(str(error))
                continue
            report(f"encoding picture {number} of {len(names)}: {name}")
            partial.captions[name] = words
            yield name, pixels

    vq, saved = load_vq(found), time.monotonic()
    try:
        for name, codes in encode_pictures(vq, fitted()):
            partial.add(name, codes, names[name])
            if time.monotonic() - saved > _SAVE_EVERY:
                partial.save()
                saved = time.monotonic()
    except KeyboardInterrupt as stop:
        partial.save()
        kept = (
            f"{len(partial.codes)} of {len(names)} pictures are kept in {partial.file}, the same command makes the rest"
        )
        raise Stopped(kept if partial.codes else "nothing was written, no picture was encoded") from stop
    if not partial.codes:
        raise ValueError(problems[0])
    output.parent.mkdir(parents=True, exist_ok=True)
    done = [name for name in names if name in partial.codes]
    write_codes(output, {name: partial.codes[name] for name in done}, {name: partial.captions[name] for name in done})
    partial.file.unlink(missing_ok=True)
    return Encoded(len(done), len(names), problems)


@dataclass
class PartialCodes:
    """Codes [H,W] and captions by name on their way to a file of codes. `encoder` says what made them: codes of another
    encoder are not used again, nor those of pictures that have changed."""

    file: Path
    encoder: str
    codes: dict[str, Tensor] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)
    states: dict[str, list[int]] = field(default_factory=dict)

    def add(self, name: str, codes: Tensor, path: Path) -> None:
        """The codes of the picture at `path`."""
        self.codes[name], self.states[name] = codes, _state(path)

    def save(self) -> None:
        """Write what there is, if there is anything."""
        if self.codes:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            captions = {name: self.captions[name] for name in self.codes}
            made = {"encoder": self.encoder, "states": json.dumps(self.states)}
            write_codes(self.file, self.codes, captions, metadata=made)

    def resume(self, names: dict[str, Path]) -> None:
        """Take over what an earlier run left of the pictures `names`."""
        try:
            codes, captions = read_codes(self.file)
            with safe_open(self.file, "pt") as file:
                metadata = file.metadata()
            states = json.loads(metadata["states"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            return
        if metadata.get("encoder") != self.encoder:
            return
        for name, path in names.items():
            if name in codes and states.get(name) == _state(path):
                self.codes[name], self.captions[name], self.states[name] = codes[name], captions[name], states[name]


def _state(path: Path) -> list[int]:
    """What tells whether a picture or its caption has changed."""
    stats = [os.stat(file) for file in (path, caption_file(path))]
    return [number for stat in stats for number in (stat.st_size, stat.st_mtime_ns)]
