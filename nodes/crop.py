"""A small hole in a large picture: its surroundings cut out to be worked on, and put back."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dimoo_core.pictures.crop import MAX_CONTEXT, feathered, region_around, resize, resize_mask, stitch, working_size
from ..dimoo_core.pictures.pixels import to_rgb, visible_alpha
from ..dimoo_core.pictures.sizes import CELL
from . import host, pixels, widgets
from .sockets import Crop, CropSocket, check_sockets


class CropAroundMask(host.io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return host.schema(
            node_id="DimooCropAroundMask",
            display_name="DiMOO Crop Around Mask",
            category="DiMOO",
            description=(
                "Cuts the surroundings of a mask out of a large picture, at a size that the model likes, so that a "
                "small hole is painted with all its detail. Stitch puts the result back."
            ),
            search_aliases=["dimoo crop and stitch", "inpaint crop"],
            inputs=[
                host.io.Image.Input("image", tooltip="The whole picture; of a batch all are cut in the same place."),
                host.io.Mask.Input("mask", tooltip="White is what to repaint. As large as the image."),
                widgets.number(
                    "context",
                    2.0,
                    (1, MAX_CONTEXT),
                    "How much of the surroundings the model sees: the cut is this many times as wide and high as what "
                    "is marked.",
                    step=0.25,
                ),
                widgets.integer(
                    "side",
                    1024,
                    (0, 4096),
                    "The cut is scaled to about side x side px of area, in its own shape. 1024 suits the 8B model; 0 "
                    "keeps its size.",
                    step=CELL,
                ),
            ],
            outputs=[
                host.io.Image.Output(display_name="image", tooltip="The cut, for Mask Paint."),
                host.io.Mask.Output(display_name="mask", tooltip="The mask of the cut, for Mask Paint."),
                CropSocket.Output(display_name="crop", tooltip="Where the cut belongs, for Stitch."),
            ],
        )

    @classmethod
    def execute(cls, image, mask, context=2.0, side=1024):
        picture = pixels.channels_to_core(image)
        mask = pixels.mask_to_core(mask, picture)
        region = region_around(mask, context=context, scale=CELL)
        size = working_size(region, side, CELL)
        crop = Crop(picture, region, (region.of(mask) > 0.5).float())
        cut = pixels.to_comfy(resize(to_rgb(region.of(picture)), *size))
        return host.io.NodeOutput(cut, resize_mask(crop.mask, *size), crop)


class Stitch(host.io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return host.schema(
            node_id="DimooStitch",
            display_name="DiMOO Stitch",
            category="DiMOO",
            description=(
                "Puts a painted cut back into the picture that it was cut out of. Every pixel outside the mask is the "
                "original's."
            ),
            search_aliases=["dimoo crop and stitch", "inpaint stitch", "dimoo composite"],
            inputs=[
                CropSocket.Input("crop", tooltip="Where the cut belongs, from Crop Around Mask."),
                host.io.Image.Input("image", tooltip="The painted cut, from VQ Decode."),
                widgets.integer(
                    "feather",
                    0,
                    (0, 256),
                    "Over how many px, inside the edge of the mask, the painted part fades in. 0 is a hard edge.",
                ),
                host.io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip=(
                        "The snapped mask of Mask Paint: whole cells are put back, which hides the seam. Without it "
                        "just what was marked is put back."
                    ),
                ),
            ],
            outputs=[host.io.Image.Output(display_name="image", tooltip="The whole picture with its new part.")],
        )

    @classmethod
    def execute(cls, crop, image, feather=0, mask=None):
        check_sockets(crop=crop)
        picture, region = crop.picture, crop.region
        painted = pixels.to_core(image)
        if len(painted) == 1:
            painted = painted.expand(len(picture), -1, -1, -1)
        if len(picture) not in (1, len(painted)):
            raise ValueError(
                f"Got {len(painted)} painted images for a crop of {len(picture)} images; connect one, or one per image "
                "of the crop."
            )
        if mask is None:
            shown = crop.mask
        else:
            mask = pixels.mask_to_core(mask, painted)
            shown = (resize_mask(mask, region.width, region.height) > 0).float()  # a feathered one is small at its edge
        colours = stitch(_colours(picture), painted, feathered(shown, feather), region)
        return host.io.NodeOutput(pixels.to_comfy(_with_alpha(colours, crop)))


def _colours(picture: Tensor) -> Tensor:
    """RGB [B,3,h,w] of a picture [B,1 to 4,h,w], as they are under transparency too."""
    channels = picture.shape[1]
    return picture[:, : 1 if channels < 3 else 3].expand(-1, 3, -1, -1)


def _with_alpha(colours: Tensor, crop: Crop) -> Tensor:
    """Stitched colours [B,3,h,w], with alpha [B,4,h,w] where the picture that was cut out of has it."""
    if crop.picture.shape[1] in (1, 3):
        return colours
    alpha = crop.picture[:, -1:].clone()
    part = crop.region.of(alpha)
    part.copy_(visible_alpha(part, crop.mask))
    return torch.cat((colours, alpha.expand(len(colours), -1, -1, -1)), dim=1)
