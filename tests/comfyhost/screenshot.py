"""README's pictures of a real page: `python -m tests.comfyhost.screenshot [FILE] [--workflow NAME] [--app]`.

Starts a real ComfyUI and its page in Chromium (from nox's environment, .nox/comfyui), opens a template, runs it with
DiMOO-nano, and takes a picture of the whole graph with what came out: by default of text-to-image, into docs/graph.png;
with --app, of the form that the template is as an app, into docs/app.png. That takes a newer ComfyUI with a newer page,
which COMFYUI_PATH and COMFYUI_FRONT_END name. The colours are reduced to 256, so that the file stays small.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path

from PIL import Image

from .page import WHOLE, begin, drawn, open_browser, open_page, open_template, press_run, show_whole, wait_for_end
from .server import PACK, Server

WIDTH, HEIGHT = 1600, 900  # px
QUIET = {"Comfy.Graph.CanvasInfo": False}  # frame rates in a corner
# What lies over the canvas and is not the graph: the banner for Nodes 2.0, and messages.
TIDY = ".p-toast, [class*=banner], .bg-blue-600 { visibility: hidden }"
NEARER = WHOLE.replace("0.92", "0.86")  # more room around it than a test needs
SHOWN = """() => app.graph.nodes.filter(node => node.type === 'SaveImage' || node.type === 'PreviewImage')
    .every(node => node.imgs?.[0]?.naturalWidth)"""
RESULT = "[...document.images].some(image => image.src.includes('/view?') && image.naturalWidth)"


def take_app(name: str) -> Image.Image:
    """The form of the template of that name after a run."""
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder)) as server, open_browser() as browser:
        page = open_page(browser, server.url, WIDTH, HEIGHT)
        page.goto(f"{server.url}/?template={name}&source=dimoo-nodes&mode=linear")
        page.get_by_role("button", name="Skip", exact=True).click()  # a tour of App mode
        page.get_by_role("button", name="Run", exact=True).last.click()
        page.wait_for_function(RESULT)
        for passing in ("Cancel this run", "Job queued"):
            page.get_by_text(passing).wait_for(state="hidden")
        return Image.open(io.BytesIO(page.screenshot()))


def take(name: str) -> Image.Image:
    """The page after the template of that name has run. Raises RuntimeError if it fails."""
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder)) as server, open_browser() as browser:
        page = open_page(browser, server.url, WIDTH, HEIGHT)
        page.add_init_script("localStorage.setItem('vueNodesBannerDismissed', 'true')")
        begin(page, server.url, **QUIET)
        open_template(page, name)
        press_run(page)
        if (end := wait_for_end(page)) != "execution_success":
            raise RuntimeError(f"{name} ended with {end}; see what ComfyUI said:\n{server.tail()}")
        page.wait_for_function(SHOWN)
        page.mouse.move(WIDTH // 2, HEIGHT - 5)
        show_whole(page)
        page.evaluate(NEARER)
        page.add_style_tag(content=TIDY)
        drawn(page)
        return Image.open(io.BytesIO(page.screenshot()))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.comfyhost.screenshot", description=__doc__.split("\n")[0])
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="default docs/graph.png or docs/app.png")
    parser.add_argument("--workflow", default="text-to-image", metavar="NAME", help="a template; default %(default)s")
    parser.add_argument("--app", action="store_true", help="show it as a form")
    arguments = parser.parse_args()
    shown = take_app(arguments.workflow) if arguments.app else take(arguments.workflow)
    file = arguments.file or PACK / "docs" / ("app.png" if arguments.app else "graph.png")
    shown.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)
    print(f"{file}: {file.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
