"""What the Comfy Registry would get: small, without tests, and nothing in it that a scanner stumbles over."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).parent.parent
MEGABYTES = 12  # nano is most of it


def shipped() -> list[Path]:
    """The files that comfy-cli would pack: tracked ones that .comfyignore leaves in."""
    told = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if told.returncode:
        pytest.skip("not a git checkout, so there is no list of files")
    lines = (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()
    ignored = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return [ROOT / name for name in told.stdout.split("\0") if name and not any(hides(rule, name) for rule in ignored)]


def hides(rule: str, name: str) -> bool:
    """Whether a rule of .comfyignore leaves a file out; the rules that we use are folders and names at the root."""
    rule = rule.removeprefix("/")
    return name.startswith(rule) if rule.endswith("/") else fnmatch(name, rule)


SHIPPED = shipped()
SOURCES = [path for path in SHIPPED if path.suffix == ".py"]


def test_the_archive_is_small_and_holds_what_users_need_alone() -> None:
    tops = {path.relative_to(ROOT).parts[0] for path in SHIPPED}
    assert {"__init__.py", "nodes", "dimoo_core", "workflows", "pyproject.toml", "README.md", "LICENSE"} <= tops
    assert not tops & {"tests", "bench", ".ci", "noxfile.py"}, "for developers"
    assert sum(path.stat().st_size for path in SHIPPED) < MEGABYTES * 2**20
    assert not [path for path in SHIPPED if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".so", ".exe")]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_pattern_of_a_scanner_is_in_a_shipped_file(path: Path) -> None:
    """Code made from text, other programs, pickles, hidden text: none is used, and none is spelled so as to look so."""
    text = path.read_text(encoding="ascii")
    found = re.findall(r"(?<![.\w])(?:eval|exec|compile|__import__)\s*\(", text)
    found += re.findall(r"\b(?:subprocess|os\.system|popen|marshal|ctypes|base64|b64decode)\b", text)
    found += re.findall(r"\bimport pickle|pickle\.loads?|torch\.load\(|weights_only|trust_remote_code", text)
    assert not found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_are_of_what_comes_with_comfyui(path: Path) -> None:
    standard = sys.stdlib_module_names
    known = {"torch", "tokenizers", "safetensors", "PIL", "numpy", "einops", "tqdm", "huggingface_hub"}
    known |= {"filelock", "triton", "typing_extensions"}  # torch brings them, where there are any
    known |= {"comfy", "comfy_api", "folder_paths"}
    for node in ast.walk(ast.parse(path.read_text(encoding="ascii"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module]
        strange = {name.split(".")[0] for name in names} - standard - known
        assert not strange, f"{path.name} imports {strange}"


def test_the_registry_reads_the_metadata_as_they_are_meant() -> None:
    """What comfy-cli checks (names, versions, classifiers), and what it is lenient about and users are not."""
    made = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project, comfy = made["project"], made["tool"]["comfy"]
    assert re.fullmatch(r"[a-z][a-z0-9-]{1,98}", project["name"]) and "comfyui" not in project["name"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"]) and project["dependencies"] == []
    assert project["urls"].keys() >= {"Repository", "Documentation", "Bug Tracker"}
    assert re.fullmatch(r">=\d+\.\d+\.\d+", comfy["requires-comfyui"]) and comfy["PublisherId"] and comfy["DisplayName"]
    systems = ("OS Independent", "Microsoft :: Windows", "POSIX :: Linux", "MacOS")
    for classifier in project["classifiers"]:
        if classifier.startswith("Operating System ::"):
            assert classifier.removeprefix("Operating System :: ") in systems
    assert not (ROOT / "requirements.txt").exists(), "there is nothing to install"
