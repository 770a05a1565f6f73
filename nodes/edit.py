"""Every task that makes a picture from a picture: edits, maps, control, subject, views, style."""

from __future__ import annotations

from ..dimoo_core.jobs import Edit
from ..dimoo_core.pictures.pixels import changed_size, to_rgb
from ..dimoo_core.pictures.sizes import MAX_SIDE, PATCH
from ..dimoo_core.sequence.prompt import EDIT_NAMES
from . import host, pixels, widgets
from .sockets import CanvasSocket, Crop, CropSocket, PromptSocket, VQSocket, check_sockets


class ImageEdit(host.io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return host.schema(
            node_id="DimooImageEdit",
            display_name="DiMOO Image Edit (style transfer)",
            category="DiMOO",
            description=(
                "Prompt and canvas for making a picture from a picture: edits by instruction, maps of a picture, "
                "pictures from a control map or of a given subject, other views of an object, and style transfer."
            ),
            search_aliases=[
                "img2img",
                "image to image",
                "controlnet",
                "instruct edit",
                "depth map",
                "canny",
                "openpose",
            ],
            hidden=[host.io.Hidden.unique_id],
            inputs=[*_what(), *_further()],
            outputs=[
                PromptSocket.Output(display_name="prompt", tooltip="Instruction and pictures, for DiMOO Sampler."),
                CanvasSocket.Output(
                    display_name="canvas", tooltip="An empty canvas of the same size as the fitted image."
                ),
                host.io.Image.Output(
                    display_name="fitted image", tooltip="The input picture as the model sees it, scaled and cropped."
                ),
                CropSocket.Output(
                    display_name="crop",
                    tooltip="For DiMOO Stitch, which puts the decoded result back into the picture at its own size.",
                ),
            ],
        )

    @classmethod
    def execute(cls, vq, image, edit_type, text="", side=0, reference_image=None, negative=""):
        check_sockets(vq=vq)
        whole = pixels.channels_to_core(image)
        reference = None if reference_image is None else pixels.to_core(reference_image, "reference image")
        side = vq.found.defaults.own("side", widgets.unless_own_size(side))
        request = Edit(edit_type, text, negative, reference, side)
        prepared = request.prepare(vq, to_rgb(whole))
        remark = changed_size(
            whole, prepared.fitted, "connect crop to DiMOO Stitch to get the picture back at its own size"
        )
        if remark:
            host.log("DiMOO Image Edit: %s", remark)
        host.show_remark(remark, getattr(cls.hidden, "unique_id", None))
        return host.io.NodeOutput(
            prepared.prompt, prepared.canvas, pixels.to_comfy(prepared.fitted), Crop.fitted(whole, prepared.fitted)
        )


def _what() -> list:
    return [
        VQSocket.Input("vq", tooltip="The VQ from DiMOO Loader."),
        host.io.Image.Input("image", tooltip="The picture to start from. A batch gives one result per picture."),
        widgets.choice(
            "edit_type",
            EDIT_NAMES,
            "What to do with the picture. add, remove, replace, change: what the text says. map: draw a map of the "
            "picture, such as its edges or how far away everything is. picture from: paint a new picture from such a "
            "map and the text. same subject: put it into a new scene. style: repaint the picture in the style of the "
            "reference image. view: show an object, seen from the front, from another side. The names with _, at "
            "the end of the list, mean the same; older workflows have them.",
        ),
        widgets.words(
            "text",
            'The instruction, such as "make the circle blue", or what the new picture should show. Maps, views and '
            "style use fixed instructions and ignore it.",
        ),
        widgets.integer(
            "side",
            0,
            (-PATCH, MAX_SIDE),
            "Size of the result: the picture is scaled to about side x side px in area, in its own shape, and cropped "
            "at the centre to fit. 0 or less: the size that the checkpoint was made for. A large picture comes out "
            "small; DiMOO Stitch brings the result back to its size.",
            step=PATCH,
        ),
    ]


def _further() -> list:
    return [
        host.io.Image.Input(
            "reference_image",
            optional=True,
            tooltip=(
                'The picture whose style to use. Required by "style of the reference image"; leave it unconnected for '
                "all other edit types."
            ),
        ),
        widgets.words(
            "negative",
            "Negative prompt: what the result should not show. Works through the sampler's cfg and has no effect at "
            "cfg 0. Usually best left empty: the model then uses the unconditional prompt that it was trained with.",
            optional=True,
        ),
    ]
