"""Words as text files: what Describe says of a batch, and captions beside the pictures of a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..dimoo_core.checks import shown
from ..dimoo_core.files import atomic_write_text, shown_path, writing
from ..dimoo_core.pictures.captions import (
    caption_file,
    folders_with_pictures,
    lacking_captions,
    pictures_below,
    read_caption,
    shared_captions,
    write_captions,
)
from ..dimoo_core.sampling.schedule import MAX_TOKENS
from ..dimoo_core.sampling.text import TextSettings
from . import host, widgets
from .describe import answer_settings, answered, follow
from .sockets import LoadedModel, LoadedVQ, ModelSocket, VQSocket, check_pair
from .widgets import OWN

NOTHING = "(no folder with pictures)"


def listed() -> dict[str, Path]:
    """Folders at and below ComfyUI's input folder that hold pictures themselves, by the names that the node lists."""
    root = host.input_folder()
    return {host.without_html(folder.relative_to(root).as_posix()): folder for folder in folders_with_pictures(root)}


def folders() -> list[str]:
    """The names that the node lists."""
    return sorted(listed()) or [NOTHING]


def chosen_folder(name: str, among: Mapping[str, Path] | None = None) -> Path:
    """The folder of a name, as listed (`among`; None: those of `listed`), as on disk or as saved on Windows; raises
    ValueError for one that is not listed, wherever it lies."""
    folder = host.named(name, listed() if among is None else among)
    if folder is None:
        raise ValueError(
            f"There is no folder {shown(name)} with pictures in ComfyUI's input folder; put pictures there, refresh "
            "the page and choose it."
        )
    return folder


def caption(
    model: LoadedModel, vq: LoadedVQ, paths: Sequence[Path], question: str, settings: TextSettings, *, node: str | None
) -> dict[Path, str]:
    """Writes a text file beside each picture file; returns those that got none, and why."""
    texts: list[str] = []  # captions, and problems of pictures that have none
    failed: dict[Path, str] = {}
    on_step = follow(model, node, texts, len(paths))

    def words(pixels: Tensor) -> str:
        (answer,) = answered(model, vq, [pixels], question, settings, on_step)
        return answer

    for done in write_captions(paths, words):
        if done.problem is not None:
            host.log("DiMOO: %s", done.problem)
            failed[done.path] = done.problem
        texts.append(done.problem or done.words)
    return failed


def report(pictures: Sequence[Path], failed: dict[Path, str]) -> tuple[list[str], list[str], list[str]]:
    """Captions, the names of their pictures, and a line for every picture, those included that have no caption.

    Raises ValueError where no picture has one.
    """
    shared, captions, problems = shared_captions(pictures), dict[str, str](), list[tuple[Path, str]]()
    problems += [(path, f"left out, its text file is that of {owner.name}") for path, owner in shared.items()]
    for path in pictures:
        if path in shared:
            continue

        def noted(why: str, path: Path = path) -> None:
            problems.append((path, why))

        try:
            words = read_caption(path, report=noted)
        except ValueError as error:
            failed = {path: str(error)} | failed
            continue
        if words is not None:
            captions[_name(path)] = words
    if not captions:
        raise ValueError(f"None of the pictures has a caption, such as: {next(iter(failed.values()))}")
    problems += failed.items()
    lines = [f"{name}: {words}" for name, words in captions.items()]
    return list(captions.values()), list(captions), [*lines, *(f"{_name(path)}: {why}" for path, why in problems)]


def _name(path: Path) -> str:
    """What a picture is called to users: its path below the input folder."""
    return shown_path(path.relative_to(host.input_folder()))


