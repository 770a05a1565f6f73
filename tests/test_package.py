"""What `pip install .` of a clone installs: the library, nano and a `dimoo` command, and nothing beside them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import tomllib

from dimoo_core.cli.app.command import GRADIO

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of what git knows of this checkout, built in a copy: building leaves files behind."""
    source = tmp_path_factory.mktemp("source")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout, so there is no list of files")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file() and not name.startswith("tests/released/"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    build = "from setuptools import build_meta; build_meta.build_wheel('.')"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = source.glob("*.whl")
    return path


def test_the_wheel_has_the_library_and_nano_alone(wheel: Path) -> None:
    assert wheel.name == f"dimoo_nodes-{PROJECT['version']}-py3-none-any.whl"
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names} == {"dimoo_core", f"dimoo_nodes-{PROJECT['version']}.dist-info"}
    tracked = subprocess.run(["git", "ls-files", "dimoo_core"], cwd=ROOT, capture_output=True, text=True)
    assert {name for name in names if name.startswith("dimoo_core/")} == {
        name for name in tracked.stdout.splitlines() if (ROOT / name).exists()
    }


def test_comfyui_installs_nothing_and_the_library_all_that_it_imports(wheel: Path) -> None:
    assert PROJECT["dependencies"] == []
    extra = {re.split(r"[<>=]", one)[0] for one in PROJECT["optional-dependencies"]["library"]}
    assert extra == {"torch", "tokenizers", "safetensors", "pillow", "numpy", "einops", "tqdm", "huggingface_hub"}
    metadata = zipfile.ZipFile(wheel).read(f"dimoo_nodes-{PROJECT['version']}.dist-info/METADATA").decode()
    required = re.findall(r"^Requires-Dist: (.*)$", metadata, re.MULTILINE)
    assert required and all('extra == "library"' in one or one.startswith("gradio") for one in required)


def test_the_page_asks_for_the_gradio_that_it_was_made_for() -> None:
    assert PROJECT["optional-dependencies"]["app"] == ["gradio>={},<{}".format(*GRADIO)]


def test_the_command_runs_in_any_folder(wheel: Path, tmp_path: Path) -> None:
    site, here = tmp_path / "site", tmp_path / "here"
    here.mkdir()
    with zipfile.ZipFile(wheel) as file:
        file.extractall(site)
    module, _, function = PROJECT["scripts"]["dimoo"].partition(":")
    script = site / "dimoo"  # what pip makes of the entry point
    script.write_text(f"import sys\nfrom {module} import {function}\nsys.exit({function}())\n")

    def dimoo(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, str(script), *arguments]
        environment = os.environ | {"PYTHONPATH": str(site)}
        return subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True)

    done = dimoo("generate", "a red circle", "--steps", "1", "-o", "made/", "--device", "cpu")
    assert done.returncode == 0 and (here / "made" / "generate-0.png").is_file(), done.stderr
    done = dimoo("generate", "a red circle", "--steps", "0")
    assert done.returncode == 2 and done.stderr.startswith("dimoo generate: --steps is 0")
    assert "python -m" not in dimoo("--help").stdout
    assert [path.name for path in here.iterdir()] == ["made"]
