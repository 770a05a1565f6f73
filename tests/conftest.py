"""What tests share: DiMOO-nano in every kind, and one real ComfyUI with the pack in it, each made at first use and kept
to the end of the run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.boot import declare_missing_operators
from dimoo_core.checkpoint.convert import KINDS, convert
from dimoo_core.checkpoint.find import NANO, find

from .comfyhost.client import Client
from .comfyhost.server import HERE, Server, comfyui_folder
from .fake_hub import Hub
from .tiny import TRANSFORMER, write_checkpoint

LIBRARY = declare_missing_operators()  # for ComfyUI and diffusers alike; kept: it ends with its last reference
TINY = "tiny"  # a checkpoint of random weights in the server's model folder, where it matters how and not what
SMALL = TRANSFORMER | {"dimoo_defaults": {"size": [128, 128], "side": 128, "sides": [128, 160], "steps": 16}}


@pytest.fixture(scope="session")
def nano_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """DiMOO-nano as one file of each kind."""
    place = tmp_path_factory.mktemp("nano")
    for kind in KINDS:
        convert(find(NANO), place / f"{kind}.safetensors", kind)
    return {kind: place / f"{kind}.safetensors" for kind in KINDS}


@pytest.fixture(scope="session")
def served_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """The stand-in for the hub that the server downloads from; it has a tiny checkpoint, other than the server's."""
    with Hub(write_checkpoint(tmp_path_factory.mktemp("hub"), shards=2, seed=5, transformer=SMALL)) as hub:
        yield hub


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, served_hub: Hub) -> Iterator[Server]:
    """The running server. Without a ComfyUI the test is skipped, unless nox runs us, which has installed one."""
    try:
        comfyui_folder()
    except FileNotFoundError as missing:
        if "NOX_CURRENT_SESSION" in os.environ:
            raise
        pytest.skip(str(missing))
    server = Server(tmp_path_factory.mktemp("comfyui"), probe=True, environment={"HF_ENDPOINT": served_hub.url})
    server.add_pack(HERE / "neighbour", "a-neighbour")  # every test of the server is one beside another pack, too
    write_checkpoint(server.folder / "models" / "dimoo" / TINY, transformer=SMALL)
    with server:
        yield server


@pytest.fixture
def client(server: Server) -> Client:
    return Client(server.url)


@pytest.fixture(scope="session")
def object_info(server: Server) -> dict[str, Any]:
    """What the server says of all its nodes."""
    return Client(server.url).object_info()
