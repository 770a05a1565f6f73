"""Every task that makes a picture from a picture: edits, maps, control, subject, views, style."""

from __future__ import annotations

from ..dimoo_core.jobs import Edit
from ..dimoo_core.pictures.sizes import MAX_SIDE, PATCH
from ..dimoo_core.sequence.prompt import EDITS
from . import host, pixels, widgets
from .sockets import CanvasSocket, PromptSocket, VQSocket, check_sockets


class ImageEdit(host.io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return host.schema(
            node_id="DimooImageEdit",
            display_name="DiMOO Image Edit",
            category="DiMOO",
            description=(
                "Prompt and canvas for making a picture from a picture: edits by instruction, maps of a picture, "
                "pictures from a control map or of a given subject, other views of an object, and style transfer."
            ),
            search_aliases=["dimoo edit", "dimoo control", "dimoo style transfer", "dimoo depth", "dimoo canny"],
            inputs=_inputs(),
            outputs=[
                PromptSocket.Output(display_name="prompt", tooltip="Instruction and pictures, for DiMOO Sampler."),
                CanvasSocket.Output(
                    display_name="canvas", tooltip="An empty canvas of the same size as the fitted image."
                ),
                host.io.Image.Output(
                    display_name="fitted image", tooltip="The input picture as the model sees it, scaled and cropped."
                ),
            ],
        )

    @classmethod
    def execute(cls, vq, image, edit_type, text="", side=512, reference_image=None):
        check_sockets(vq=vq)
        reference = None if reference_image is None else pixels.to_core(reference_image, "reference image")
        request = Edit(edit_type, text, reference=reference, side=side)
        prepared = request.prepare(vq, pixels.to_core(image))
        return host.io.NodeOutput(prepared.prompt, prepared.canvas, pixels.to_comfy(prepared.fitted))


def _inputs() -> list:
    return [
        VQSocket.Input("vq", tooltip="The VQ from DiMOO Loader."),
        host.io.Image.Input("image", tooltip="The picture to start from. A batch gives one result per picture."),
        widgets.choice(
            "edit_type",
            EDITS,
            "edit_*: change the picture as the text says: add, remove or replace something, or change the background "
            "or the writing. *_pred: draw a map of the picture: canny and hed = edges, depth = distance, openpose = "
            "body pose, normal = surface direction, sam2mask = segmentation. *_control: paint a new picture from such "
            "a map and the text. subject_driven: put the same subject into a new scene. image_ref_transfer: repaint "
            "the picture in the style of the reference image. multi_view_*: show an object, seen from the front, from "
            "the left, right or back.",
        ),
        widgets.words(
            "text",
            'The instruction, such as "make the circle blue", or what the new picture should show. Ignored by '
            "*_pred, multi_view_* and image_ref_transfer, which use fixed instructions.",
        ),
        widgets.integer(
            "side",
            512,
            (4 * PATCH, MAX_SIDE),
            "Size of the result: the picture is scaled to about side x side px in area, in its own shape, and cropped "
            "at the centre to fit. A large picture comes out small; upscale the result afterwards. 512 for the 8B "
            "model, 128 for nano, as in training.",
            step=PATCH,
        ),
        host.io.Image.Input(
            "reference_image",
            optional=True,
            tooltip=(
                "The picture whose style to use. Required by image_ref_transfer; leave it unconnected for all other "
                "edit types."
            ),
        ),
    ]
