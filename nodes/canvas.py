"""Canvas nodes: an empty canvas, picture to codes, codes to picture."""

from __future__ import annotations

from ..dimoo_core import jobs
from ..dimoo_core.pictures.sizes import CELL, check_size
from ..dimoo_core.sequence.canvas import Canvas
from . import host, pixels, widgets
from .sockets import CanvasSocket, VQSocket, check_sockets


def _side(name: str) -> host.io.Int.Input:
    tooltip = (
        f"The {name} of the picture in px, in steps of {CELL}. Best at about the area used in training, in any shape: "
        "1024x1024 for the 8B model, 128x128 for nano."
    )
    return widgets.integer(name, 1024, (CELL, pixels.MAX_SIDE), tooltip, step=CELL)


class EmptyCanvas(host.io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return host.schema(
            node_id="DimooEmptyCanvas",
            display_name="DiMOO Empty Canvas",
            category="DiMOO",
            description="An empty canvas for text-to-image: the sampler fills all of its cells.",
            search_aliases=["dimoo empty latent", "dimoo size"],
            inputs=[
                _side("width"),
                _side("height"),
                widgets.integer(
                    "batch_size",
                    1,
                    (1, 4096),
                    "How many pictures to make in one run. Picture i, counted from 0, uses seed + i, so you can make "
                    "any one of them again on its own.",
                ),
            ],
            outputs=[CanvasSocket.Output(display_name="canvas", tooltip="The empty canvas, for DiMOO Sampler.")],
        )

    @classmethod
    def execute(cls, width, height, batch_size=1):
        return host.io.NodeOutput(Canvas.empty(batch_size, *check_size(width, height, CELL)))


class VQEncode(host.io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return host.schema(
            node_id="DimooVQEncode",
            display_name="DiMOO VQ Encode",
            category="DiMOO",
            description=(
                "Converts a picture to the codes that the model works with. The canvas has no empty cells: to repaint "
                "a part of a picture, use DiMOO Mask Paint."
            ),
            search_aliases=["dimoo vae encode", "dimoo image to codes"],
            inputs=[
                VQSocket.Input("vq", tooltip="The VQ from DiMOO Loader."),
                host.io.Image.Input(
                    "image",
                    tooltip=(
                        f"The picture. A side that is not a multiple of {CELL} px is cropped to its centre; "
                        "transparent parts become white."
                    ),
                ),
            ],
            outputs=[CanvasSocket.Output(display_name="canvas", tooltip="The picture as codes.")],
        )

    @classmethod
    def execute(cls, vq, image):
        check_sockets(vq=vq)
        picture = pixels.crop_to_cells(pixels.to_core(image), vq.scale)
        return host.io.NodeOutput(Canvas.from_codes(jobs.encode(vq, picture)))


class VQDecode(host.io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return host.schema(
            node_id="DimooVQDecode",
            display_name="DiMOO VQ Decode",
            category="DiMOO",
            description="Converts a canvas to a picture. Cells that are still empty are grey.",
            search_aliases=["dimoo vae decode", "dimoo codes to image"],
            inputs=[
                VQSocket.Input("vq", tooltip="The VQ of the checkpoint that filled the canvas, from DiMOO Loader."),
                CanvasSocket.Input("canvas", tooltip="The canvas to decode, finished or not."),
            ],
            outputs=[
                host.io.Image.Output(display_name="image", tooltip=f"The picture; each cell is {CELL}x{CELL} px.")
            ],
        )

    @classmethod
    def execute(cls, vq, canvas):
        check_sockets(vq=vq, canvas=canvas)
        return host.io.NodeOutput(pixels.to_comfy(jobs.decode(vq, canvas)))
