"""Writing a trained checkpoint in the layout that `checkpoint.find` reads: the published one's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..model.transformer import Transformer, module_to_hub
from ..model.vq import VQ


def export_transformer(
    folder: Path,
    transformer: Transformer,
    *,
    fields: Mapping[str, Any],
    tokenizer: str,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """`config.json` from `fields`, `tokenizer.json` from its text, and the weights as `model.safetensors`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    _save(module_to_hub(transformer.state_dict()), folder / "model.safetensors", dtype)
    _describe(folder, fields)


def export_vq(folder: Path, vq: VQ, *, fields: Mapping[str, Any], dtype: torch.dtype = torch.bfloat16) -> None:
    """The VQ's `config.json` and weights, into its own folder."""
    folder.mkdir(parents=True, exist_ok=True)
    _save(vq.state_dict(), folder / "diffusion_pytorch_model.safetensors", dtype)
    _describe(folder, fields)


def _describe(folder: Path, fields: Mapping[str, Any]) -> None:
    """`config.json`, always written last: where it is, the rest is whole."""
    (folder / "config.json").write_text(json.dumps(dict(fields), indent=1) + "\n", encoding="utf-8")


def _save(state: Mapping[str, Tensor], file: Path, dtype: torch.dtype) -> None:
    tensors = {name: tensor.detach().to(dtype).contiguous() for name, tensor in state.items()}
    save_file(tensors, file, metadata={"format": "pt"})
