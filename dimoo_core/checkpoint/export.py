"""Writing a trained checkpoint in the layout that `checkpoint.find` reads: the published one's.

Each file is whole or absent, and whoever may read other new files may read it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import atomic_write_text
from ..model.transformer import Transformer, module_to_hub
from ..model.vq import VQ
from .find import Found
from .headers import write_tensors
from .load import load_vq


def export_transformer(
    folder: Path,
    transformer: Transformer,
    *,
    fields: Mapping[str, Any],
    tokenizer: str,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Writes `tokenizer.json` from its text, the weights as `model.safetensors`, and `config.json` from `fields`."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_text(folder / "tokenizer.json", tokenizer)
    _write_weights(module_to_hub(transformer.state_dict()), folder / "model.safetensors", dtype)
    write_config(folder, fields)


def export_vq(folder: Path, vq: VQ, *, fields: Mapping[str, Any], dtype: torch.dtype = torch.bfloat16) -> None:
    """Writes the VQ's weights and `config.json` into its own folder."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_weights(vq.state_dict(), folder / "diffusion_pytorch_model.safetensors", dtype)
    write_config(folder, fields)


def copy_vq(folder: Path, found: Found, *, fields: Mapping[str, Any]) -> None:
    """The VQ of a checkpoint as it is stored: other rounding would make other codes."""
    vq = load_vq(found, dtype="auto")
    export_vq(folder, vq, fields=fields, dtype=vq.quantize.embedding.weight.dtype)


def write_config(folder: Path, fields: Mapping[str, Any]) -> None:
    """`config.json`, always written last: where it is, the rest is complete."""
    atomic_write_text(folder / "config.json", json.dumps(dict(fields), indent=1) + "\n")


def _write_weights(state: Mapping[str, Tensor], file: Path, dtype: torch.dtype) -> None:
    tensors = {name: tensor.detach().to(dtype).contiguous() for name, tensor in state.items()}
    write_tensors(file, tensors, {"format": "pt"})
