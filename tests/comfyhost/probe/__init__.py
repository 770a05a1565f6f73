"""A pack for the tests' server only: it tells what ComfyUI holds and is about to free, and makes things fail."""

from __future__ import annotations

import sys
from typing import Any

import comfy.model_management
import psutil
from aiohttp import web
from PIL import Image
from server import PromptServer

NODE_CLASS_MAPPINGS: dict[str, type] = {}
ROUTES = PromptServer.instance.routes
broken: list[tuple[Any, str, Any]] = []  # (owner, name, what was there)


@ROUTES.get("/dimoo-probe")
async def tell(_: web.Request) -> web.Response:
    loaded = [entry.model for entry in comfy.model_management.current_loaded_models]
    return web.json_response(
        {
            "models": [type(patcher.model).__name__ for patcher in loaded if patcher is not None],
            "memory": psutil.Process().memory_info().rss,
            "freeing": bool(PromptServer.instance.prompt_queue.flags),  # asked for, and not yet begun
        }
    )


@ROUTES.post("/dimoo-probe/break")
async def break_(request: web.Request) -> web.Response:
    """{"where": a key of PLACES, "after": calls that still work}: from then on it fails, until /mend."""
    wanted = await request.json()
    owner, name, error, concerns = PLACES[wanted["where"]]()
    real, left = getattr(owner, name), [wanted["after"]]

    def failing(*arguments: Any, **options: Any) -> Any:
        if not concerns(arguments):
            return real(*arguments, **options)
        if left[0] == 0:
            raise error
        left[0] -= 1
        return real(*arguments, **options)

    broken.append((owner, name, real))
    setattr(owner, name, failing)
    return web.json_response({})


@ROUTES.post("/dimoo-probe/mend")
async def mend(_: web.Request) -> web.Response:
    while broken:
        owner, name, real = broken.pop()
        setattr(owner, name, real)
    return web.json_response({})


def out_of_memory() -> Exception:
    return comfy.model_management.OOM_EXCEPTION("Allocation on device")


def ours(name: str) -> Any:
    """A module of the pack, whatever ComfyUI has called the pack."""
    return next(module for key, module in sys.modules.items() if key.endswith(f"dimoo-nodes.{name}"))


def always(_: tuple[Any, ...]) -> bool:
    return True


def to_a_file(arguments: tuple[Any, ...]) -> bool:
    """Previews are saved, too, but into memory."""
    return isinstance(arguments[1], str)


# (owner, name, what to raise, which calls)
PLACES = {
    "sampler": lambda: (ours("dimoo_core.model.transformer").Transformer, "forward", out_of_memory(), always),
    "decode": lambda: (ours("dimoo_core.model.vq").VQ, "decode", out_of_memory(), always),
    "loading": lambda: (comfy.model_management, "load_models_gpu", out_of_memory(), always),
    "disk": lambda: (Image.Image, "save", OSError(28, "No space left on device"), to_a_file),
}
