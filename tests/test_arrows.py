"""The house rules that can be read off the source: who may import whom, and what must not be said where."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = ROOT / "dimoo_core"
NODES = ROOT / "nodes"
BENCH = ROOT / "bench"
PAGE = CORE / "cli" / "app" / "page.py"  # needs gradio, which tests of the rest do without

# Row by row, from the bottom: a package, or a single file, imports only from rows above its own in this list. Files of
# one package may import each other, as long as no circle comes of it.
ROWS = (
    ("checks", "files", "devices", "locks"),
    ("model", "sequence", "pictures", "hub"),
    ("sampling", "checkpoint"),
    ("provenance", "memory"),
    ("jobs",),
    ("judge", "training"),
    ("evaluation",),
    ("nano",),
    ("pipeline",),
    ("cli",),
    ("__main__",),
)
LIGHT = {"__future__", "typing"}  # all that the face imports before it is used
HOST_ONLY = {
    "comfy",
    "comfy_api",
    "comfy_execution",
    "comfy_extras",
    "folder_paths",
    "server",
    "execution",
    "latent_preview",
}


def sources(folder: Path) -> list[Path]:
    """Python files below a folder; hidden folders, such as the environment of nox, are not ours."""
    found = [path for path in folder.rglob("*.py") if "__pycache__" not in path.parts]
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def unit(path: Path) -> str:
    """The name in ROWS that a core file belongs to."""
    return path.relative_to(CORE).parts[0].removesuffix(".py")


def imports(path: Path, anywhere: bool = True) -> Iterator[tuple[int, str, list[str]]]:
    """(level, module, names) of each import statement; level 0 is absolute."""
    tree = ast.parse(path.read_text(encoding="ascii"))
    for node in ast.walk(tree) if anywhere else tree.body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield 0, alias.name, []
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or "", [alias.name for alias in node.names]


def core_targets(path: Path) -> Iterator[str]:
    """Names in ROWS that a core file imports from."""
    depth = len(path.relative_to(CORE).parts)
    for level, module, names in imports(path):
        if level == depth:  # from the root of the core
            yield from [module.split(".")[0]] if module else names


@pytest.mark.parametrize("path", sources(CORE), ids=lambda path: str(path.relative_to(CORE)))
def test_arrows_point_up(path: Path) -> None:
    name = unit(path)
    if name == "__init__":
        assert not [name for level, name, _ in imports(path, anywhere=False) if level or name not in LIGHT]
        return
    rows = {member: row for row, members in enumerate(ROWS) for member in members}
    assert name in rows, f"{name} is in no row: give it one, here and in the design"
    for target in core_targets(path):
        assert target == name or rows[target] < rows[name], f"{path.name} imports {target}, which is not above it"


def neighbours(path: Path) -> Iterator[Path]:
    """Core files that a core file imports as it is itself imported."""
    for level, module, names in imports(path, anywhere=False):
        if level:
            base = path.parents[level - 1].joinpath(*module.split(".")) if module else path.parents[level - 1]
            for name in (base.with_suffix(".py"), *(base / f"{one}.py" for one in names)):
                if name.is_file():
                    yield name


def test_no_file_imports_itself_by_a_detour() -> None:
    done: set[Path] = set()

    def follow(path: Path, way: tuple[Path, ...]) -> None:
        assert path not in way, " -> ".join(str(one.relative_to(CORE)) for one in (*way[way.index(path) :], path))
        if path not in done:
            for further in neighbours(path):
                follow(further, (*way, path))
            done.add(path)

    for path in sources(CORE):
        follow(path, ())
    assert len(done) == len(sources(CORE)) and sum(1 for path in done for _ in neighbours(path)) > 200


@pytest.mark.parametrize("path", sources(CORE), ids=lambda path: str(path.relative_to(CORE)))
def test_the_core_knows_neither_comfyui_nor_the_nodes(path: Path) -> None:
    depth = len(path.relative_to(CORE).parts)
    for level, module, _ in imports(path):
        assert level <= depth, "the core never looks out of its own folder"
        assert level or module.split(".")[0] not in HOST_ONLY | {"nodes", "dimoo_core"}, f"absolute import of {module}"


@pytest.mark.parametrize("path", sources(NODES), ids=lambda path: path.name)
def test_only_the_host_speaks_to_comfyui(path: Path) -> None:
    if path.name == "host.py":
        return
    for level, module, _ in imports(path):
        assert level or module.split(".")[0] not in HOST_ONLY, (
            f"{path.name} imports {module}; host.py is there for that"
        )
    words = re.findall(r"model_management|folder_paths|cli_args|InterruptProcessing|OOM_EXCEPTION", path.read_text())
    assert not words, f"{path.name} says {words}; that is for host.py"


@pytest.mark.parametrize("path", sources(NODES), ids=lambda path: path.name)
def test_nodes_use_the_core_by_relative_imports(path: Path) -> None:
    for level, module, names in imports(path):
        assert level or module.split(".")[0] not in {"nodes", "dimoo_core"}
        if level == 2:
            used = module.split(".")[1:] or names
            assert used[0] not in {"evaluation", "cli", "__main__"}, (
                "the nodes need neither evaluation nor the command line"
            )


@pytest.mark.parametrize("path", [*sources(CORE), *sources(NODES), ROOT / "__init__.py"], ids=lambda path: path.name)
def test_nothing_touches_a_gpu_or_the_network_at_import(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="ascii"))
    outside = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom, ast.Attribute))]
    for node in outside:
        assert "torch.cuda" not in ast.unparse(node) or "training" in path.parts
    for level, module, _ in imports(path):
        assert (
            level
            or module == "urllib.parse"
            or (module == "socket" and path.parent == PAGE.parent)  # tries the address before the model is loaded
            or module.split(".")[0]
            not in {
                "requests",
                "urllib",
                "http",
                "socket",
                "transformers",
            }
        )
    for level, module, _ in imports(path, anywhere=path != CORE / "hub" / "client.py"):
        assert level or module.split(".")[0] != "huggingface_hub", "only hub/client.py asks for it, when it downloads"


def test_only_the_page_needs_gradio_and_only_its_command_imports_the_page() -> None:
    for path in sources(CORE):
        names = {name for level, module, _ in imports(path) if not level for name in module.split(".")[:1]}
        assert "gradio" not in names or path == PAGE, f"{path.name} imports gradio; that is for {PAGE.name}"
        assert PAGE not in neighbours(path), f"{path.name} imports the page, and with it gradio, before it is used"


def test_importing_the_core_starts_no_gpu() -> None:
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sources(CORE)
        if path.stem != "__main__" and path != PAGE
    ]
    code = "import torch\ndef no(*_): raise RuntimeError('touched')\ntorch.cuda.init = torch.cuda._lazy_init = no\n"
    code += "import socket\nsocket.socket.connect = no\n"
    code += "\n".join(f"import {name.removesuffix('.__init__')}" for name in names)
    code += "\nimport sys; assert 'huggingface_hub' not in sys.modules, 'reads its settings from the environment'"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    "path", [*sources(CORE), *sources(NODES), *sources(BENCH), *sources(ROOT / "tests")], ids=lambda path: path.name
)
def test_source_is_plain(path: Path) -> None:
    text = path.read_bytes()
    assert text.isascii(), "a Windows console may not be able to print it"
    if path != CORE / "sequence" / "token_table.py" and ROOT / "tests" not in path.parents:
        assert not re.findall(rb"\b126\d{3}\b", text), "token ids live in token_table.py"


@pytest.mark.parametrize("path", sources(BENCH), ids=lambda path: path.name)
def test_the_bench_does_not_lean_on_the_tests(path: Path) -> None:
    for _, module, names in imports(path):
        assert "tests" not in [*module.split("."), *names], f"{path.name} imports {module}; move it to bench/"


def test_the_root_offers_one_name_and_only_as_a_package() -> None:
    subprocess.run([sys.executable, "-c", "import runpy; runpy.run_path('__init__.py')"], cwd=ROOT, check=True)
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="ascii"))
    assert [ast.unparse(node.test) for node in tree.body if isinstance(node, ast.If)] == ["__package__"]
    assert [names for _, _, names in imports(ROOT / "__init__.py")] == [["comfy_entrypoint"]]
