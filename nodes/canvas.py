"""Canvases: an empty one, a picture as codes, and codes as a picture."""

from __future__ import annotations

from ..dimoo_core import jobs
from ..dimoo_core.pictures.sizes import CELL, check_size
from ..dimoo_core.sequence.canvas import Canvas
from . import host, pixels, widgets
from .sockets import CanvasSocket, VQSocket, check_sockets


def _side(name: str) -> host.io.Int.Input:
    tooltip = f"The {name} in px, in steps of {CELL}. The 8B model was trained on about 1024x1024 px in all, nano on "
    return widgets.integer(name, 1024, (CELL, 4096), tooltip + "128x128.", step=CELL)


class EmptyCanvas(host.io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return host.schema(
            node_id="DimooEmptyCanvas",
            display_name="DiMOO Empty Canvas",
            category="DiMOO",
            description="A canvas of which every cell is still unknown, for text-to-image.",
            search_aliases=["dimoo empty latent", "dimoo size"],
            inputs=[
                _side("width"),
                _side("height"),
                widgets.integer(
                    "batch_size",
                    1,
                    (1, 64),
                    "How many pictures. Picture i has the seed + i, so that each can be made again alone.",
                ),
            ],
            outputs=[CanvasSocket.Output(display_name="canvas", tooltip="The empty canvas, for the sampler.")],
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
            description="Turns a picture into the codes that the model thinks in. No cell of the canvas is unknown.",
            search_aliases=["dimoo vae encode", "dimoo image to codes"],
            inputs=[
                VQSocket.Input("vq", tooltip="The VQ of the checkpoint."),
                host.io.Image.Input(
                    "image",
                    tooltip=(
                        f"The picture. Where a side is no multiple of {CELL} px, its centre is taken; what is "
                        "transparent becomes white."
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
            description="Turns a canvas into a picture. Cells that are still unknown are grey.",
            search_aliases=["dimoo vae decode", "dimoo codes to image"],
            inputs=[
                VQSocket.Input("vq", tooltip="The VQ of the checkpoint that the canvas comes from."),
                CanvasSocket.Input("canvas", tooltip="The canvas, finished or not."),
            ],
            outputs=[host.io.Image.Output(display_name="image", tooltip=f"The picture, {CELL} px per cell.")],
        )

    @classmethod
    def execute(cls, vq, canvas):
        check_sockets(vq=vq, canvas=canvas)
        return host.io.NodeOutput(pixels.to_comfy(jobs.decode(vq, canvas)))
