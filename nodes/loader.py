"""Loading checkpoints."""

from __future__ import annotations

from math import prod

import torch

from ..dimoo_core import jobs
from ..dimoo_core.checkpoint.find import Found
from ..dimoo_core.checkpoint.load import Reader, load_tokenizer, load_transformer, load_vq
from ..dimoo_core.checks import shown
from . import host, widgets
from .checkpoints import DOWNLOAD, QUANTISED, checkpoints, chosen, prepared
from .provenance import note_checkpoints
from .sockets import LoadedModel, LoadedVQ, ModelSocket, Palette, VQSocket

WEIGHT_DTYPES = {"auto": None, "bf16": torch.bfloat16, "fp32": torch.float32, **dict.fromkeys(QUANTISED)}


def load_model(found: Found, dtype: torch.dtype | None, palette: Palette, reader: Reader | None = None) -> LoadedModel:
    """The transformer under ComfyUI's memory management, and what belongs to it; `dtype` None leaves it to ComfyUI.
    reader: reads the files (None: one of its own)."""
    parameters = sum(prod(entry.shape) for entry in found.weights.values())
    weight, compute = host.transformer_dtypes(parameters, dtype)
    formats = found.formats if dtype is None else frozenset()  # a dtype that the user chose undoes the quantisation
    devices = host.transformer_devices()
    tokenizer = load_tokenizer(found)
    transformer = load_transformer(
        found,
        ops=host.layers(weight, compute, devices[0], formats),
        device=devices[1],
        dtype=weight,
        dequantised=not formats,
        reader=reader or host.FileReader(),
        attention=host.attention,
    )
    transformer.set_text_apart().embedding.to("cpu")  # also where ComfyUI keeps whole models on the card
    kept = ", ".join([*sorted(one.name for one in formats), str(weight)])
    host.log("DiMOO: %s, %.1f M weights in %s, computing in %s", found.path, parameters / 1e6, kept, compute)
    host.note_fp32(compute, dtype, formats)
    core = jobs.Model(transformer, tokenizer, found.table, found.defaults.sides, formats)
    return LoadedModel.under_management(core, devices, compute, palette, found)


def load_autoencoder(found: Found, reader: Reader | None = None) -> LoadedVQ:
    """The VQ under ComfyUI's memory management; `reader` as for `load_model`."""
    dtype, devices = host.vq_dtype(), host.vq_devices()
    layers, reader = host.layers(dtype, dtype, devices[0]), reader or host.FileReader()
    vq = load_vq(found, ops=layers, device=devices[1], dtype=dtype, reader=reader)
    return LoadedVQ(vq, host.managed(vq, devices), dtype.itemsize, found)


class Loader(host.io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return host.schema(
            node_id="DimooLoader",
            display_name="DiMOO Loader (Lumina)",
            category="DiMOO",
            description=(
                "Loads a Lumina-DiMOO checkpoint: the transformer with its tokenizer, and the VQ autoencoder that "
                "converts pictures to codes and back. Put checkpoints into models/dimoo; DiMOO-nano comes with the "
                "pack."
            ),
            search_aliases=["load checkpoint", "load diffusion model", "lumina-dimoo", "llada", "model loader"],
            hidden=[host.io.Hidden.prompt, host.io.Hidden.extra_pnginfo],
            inputs=[
                widgets.choice(
                    "checkpoint",
                    [*checkpoints(), DOWNLOAD],
                    "A folder in models/dimoo, or in a dimoo folder of extra_model_paths.yaml, with config.json, "
                    "tokenizer.json, *.safetensors and vqvae/; or a file made by `python -m dimoo_core convert`. "
                    "DiMOO-nano is a tiny model for trying things out. The entry that begins with download fetches the "
                    "8B model into models/dimoo when you run the graph, unless it is already there. A cancelled "
                    "download resumes on the next run; HF_ENDPOINT sets a mirror.",
                ),
                widgets.choice(
                    "weight_dtype",
                    WEIGHT_DTYPES,
                    "Precision of the transformer's weights in memory. auto, best for most: fp8 and int8 stay as they "
                    "are stored, the rest is bf16 if the device computes in bf16, otherwise fp32. bf16 and fp32 "
                    "convert fp8 and int8 weights back; bf16 takes half the memory of fp32. fp8 and int8 fit smaller "
                    "cards and are a little less exact: on the first run the checkpoint is converted to a file in "
                    "models/dimoo, later runs load that. The VQ stays in fp32, the precision it was trained in.",
                ),
            ],
            outputs=[
                ModelSocket.Output(display_name="model", tooltip="The transformer, for DiMOO Sampler and Describe."),
                VQSocket.Output(display_name="vq", tooltip="The VQ autoencoder: encodes and decodes pictures."),
            ],
        )

    @classmethod
    def validate_inputs(cls, checkpoint):
        """Takes a checkpoint's name as it is on disk or on other systems, too; ComfyUI itself compares only with the
        names listed."""
        if checkpoint in (None, DOWNLOAD) or host.named(checkpoint, checkpoints()) is not None:  # None: from a node
            return True
        return f"There is no checkpoint {shown(checkpoint)}; refresh the page and choose one of the list."

    @classmethod
    def fingerprint_inputs(cls, checkpoint, weight_dtype="auto", **_):
        """Size and time of the files that are loaded, so that a replaced checkpoint is loaded again."""
        found = chosen(checkpoint, weight_dtype)
        stats = [] if found is None else [(path.name, path.stat()) for path in found.files]
        return str([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])

    @classmethod
    def execute(cls, checkpoint, weight_dtype="auto"):
        dtype = widgets.chosen("weight_dtype", weight_dtype, WEIGHT_DTYPES)
        found = prepared(checkpoint, weight_dtype)
        note_checkpoints(*(getattr(cls.hidden, name, None) for name in ("extra_pnginfo", "prompt")))
        reader = host.FileReader()
        vq = load_autoencoder(found, reader)
        return host.io.NodeOutput(load_model(found, dtype, Palette(vq), reader), vq)
