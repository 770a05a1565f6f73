"""A good neighbour: the pack changes nothing that is not its own, and other packs do not change it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from .. import nodepack
from ..comfyhost.client import Client
from ..comfyhost.server import PACK
from ..conftest import TINY

LOOK = f"""
import sys
sys.path[:0] = [{str(nodepack.COMFYUI)!r}, {str(PACK / "bench")!r}]
from boot import declare_missing_operators
kept = declare_missing_operators()
import comfy.cli_args
comfy.cli_args.args.cpu = True
import asyncio, builtins, importlib.util, locale, logging, os, random, signal, socket, threading, warnings
import comfy.ldm.modules.attention, comfy.model_management, comfy.model_patcher, comfy.ops, comfy.utils
import aiohttp.web  # ComfyUI's server has it already; it sets a filter for warnings
import comfy_api.latest, folder_paths, numpy, torch
from PIL import Image

def state():
    flags = [torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.backends.cudnn.enabled]
    flags += [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32]
    flags += [torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()]
    flags += [torch.get_num_threads(), torch.get_num_interop_threads(), torch.is_grad_enabled()]
    flags += [torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()]
    folders = {{key: value for key, value in folder_paths.folder_names_and_paths.items() if key != "dimoo"}}
    modules = (comfy.ops, comfy.model_management, comfy.model_patcher, comfy.utils, comfy.ldm.modules.attention)
    return {{
        "seeds": [torch.get_rng_state().tolist(), random.getstate(), str(numpy.random.get_state())],
        "dtype and device": [torch.get_default_dtype(), torch.get_default_device()],
        "torch's switches": flags,
        "import path": list(sys.path),
        "hooks": [sys.excepthook, sys.displayhook, list(sys.meta_path), list(sys.path_hooks), builtins.__import__],
        "logging": [logging.root.level, list(logging.root.handlers), logging.getLoggerClass(), logging.raiseExceptions],
        "warnings": list(warnings.filters),
        "environment": dict(os.environ),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "threads": threading.active_count(),
        "other": [os.getcwd(), locale.getlocale(), socket.getdefaulttimeout(), Image.MAX_IMAGE_PIXELS],
        "model folders": repr(folders),
        "comfy": {{(module.__name__, name): id(value) for module in modules for name, value in vars(module).items()}},
        "layers": {{name: id(getattr(torch.nn, name)) for name in dir(torch.nn)}},
    }}

before = state()
spec = importlib.util.spec_from_file_location("pack", {str(PACK / "__init__.py")!r})
pack = importlib.util.module_from_spec(spec)
sys.modules["pack"] = pack
spec.loader.exec_module(pack)
nodes = asyncio.run(asyncio.run(pack.comfy_entrypoint()).get_node_list())
[node.GET_NODE_INFO_V1() for node in nodes]
after = state()
changed = [name for name in before if before[name] != after[name]]
assert not changed, changed
strangers = {{"nodes", "dimoo_core", "server", "execution"}} & set(sys.modules)
assert not strangers, strangers
"""


def test_importing_the_pack_changes_nothing_that_is_not_its_own() -> None:
    """Seeds, default dtype, torch's switches, import path, hooks, logging, warnings, environment, comfy itself."""
    told = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, cwd=PACK.parent)
    assert told.returncode == 0, told.stderr


def test_it_works_beside_a_pack_with_nodes_of_the_same_names(object_info: dict[str, Any]) -> None:
    ours = {object_info[name]["display_name"] for name in ("DimooLoader", "DimooSampler")}
    assert {object_info[name]["display_name"] for name in ("Loader", "LoadModel")} == ours
    assert object_info["LoadModel"]["category"] == "neighbour"


def test_a_strangers_model_is_one_sentence(client: Client) -> None:
    """Sockets are told apart by their name alone, so another pack's DIMOO_MODEL can be connected to our sampler."""
    prompt = {
        "1": {"class_type": "LoadModel", "inputs": {"checkpoint": "x"}},
        "2": {"class_type": "DimooTextEncode", "inputs": {"text": "a", "negative": ""}},
        "3": {"class_type": "DimooEmptyCanvas", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "4": {"class_type": "DimooLoader", "inputs": {"checkpoint": TINY, "weight_dtype": "auto"}},
        "5": {
            "class_type": "DimooSampler",
            "inputs": {"model": ["1", 0], "prompt": ["2", 0], "canvas": ["3", 0], "seed": 1}
            | {"steps": 2, "cfg": 0.0, "image_cfg": 0.0, "temperature": 1.0, "ml_cache": "off"},
        },
        "6": {"class_type": "DimooVQDecode", "inputs": {"vq": ["4", 1], "canvas": ["5", 0]}},
        "7": {"class_type": "PreviewImage", "inputs": {"images": ["6", 0]}},
    }
    for node in prompt.values():
        node["_meta"] = {"title": node["class_type"]}
    result = client.run(prompt)
    assert result.status == "error" and "DiMOO Loader" in result.error(), result.error()
    prompt["5"]["inputs"]["model"] = ["4", 0]
    assert client.run(prompt).status == "success"
