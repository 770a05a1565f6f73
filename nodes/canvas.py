"""Canvas nodes: an empty canvas, picture to codes, codes to picture."""

from __future__ import annotations

from ..dimoo_core import jobs
from ..dimoo_core.checkpoint.defaults import Defaults
from ..dimoo_core.pictures.pixels import changed_size
from ..dimoo_core.pictures.sizes import CELL, check_size
from ..dimoo_core.sequence.canvas import Canvas
from . import host, pixels, widgets
from .sockets import CanvasSocket, LoadedModel, ModelSocket, VQSocket, check_sockets


def defaults_of(model: LoadedModel | None) -> Defaults:
    """What a checkpoint was made for; without one, what the published model was."""
    return Defaults() if model is None else model.found.defaults


def _side(name: str) -> host.io.Int.Input:
    tooltip = (
        f"The {name} of the picture in px, in steps of {CELL}. Best at about the area used in training, in any shape. "
        "0 or less: the size that the connected model was made for; without a model 1024, for the 8B model."
    )
    return widgets.integer(name, 0, (-CELL, pixels.MAX_SIDE), tooltip, step=CELL)


class EmptyCanvas(host.io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return host.schema(
            node_id="DimooEmptyCanvas",
            display_name="DiMOO Empty Canvas",
            category="DiMOO",
            description="An empty canvas for text-to-image: the sampler fills all of its cells.",
            search_aliases=["empty latent image", "resolution", "size"],
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
                ModelSocket.Input(
                    "model",
                    optional=True,
                    tooltip="The model from DiMOO Loader: a width or height of 0 is then the one that it was made for.",
                ),
            ],
            outputs=[CanvasSocket.Output(display_name="canvas", tooltip="The empty canvas, for DiMOO Sampler.")],
        )

    @classmethod
    def execute(cls, width=0, height=0, batch_size=1, model=None):
        check_sockets(**({} if model is None else {"model": model}))
        own_width, own_height = defaults_of(model).size
        width, height = (widgets.unless_own_size(side) for side in (width, height))
        cells = check_size(width or own_width, height or own_height, CELL)
        return host.io.NodeOutput(Canvas.empty(batch_size, *cells))


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
            search_aliases=["vae encode", "image to codes"],
            hidden=[host.io.Hidden.unique_id],
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
        whole = pixels.to_core(image)
        picture = pixels.crop_to_cells(whole, vq.scale)
        remark = changed_size(whole, picture, f"each cell is {vq.scale} px, and the edges are cut off")
        host.show_remark(remark, getattr(cls.hidden, "unique_id", None))
        return host.io.NodeOutput(Canvas.from_codes(jobs.encode(vq, picture)))


class VQDecode(host.io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return host.schema(
            node_id="DimooVQDecode",
            display_name="DiMOO VQ Decode",
            category="DiMOO",
            description="Converts a canvas to a picture. Cells that are still empty are grey.",
            search_aliases=["vae decode", "codes to image"],
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
