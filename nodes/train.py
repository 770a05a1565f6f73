"""Train LoRA: a model taught from pictures, in the graph."""

from __future__ import annotations

from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from ..dimoo_core.checkpoint.adapter_file import adapter_state
from ..dimoo_core.pictures.captions import caption_file, pictures_below
from ..dimoo_core.pictures.sizes import MAX_SIDE, PATCH
from ..dimoo_core.training.lora import LORA_TRAINING, LoraSettings
from ..dimoo_core.training.optimise import OPTIMISERS, SCHEDULES, check_installed
from . import captions, host, widgets
from .sockets import LoadedModel, LoadedVQ, LoraSocket, LossSocket, ModelSocket, VQSocket, check_pair
from .teaching import Follower, Lesson, Material, check_name, from_folder, from_lists, pictures_of

NONE = "none"  # of the list of folders; no folder below input/ is offered under that name
_SEEDS = 2**32


def listed() -> dict[str, Path]:
    """Folders below ComfyUI's input folder that hold pictures, themselves or deeper, by the names that the node lists;
    the input folder only where it holds some itself."""
    root, found = host.input_folder(), dict[str, Path]()
    for folder in captions.listed().values():
        above = () if folder == root else takewhile(lambda path: path != root, folder.parents)
        for path in (folder, *above):
            found[host.without_html(path.relative_to(root).as_posix())] = path
    return {name: path for name, path in sorted(found.items()) if name != NONE}


def settings_of(
    *,
    steps: int = 1000,
    learning_rate: float = 1e-4,
    rank: int = 16,
    batch_size: int = 1,
    trigger: str = "",
    training_seed: int = 0,
    sample_every: int = 100,
    save_every: int = 250,
    alpha: float = 0.0,
    warm_up: int = 50,
    schedule: str = SCHEDULES[0],
    accumulate: int = 1,
    caption_dropout: float = 0.1,
    optimizer: str = "adamw",
    **_: Any,
) -> LoraSettings:
    """The settings that the widgets say; raises ValueError for a value out of range."""
    train = replace(
        LORA_TRAINING,
        steps=steps,
        rate=learning_rate,
        warm_up=warm_up,
        save_every=save_every,
        seed=training_seed,
        optimizer=optimizer,
        schedule=schedule,
    )
    check_installed(train.optimiser)
    return LoraSettings(
        train,
        rank=rank,
        alpha=alpha or None,
        batch=batch_size,
        accumulate=accumulate,
        dropout=caption_dropout,
        trigger=trigger.strip(),
        sample_every=sample_every,
    )


