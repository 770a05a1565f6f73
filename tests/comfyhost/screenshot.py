"""README's picture of a real graph: `python -m tests.comfyhost.screenshot [FILE] [--workflow NAME]`.

Starts a real ComfyUI and its page in Chromium (from nox's environment, .nox/comfyui), opens a template, runs it with
DiMOO-nano, and takes a picture of the whole graph with what came out: by default of text-to-image, into docs/graph.png.
The colours are reduced to 256, so that the file stays small.
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
    parser.add_argument("file", nargs="?", type=Path, default=PACK / "docs" / "graph.png", metavar="FILE")
    parser.add_argument("--workflow", default="text-to-image", metavar="NAME", help="a template; default %(default)s")
    arguments = parser.parse_args()
    picture = take(arguments.workflow).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    picture.save(arguments.file, optimize=True)
    print(f"{arguments.file}: {arguments.file.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
