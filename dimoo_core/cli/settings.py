"""The settings that decide a picture, and the metadata that name them in its file.

A picture in a prompt list is made again where one of these settings has changed, and for no other reason. What only
decides how a picture is computed (device, dtype, tiles, versions) is written into its metadata too, and compares
nothing: it changes the last bits at most.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .. import provenance
from ..checkpoint.adapter_file import adapter_files
from ..checkpoint.find import Found
from ..devices import device
from ..jobs import Inpaint
from ..pipeline import lora_path
from ..sampling.ml_cache import CachePolicy

File = Mapping[str, str]  # name and fingerprint of a checkpoint or picture
_SHARED = (
    *("prompt", "negative", "seed", "steps", "cfg", "temperature", "ml_cache", "guidance_start"),
    *("corrections", "polish", "order", "shared_noise"),
)
_OWN: dict[str, tuple[str, ...]] = {
    "generate": ("size",),
    "list": ("size",),
    "edit": ("image", "type", "reference", "side", "image_cfg", "own_size"),
    "inpaint": ("image", "mask", "mask_width", "mask_height", "outpaint", "grow"),
}
# What a command line has where it says nothing, beside the checkpoint's own; a list has its prompts elsewhere.
_LEFT_OUT = {"prompt": "", "mask_width": Inpaint.width_ratio, "mask_height": Inpaint.height_ratio}
_COMPUTING = ("dtype", "vq_strips")


@dataclass(frozen=True)
class Lora:
    """A LoRA as it is named on the command line, and how strongly it acts."""

    name: str
    strength: float = 1.0

    @property
    def path(self) -> Path:
        """Its file or folder. Raises ValueError where there is none."""
        return lora_path(self.name)

    def identified(self) -> dict[str, Any]:
        """Its file's name and fingerprint, and its strength. Raises OSError where the file cannot be read."""
        path = self.path
        return {**provenance.identified(path.name, adapter_files(path)), "strength": self.strength}


@dataclass(frozen=True)
class PictureSettings:
    """All that decides a picture; what a command does not have is None. A setting that is added later needs the default
    that makes the pictures of today, since older files do not name it.

    size: (width, height) px. image, reference, mask: the files of an edit or inpaint. side: px. mask_width,
    mask_height: shares of the picture. grow: cells. loras: name, fingerprint and strength of those that act, ordered by
    the last two, since the order in which they are given changes nothing.
    """

    checkpoint: File
    prompt: str
    negative: str = ""
    seed: int = 0
    steps: int = 64
    cfg: float = 4.0
    temperature: float = 1.0
    ml_cache: CachePolicy | None = None
    guidance_start: float = 0.0
    size: tuple[int, int] | None = None
    image: File | None = None
    type: str | None = None
    reference: File | None = None
    side: int | None = None
    image_cfg: float | None = None
    mask: File | None = None
    mask_width: float | None = None
    mask_height: float | None = None
    outpaint: bool | None = None
    grow: int | None = None
    own_size: bool | None = None
    loras: tuple[Mapping[str, Any], ...] = ()
    corrections: int = 0
    polish: int = 0
    order: str = "confidence"
    shared_noise: float = 0.0

    @classmethod
    def from_arguments(cls, args: argparse.Namespace, found: Found) -> PictureSettings:
        """The settings of a command line; what it leaves open has the checkpoint's default. Raises OSError where a file
        cannot be read."""
        given: dict[str, Any] = {}
        for name in (*_SHARED, *_OWN[args.command]):
            value = getattr(args, name, None)
            value = found.defaults.own(name, _LEFT_OUT.get(name) if value is None else value)
            given[name] = provenance.identified(value.name, [value]) if isinstance(value, Path) else value
        acting = [lora.identified() for lora in args.loras if lora.strength != 0]
        loras = tuple(sorted(acting, key=lambda one: (one["fingerprint"], one["strength"])))
        return cls(checkpoint=provenance.identified_checkpoint(found), loras=loras, **given)

    def metadata(self, args: argparse.Namespace) -> dict[str, Any]:
        """What a picture's file says: these settings, the command, and what computed."""
        own = {name: getattr(self, name) for name in (*_SHARED, *_OWN[args.command])}
        computing = {name: getattr(args, name) for name in _COMPUTING} | {"device": device(args.device).type}
        named = {"checkpoint": self.checkpoint, "command": args.command}
        loras = {"loras": self.loras} if self.loras else {}
        return _as_json({**provenance.versions(), **named, **loras, **own, **computing})

    def made(self, metadata: Mapping[str, Any]) -> bool:
        """Whether a picture with such metadata was made with these settings. Checkpoints and files are told by their
        fingerprints; another name is the same file."""
        return all(
            _deciding(field.name, getattr(self, field.name))
            == _deciding(field.name, metadata.get(field.name, getattr(type(self), field.name, None)))
            for field in fields(self)
        )


def _deciding(name: str, value: Any) -> Any:
    """A value as it can be compared with one that was read from a file."""
    if name == "ml_cache" and isinstance(value, Mapping):
        try:
            return _as_json(CachePolicy(**value))  # with today's defaults for what it did not have then
        except (TypeError, ValueError):
            return value
    if name == "loras" and isinstance(value, (list, tuple)):
        return [(one.get("fingerprint"), one.get("strength")) for one in value if isinstance(one, Mapping)]
    if isinstance(value, Mapping):
        return value.get("fingerprint")
    return _as_json(value)


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value, default=asdict))