class TrainLora(host.io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return host.schema(
            node_id="DimooTrainLora",
            display_name="DiMOO Train LoRA",
            category="DiMOO",
            description=(
                "Teaches the model from pictures and their texts: a subject, a style, a kind of edit. The LoRA goes "
                "to models/loras and out of the node. A cancel keeps what was learnt; queue again to go on."
            ),
            search_aliases=["fine-tune", "lora trainer", "training", "teach a style"],
            is_input_list=True,
            is_output_node=True,
            hidden=[host.io.Hidden.unique_id],
            inputs=[*_what(), *_how(), *_followed(), *_lists(), *widgets.advanced(_rare())],
            outputs=[
                LoraSocket.Output(display_name="lora", tooltip="The LoRA, for DiMOO LoRA or ComfyUI's Save LoRA."),
                LossSocket.Output(display_name="loss", tooltip="The loss of each step, for ComfyUI's Plot Loss Graph."),
                host.io.Int.Output(display_name="steps", tooltip="How many steps the LoRA was taught."),
                host.io.String.Output(display_name="file", tooltip="The path of the LoRA's file in models/loras."),
            ],
        )

    @classmethod
    def validate_inputs(cls, folder):
        """Takes a folder's name as it is on disk, too; ComfyUI itself compares only with the names listed."""
        (name,) = folder or (None,)
        if name not in (None, NONE):  # None: it comes from another node
            try:
                captions.chosen_folder(name, listed())
            except ValueError as error:
                return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, folder=None, **_):
        """Names, sizes and times of what is read of the folder, so that one that has changed is looked at again."""
        (name,) = folder or (None,)
        if name in (None, NONE):
            return ""
        files = [
            path
            for picture in pictures_below(captions.chosen_folder(name, listed()))
            for path in (picture, caption_file(picture), picture.with_suffix(".json"))
            if path.is_file()
        ]
        return str([(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files])

    @classmethod
    def execute(cls, model, vq, images=(), texts=(), **values):
        model, vq = model[0], vq[0]
        check_pair(model, vq)
        asked = {name: several[0] for name, several in values.items() if several}
        settings, name = settings_of(**asked), check_name(asked.get("name"))
        if model.core.adapters:
            raise ValueError(
                "The model has a LoRA already, and a new one is taught on the model alone; connect DiMOO Loader."
            )
        side = model.found.defaults.own("side", widgets.unless_own_size(asked.get("side", 0)))
        material = _material(model, vq, asked.get("folder", NONE), images, texts, side=side, trigger=settings.trigger)
        node = getattr(cls.hidden, "unique_id", None)
        colours = model.palette.colours() if host.wants_previews() else None
        follower = Follower(node, settings.train.steps, colours)
        prompts = [line.strip() for line in asked.get("sample_prompts", "").splitlines() if line.strip()]
        lesson = Lesson(
            model, vq, material, settings, name, side, follower, prompts, held_back=asked.get("held_back", 0.0)
        )
        done, place = lesson.teach()
        host.show_text("\n\n".join(follower.lines), node)
        return host.io.NodeOutput(
            adapter_state(done.adapter, torch.bfloat16),
            {"loss": done.losses},
            done.steps,
            str(done.file),
            ui={"text": follower.lines, "images": host.shown_files(pictures_of(place))},
        )


def _material(
    model: LoadedModel, vq: LoadedVQ, folder: str, images: Any, texts: Any, *, side: int, trigger: str
) -> Material:
    """What the node is connected to, or the folder that was chosen; raises ValueError where it is neither or both."""
    listed_too = len(images) or len(texts)
    if (folder == NONE) == (not listed_too):
        raise ValueError(
            "Choose a folder, or connect images and texts; the node has both."
            if listed_too
            else "There is nothing to learn from: choose a folder with pictures and texts, or connect images and texts."
        )
    if folder != NONE:
        chosen, sides = captions.chosen_folder(folder, listed()), model.found.defaults.sides
        return from_folder(chosen, vq, side=side, sides=sides, trigger=trigger)
    if not len(images) or not len(texts):
        raise ValueError("Connect images and texts, both of them: a text says what a picture shows.")
    return from_lists(images, texts, side=side, trigger=trigger)


def _what() -> list:
    return [
        ModelSocket.Input("model", tooltip="The model from DiMOO Loader; fp8 and int8 models are taught as they are."),
        VQSocket.Input("vq", tooltip="The VQ of the same checkpoint, from DiMOO Loader."),
        widgets.choice(
            "folder",
            [NONE, *listed()],
            "A folder in ComfyUI's input folder: pictures, each with a .txt file of the same name that says what it "
            "shows. Also edit pairs in source and target, questions and masks. none: use images and texts.",
        ),
        host.io.String.Input(
            "name",
            default="my-lora",
            tooltip="Name of the file in models/loras, without its ending. If another run has it, a number is added.",
        ),
        host.io.String.Input(
            "trigger",
            default="",
            tooltip="A word of your own that stands for what is taught; it is put before every text that lacks it.",
        ),
    ]


def _how() -> list:
    return [
        widgets.integer(
            "steps",
            1000,
            (1, 1_000_000),
            "Updates. A subject takes a few hundred, a style one or two thousand. Raise it and queue again to teach a "
            "finished LoRA further.",
        ),
        widgets.number(
            "learning_rate",
            1e-4,
            (0, 1),
            "How far each step goes. Lower it if samples break, raise it if nothing is learnt. 0.0001 for the 8B "
            "model, 0.001 for nano.",
            step=1e-5,
            finest=1e-7,
        ),
        widgets.integer(
            "rank", 16, (1, 1024), "How much the LoRA can hold: its size. 8 to 32 is enough for most subjects."
        ),
        widgets.integer(
            "batch_size", 1, (1, 1024), "Pictures that each step sees at once. More is steadier and takes more memory."
        ),
        widgets.integer(
            "side",
            0,
            (0, MAX_SIDE),
            "Pictures are fitted to about side x side px, whatever their shape. 0: the side that the checkpoint was "
            "made for, 512 for the 8B model, 128 for nano. Larger takes more memory.",
            step=PATCH,
        ),
        widgets.integer(
            "training_seed",
            0,
            (0, _SEEDS - 1),
            "Seed of the order, of what is hidden and of the samples. It stays as it is, so that queueing again "
            "goes on with the same run.",
        ),
    ]


def _followed() -> list:
    return [
        host.io.String.Input(
            "sample_prompts",
            multiline=True,
            default="",
            tooltip="Texts of the pictures that the model paints on the way, one a line. Empty: the first two that are "
            "taught.",
        ),
        widgets.integer(
            "sample_every", 100, (0, 1_000_000), "Paint samples every N steps, and before the first. 0: none."
        ),
        widgets.integer(
            "save_every", 250, (1, 1_000_000), "Save the LoRA every N steps as NAME-STEP, beside the finished file."
        ),
    ]


def _lists() -> list:
    return [
        host.io.Image.Input(
            "images", optional=True, tooltip="Pictures to learn from, one, a batch or a list, instead of a folder."
        ),
        host.io.String.Input(
            "texts",
            optional=True,
            force_input=True,
            tooltip="What they show: a list with a text for each picture, or one text for all.",
        ),
    ]


def _rare() -> list:
    return [
        widgets.number(
            "alpha",
            0.0,
            (0, 1024),
            "The LoRA acts alpha / rank as strongly as it was taught. 0: as rank, so that it acts fully.",
            step=1.0,
            optional=True,
        ),
        widgets.integer(
            "warm_up", 50, (0, 1_000_000), "Steps at the start in which the learning rate rises.", optional=True
        ),
        widgets.choice(
            "schedule",
            SCHEDULES,
            "What the learning rate does after the warm-up. constant: stays. cosine and linear: falls towards the end.",
            optional=True,
        ),
        widgets.integer(
            "accumulate",
            1,
            (1, 1024),
            "Passes of batch_size pictures in a step: as a larger batch, without its memory.",
            optional=True,
        ),
        widgets.number(
            "caption_dropout",
            0.1,
            (0, 1),
            "Share of the pictures that are taught without their text, which guidance (cfg) needs.",
            step=0.05,
            optional=True,
        ),
        widgets.number(
            "held_back",
            0.0,
            (0, 0.5),
            "Share of the pictures that are not taught but checked, to see when the LoRA learns by heart.",
            step=0.05,
            optional=True,
        ),
        widgets.choice(
            "optimizer",
            OPTIMISERS,
            "adamw is always there; the others need their packages: bitsandbytes, transformers, prodigyopt.",
            optional=True,
        ),
    ]
