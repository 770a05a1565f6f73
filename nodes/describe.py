"""Asking about pictures."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..dimoo_core import jobs
from ..dimoo_core.sampling.noise import SEEDS
from ..dimoo_core.sampling.text import TextSettings, TextStep
from ..dimoo_core.sampling.text_cache import SPEEDS
from . import host, pixels, widgets
from .sockets import LoadedModel, LoadedVQ, ModelSocket, VQSocket, check_sockets


def answered(
    model: LoadedModel,
    vq: LoadedVQ,
    pictures: Sequence[Tensor],
    question: str,
    settings: TextSettings,
    on_step: TextStep,
) -> list[str]:
    """What the model answers to one question about pictures [1,3,h,w]."""
    return jobs.describe(model.core, vq, pictures, question, settings=settings, place=model.place, on_step=on_step)


def follow(model: LoadedModel, node: str | None, answers: Sequence[str], questions: int) -> TextStep:
    """An `on_step` that shows progress over all questions and, on the node, the `answers` so far."""
    step = host.progress()

    def on_step(done: int, total: int, tokens: Tensor) -> None:
        step(len(answers) * total + done, questions * total, None)
        host.show_text("\n\n".join([*answers, jobs.answer_text(model.core, tokens[0].tolist())]), node)

    return on_step


def grouped(image: Tensor, further: Sequence[Tensor | None], *, together: bool) -> list[list[Tensor]]:
    """The pictures [1,3,h,w] of each question: one each, or all `together`, as they are where `further` ones came."""
    pictures = list(pixels.to_core(image).split(1))
    for place, one in enumerate(further, 2):
        if one is not None:
            pictures += pixels.to_core(one, f"image_{place}").split(1)
            together = True
    return [pictures] if together else [[picture] for picture in pictures]


class Describe(host.io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return host.schema(
            node_id="DimooDescribe",
            display_name="DiMOO Describe",
            category="DiMOO",
            description="Answers a question about a picture, or about several at once. Shows the answer on the node.",
            search_aliases=["dimoo caption", "dimoo understand", "dimoo vqa", "image to text"],
            is_output_node=True,
            hidden=[host.io.Hidden.unique_id],
            inputs=[*_what(), *_how(), *_more()],
            outputs=[
                host.io.String.Output(
                    display_name="text",
                    is_output_list=True,
                    tooltip="The answers, a list: one per picture, or one for all in one question.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        vq,
        image,
        question,
        max_tokens=128,
        steps=128,
        block_length=32,
        temperature=0.0,
        cfg=0.0,
        seed=0,
        all_in_one_question=False,
        speed="exact",
        image_2=None,
        image_3=None,
    ):
        check_sockets(model=model, vq=vq)
        policy = widgets.chosen("speed", speed, SPEEDS)
        questions = grouped(image, [image_2, image_3], together=all_in_one_question)
        node = getattr(cls.hidden, "unique_id", None)
        settings = [
            TextSettings(max_tokens, steps, block_length, temperature, cfg, (seed + item) % SEEDS, policy)
            for item in range(len(questions))
        ]
        answers: list[str] = []
        on_step = follow(model, node, answers, len(questions))
        for group, setting in zip(questions, settings, strict=True):
            answers += answered(model, vq, group, question, setting, on_step)
        host.show_text("\n\n".join(answers), node)
        return host.io.NodeOutput(answers, ui={"text": answers})


def _what() -> list:
    return [
        ModelSocket.Input("model", tooltip="The model of the checkpoint."),
        VQSocket.Input("vq", tooltip="The VQ of the same checkpoint."),
        host.io.Image.Input("image", tooltip="A picture; of a batch each is asked about, or all of it as a whole."),
        widgets.words("question", "What to ask. It need not be a question.", default="Describe the image."),
        widgets.integer(
            "max_tokens",
            128,
            (1, 4096),
            "The most tokens an answer may have, somewhat more than words; a multiple of block_length.",
        ),
    ]


def _how() -> list:
    return [
        widgets.integer(
            "steps",
            128,
            (1, 4096),
            "Steps for the whole answer, a multiple of the number of blocks (max_tokens / block_length). As many as "
            "tokens is best, fewer is faster.",
        ),
        widgets.integer(
            "block_length",
            32,
            (1, 4096),
            "An answer is written block by block, left to right; within a block the surest tokens come first.",
        ),
        widgets.number(
            "temperature",
            0.0,
            (0, 4),
            "0 always takes the likeliest token, so that the seed has no effect; more gives more variety.",
            step=0.05,
        ),
        widgets.number(
            "cfg",
            0.0,
            (0, 20),
            "Guidance against an answer without picture and question; 0, as usual, is none.",
            step=0.1,
        ),
        widgets.seed("Matters where the temperature is above 0. Answer i of a batch has the seed + i."),
    ]


def _more() -> list:
    return [
        host.io.Boolean.Input(
            "all_in_one_question",
            default=False,
            optional=True,
            tooltip="Take a batch as several pictures of one question with one answer, rather than one answer each.",
        ),
        host.io.Combo.Input(
            "speed",
            options=list(SPEEDS),
            default="exact",
            optional=True,
            tooltip="exact reads the picture anew at every step. balanced reads it once per block, fast once in four "
            "blocks, and both write at once all tokens they are at least 90 or 80 % sure of. At 1024x1024 px and 128 "
            "tokens that is at most 1/24 and 1/62 of the work; now and then a word may differ.",
        ),
        *(
            host.io.Image.Input(
                name,
                optional=True,
                tooltip="A further picture of the same question, of any size; all pictures then get one answer.",
            )
            for name in ("image_2", "image_3")
        ),
    ]
