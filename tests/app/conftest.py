"""The page in a browser: `nox -s app`, which has gradio. Elsewhere these tests are skipped."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ..comfyhost.page import open_browser

ROOT = Path(__file__).parents[2]
PATIENCE = 60_000  # ms


@dataclass
class Served:
    """A page that is served: its process, its address, the folder that its files lie in, and what it says on stderr."""

    process: subprocess.Popen
    url: str
    temporary: Path
    errors: Path

    def stop(self) -> tuple[int, str]:
        """Ctrl-C; gives the status, and what was said on stderr from then on."""
        before = len(self.errors.read_text())
        self.process.send_signal(signal.SIGINT)
        self.process.communicate(timeout=60)
        return self.process.returncode, self.errors.read_text()[before:]


def serve(place: Path) -> Served:
    """Start `python -m dimoo_core app` in the folder `place`."""
    temporary, errors = place / "temporary", place / "errors.txt"
    temporary.mkdir()
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "dimoo_core", "app"],
            cwd=place,
            env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"http://\S+", line)
    assert found is not None, line + errors.read_text()
    return Served(process, found[0], temporary, errors)


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    if os.environ.get("NOX_CURRENT_SESSION") != "app":
        pytest.importorskip("gradio")
        pytest.importorskip("playwright")
    served = serve(tmp_path_factory.mktemp("app"))
    yield served
    if served.process.poll() is None:
        served.stop()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    if os.environ.get("NOX_CURRENT_SESSION") != "app" and shutil.which("chromium") is None:
        pytest.skip("No chromium here: apt-get install chromium.")
    with open_browser() as browser:
        yield browser


@pytest.fixture
def visitors(chromium: Any, served: Served) -> Iterator[Any]:
    """Call it for a visitor's page, ready to use."""
    contexts = []

    def visit() -> Any:
        contexts.append(chromium.new_context(viewport={"width": 1280, "height": 1000}))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(served.url)
        page.get_by_role("button", name="Generate", exact=True).wait_for()
        return page

    yield visit
    for context in contexts:
        context.close()


@pytest.fixture
def page(visitors: Any) -> Any:
    return visitors()
