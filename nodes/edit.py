"""Editing a picture by words, and all else that makes a picture of a picture."""

from __future__ import annotations

from ..dimoo_core.jobs import Edit
from ..dimoo_core.pictures.sizes import PATCH
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
                "Prepares the making of a picture from a picture: edits by words, pictures from control maps or of a "
                "subject, maps from pictures, other views, and the style of another picture."
            ),
            search_aliases=["dimoo edit", "dimoo control", "dimoo style transfer", "dimoo depth", "dimoo canny"],
            inputs=_inputs(),
            outputs=[
                PromptSocket.Output(display_name="prompt", tooltip="Words and pictures, for the sampler."),
                CanvasSocket.Output(display_name="canvas", tooltip="An empty canvas of the fitted size, to be filled."),
                host.io.Image.Output(display_name="fitted image", tooltip="The picture as the model sees it."),
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
        VQSocket.Input("vq", tooltip="The VQ of the checkpoint."),
        host.io.Image.Input("image", tooltip="The picture to start from; a batch gives one result each."),
        widgets.choice(
            "edit_type",
            EDITS,
            "edit_*: change the picture as the text says. *_pred: a map of the picture. *_control: a picture after a "
            "map. subject_driven: the same object elsewhere. image_ref_transfer: the style of the reference image. "
            "multi_view_*: another side of an object seen from the front.",
        ),
        widgets.words(
            "text",
            "What to change, or what the picture should show. The types *_pred, multi_view_* and image_ref_transfer "
            "have words of their own and take none.",
        ),
        widgets.integer(
            "side",
            512,
            (4 * PATCH, 2048),
            "Pictures are fitted to about side x side px of area, whatever their shape, and cropped in the centre. The "
            "8B model was trained with 512, nano with 128.",
            step=PATCH,
        ),
        host.io.Image.Input(
            "reference_image",
            optional=True,
            tooltip="The picture whose style is taken; image_ref_transfer needs it, no other type takes one.",
        ),
    ]
