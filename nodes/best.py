"""The best of several pictures, by the model's own judgement."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..dimoo_core import jobs, judge
from ..dimoo_core.judge import Judgement
from ..dimoo_core.sampling.text import TextSettings
from ..dimoo_core.sequence.prompt import DESCRIBE_QUESTION, GENERATE
from . import host, pixels, widgets
from .sockets import LoadedModel, LoadedVQ, ModelSocket, PromptSocket, VQSocket, check_pair, check_sockets

_DESCRIPTION = TextSettings()


def by_yes_or_no(model: LoadedModel, codes: list[Tensor], text: str) -> Judgement:
    """The probability that the model says yes when asked whether the picture shows the text."""
    plan = judge.plan_yes_or_no(model.core, codes, text)
    (judgement,) = judge.yes_or_no(plan, model.place(plan))
    return judgement


def by_description(model: LoadedModel, codes: list[Tensor], text: str) -> Judgement:
    """How many of the text's words the model's own description of the picture has."""
    plan = jobs.plan_text(model.core, codes, DESCRIBE_QUESTION, _DESCRIPTION)
    (judgement,) = judge.by_description(plan, text, model.place(plan), on_step=lambda *_: host.check_cancel())
    return judgement


METHODS: dict[str, Callable[[LoadedModel, list[Tensor], str], Judgement]] = {
    "yes or no": by_yes_or_no,
    "description": by_description,
}


def judged(model: LoadedModel, vq: LoadedVQ, pictures: Tensor, text: str, method: str) -> list[Judgement]:
    """The judgement of each of pictures [B,3,h,w]; shows progress."""
    ask, step = widgets.chosen("judge_by", method, METHODS), host.progress()
    found = []
    for done, picture in enumerate(pictures.split(1), 1):
        found.append(ask(model, jobs.encode_for_question(model.core, vq, [picture]), text))
        step(done, len(pictures), None)
    return found


class BestOf(host.io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return host.schema(
            node_id="DimooBestOf",
            display_name="DiMOO Best Of",
            category="DiMOO",
            description=(
                "Asks the model how well each picture of a batch shows the prompt, and sorts them, best first. Make a "
                "batch of four or eight and keep the best."
            ),
            search_aliases=["rank", "best of n", "verify", "score", "pick image"],
            is_output_node=True,
            hidden=[host.io.Hidden.unique_id],
            inputs=[
                ModelSocket.Input("model", tooltip="The model that judges, usually the one that painted."),
                VQSocket.Input("vq", tooltip="The VQ of the same checkpoint, from DiMOO Loader."),
                host.io.Image.Input("image", tooltip="The pictures to choose from, as a batch."),
                PromptSocket.Input("prompt", tooltip="What the pictures should show, from DiMOO Text Encode."),
                widgets.choice(
                    "judge_by",
                    METHODS,
                    "yes or no: one short question per picture, for the 8B model. description: the model describes "
                    "each picture, and the score is the share of the prompt's words that it uses; slower, but the only "
                    "method that works with nano.",
                ),
            ],
            outputs=[
                host.io.Image.Output(display_name="best", tooltip="The picture with the best score."),
                host.io.Image.Output(display_name="ranked", tooltip="All pictures, best first."),
                host.io.String.Output(
                    display_name="scores",
                    tooltip=(
                        "One line per picture, best first: its number in the batch and its score. Picture 1 has the "
                        "sampler's seed, picture 2 the seed + 1, and so on."
                    ),
                ),
                host.io.String.Output(
                    display_name="scores as list",
                    is_output_list=True,
                    tooltip="The same lines as a list, for nodes that take one text per picture.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model, vq, image, prompt, judge_by="yes or no"):
        check_sockets(prompt=prompt)
        check_pair(model, vq)
        if prompt.task is not GENERATE or not prompt.text.strip():
            raise ValueError(
                "The prompt does not describe a picture; connect DiMOO Text Encode and write what the picture should "
                "show."
            )
        pictures = pixels.channels_to_core(image)
        found = judged(model, vq, pixels.to_core(image), prompt.text, judge_by)
        order = sorted(range(len(found)), key=lambda item: -found[item].score)  # of equals the first stays first
        lines = [f"picture {item + 1}: {found[item].score:.1%}  {found[item].description}".rstrip() for item in order]
        ranked = pixels.to_comfy(pictures[order])
        host.show_text("\n".join(lines), getattr(cls.hidden, "unique_id", None))
        return host.io.NodeOutput(ranked[:1], ranked, "\n".join(lines), lines, ui=host.said(["\n".join(lines)]))
