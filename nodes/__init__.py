"""The nodes of the pack, and the door through which ComfyUI gets them."""

from __future__ import annotations

from . import host, templates
from .best import BestOf
from .canvas import EmptyCanvas, VQDecode, VQEncode
from .captions import CaptionFolder, SaveText, pictures_first
from .crop import CropAroundMask, Stitch
from .describe import Describe
from .edit import ImageEdit
from .loader import Loader
from .lora import Lora
from .paint import MaskPaint
from .prompt import TextEncode
from .provenance import add_note
from .sampler import CacheSettings, Sampler
from .sheet import ContactSheet
from .train import TrainLora

NODES = [
    Loader,
    TextEncode,
    EmptyCanvas,
    ImageEdit,
    MaskPaint,
    CacheSettings,
    Sampler,
    VQEncode,
    VQDecode,
    Describe,
    CropAroundMask,
    Stitch,
    BestOf,
    CaptionFolder,
    SaveText,
    Lora,
    TrainLora,
    ContactSheet,
]


class DimooExtension(host.ComfyExtension):
    async def get_node_list(self) -> list[type]:
        host.note_copies(Loader, templates.PACK)
        host.register_folder()
        host.on_prompt(add_note)
        host.on_prompt(pictures_first)
        host.give_examples(templates.EXAMPLES)
        for path, content in templates.addresses():
            host.serve_json(path, content)
        return list(NODES)


async def comfy_entrypoint() -> DimooExtension:
    return DimooExtension()


__all__ = ["comfy_entrypoint"]
