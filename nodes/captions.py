"""Words as text files: what Describe says of a batch, and captions beside the pictures of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..dimoo_core.files import atomic_write_text
from ..dimoo_core.pictures.captions import (
    caption_file,
    folders_with_pictures,
    lacking_captions,
    pictures_below,
    shared_captions,
)
from ..dimoo_core.pictures.pixels import load_picture
from ..dimoo_core.sampling.schedule import MAX_TOKENS
from ..dimoo_core.sampling.text import TextSettings
from . import host, widgets
from .describe import answered, follow
from .sockets import LoadedModel, LoadedVQ, ModelSocket, VQSocket, check_sockets

NOTHING = "(no folder with pictures)"


def folders() -> list[str]:
    """Folders at and below ComfyUI's input folder that hold pictures themselves, as the node lists them."""
    root = host.input_folder()
    return sorted(folder.relative_to(root).as_posix() for folder in folders_with_pictures(root)) or [NOTHING]


def chosen_folder(name: str) -> Path:
    """The folder of a name; raises ValueError for one that is not listed, wherever it may lie."""
    if name == NOTHING or name not in folders():
        raise ValueError(
            f"There is no folder {name!r} with pictures in ComfyUI's input folder; put pictures there, refresh the "
            "page and choose it."
        )
    return host.input_folder() / name


def caption(
    model: LoadedModel, vq: LoadedVQ, paths: Sequence[Path], question: str, settings: TextSettings, *, node: str | None
) -> dict[Path, str]:
    """Writes a text file beside each picture file; hands back those that cannot be read, and why."""
    said: list[str] = []
    failed: dict[Path, str] = {}
    on_step = follow(model, node, said, len(paths))
    for path in paths:
        try:
            picture = load_picture(path)
        except ValueError as error:
            host.log("DiMOO: %s", error)
            failed[path] = str(error)
            said.append(failed[path])
            continue
        said += answered(model, vq, [picture], question, settings, on_step)
        atomic_write_text(caption_file(path), said[-1] + "\n")
    return failed


def report(every: Sequence[Path], failed: dict[Path, str]) -> tuple[list[str], list[str], list[str]]:
    """Captions, the names of their pictures, and a line for every picture, those included that have no caption.

    Raises ValueError where no picture has one.
    """
    shared, root, told = shared_captions(every), host.input_folder(), {}
    for path in every:
        if path not in shared and caption_file(path).exists():
            told[path.relative_to(root).as_posix()] = caption_file(path).read_text(encoding="utf-8").strip()
    if not told:
        raise ValueError(f"None of the pictures can be read, such as: {next(iter(failed.values()))}")
    trouble = {path: f"left out, its text file is that of {owner.name}" for path, owner in shared.items()} | failed
    lines = [f"{path.relative_to(root).as_posix()}: {why}" for path, why in trouble.items()]
    return list(told.values()), list(told), [*(f"{name}: {words}" for name, words in told.items()), *lines]


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
            search_aliases=["dimoo batch caption", "dimoo dataset", "caption directory"],
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
    def fingerprint_inputs(cls, folder, **_):
        """Names and times of the pictures and their texts, so that a folder that has grown is looked at anew."""
        files = [path for picture in pictures_below(chosen_folder(folder)) for path in (picture, caption_file(picture))]
        return str([(path.name, path.stat().st_mtime_ns) for path in files if path.exists()])

    @classmethod
    def execute(cls, model, vq, folder, question, again=False, max_tokens=128, steps=128, block_length=32):
        check_sockets(model=model, vq=vq)
        settings = TextSettings(max_tokens, steps, block_length)
        every = pictures_below(chosen_folder(folder))
        node = getattr(cls.hidden, "unique_id", None)
        failed = caption(model, vq, lacking_captions(every, again=again), question, settings, node=node)
        captions, names, lines = report(every, failed)
        host.show_text("\n\n".join(lines), node)
        return host.io.NodeOutput(captions, names, ui={"text": lines})


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
            128,
            (1, MAX_TOKENS),
            "Longest caption in tokens; must be a multiple of block_length. 128 for the 8B model, 32 for nano.",
        ),
        widgets.integer(
            "steps",
            128,
            (1, MAX_TOKENS),
            "Sampling steps per caption; must be a multiple of the number of blocks (max_tokens / block_length). Best "
            "set to max_tokens; fewer is faster.",
        ),
        widgets.integer(
            "block_length",
            32,
            (1, MAX_TOKENS),
            "The caption is written left to right in blocks of this many tokens. 32 is a good value.",
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
            search_aliases=["dimoo save caption", "save string", "save text file"],
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
    def execute(cls, text, filename_prefix="dimoo/caption"):
        path = host.next_text_file(filename_prefix)
        atomic_write_text(path, text + "\n")
        return host.io.NodeOutput(str(path), ui={"text": [text]})
