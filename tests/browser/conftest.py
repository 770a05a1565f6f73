"""A real page in a real browser: Debian's Chromium, driven by playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from ..comfyhost.page import begin, open_browser, open_page
from ..comfyhost.server import Server

SMALL = (1280, 800)  # px, the smallest screen that the workflows are laid out for
NEWER = os.environ.get("COMFYUI_FRONT_END") or os.environ.get("DIMOO_NEWER_PAGE")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A started browser; where there is none, tests are skipped, unless nox's browser session runs them."""
    needed = os.environ.get("NOX_CURRENT_SESSION") == "browser"
    if not needed and (shutil.which("chromium") is None):
        pytest.skip("No chromium here: apt-get install chromium.")
    if not needed:
        pytest.importorskip("playwright")
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="session")
def window(chromium: Any, server: Server) -> Iterator[Any]:
    """The window that all tests share; what is in it is `page`."""
    window = open_page(chromium, server.url, *SMALL)
    yield window
    window.context.close()


@pytest.fixture
def page(window: Any, server: Server) -> Any:
    """ComfyUI's page, ready, as if nobody had used it before: whatever other tests did, or broke, is gone."""
    begin(window, server.url)
    return window


@pytest.fixture(scope="session")
def newer_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a newer page than the one of 0.3.75, which can serve it: the one that nox's browser session
    unpacks and names in DIMOO_NEWER_PAGE; where COMFYUI_FRONT_END names a page, that one."""
    if NEWER is None:
        pytest.skip("No newer page here: set COMFYUI_FRONT_END, or run nox -s browser.")
    with Server(tmp_path_factory.mktemp("newer"), arguments=("--front-end-root", NEWER)) as server:
        yield server


@pytest.fixture(scope="session")
def newer_window(chromium: Any, newer_server: Server) -> Iterator[Any]:
    """A window that tests of the newer page share."""
    window = open_page(chromium, newer_server.url)
    yield window
    window.context.close()
