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
from PIL import Image

ROOT = Path(__file__).parent.parent
MADE = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
RAW = "https://raw.githubusercontent.com/dimoo-nodes/dimoo-nodes/main/"
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
    if path.is_relative_to(ROOT / "nodes"):
        known |= {"comfy", "comfy_api", "folder_paths", "aiohttp"}
    if path.is_relative_to(ROOT / "dimoo_core" / "cli" / "app"):
        known |= {"gradio", "starlette"}  # the form without ComfyUI, which nothing else imports
    for node in ast.walk(ast.parse(path.read_text(encoding="ascii"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module]
        strange = {name.split(".")[0] for name in names} - standard - known
        assert not strange, f"{path.name} imports {strange}"


def test_the_registry_reads_the_metadata_as_they_are_meant() -> None:
    """What comfy-cli checks (names, versions), and what it is lenient about and users are not."""
    project, comfy = MADE["project"], MADE["tool"]["comfy"]
    assert re.fullmatch(r"[a-z][a-z0-9-]{1,98}", project["name"]) and "comfyui" not in project["name"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"]) and project["dependencies"] == []
    assert project["urls"].keys() >= {"Repository", "Documentation", "Bug Tracker"}
    assert re.fullmatch(r">=\d+\.\d+\.\d+", comfy["requires-comfyui"]) and comfy["PublisherId"] and comfy["DisplayName"]
    assert not (ROOT / "requirements.txt").exists(), "there is nothing to install"


def test_classifiers_are_of_the_registrys_own_lists() -> None:
    """comfy-cli publishes no systems at all, or no accelerators, where one of them is not of its list."""
    systems = {"OS Independent", "Microsoft :: Windows", "POSIX :: Linux", "MacOS"}
    accelerators = {"GPU :: NVIDIA CUDA", "GPU :: AMD ROCm", "GPU :: Intel Arc", "NPU :: Huawei Ascend"}
    accelerators |= {"GPU :: Apple Metal"}
    for topic, known in (("Operating System", systems), ("Environment", accelerators)):
        rows = [line for line in MADE["project"]["classifiers"] if line.startswith(topic)]
        assert rows and {row.removeprefix(f"{topic} :: ") for row in rows} <= known


def test_python_versions_begin_where_the_code_does() -> None:
    oldest = int(re.fullmatch(r">=3\.(\d+)", MADE["project"]["requires-python"])[1])
    prefix = "Programming Language :: Python :: 3."
    named = [int(row.removeprefix(prefix)) for row in MADE["project"]["classifiers"] if row.startswith(prefix)]
    assert named == list(range(oldest, 14))
    assert MADE["tool"]["ruff"]["target-version"] == f"py3{oldest}"


@pytest.mark.parametrize(
    "word",
    [
        "lumina",
        "dimoo",
        "text to image",
        "inpaint",
        "outpaint",
        "edit",
        "control",
        "style",
        "describe",
        "caption",
        "lora",
    ],
)
def test_the_registrys_search_finds_the_pack_by_what_it_does(word: str) -> None:
    """comfy-cli sends the display name and the description, and no keywords: those are for pip."""
    assert word in f"{MADE['tool']['comfy']['DisplayName']} {MADE['project']['description']}".lower()


@pytest.mark.parametrize(("key", "shape"), [("Icon", (1, 1)), ("Banner", (21, 9))])
def test_icon_and_banner_lie_in_the_repository_in_the_shape_that_is_asked_for(key: str, shape: tuple[int, int]) -> None:
    address = MADE["tool"]["comfy"][key]
    assert address.startswith(RAW)
    picture = Image.open(ROOT / address.removeprefix(RAW))
    assert picture.width * shape[1] == picture.height * shape[0]
    assert picture.format == "PNG" and (key == "Banner" or picture.width <= 400)
    colours = picture.convert("RGB").getcolors(maxcolors=2**24)
    assert len(colours) > 100, "there is something to see"


def test_every_version_has_its_changes_with_a_date() -> None:
    """What users read under Updates: `nox -s registry` cuts a version's section out. Only the next has no date yet."""
    headings = re.findall(r"^## (\d+\.\d+\.\d+) \((.+)\)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    versions = [tuple(map(int, version.split("."))) for version, _ in headings]
    assert versions == sorted(set(versions), reverse=True)
    dated = {version for version, when in headings if re.fullmatch(r"\d{1,2} [A-Z][a-z]+ 20\d\d", when)}
    assert {version for version, _ in headings} - dated <= {headings[0][0]}, "of old versions the date is known"
    released = {folder.name for folder in (ROOT / "tests" / "released").iterdir() if folder.name[0].isdigit()}
    assert {*released, MADE["project"]["version"]} <= dated
