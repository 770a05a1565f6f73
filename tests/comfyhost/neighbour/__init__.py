"""Another pack for the tests' server, as inconsiderate as some are: nodes of our display names, and a `dimoo_core` and
a `nodes` of its own on sys.path. It is loaded before ours (packs are loaded in the order of their folders)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent / "libraries"))


class Loader:
    """A node that ours must not be taken for."""

    RETURN_TYPES = ("DIMOO_MODEL",)
    FUNCTION = "load"
    CATEGORY = "neighbour"

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"checkpoint": ("STRING", {"default": "mine"})}}

    def load(self, checkpoint: str) -> tuple[str]:
        return (checkpoint,)


NODE_CLASS_MAPPINGS = {"Loader": Loader, "LoadModel": Loader}
NODE_DISPLAY_NAME_MAPPINGS = {"Loader": "DiMOO Loader (Lumina)", "LoadModel": "DiMOO Sampler (Lumina)"}