class CaptionFolder(host.io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return host.schema(
            node_id="DimooCaptionFolder",
            display_name="DiMOO Caption Folder",
            category="DiMOO",
            description=(
                "Writes a caption file beside every picture of a folder in ComfyUI's input folder, as training tools "
                "for image models expect. A stopped run continues where it stopped."
            ),
            search_aliases=["batch caption", "dataset", "caption directory", "tagger"],
            is_output_node=True,
            hidden=[host.io.Hidden.unique_id],
            inputs=_inputs(),
            outputs=[
                host.io.String.Output(
                    display_name="captions", is_output_list=True, tooltip="The captions in the text files, as a list."
                ),
                host.io.String.Output(
                    display_name="files",
                    is_output_list=True,
                    tooltip="The pictures that they belong to, in the same order.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, folder):
        """Takes a folder's name as it is on disk, too; ComfyUI itself compares only with the names listed."""
        if folder is not None:  # None: it comes from another node
            try:
                chosen_folder(folder)
            except ValueError as error:
                return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, folder, **_):
        """Names and times of the pictures and their texts, so that a folder that has grown is looked at again."""
        files = [path for picture in pictures_below(chosen_folder(folder)) for path in (picture, caption_file(picture))]
        return str([(path.name, path.stat().st_mtime_ns) for path in files if path.is_file()])

    @classmethod
    def execute(cls, model, vq, folder, question, again=False, max_tokens=OWN, steps=OWN, block_length=OWN):
        check_pair(model, vq)
        settings = answer_settings(model, max_tokens, steps, block_length)
        place = chosen_folder(folder)
        pictures = pictures_below(place)
        node = getattr(cls.hidden, "unique_id", None)
        with writing(place):  # a disk that is full, or read-only as a whole
            failed = caption(model, vq, lacking_captions(pictures, again=again), question, settings, node=node)
        captions, names, lines = report(pictures, failed)
        host.show_text("\n\n".join(lines), node)
        return host.io.NodeOutput(captions, names, ui=host.said(lines))


def _inputs() -> list:
    return [
        ModelSocket.Input("model", tooltip="The model from DiMOO Loader."),
        VQSocket.Input("vq", tooltip="The VQ of the same checkpoint, from DiMOO Loader."),
        host.io.Combo.Input(
            "folder",
            options=folders(),
            tooltip="A folder in ComfyUI's input folder, with its subfolders.",
        ),
        widgets.words("question", "What to ask about every picture.", default="Describe the image."),
        host.io.Boolean.Input(
            "again",
            default=False,
            tooltip=(
                "Also caption pictures that already have a text file, and overwrite it. When off, existing text files "
                "are never overwritten, including your own."
            ),
        ),
        widgets.integer(
            "max_tokens",
            OWN,
            (OWN, MAX_TOKENS),
            "Longest caption in tokens, somewhat more than words. -1: the checkpoint's own length.",
        ),
        *widgets.advanced(_how()),
    ]


def _how() -> list:
    return [
        widgets.integer(
            "steps",
            OWN,
            (OWN, MAX_TOKENS),
            "Sampling steps per caption; must be a multiple of the number of blocks (max_tokens / block_length). Fewer "
            "is faster. -1: the checkpoint's own number, or one step per token if you set max_tokens.",
        ),
        widgets.integer(
            "block_length",
            OWN,
            (OWN, MAX_TOKENS),
            "The caption is written left to right in blocks of this many tokens, which must divide max_tokens. -1: the "
            "checkpoint's own length, or a shorter one that divides.",
        ),
    ]


class SaveText(host.io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return host.schema(
            node_id="DimooSaveText",
            display_name="DiMOO Save Text",
            category="DiMOO",
            description=(
                "Saves a text, or every text of a list, in ComfyUI's output folder. With the same prefix as Save "
                "Image, the texts of a batch get the numbers of its pictures."
            ),
            search_aliases=["save caption", "save string", "write txt"],
            is_output_node=True,
            inputs=[
                host.io.String.Input(
                    "text", force_input=True, tooltip="The text, or a list of texts, such as from DiMOO Describe."
                ),
                host.io.String.Input(
                    "filename_prefix",
                    default="dimoo/caption",
                    tooltip="Start of the file names, with folders in the output folder, as in Save Image.",
                ),
            ],
            outputs=[host.io.String.Output(display_name="file", tooltip="The path of the saved file.")],
        )

    @classmethod
    def fingerprint_inputs(cls, filename_prefix=None, **_):
        """Always the same. ComfyUI asks before a prompt runs, which is when the pictures of earlier ones are told from
        those that it will save."""
        if isinstance(filename_prefix, str):
            host.remember_pictures(filename_prefix)
        return ""

    @classmethod
    def execute(cls, text, filename_prefix="dimoo/caption", **_):  # and what `pictures_first` adds
        with writing(host.output_folder() / filename_prefix):
            path = host.next_text_file(filename_prefix)
            atomic_write_text(path, text + "\n")
        return host.io.NodeOutput(str(path), ui={"text": [text], "files": host.shown_files([path])})


def pictures_first(request: dict[str, Any]) -> dict[str, Any]:
    """A request that queues a prompt, in which each Save Text waits for the Save Image nodes with its prefix.

    ComfyUI runs nodes that save in any order, and its Save Image counts texts as well: pictures that came after their
    texts would have other numbers. An input that no node declares makes it wait, and is not handed on. Nor does the
    server check it: what it refuses would run all the same if a text waited for it.
    """
    prompt = request.get("prompt")
    if not isinstance(prompt, dict) or request.get("partial_execution_targets"):  # only those are to run
        return request
    savers = {key: one for key, one in prompt.items() if _saves(one, "SaveImage") and _complete(prompt, key)}
    changed = {}
    for key, one in prompt.items():
        if _saves(one, SaveText.GET_SCHEMA().node_id):
            prefix = one["inputs"].get("filename_prefix")
            same = [name for name, saver in savers.items() if saver["inputs"].get("filename_prefix") == prefix]
            waits = {f"pictures_{name}": [name, 0] for name in same if key not in _ancestors(prompt, name)}
            changed[key] = {**one, "inputs": {**one["inputs"], **waits}}
    return {**request, "prompt": {**prompt, **changed}}


def _saves(node: Any, class_type: str) -> bool:
    return isinstance(node, dict) and node.get("class_type") == class_type and isinstance(node.get("inputs"), dict)


def _complete(prompt: dict[str, Any], key: str) -> bool:
    """Whether a node and all that it uses are there and have the inputs that they cannot do without."""
    return all(
        isinstance(node, dict) and isinstance(node.get("inputs"), dict) and not host.lacks_inputs(node)
        for node in map(prompt.get, {key} | _ancestors(prompt, key))
    )


def _link(value: Any) -> bool:
    """Whether an input comes from another node, [its key, number of its output]."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)


def _ancestors(prompt: dict[str, Any], key: str) -> set[str]:
    """The nodes whose results a node uses, directly or not."""
    found, open_keys = set[str](), [key]
    while open_keys:
        node = prompt.get(open_keys.pop())
        inputs = node.get("inputs") if isinstance(node, dict) else None
        sources = {value[0] for value in inputs.values() if _link(value)} if isinstance(inputs, dict) else set()
        open_keys += sources - found
        found |= sources
    return found
