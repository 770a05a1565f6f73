"""A small hole in a large picture: its surroundings cut out to be worked on, and put back."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dimoo_core.pictures.crop import MAX_CONTEXT, feathered, region_around, resize, resize_mask, stitch, working_size
from ..dimoo_core.pictures.pixels import to_rgb, visible_alpha
from ..dimoo_core.pictures.sizes import CELL, MAX_SIDE
from . import host, pixels, widgets
from .canvas import defaults_of
from .sockets import Crop, CropSocket, ModelSocket, check_sockets


class CropAroundMask(host.io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return host.schema(
            node_id="DimooCropAroundMask",
            display_name="DiMOO Crop Around Mask (inpaint)",
            category="DiMOO",
            description=(
                "Crops a large picture around a mask and scales the crop to a size that suits the model, so that a "
                "small area is repainted in full detail. DiMOO Stitch puts the result back."
            ),
            search_aliases=["crop and stitch", "inpaint crop", "only masked area", "detailer"],
            inputs=[
                host.io.Image.Input("image", tooltip="The whole picture. All pictures of a batch are cropped alike."),
                host.io.Mask.Input("mask", tooltip="White marks what to repaint. In the size of the image."),
                widgets.number(
                    "context",
                    2.0,
                    (1, MAX_CONTEXT),
                    "How much of the surroundings the model sees: the crop is this many times as wide and high as the "
                    "masked area. 2 to 3 is enough to match light and perspective.",
                    step=0.25,
                ),
                widgets.integer(
                    "side",
                    -CELL,
                    (-CELL, MAX_SIDE),
                    "The crop is scaled to about side x side px in area, in its own shape. 0 keeps its size. Below 0: "
                    "the size that the connected model was made for; without a model 1024, for the 8B model.",
                    step=CELL,
                ),
                ModelSocket.Input(
                    "model",
                    optional=True,
                    tooltip="The model from DiMOO Loader: with a side below 0 the crop gets the size that it was made "
                    "for.",
                ),
            ],
            outputs=[
                host.io.Image.Output(display_name="image", tooltip="The crop, for DiMOO Mask Paint."),
                host.io.Mask.Output(display_name="mask", tooltip="The mask of the crop, for DiMOO Mask Paint."),
                CropSocket.Output(
                    display_name="crop", tooltip="The picture and where the crop belongs, for DiMOO Stitch."
                ),
            ],
        )

    @classmethod
    def execute(cls, image, mask, context=2.0, side=-CELL, model=None):
        check_sockets(**({} if model is None else {"model": model}))
        picture = pixels.channels_to_core(image)
        mask = pixels.mask_to_core(mask, picture)
        region = region_around(mask, context=context, scale=CELL)
        size = working_size(region, defaults_of(model).area_side if side < 0 else side, CELL)
        crop = Crop(picture, region, (region.of(mask) > 0.5).float())
        cut = pixels.to_comfy(resize(to_rgb(region.of(picture)), *size))
        return host.io.NodeOutput(cut, resize_mask(crop.mask, *size), crop)


class Stitch(host.io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return host.schema(
            node_id="DimooStitch",
            display_name="DiMOO Stitch (inpaint)",
            category="DiMOO",
            description=(
                "Puts a repainted crop, or an edited picture, back into the picture it was taken from, at that "
                "picture's size. Pixels outside the mask stay exactly as they were."
            ),
            search_aliases=["crop and stitch", "uncrop", "composite", "paste back", "original size"],
            inputs=[
                CropSocket.Input(
                    "crop",
                    tooltip="The picture and where the crop belongs, from DiMOO Crop Around Mask or Image Edit.",
                ),
                host.io.Image.Input("image", tooltip="The repainted crop or edited picture, from DiMOO VQ Decode."),
                widgets.integer(
                    "feather",
                    0,
                    (0, 256),
                    "Fades the repainted part in over this many px inside the edge of the mask. 0 gives a hard edge; "
                    "try 8 if a seam shows.",
                ),
                host.io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip=(
                        "The snapped mask from DiMOO Mask Paint: whole cells are put back, which hides the seam. "
                        "Without it only the area of your mask is put back; of an edit, all that the model saw."
                    ),
                ),
            ],
            outputs=[host.io.Image.Output(display_name="image", tooltip="The whole picture with the repainted part.")],
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
        shown = _shown(crop, None if mask is None else pixels.mask_to_core(mask, painted))
        colours = stitch(_colours(picture), crop.at_own_size(painted), feathered(shown, feather), region)
        return host.io.NodeOutput(pixels.to_comfy(_with_alpha(colours, crop)))


def _shown(crop: Crop, mask: Tensor | None) -> Tensor:
    """What is put back, [1 or B,h,w] of the region: the crop's own mask, or what is marked by one of the painted
    picture [1 or B,h',w']."""
    if mask is None:
        return crop.mask
    if crop.window is not None:
        return crop.mask * (crop.at_own_size(mask[:, None])[:, 0] > 0.5)
    # Whatever is above 0, since a feathered mask is small at its edge.
    return (resize_mask(mask, crop.region.width, crop.region.height) > 0).float()


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
