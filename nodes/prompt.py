"""Prompts for the sampler."""

from __future__ import annotations

from ..dimoo_core.jobs import text_prompt
from . import host, widgets
from .sockets import PromptSocket


class TextEncode(host.io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return host.schema(
            node_id="DimooTextEncode",
            display_name="DiMOO Text Encode (text to image)",
            category="DiMOO",
            description="The prompt: what the picture should show. For text-to-image, inpainting and outpainting.",
            search_aliases=["prompt", "negative prompt", "txt2img", "clip text encode", "llada"],
            inputs=[
                widgets.words(
                    "text",
                    "What the picture should show, in plain words. For inpainting and outpainting, describe the whole "
                    "picture, not only the masked part.",
                ),
                widgets.words(
                    "negative",
                    "Negative prompt: what the picture should not show. Works through the sampler's cfg and has no "
                    "effect at cfg 0. Usually best left empty: the model then uses the unconditional prompt that it "
                    "was trained with.",
                ),
            ],
            outputs=[PromptSocket.Output(display_name="prompt", tooltip="The prompt, for DiMOO Sampler.")],
        )

    @classmethod
    def execute(cls, text, negative=""):
        return host.io.NodeOutput(text_prompt(text, negative))
