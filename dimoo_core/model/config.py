"""What a checkpoint's JSON files say about the shape of its two networks; nothing else of those files is used."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..checks import shown

_LARGEST = 2**63 - 1  # that torch can take for a size


def _integer(fields: Mapping[str, Any], name: str, file: str) -> int:
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _LARGEST:
        raise ValueError(f"{file} says {name} = {shown(value)}; expected a whole number from 1 to {_LARGEST}.")
    return value


def _positive(fields: Mapping[str, Any], name: str, default: float, file: str) -> float:
    value = fields.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= sys.float_info.max:
        raise ValueError(f"{file} says {name} = {shown(value)}; expected a finite number above 0.")
    return float(value)


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of the transformer, from the hub's `config.json` (model_type `llada`).

    `d_model` D, `mlp_hidden_size` and `vocab_size` are widths; `rope_theta` is the base of the rotary angles.
    """

    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    mlp_hidden_size: int
    vocab_size: int
    rope_theta: float
    rms_norm_eps: float

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> TransformerConfig:
        """Raises ValueError, one sentence, where a field is missing, absurd or asks for another network."""
        file = "config.json"
        kind = fields.get("model_type")
        if kind != "llada":
            raise ValueError(f"{file} says model_type = {shown(kind)}; expected 'llada' (Lumina-DiMOO).")
        expected = {"block_type": "llama", "activation_type": "silu", "layer_norm_type": "rms", "weight_tying": False}
        expected |= {"include_bias": False, "include_qkv_bias": False, "rope": True, "attention_layer_norm": False}
        for name, only in expected.items():
            if fields.get(name, only) != only:
                raise ValueError(f"{file} says {name} = {shown(fields[name])}; this transformer only has {only!r}.")
        heads = _integer(fields, "n_heads", file)
        config = cls(
            d_model=_integer(fields, "d_model", file),
            n_layers=_integer(fields, "n_layers", file),
            n_heads=heads,
            n_kv_heads=heads if fields.get("n_kv_heads") is None else _integer(fields, "n_kv_heads", file),
            mlp_hidden_size=_integer(fields, "mlp_hidden_size", file),
            # the weights have `embedding_size` rows; it may be padded beyond `vocab_size`
            vocab_size=_integer(fields, "embedding_size" if fields.get("embedding_size") else "vocab_size", file),
            rope_theta=_positive(fields, "rope_theta", 10000.0, file),
            rms_norm_eps=_positive(fields, "rms_norm_eps", 1e-5, file),
        )
        if config.d_model % (2 * heads) or heads % config.n_kv_heads:
            raise ValueError(
                f"{file} says d_model = {config.d_model}, n_heads = {heads}, n_kv_heads = {config.n_kv_heads}; "
                "heads must divide the width into even parts and key heads must divide the heads."
            )
        return config


@dataclass(frozen=True)
class VQConfig:
    """Shape of the VQ autoencoder, from `vqvae/config.json` (the diffusers `VQModel` layout)."""

    in_channels: int
    out_channels: int
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    latent_channels: int
    codebook_size: int
    embed_dim: int
    norm_num_groups: int
    mid_attention: bool

    @property
    def scale(self) -> int:
        """Pixels per cell, along each side: every level but the last halves the picture."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> VQConfig:
        """Raises ValueError, one sentence, where a field is missing, absurd or asks for another kind of autoencoder."""
        file = "vqvae/config.json"
        kind = fields.get("_class_name")
        if kind != "VQModel":
            raise ValueError(f"{file} says _class_name = {shown(kind)}; expected 'VQModel'.")
        for name, only in {"act_fn": "silu", "norm_type": "group"}.items():
            if fields.get(name, only) != only:
                raise ValueError(f"{file} says {name} = {shown(fields[name])}; this autoencoder only has {only!r}.")
        channels = fields.get("block_out_channels")
        if not isinstance(channels, list) or not 1 <= len(channels) <= 8:
            raise ValueError(f"{file} says block_out_channels = {shown(channels)}; expected a list of 1 to 8 widths.")
        widths = tuple(_integer({"block_out_channels": width}, "block_out_channels", file) for width in channels)
        groups = _integer(fields, "norm_num_groups", file)
        if any(width % groups for width in widths):
            raise ValueError(
                f"{file} says norm_num_groups = {groups}; it must divide each of the widths {list(widths)}."
            )
        latent = _integer(fields, "latent_channels", file)
        return cls(
            in_channels=_integer(fields, "in_channels", file),
            out_channels=_integer(fields, "out_channels", file),
            block_out_channels=widths,
            layers_per_block=_integer(fields, "layers_per_block", file),
            latent_channels=latent,
            codebook_size=_integer(fields, "num_vq_embeddings", file),
            embed_dim=latent if fields.get("vq_embed_dim") is None else _integer(fields, "vq_embed_dim", file),
            norm_num_groups=groups,
            mid_attention=bool(fields.get("mid_block_add_attention", True)),
        )
