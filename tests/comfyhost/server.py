"""Starts a real ComfyUI with the pack in it, on a free port, with a base folder of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from bench.comfyui import PACK, comfyui_folder

HERE = Path(__file__).resolve().parent
BASE_FOLDERS = ("custom_nodes", "models", "input", "output", "temp", "user")
NOT_PART_OF_A_COPY = shutil.ignore_patterns(".git", ".nox", "output", "runs", "__pycache__", ".*_cache")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """One running ComfyUI: `with Server(folder) as server: Client(server.url)`.

    `folder` is its base folder (models, input, output, user) and holds the log, `server.log`. `probe` adds the
    small pack of routes that tests look through; `arguments` and `environment` are added to ComfyUI's own. Another page
    than the installed one is served where `COMFYUI_FRONT_END` names the `static` folder of its unpacked wheel.
    """

    def __init__(
        self,
        folder: Path,
        *,
        pack: Path = PACK,
        name: str = "dimoo-nodes",
        probe: bool = False,
        arguments: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
    ) -> None:
        self.folder = folder.resolve()
        self.log = self.folder / "server.log"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.arguments = tuple(os.environ.get("COMFYUI_ARGS", "--cpu").split()) + tuple(arguments)
        if os.environ.get("COMFYUI_FRONT_END"):
            self.arguments += ("--front-end-root", os.environ["COMFYUI_FRONT_END"])
        self.environment = environment or {}
        self.process: subprocess.Popen[bytes] | None = None
        for part in BASE_FOLDERS:
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        self.add_pack(pack, name)
        if probe:
            self.add_pack(HERE / "probe", "dimoo-probe")

    def add_pack(self, pack: Path, name: str) -> None:
        """Put a pack into custom_nodes: a link, so that no copy can be stale, or a copy where links are not allowed."""
        place = self.folder / "custom_nodes" / name
        if place.is_symlink():
            place.unlink()  # of an earlier run in the same folder, perhaps to another pack
        try:
            place.symlink_to(pack, target_is_directory=True)
        except OSError:
            shutil.copytree(pack, place, ignore=NOT_PART_OF_A_COPY, dirs_exist_ok=True)

    def command(self) -> list[str]:
        return [
            sys.executable, str(PACK / "bench" / "boot.py"), str(comfyui_folder()),
            "--listen", "127.0.0.1", "--port", str(self.port), "--base-directory", str(self.folder),
            "--database-url", f"sqlite:///{self.folder / 'user' / 'comfyui.db'}",
            "--disable-auto-launch", "--disable-api-nodes", *self.arguments,
        ]  # fmt: skip

    def start(self, timeout: float = 180.0) -> Server:
        """Start and wait until it answers. Raises RuntimeError with the end of the log if it does not."""
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", **self.environment}
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + timeout
        while not self.answers():
            if self.process.poll() is not None:
                code = self.process.returncode
                raise RuntimeError(f"ComfyUI ended while starting (exit code {code}):\n{self.tail()}")
            if time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"ComfyUI was not up within {timeout:.0f} s:\n{self.tail()}")
            time.sleep(0.1)
        return self

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/system_stats", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def stop(self) -> None:
        """Ask it to end as Ctrl-C does, and make sure that it has."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)
        if self.process.stdin is not None:
            self.process.stdin.close()

    def text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.text().splitlines()[-lines:])

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
