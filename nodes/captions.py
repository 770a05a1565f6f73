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
from ..dimoo_core.sampling.text import TextSettings
from . import host, widgets
from .describe import answered, encode_for, follow
from .sockets import LoadedModel, LoadedVQ, ModelSocket, VQSocket, check_sockets

NOTHING = "(no folder with pictures)"


def listed() -> dict[str, Path]:
    """Folders at and below ComfyUI's input folder that hold pictures themselves, by the names that the node lists."""
    root = host.input_folder()
    return {host.without_html(folder.relative_to(root).as_posix()): folder for folder in folders_with_pictures(root)}


def folders() -> list[str]:
    """The names that the node lists."""
    return sorted(listed()) or [NOTHING]


def chosen_folder(name: str) -> Path:
    """The folder of a name, as listed or as on disk; raises ValueError for one that is not listed, wherever it lies."""
    folder = listed().get(host.without_html(name))
    if folder is None:
        raise ValueError(
            f"There is no folder {name!r} with pictures in ComfyUI's input folder; put pictures there, refresh the "
            "page and choose it."
        )
    return folder


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
        said += answered(model, encode_for(model, vq, [picture]), question, (settings, on_step))
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
                "Writes a text file beside every picture of a folder in ComfyUI's input folder, as trainers of image "
                "models expect them. Stopped, it goes on where it was."
            ),
            search_aliases=["dimoo batch caption", "dimoo dataset", "caption directory"],
            is_output_node=True,
            hidden=[host.io.Hidden.unique_id],
            inputs=_inputs(),
            outputs=[
                host.io.String.Output(
                    display_name="captions", is_output_list=True, tooltip="What the text files say, a list."
                ),
                host.io.String.Output(
                    display_name="files", is_output_list=True, tooltip="The pictures they belong to, in the same order."
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
        ModelSocket.Input("model", tooltip="The model of the checkpoint."),
        VQSocket.Input("vq", tooltip="The VQ of the same checkpoint."),
        host.io.Combo.Input(
            "folder",
            options=folders(),
            tooltip="A folder in ComfyUI's input folder, with all folders in it.",
        ),
        widgets.words("question", "What to ask of every picture.", default="Describe the image."),
        host.io.Boolean.Input(
            "again",
            default=False,
            tooltip="Also ask about pictures that have a text file already, and replace it.",
        ),
        widgets.integer(
            "max_tokens", 128, (1, 4096), "The most tokens a caption may have; a multiple of block_length."
        ),
        widgets.integer("steps", 128, (1, 4096), "Steps for a caption, a multiple of the number of blocks."),
        widgets.integer("block_length", 32, (1, 4096), "A caption is written block by block, left to right."),
    ]


class SaveText(host.io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return host.schema(
            node_id="DimooSaveText",
            display_name="DiMOO Save Text",
            category="DiMOO",
            description=(
                "Saves a text, or each of a list, in ComfyUI's output folder. With the prefix of Save Image the texts "
                "of a batch get the numbers of its pictures."
            ),
            search_aliases=["dimoo save caption", "save string", "save text file"],
            is_output_node=True,
            inputs=[
                host.io.String.Input("text", force_input=True, tooltip="The text, or a list, from Describe."),
                host.io.String.Input(
                    "filename_prefix",
                    default="dimoo/caption",
                    tooltip="How the files are called, folders in the output folder included, as in Save Image.",
                ),
            ],
            outputs=[host.io.String.Output(display_name="file", tooltip="Where the text was saved.")],
        )

    @classmethod
    def execute(cls, text, filename_prefix="dimoo/caption"):
        path = host.next_text_file(filename_prefix)
        atomic_write_text(path, text + "\n")
        return host.io.NodeOutput(str(path), ui={"text": [text]})
