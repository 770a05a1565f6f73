"""README's own blocks run as they stand, and what it links is there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
from PIL import Image

from dimoo_core.nano.judge import judge, matches
from dimoo_core.pictures.pixels import from_pil

from .test_registry import MADE, SHIPPED

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINKS = re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", README)
FILES = sorted({unquote(one.partition("#")[0]) for pair in LINKS for one in pair if one and "://" not in one})


def block(language: str) -> str:
    """The one block of a language."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)
    return found


def shows(path: Path, text: str) -> bool:
    """Whether the judge sees in a picture what was asked, and nothing else."""
    verdict = judge(from_pil(Image.open(path))[0])
    return verdict.clean and matches(verdict.scene, text)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """As after `pip install .`: the library can be imported anywhere, and `dimoo` is a command."""
    folder = tmp_path / "bin"
    folder.mkdir()
    command = folder / "dimoo"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m dimoo_core "$@"\n')
    command.chmod(0o755)
    paths = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **paths, "HF_HUB_OFFLINE": "1"}


def test_the_python_block_runs(tmp_path: Path, environment: dict[str, str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    run = [sys.executable, "-c", block("python")]
    done = subprocess.run(run, cwd=empty, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    described = done.stdout.splitlines()[-1]
    assert re.fullmatch(r"a large blue star .* on a pink background", described), done.stdout
    assert shows(empty / "edited.png", described.replace("blue", "yellow"))


@pytest.mark.skipif(os.name == "nt", reason="the block is written for a POSIX shell")
def test_the_command_lines_run_one_after_the_other_in_an_empty_folder(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    printed = {}
    for line in block("sh").splitlines():
        done = subprocess.run(["sh", "-c", line], cwd=empty, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}: {done.stderr}"
        printed[line.split()[1]] = done.stdout
    asked = re.findall(r'"(.*?)"', block("sh"))
    assert shows(empty / "generate-0.png", asked[0])
    assert printed["describe"].strip() == asked[0]
    assert asked[1] == "make the star yellow" and shows(empty / "edit-0.png", asked[0].replace("blue", "yellow"))
    assert shows(empty / "inpaint-0.png", asked[2])
    for path in empty.glob("*.png"):
        assert shows(path, path.with_suffix(".txt").read_text(encoding="utf-8").strip()), "captioned"
    listed = (empty / "prompts.txt").read_text(encoding="utf-8").splitlines()
    assert len(listed) == 2
    for number, prompt in enumerate(listed, 1):
        assert shows(empty / "pictures" / f"{number:05}.png", prompt)


@pytest.mark.parametrize("name", FILES)
def test_a_link_leads_to_a_file_that_is_shipped(name: str) -> None:
    path = ROOT / name
    assert path.is_file()
    assert path in SHIPPED, "in the registry's archive README stands beside it"


@pytest.mark.parametrize("line", ["git clone", "comfy node install", "cm-cli install"])
def test_the_lines_that_install_name_the_repository(line: str) -> None:
    assert re.search(rf"{line} {re.escape(MADE['project']['urls']['Repository'])}[`\s]", README)


def test_every_template_is_linked_with_its_picture() -> None:
    templates = {f"workflows/{path.name}" for path in (ROOT / "workflows").iterdir()}
    assert templates and templates <= set(FILES)


def test_the_settings_that_matter_are_inputs_of_nodes() -> None:
    nodes = json.loads((ROOT / "tests" / "snapshots" / "nodes.json").read_text(encoding="utf-8"))
    inputs = {one["name"] for node in nodes.values() for one in node["inputs"]}
    rows = re.findall(r"^\| <img .*\| ([^|]*) \|$", README, flags=re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert len(rows) == len(list((ROOT / "workflows").glob("*.json"))) and "edit_type" in named
    assert named <= inputs


def test_ci_runs_the_readmes_command() -> None:
    *_, command = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert f"`{command}`" in README
    assert "`python -m pip install nox && python -m nox -s demo`" in README
