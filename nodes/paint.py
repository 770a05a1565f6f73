"""Inpainting and outpainting: which cells of a picture are made anew."""

from __future__ import annotations

from ..dimoo_core import jobs
from ..dimoo_core.pictures.crop import feathered
from . import host, pixels, widgets
from .sockets import CanvasSocket, VQSocket, check_sockets

MODES = {"inpaint": False, "outpaint": True}  # whether a centred rectangle is what stays


class MaskPaint(host.io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return host.schema(
            node_id="DimooMaskPaint",
            display_name="DiMOO Mask Paint",
            category="DiMOO",
            description=(
                "Prepares inpainting and outpainting: keeps the picture and makes the marked cells unknown. To leave "
                "all other pixels as they were, connect the original image, the decoded picture and the snapped mask "
                "to ImageCompositeMasked."
            ),
            search_aliases=["dimoo inpaint", "dimoo outpaint"],
            inputs=_inputs(),
            outputs=[
                CanvasSocket.Output(display_name="canvas", tooltip="The picture with holes, for the sampler."),
                host.io.Mask.Output(
                    display_name="snapped mask",
                    tooltip="The cells that are made anew, in px, for ImageCompositeMasked.",
                ),
                host.io.Image.Output(display_name="preview", tooltip="The picture with the marked cells grey."),
            ],
        )

    @classmethod
    def execute(cls, vq, image, mode, mask_h_ratio=1.0, mask_w_ratio=0.2, grow=0, mask=None, feather=0):
        check_sockets(vq=vq)
        picture, outpaint = pixels.to_core(image), widgets.chosen("mode", mode, MODES)
        drawn = None if mask is None else pixels.mask_to_core(mask, picture)
        prepared = jobs.Inpaint(drawn, outpaint, mask_w_ratio, mask_h_ratio, grow).prepare(vq, picture)
        # What continues the picture to whole cells is cut off again by compositing.
        shown = pixels.to_comfy(pixels.grey_where(prepared.picture, prepared.mask))
        snapped = feathered(prepared.mask, feather)
        return host.io.NodeOutput(prepared.canvas, snapped, shown, ui=host.ui.PreviewImage(shown, cls=cls))


def _inputs() -> list:
    rectangle = "Without a mask: the {} of a centred rectangle as a share of the picture's."
    return [
        VQSocket.Input("vq", tooltip="The VQ of the checkpoint."),
        host.io.Image.Input("image", tooltip="The picture to repaint in part, at the size it shall have."),
        widgets.choice(
            "mode",
            MODES,
            "Without a mask: inpaint makes the inside of a centred rectangle anew, outpaint all around it. A mask is "
            "read the same way in both: white is made anew.",
        ),
        widgets.number("mask_h_ratio", 1.0, (0, 1), rectangle.format("height"), step=0.05),
        widgets.number("mask_w_ratio", 0.2, (0, 1), rectangle.format("width"), step=0.05),
        widgets.integer(
            "grow", 0, (0, 64), "How many cells (16 px each) the marked area grows on all sides; helps against seams."
        ),
        host.io.Mask.Input(
            "mask",
            optional=True,
            tooltip=(
                "White is made anew, every cell that it touches, as the mask editor and Pad Image for Outpainting give "
                "it. As large as the image. Without one a centred rectangle is taken."
            ),
        ),
        widgets.integer(
            "feather",
            0,
            (0, 256),
            "Over how many px, inside the edge of the snapped mask, the painted part fades in when it is composited. 0 "
            "is a hard edge; outside the mask nothing changes either way.",
            optional=True,
        ),
    ]
