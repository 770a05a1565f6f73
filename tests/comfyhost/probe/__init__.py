"""A pack for the tests' server only: one route that tells which models ComfyUI holds, and how much memory."""

from __future__ import annotations

import comfy.model_management
import psutil
from aiohttp import web
from server import PromptServer

NODE_CLASS_MAPPINGS: dict[str, type] = {}


@PromptServer.instance.routes.get("/dimoo-probe")
async def tell(_: web.Request) -> web.Response:
    loaded = [entry.model for entry in comfy.model_management.current_loaded_models]
    return web.json_response(
        {
            "models": [type(patcher.model).__name__ for patcher in loaded if patcher is not None],
            "memory": psutil.Process().memory_info().rss,
        }
    )
