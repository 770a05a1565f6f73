"""Asking about pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..dimoo_core import jobs
from ..dimoo_core.sampling.guidance import MAX_SCALE
from ..dimoo_core.sampling.noise import SEEDS
from ..dimoo_core.sampling.schedule import MAX_TOKENS
from ..dimoo_core.sampling.selection import MAX_TEMPERATURE
from ..dimoo_core.sampling.text import TextSettings, TextStep
from ..dimoo_core.sampling.text_cache import SPEEDS
from . import host, pixels, widgets
from .sockets import LoadedModel, LoadedVQ, ModelSocket, VQSocket, check_pair


def answer_settings(model: LoadedModel, max_tokens: int, steps: int, block_length: int, **rest: Any) -> TextSettings:
    """How to answer, of numbers as widgets have them; `rest` as for `jobs.text_settings`."""
    return jobs.text_settings(
        model.found.defaults,
        max_tokens=widgets.unless_own(max_tokens),
        steps=widgets.unless_own(steps),
        block_length=widgets.unless_own(block_length),
        **rest,
    )


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
    """The pictures [1,3,h,w] of each question: one each, or all `together`; with `further` ones always all."""
    pictures = list(pixels.to_core(image).split(1))
    for number, one in enumerate(further, 2):
        if one is not None:
            pictures += pixels.to_core(one, f"image_{number}").split(1)
            together = True
    return [pictures] if together else [[picture] for picture in pictures]


class Describe(host.io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return host.schema(
            node_id="DimooDescribe",
            display_name="DiMOO Describe (image to text)",
            category="DiMOO",
            description="Answers a question about one picture or several, and shows the answer on the node.",
            search_aliases=["caption", "vqa", "vlm", "img2txt", "interrogate", "ask about image", "llada"],
            is_output_node=True,
            hidden=[host.io.Hidden.unique_id],
            inputs=[*_what(), *widgets.advanced(_how()), *_more()],
            outputs=[
                host.io.String.Output(
                    display_name="text",
                    is_output_list=True,
                    tooltip="The answers as a list: one per picture, or one for all pictures together.",
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
        max_tokens=widgets.OWN,
        steps=widgets.OWN,
        block_length=widgets.OWN,
        temperature=0.0,
        cfg=0.0,
        seed=0,
        all_in_one_question=False,
        speed="exact",
        image_2=None,
        image_3=None,
    ):
        check_pair(model, vq)
        first = answer_settings(
            model,
            max_tokens,
            steps,
            block_length,
            temperature=temperature,
            cfg=cfg,
            seed=seed,
            policy=widgets.chosen("speed", speed, SPEEDS),
        )
        questions = grouped(image, [image_2, image_3], together=all_in_one_question)
        node = getattr(cls.hidden, "unique_id", None)
        settings = [replace(first, seed=(seed + item) % SEEDS) for item in range(len(questions))]
        answers: list[str] = []
        on_step = follow(model, node, answers, len(questions))
        for group, setting in zip(questions, settings, strict=True):
            answers += answered(model, vq, group, question, setting, on_step)
        host.show_text("\n\n".join(answers), node)
        return host.io.NodeOutput(answers, ui=host.said(answers))


def _what() -> list:
    return [
        ModelSocket.Input("model", tooltip="The model from DiMOO Loader."),
        VQSocket.Input("vq", tooltip="The VQ of the same checkpoint, from DiMOO Loader."),
        host.io.Image.Input(
            "image", tooltip="One image or a batch: one answer per image, or one for all (all_in_one_question)."
        ),
        widgets.words(
            "question",
            'A question or an instruction. The 8B model knows "Describe the image." best, nano "describe the picture".',
            default="Describe the image.",
        ),
        widgets.integer(
            "max_tokens",
            widgets.OWN,
            (widgets.OWN, MAX_TOKENS),
            "Longest answer in tokens, somewhat more than words: 32 is enough for a word or two. -1: the checkpoint's "
            "own length, which suits a description.",
        ),
    ]


def _how() -> list:
    return [
        widgets.integer(
            "steps",
            widgets.OWN,
            (widgets.OWN, MAX_TOKENS),
            "Sampling steps for the whole answer; must be a multiple of the number of blocks (max_tokens / "
            "block_length). Fewer is faster. -1: the checkpoint's own number, or one step per token if you set "
            "max_tokens.",
        ),
        widgets.integer(
            "block_length",
            widgets.OWN,
            (widgets.OWN, MAX_TOKENS),
            "The answer is written left to right in blocks of this many tokens, which must divide max_tokens; within a "
            "block the most certain tokens come first. -1: the checkpoint's own length, or a shorter one that divides.",
        ),
        widgets.number(
            "temperature",
            0.0,
            (0, MAX_TEMPERATURE),
            "How much variety the answer has. At 0, a good value, the likeliest token always wins and the seed has no "
            "effect.",
            step=0.05,
        ),
        widgets.number(
            "cfg",
            0.0,
            (0, MAX_SCALE),
            "Guidance scale: moves away from the answer that the model gives without picture and question. Usually 0, "
            "which turns guidance off.",
            step=0.1,
        ),
        widgets.seed(
            "Only matters at a temperature above 0. Answer i of a batch, counted from 0, uses seed + i. increment adds "
            "only 1, so the next batch of N reuses N - 1 seeds: choose randomize, or raise the seed by N yourself."
        ),
    ]


def _more() -> list:
    return [
        host.io.Boolean.Input(
            "all_in_one_question",
            default=False,
            optional=True,
            tooltip="Ask once about all pictures of a batch, for example to compare them, and give one answer.",
        ),
        host.io.Combo.Input(
            "speed",
            options=list(SPEEDS),
            default="exact",
            optional=True,
            tooltip="exact reads the picture again at every step. balanced reads it once per block, fast once in four "
            "blocks; both write every token at once whose probability is at least 0.9 or 0.8. They are much faster, "
            "except where weights stream from RAM: then only writing several tokens at once saves time. Now and then a "
            "word differs.",
        ),
        *(
            host.io.Image.Input(
                name,
                optional=True,
                tooltip="Another picture for the same question, of any size; all pictures then get one answer.",
            )
            for name in ("image_2", "image_3")
        ),
    ]
