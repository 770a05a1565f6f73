"""LoRAs beside a model's layers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from ..dimoo_core.checkpoint.adapter_file import AdapterFile, adapter_files, read_adapter
from ..dimoo_core.checks import number_in, shown
from ..dimoo_core.model.adapters import MOST_STRENGTH
from . import host, widgets
from .sockets import LoadedModel, LoraSocket, ModelSocket, check_sockets

NONE = "none"  # of the list; no file is called that, since all have an ending
STRENGTHS = (-MOST_STRENGTH, MOST_STRENGTH)


def listed() -> dict[str, str]:
    """Files of the LoRA folders by the names that the node lists, which have slashes on every system."""
    return {host.without_html(PurePath(name).as_posix()): name for name in host.lora_files()}


def resolve(name: Any) -> Path:
    """The file of a name, as listed, as on disk, or as saved on Windows; raises ValueError where it is none or gone."""
    if name == NONE:
        raise ValueError("No LoRA is chosen; choose a file of the list, or connect lora_model.")
    file = host.named(name, listed())
    path = None if file is None else host.lora_path(file)
    if path is None:
        raise ValueError(
            f"There is no LoRA {shown(name)} in models/loras; refresh the page and choose one of the list."
        )
    return path


def read(model: LoadedModel, lora: str, lora_model: Mapping[str, Any] | None) -> AdapterFile:
    """The LoRA that a node names; `lora_model` wins over the file. Raises ValueError as `read_adapter` does."""
    source, name = (resolve(lora), lora) if lora_model is None else (lora_model, "lora_model")
    return read_adapter(source, model.core.transformer.config, model.core.table.code_offset, name=name)


class Lora(host.io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return host.schema(
            node_id="DimooLora",
            display_name="DiMOO LoRA",
            category="DiMOO",
            description=(
                "Adds a LoRA to the model, for everything that comes after it: pictures, edits and answers. Several "
                "can follow each other, in any order. The model's own weights stay as they are, so fp8 and int8 lose "
                "nothing."
            ),
            search_aliases=["load lora", "lora loader", "apply lora", "adapter", "peft"],
            hidden=[host.io.Hidden.unique_id],
            inputs=[
                ModelSocket.Input("model", tooltip="The model from DiMOO Loader or another DiMOO LoRA."),
                widgets.choice(
                    "lora",
                    [NONE, *listed()],
                    "A safetensors file in models/loras that was trained on this model. none: use what lora_model "
                    "brings.",
                ),
                widgets.number(
                    "strength",
                    1.0,
                    STRENGTHS,
                    "How strongly the LoRA acts. 1: as trained. 0: not at all. Lower it if pictures break or all look "
                    "alike; below 0 it does the opposite.",
                    step=0.05,
                ),
                LoraSocket.Input(
                    "lora_model",
                    optional=True,
                    tooltip="A LoRA that has just been trained; it overrides the file.",
                ),
            ],
            outputs=[ModelSocket.Output(display_name="model", tooltip="The model with the LoRA.")],
        )

    @classmethod
    def validate_inputs(cls, lora):
        """Takes a file's name as other systems write it, too; ComfyUI itself compares only with the names listed."""
        if lora in (None, NONE):  # None: it comes from another node
            return True
        try:
            resolve(lora)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, lora=None, **_):
        """Size and time of the files, so that a replaced one is read again."""
        files = () if lora in (None, NONE) else adapter_files(resolve(lora))
        return str([(stat.st_size, stat.st_mtime_ns) for stat in (file.stat() for file in files)])

    @classmethod
    def execute(cls, model, lora, strength=1.0, lora_model=None):
        check_sockets(model=model, **({} if lora_model is None else {"lora_model": lora_model}))
        strength = number_in("strength", strength, *STRENGTHS)
        if strength == 0:
            return cls._told(model, ["The strength is 0: this LoRA does nothing."])
        file = read(model, lora, lora_model)
        said = [f"{file.name}: {len(file.branches)} layers, rank {file.adapter.rank}", *file.remarks]
        if lora_model is not None and lora != NONE:
            said.append("The file of the list is not used, since lora_model is connected.")
        return cls._told(model.with_lora(file.adapter, strength, file.name), said)

    @classmethod
    def _told(cls, model: LoadedModel, said: list[str]):
        """The output, with sentences shown on the node and in the log."""
        for sentence in said:
            host.log("DiMOO LoRA: %s", sentence)
        host.show_text("\n\n".join(said), getattr(cls.hidden, "unique_id", None))
        return host.io.NodeOutput(model, ui={"text": said})
