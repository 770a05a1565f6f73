"""Words for the sampler."""

from __future__ import annotations

from ..dimoo_core.jobs import text_prompt
from . import host, widgets
from .sockets import PromptSocket


class TextEncode(host.io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return host.schema(
            node_id="DimooTextEncode",
            display_name="DiMOO Text Encode",
            category="DiMOO",
            description="What a picture should show. Serves text-to-image, inpainting and outpainting.",
            search_aliases=["dimoo prompt", "dimoo text to image", "dimoo negative prompt"],
            inputs=[
                widgets.words(
                    "text",
                    "What the picture should show, in plain words. For inpainting: what the whole picture shows.",
                ),
                widgets.words(
                    "negative",
                    "What to move away from; takes effect through the sampler's cfg. Empty: the model's own "
                    "unconditional prompt, as it was trained.",
                ),
            ],
            outputs=[PromptSocket.Output(display_name="prompt", tooltip="The words, for the sampler.")],
        )

    @classmethod
    def execute(cls, text, negative=""):
        return host.io.NodeOutput(text_prompt(text, negative))
