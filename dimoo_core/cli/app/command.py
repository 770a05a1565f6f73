"""The command `app`: its options, and the page from its start to Ctrl-C."""

from __future__ import annotations

import argparse
import os
import socket
import sys
import tempfile
import threading
from importlib import metadata
from pathlib import Path

from ...checks import shown
from ..command import Command
from ..messages import say
from ..options import load, model_arguments
from .desk import Desk
from .work import Workshop

GRADIO = (6, 7)  # from this version on, and below this one
_LOCAL = "127.0.0.1"


def app(args: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C. What visitors upload and what is made for them lies in a folder of its own, which is
    gone at the end."""
    pipe = load(args)
    with tempfile.TemporaryDirectory(prefix="dimoo-app-", ignore_cleanup_errors=True) as folder:
        # gradio reads these as it is imported: where files lie, and that nothing is sent anywhere or remembered
        os.environ["GRADIO_TEMP_DIR"] = folder
        os.environ["GRADIO_ANALYTICS_ENABLED"] = os.environ["GRADIO_RUN_HISTORY"] = "False"
        from .page import Page, serve

        desk = Desk()
        page = Page(Workshop(pipe, args, Path(folder).resolve()), desk)
        with serve(page, args.host, args.port, share=args.share) as urls:
            for url in urls:
                say(f"The page is at {url} (Ctrl-C ends it)")
            if args.host != _LOCAL or args.share:
                say("Whoever reaches that address can use it: there is no password.", sys.stderr)
            try:
                threading.Event().wait()
            finally:
                desk.close()  # a thread that computes must not outlive the program's main thread


def check_app(args: argparse.Namespace) -> None:
    """Raises ValueError where gradio is missing, or of another version than the page was made for, and where nothing
    can be served at the address: loading a model first would take minutes."""
    least, below = GRADIO
    install = f'run `pip install ".[library,app]"` in a clone of this pack, or `pip install "gradio>={least},<{below}"`'
    try:
        version = metadata.version("gradio")
    except metadata.PackageNotFoundError:
        raise ValueError(f"The page is made with gradio, which is not installed: {install}.") from None
    if not least <= int(version.split(".")[0]) < below:
        raise ValueError(f"gradio {version} is installed; expected version {least}: {install}.")
    if args.port is not None and not 1 <= args.port <= 65535:
        raise ValueError(f"--port is {args.port}; expected 1 to 65535.")
    if not _can_serve(args.host, 0):
        raise ValueError(f"--host is {shown(args.host)}; expected an address of this machine: use {_LOCAL} or 0.0.0.0.")
    if args.port is not None and not _can_serve(args.host, args.port):
        raise ValueError(f"The port {args.port} cannot be used: name another after --port, or none for a free one.")


def _can_serve(host: str, port: int) -> bool:
    try:
        socket.create_server((host, port)).close()
    except (OSError, UnicodeError):  # the latter for a name that cannot be one
        return False
    return True


def app_arguments(parser: argparse.ArgumentParser) -> None:
    model_arguments(parser)
    group = parser.add_argument_group("page")
    group.add_argument(
        "--host",
        default=_LOCAL,
        metavar="ADDRESS",
        help=f"0.0.0.0 lets other machines in ({_LOCAL}: this machine), without a password; only for people you trust: "
        "uploads are bounded, but what a visitor paints is decoded before its size can be checked, and can fill the "
        "machine's memory",
    )
    group.add_argument("--port", type=int, metavar="N", help="(the first free one from 7860 on)")
    group.add_argument(
        "--share",
        action="store_true",
        help="also make a public address for a week, through a server of gradio's makers: everybody who has it can use "
        "the page, with the same risk",
    )


COMMANDS = (
    Command(
        "app",
        "a page in the browser with a form for every job",
        ("app", "app --checkpoint models/Lumina-DiMOO --lora style.safetensors:0.8 --port 8000"),
        app_arguments,
        app,
        check=check_app,
        stopped="the page is closed",
    ),
)
