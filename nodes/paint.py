"""Inpainting and outpainting: which cells of a picture are repainted."""

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
            display_name="DiMOO Mask Paint (inpaint, outpaint)",
            category="DiMOO",
            description=(
                "Prepares inpainting and outpainting: keeps the picture and empties the masked cells for the sampler "
                "to repaint. To keep all other pixels exactly, connect the original image, the decoded picture and "
                "the snapped mask to ImageCompositeMasked."
            ),
            search_aliases=["fill", "object removal", "extend image", "uncrop", "noise mask"],
            hidden=[host.io.Hidden.unique_id],
            inputs=_inputs(),
            outputs=[
                CanvasSocket.Output(display_name="canvas", tooltip="The picture with empty cells, for DiMOO Sampler."),
                host.io.Mask.Output(
                    display_name="snapped mask",
                    tooltip="The repainted cells as a mask in px, for ImageCompositeMasked.",
                ),
                host.io.Image.Output(display_name="preview", tooltip="The picture with the masked cells in grey."),
            ],
        )

    @classmethod
    def execute(cls, vq, image, mode, mask_h_ratio=0.0, mask_w_ratio=0.0, grow=0, mask=None, feather=0):
        check_sockets(vq=vq)
        picture, outpaint = pixels.to_core(image), widgets.chosen("mode", mode, MODES)
        if mask is None and 0 in (mask_h_ratio, mask_w_ratio):
            raise ValueError(
                "mask is not connected, so nothing says what to repaint; connect a mask, or set mask_h_ratio and "
                "mask_w_ratio above 0 for a centred rectangle."
            )
        drawn = None if mask is None else pixels.mask_to_core(mask, picture)
        prepared = jobs.Inpaint(drawn, outpaint, mask_w_ratio, mask_h_ratio, grow).prepare(vq, picture)
        remark = _rectangle(outpaint, mask_h_ratio, mask_w_ratio) if mask is None else ""
        if remark:
            host.log("DiMOO Mask Paint: %s", remark)
        host.show_remark(remark, getattr(cls.hidden, "unique_id", None))
        # What continues the picture to whole cells is cut off again by compositing.
        shown = pixels.to_comfy(pixels.grey_where(prepared.picture, prepared.mask))
        snapped = feathered(prepared.mask, feather)
        return host.io.NodeOutput(prepared.canvas, snapped, shown, ui=host.ui.PreviewImage(shown, cls=cls))


def _rectangle(outpaint: bool, height: float, width: float) -> str:
    what = "all outside the centred rectangle" if outpaint else "the centred rectangle"
    return f"mask is not connected: {what} of mask_h_ratio {height:g} and mask_w_ratio {width:g} is repainted."


def _inputs() -> list:
    rectangle = (
        "Without a mask: {0} of the centred rectangle as a share of the picture's {0}; 1 is the full {0}. At 0 a mask "
        "is required."
    )
    return [
        VQSocket.Input("vq", tooltip="The VQ from DiMOO Loader."),
        host.io.Image.Input("image", tooltip="The picture to repaint in part, at its final size."),
        widgets.choice(
            "mode",
            MODES,
            "Only matters for the centred rectangle of mask_h_ratio and mask_w_ratio: inpaint repaints its inside, "
            "outpaint everything outside it. With a mask both do the same: white is repainted.",
        ),
        widgets.number("mask_h_ratio", 0.0, (0, 1), rectangle.format("height"), step=0.05),
        widgets.number("mask_w_ratio", 0.0, (0, 1), rectangle.format("width"), step=0.05),
        widgets.integer(
            "grow",
            0,
            (0, 64),
            "Grows the masked area by this many cells (16 px each) on every side. Try 1 or 2 if a seam or the edge of "
            "the old object shows.",
        ),
        host.io.Mask.Input(
            "mask",
            optional=True,
            tooltip=(
                "White is repainted: every 16 px cell that it touches. Draw it in the mask editor or take it from Pad "
                "Image for Outpainting, in the size of the image. Leave it unconnected only to repaint a centred "
                "rectangle: set mask_h_ratio and mask_w_ratio."
            ),
        ),
        widgets.integer(
            "feather",
            0,
            (0, 256),
            "Fades the repainted part in over this many px inside the edge of the snapped mask when you composite it. "
            "0 gives a hard edge; try 8 if a seam shows. Pixels outside the mask never change.",
            optional=True,
        ),
    ]
