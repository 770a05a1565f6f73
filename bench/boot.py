"""Runs ComfyUI's own main.py in this process: `python boot.py COMFYUI_FOLDER [ComfyUI's arguments]`.

Two things are settled. ComfyUI imports torchvision, which the package index has for CUDA builds of torch: beside a CPU
build two operators are missing and the import fails, so they are declared here. And the process ends when its standard
input closes, so that no server outlives the test run that started it, however that run ended.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading
from importlib.abc import MetaPathFinder


def declare_missing_operators() -> list[object]:
    """Make `import torchvision` work beside a CPU build of torch; returns what must stay alive for that."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        import torch

        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]  # what a failed import leaves behind would fail again
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return [library]
    return []


class WithTorch(MetaPathFinder):
    """Declares them when ComfyUI comes to torch: it sets up the environment first, and warns of a torch before that."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "comfy.utils":  # the first of its modules that imports torch
            self.kept = declare_missing_operators()


def end_with_parent() -> None:
    """Leave at once when standard input closes, which it does when the process that started us is gone."""

    def wait() -> None:
        while os.read(0, 1024):
            pass
        os._exit(1)

    threading.Thread(target=wait, name="end-with-parent", daemon=True).start()


def main() -> None:
    folder = os.path.abspath(sys.argv[1])
    script = os.path.join(folder, "main.py")
    end_with_parent()
    sys.meta_path.insert(0, WithTorch())
    sys.argv = [script, *sys.argv[2:]]
    sys.path[0] = folder  # what Python does for a script; ComfyUI's modules import each other from there
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
