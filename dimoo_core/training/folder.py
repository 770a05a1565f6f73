"""A folder to train on: what lies in it, what of that is taught, and what is wrong with it, before any model is loaded.

The layout, the same in the folder itself and in sub-folders at any depth:

    NAME.png  NAME.txt         a picture and its caption; every format of pictures.captions.SUFFIXES is read
    NAME.png  NAME.json        a picture and questions about it, [{"question": "...", "answer": "..."}, ...]; with a
                               NAME.txt as well both are taught
    target/NAME.png  NAME.txt  an edit: the picture as it should become, and the instruction, which may lie beside the
    source/NAME.png            source instead; further sources of the same edit are source/NAME_1.png, NAME_2.png, ...
    NAME-masklabel.png         the mask of a picture or target: only cells that it marks white count in the loss
    10_NAME/                   a folder whose pictures count ten times; of nested ones the innermost decides

Folders `source` and `target` stand side by side; where one is missing, the other is a folder like any. A NAME_1 that
has a target of its own is the source of that. Names that begin with a dot are passed over, links to folders followed.

An empty text file teaches a picture without words. A picture without one is left out, or taught with the trigger word
alone where there is one. The first source of an edit is fitted as its target is, in size and crop; further ones, as at
sampling, to buckets of their own. Whatever cannot be read is named and left out; nothing ever takes its place.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from torch import Tensor

from ..checkpoint.headers import some
from ..checks import printable
from ..files import read_text, shown_path
from ..pictures.captions import MAX_CAPTION, caption_file, pictures_below, read_caption, shared_captions
from ..pictures.masks import marked_cells
from ..pictures.pixels import picture_size
from ..pictures.sizes import buckets, fit_size, understanding_size
from ..sequence.prompt import DESCRIBE, GENERATE, Prompt, check_text
from .dataset import edit_prompt

_MASK = "-masklabel"
_REPEATS = re.compile(r"(\d{1,3})_")  # longer numbers are years and dates
_QUESTIONS = 'expected a list of {"question": "...", "answer": "..."}'
_LINES = 20  # notes that a report repeats
_bucket = lru_cache(maxsize=4096)(fit_size)  # pictures of one folder have few sizes

Size = tuple[int, int]  # width, height in px


@dataclass(frozen=True)
class Fitted:
    """A picture file, the size that it has once it is turned as its EXIF says, and the size that it is fitted to."""

    path: Path
    size: Size
    fitted: Size


@dataclass(frozen=True, eq=False)
class Item:
    """What is taught of a picture: an answer, a picture or words, to a text and images.

    Without images the text is a caption, with images and a picture as the answer the instruction of an edit, with words
    as the answer a question. weights: as in `dataset.Sample`. name: the path below the folder.
    """

    name: str
    text: str
    images: tuple[Fitted, ...]
    answer: Fitted | str
    weights: Tensor | None = None
    repeats: int = 1

    def prompt(self, images: tuple[Tensor, ...]) -> Prompt:
        """The prompt, given the codes [1,h,w] of its images."""
        if isinstance(self.answer, str):
            return Prompt(DESCRIBE, self.text, images=images)
        return edit_prompt(self.text, images) if images else Prompt(GENERATE, self.text)

    @property
    def fitted(self) -> tuple[Fitted, ...]:
        """All its pictures."""
        return self.images if isinstance(self.answer, str) else (*self.images, self.answer)


@dataclass(frozen=True, eq=False)
class Survey:
    """What a training folder holds.

    pictures: files, masks not among them. found, missing, empty, unreadable: captions and instructions. duplicates:
    pictures that have the stem of another. repeats: how often the pictures of a folder count, by its name. notes:
    sentences about what is left out, or done otherwise than one may expect.
    """

    folder: Path
    side: int
    trigger: str
    items: tuple[Item, ...]
    pictures: int
    found: int
    missing: int
    empty: int
    unreadable: int
    duplicates: int
    repeats: Mapping[str, int]
    notes: tuple[str, ...]

    @property
    def captioned(self) -> list[Item]:
        """Plain pictures."""
        return [item for item in self.items if not item.images]

    @property
    def edits(self) -> list[Item]:
        return [item for item in self.items if item.images and isinstance(item.answer, Fitted)]

    @property
    def questions(self) -> list[Item]:
        return [item for item in self.items if isinstance(item.answer, str)]

    @property
    def masks(self) -> int:
        return sum(item.weights is not None for item in self.items)

    @property
    def samples(self) -> int:
        """Samples in one pass over everything, repeats included."""
        return sum(item.repeats for item in self.items)

    @property
    def fitted(self) -> list[Fitted]:
        """Every picture at every size that is needed of it, once, in order."""
        return list(dict.fromkeys(one for item in self.items for one in item.fitted))

    @property
    def sizes(self) -> Counter[Size]:
        """How many pictures there are of each size that they are fitted to."""
        return Counter(one.fitted for one in self.fitted)

    @property
    def upscaled(self) -> int:
        """How many of these are smaller than the size that they are fitted to."""
        return sum(one.size[0] < one.fitted[0] or one.size[1] < one.fitted[1] for one in self.fitted)

    def report(self) -> list[str]:
        """What to tell before the training, a line each."""
        taught = (
            _many(len(self.captioned), "picture"),
            _many(len(self.edits), "edit pair"),
            _many(len(self.questions), "question"),
        )
        alone = "taught with the trigger word alone" if self.trigger else "taught without words"
        sizes = [f"{number} at {_px(size)}" for size, number in self.sizes.most_common()]
        lines = [
            f"{shown_path(self.folder)} holds {_many(self.pictures, 'picture')}; taught are {', '.join(taught)}: "
            f"{_many(self.samples, 'sample')} in a pass",
            f"captions and instructions: {self.found} found, {self.missing} missing, {self.empty} empty"
            f"{f' ({alone})' * bool(self.empty)}, {self.unreadable} unreadable",
            f"sizes: {some(sizes, limit=12)}",
        ]
        if self.upscaled:
            lines.append(f"scaled up: {_many(self.upscaled, 'picture')}, smaller than the size to be trained at")
        if self.masks:
            lines.append(f"masks: {self.masks}")
        if self.repeats:
            lines.append(f"repeats: {some([f'{name} {times} times' for name, times in self.repeats.items()])}")
        lines += [f"note: {note}" for note in self.notes[:_LINES]]
        if len(self.notes) > _LINES:
            lines.append(f"note: {len(self.notes) - _LINES} more notes")
        return lines


def survey(folder: str | Path, *, side: int, sides: tuple[int, int], trigger: str = "") -> Survey:
    """Reads all texts and masks of a training folder, and of the pictures the headers.

    Pictures to be drawn are fitted to buckets of about `side` x `side` px, those that questions are about as `sides`
    says (see `pictures.sizes.understanding_size`). trigger: a word or several, put before every caption and instruction
    that does not have it. Raises ValueError where that is not a folder, holds no pictures, where no picture has a
    caption and no edit an instruction, and where nothing is left to be taught.
    """
    buckets(side)  # before the work: is the side one that has any?
    check_text("trigger word", trigger)
    return _Reader(_Layout(Path(folder)), side, sides, trigger.strip()).survey()


def with_trigger(caption: str, trigger: str) -> str:
    """`trigger, caption`; the caption itself where the trigger stands in it as a word."""
    if not trigger or re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", caption):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def read_questions(picture: Path, *, report: Callable[[str], None] | None = None) -> list[tuple[str, str]]:
    """Questions and answers about a picture, from the .json of its name; none where there is no such file. `report` as
    for `files.read_text`. Raises ValueError, naming the file, where it holds anything else."""
    path = picture.with_suffix(".json")
    if not path.is_file():
        return []
    try:
        text = read_text(path, most=MAX_CAPTION, report=report)
    except OSError as error:
        raise ValueError(f"The questions {path} cannot be read ({error.strerror}); check its permissions.") from error
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not usable JSON ({printable(str(error), 200)}); {_QUESTIONS}.") from None
    if not isinstance(found, list) or not found or not all(isinstance(one, dict) for one in found):
        raise ValueError(f"{path} holds no questions; {_QUESTIONS}.")
    return [_question(one, f"{path}, entry {number}") for number, one in enumerate(found, 1)]


def _question(entry: dict[str, Any], place: str) -> tuple[str, str]:
    for name in ("question", "answer"):
        words = entry.get(name)
        try:
            check_text(name, words)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        if not str(words).strip():
            raise ValueError(f"{place}: the {name} is empty; {_QUESTIONS}.")
    return entry["question"].strip(), entry["answer"].strip()


# Which file is what -------------------------------------------------------------------------------------------------


class _Layout:
    """The picture files of a folder by what they are; only names are looked at.

    files: pictures, without masks. plain: pictures taught by themselves. edits: the sources of each target; none where
    none has its name. masks: by the path, without suffix, of what they belong to. shared: pictures left out, each with
    the earlier one of its stem. notes: sentences.
    """

    def __init__(self, root: Path):
        self.root, self.notes = root, list[str]()
        found = pictures_below(root)
        masks = {path: picture for path in found if (picture := _masked(path)) is not None}
        double = shared_captions(masks)
        self.masks = {picture: path for path, picture in masks.items() if path not in double}
        self.files = [path for path in found if _masked(path) is None]
        self.shared = shared_captions(self.files)
        self._of_stem = {path.with_suffix(""): path for path in self.files if path not in self.shared}
        self._source_of = self._side_by_side()  # folders
        self.plain, self.edits, sources = list[Path](), dict[Path, tuple[Path, ...]](), list[Path]()
        special = {*self._source_of, *self._source_of.values()}
        for path in self._of_stem.values():
            innermost = next((folder for folder in path.parents if folder in special), None)
            if innermost is None:
                self.plain.append(path)
            elif innermost in self._source_of:
                self.edits[path] = self._sources(path, innermost)
            else:
                sources.append(path)
        used = {source for several in self.edits.values() for source in several}
        if unused := [path for path in sources if path not in used]:
            self.notes.append(f"Left out: {_many(len(unused), 'source')} without a target: {self.some(unused)}.")
        taught = {path.with_suffix("") for path in (*self.plain, *self.edits)}
        if double:
            self.notes.append(f"Left out: {_many(len(double), 'mask')} with the stem of another: {self.some(double)}.")
        if idle := [path for picture, path in self.masks.items() if picture not in taught]:
            self.notes.append(f"Left out: {_many(len(idle), 'mask')} without a picture or target: {self.some(idle)}.")

    def _side_by_side(self) -> dict[Path, Path]:
        """The folder `source` beside each folder `target`."""
        folders = {folder for path in self._of_stem for folder in path.parents if self.root in folder.parents}
        sources, targets = (
            {folder.parent: folder for folder in sorted(folders) if folder.name.lower() == name}
            for name in ("source", "target")
        )
        for parent in sorted(sources.keys() ^ targets.keys()):
            alone, other = (sources[parent], "target") if parent in sources else (targets[parent], "source")
            self.notes.append(
                f"{alone} is read as a folder like any other: no folder {other} with pictures lies beside it."
            )
        return {targets[parent]: sources[parent] for parent in sources.keys() & targets.keys()}

    def _sources(self, picture: Path, target: Path) -> tuple[Path, ...]:
        """The sources of a picture in the folder `target`, in order."""
        beside = self._source_of[target] / picture.relative_to(target).with_suffix("")
        if beside not in self._of_stem:
            return ()
        names = (f"{beside.name}_{number}" for number in count(1))
        further = takewhile(
            lambda name: beside.with_name(name) in self._of_stem and picture.with_name(name) not in self._of_stem, names
        )
        return (self._of_stem[beside], *(self._of_stem[beside.with_name(name)] for name in further))

    def repeating(self, picture: Path) -> tuple[Path | None, int]:
        """The folder that says how often a picture counts, and how often that is."""
        inside = takewhile(lambda folder: folder != self.root, picture.parents)
        for folder in inside:
            if match := _REPEATS.match(folder.name):
                return folder, int(match[1])
        return None, 1

    def name(self, path: Path) -> str:
        """What a file is called in the folder."""
        return shown_path(path.relative_to(self.root))

    def some(self, paths: Iterable[Path]) -> str:
        """The names of the first few files, and how many more there are."""
        return some([self.name(path) for path in paths])


# Reading ------------------------------------------------------------------------------------------------------------


class _Reader:
    """A survey on its way."""

    def __init__(self, layout: _Layout, side: int, sides: tuple[int, int], trigger: str):
        self.layout, self.side, self.sides, self.trigger = layout, side, sides, trigger
        self.notes: list[str] = []  # on single files
        self.texts: Counter[str] = Counter()  # captions and instructions by what became of them
        self.missing: list[Path] = []
        self.differing: list[Path] = []  # sources whose size is not that of their target

    def survey(self) -> Survey:
        layout = self.layout
        items = [
            *self.read(layout.plain, self.captioned),
            *self.read(layout.edits, self.edit),
            *self.read([*layout.plain, *layout.edits], self.questions, "the questions about "),
        ]
        self.check_texts()
        notes = dict.fromkeys([*layout.notes, *self.of_many(), *self.notes])  # each once, first those on many files
        if not any(item.repeats for item in items):
            why = next(iter(notes), "all their folders say 0 times.")
            raise ValueError(f"Of {_many(len(layout.files), 'picture')} below {layout.root} none can be taught: {why}")
        folders = (layout.repeating(item.fitted[-1].path) for item in items)
        return Survey(
            folder=layout.root,
            side=self.side,
            trigger=self.trigger,
            items=tuple(items),
            pictures=len(layout.files),
            found=self.texts["found"],
            missing=len(self.missing),
            empty=self.texts["empty"],
            unreadable=self.texts["unreadable"],
            duplicates=len(layout.shared),
            repeats={layout.name(folder): times for folder, times in folders if folder is not None},
            notes=tuple(notes),
        )

    def read(self, pictures: Iterable[Path], of: Callable[[Path], list[Item]], what: str = "") -> Iterator[Item]:
        """What is taught of pictures; one that cannot be read costs none of the others."""
        for picture in pictures:
            try:
                yield from of(picture)
            except (ValueError, OSError) as error:
                self.notes.append(f"Left out: {what}{self.layout.name(picture)}. {error}")

    def captioned(self, picture: Path) -> list[Item]:
        """A picture and its caption; none where it has questions alone."""
        if not caption_file(picture).is_file() and picture.with_suffix(".json").is_file():
            return []
        text = self.text(picture)
        if text is None:
            return []
        size = picture_size(picture)
        return [self.item(picture, text, (), Fitted(picture, size, _bucket(*size, self.side)))]

    def edit(self, target: Path) -> list[Item]:
        """A target with its sources and its instruction."""
        sources = self.layout.edits[target]
        if not sources:
            raise ValueError("No picture in the folder source has its name.")
        text = self.text(target, sources[0])
        if text is None:
            return []
        size, sizes = picture_size(target), [picture_size(source) for source in sources]
        if sizes[0] != size:
            self.differing.append(sources[0])
        fitted, *further = (_bucket(*one, self.side) for one in (size, *sizes[1:]))
        images = tuple(map(Fitted, sources, sizes, (fitted, *further)))
        return [self.item(target, text, images, Fitted(target, size, fitted))]

    def questions(self, picture: Path) -> list[Item]:
        """The questions about a picture."""
        asked = read_questions(picture, report=self.notes.append)
        if not asked:
            return []
        size = picture_size(picture)
        image = Fitted(picture, size, understanding_size(*size, self.sides, images=1))
        return [self.item(picture, question, (image,), answer) for question, answer in asked]

    def item(self, picture: Path, text: str, images: tuple[Fitted, ...], answer: Fitted | str) -> Item:
        weights = None if isinstance(answer, str) else self.weights(answer)
        return Item(self.layout.name(picture), text, images, answer, weights, self.layout.repeating(picture)[1])

    def text(self, *pictures: Path) -> str | None:
        """The words beside the first picture that has some, with the trigger word; None where both are missing. Raises
        ValueError where they cannot be used."""
        try:
            texts = (_caption(picture, self.notes.append) for picture in pictures)
            words = next((text for text in texts if text is not None), None)
            taught = with_trigger(words or "", self.trigger)
            check_text("text", taught)
        except ValueError:
            self.texts["unreadable"] += 1
            raise
        if words is None:
            self.missing.append(pictures[0])
            return self.trigger or None
        self.texts["found" if words else "empty"] += 1
        return taught

    def weights(self, answer: Fitted) -> Tensor | None:
        """1 for the cells [H,W] that the mask of a picture marks, 0 for the others; None where it has no mask."""
        path = self.layout.masks.get(answer.path.with_suffix(""))
        if path is None:
            return None
        return marked_cells(path, answer.size, answer.fitted).float()

    def check_texts(self) -> None:
        """Raises ValueError where all texts are missing."""
        if not self.missing or self.texts.total():
            return
        instead = [path for picture in self.missing for path in _caption_like(picture)]
        remedy = "write them, or let `python -m dimoo_core caption` do it"
        if instead:
            remedy = f"rename what lies there instead ({_many(len(instead), 'file')} such as {instead[0].name})"
        raise ValueError(
            f"None of {_many(len(self.missing), 'picture')} below {self.layout.root} has a text, which is expected in "
            f"NAME.txt beside NAME.png: {remedy}."
        )

    def of_many(self) -> Iterator[str]:
        """Notes on what several pictures have in common."""
        shared, missing, differing = list(self.layout.shared), self.missing, self.differing
        if shared:
            yield (
                f"Left out: {_many(len(shared), 'picture')} with the stem of another, whose text file would be theirs "
                f"too: {self.layout.some(shared)}."
            )
        if missing:
            fate = "Taught with the trigger word alone" if self.trigger else "Left out"
            yield f"{fate}: {_many(len(missing), 'picture')} without a text: {self.layout.some(missing)}."
        if instead := [path for picture in missing for path in _caption_like(picture)]:
            yield f"Texts are read from NAME.txt; rename {self.layout.some(instead)}."
        if differing:
            yield (
                f"{_many(len(differing), 'source')} of another size than the target, both fitted to the bucket of the "
                f"target: {self.layout.some(differing)}."
            )


def _masked(path: Path) -> Path | None:
    """What a mask belongs to, without suffix; None for a file that is no mask."""
    name = path.stem.removesuffix(_MASK)
    return path.with_name(name) if name and name != path.stem else None


def _caption(picture: Path, report: Callable[[str], None]) -> str | None:
    """The caption beside a picture; raises ValueError where it cannot be read."""
    words = read_caption(picture, report=report)
    if words is not None and "\0" in words:
        raise ValueError(f"{caption_file(picture)} is UTF-16 without its mark, or no text; save it as UTF-8.")
    return words


def _caption_like(picture: Path) -> list[Path]:
    """Files that hold captions for other programs."""
    names = (f"{picture.stem}.caption", f"{picture.stem}.TXT", f"{picture.name}.txt")
    return [path for path in map(picture.with_name, names) if path.is_file() and not caption_file(picture).is_file()]


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _px(size: Size) -> str:
    return f"{size[0]}x{size[1]} px"
