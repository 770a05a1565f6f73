"""A tiny random checkpoint in the published layout, for tests that need files and not talent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from dimoo_core.checkpoint.find import find
from dimoo_core.checkpoint.load import load_tokenizer, load_transformer, load_vq
from dimoo_core.model.config import TransformerConfig, VQConfig
from dimoo_core.model.transformer import Transformer, module_to_hub
from dimoo_core.model.vq import VQ
from dimoo_core.sequence.token_table import TokenTable

WORDS = 256  # one id per byte
CODES = 32
TABLE = TokenTable(
    mask=260,
    newline=261,
    image_begin=262,
    image_end=263,
    uncondition=264,
    answer_begin=265,
    answer_end=266,
    end_of_text=267,
    pad=268,
    code_offset=272,
    codebook_size=CODES,
)
SPECIALS = {
    "<system>": 256,
    "</system>": 257,
    "<user>": 258,
    "</user>": 259,
    "<|mdm_mask|>": 260,
    "<newline>": 261,
    "<image>": 262,
    "</image>": 263,
    "<uncondition>": 264,
    "<answer>": 265,
    "</answer>": 266,
    "<|endoftext|>": 267,
    "<pad>": 268,
}
TRANSFORMER = {
    "model_type": "llada",
    "d_model": 32,
    "n_layers": 2,
    "n_heads": 2,
    "mlp_hidden_size": 48,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "vocab_size": TABLE.code_offset + CODES,
    "dimoo_token_ids": TABLE.to_dict(),
}
# its pictures take four steps, without guidance
SHORT = TRANSFORMER | {"dimoo_defaults": {"size": [64, 48], "side": 64, "steps": 4, "cfg": 0.0, "image_cfg": 0.0}}
AUTOENCODER = {
    "_class_name": "VQModel",
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [8, 8, 8, 8, 16],
    "layers_per_block": 1,
    "latent_channels": 8,
    "num_vq_embeddings": CODES,
    "norm_num_groups": 4,
    "mid_block_add_attention": False,
}


def tokenizer_json(specials: Mapping[str, int] = SPECIALS) -> str:
    """The text of a tokenizer.json: one id per byte, then `specials` numbered from 256 on in the order of their ids."""
    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={sign: index for index, sign in enumerate(signs)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    ordered = sorted(specials, key=specials.__getitem__)
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in ordered])
    return tokenizer.to_str()


def random_weights(module: torch.nn.Module, seed: int) -> None:
    """Fills a module with small seeded numbers; norms stay ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3, generator=generator)


def write_weights(folder: Path, state: Mapping[str, torch.Tensor], shards: int) -> None:
    """The transformer's file, or several with their index."""
    if shards == 1:
        save_file(dict(state), folder / "model.safetensors")
        return
    places = {name: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, name in enumerate(sorted(state))}
    for file in set(places.values()):
        save_file({name: state[name] for name in places if places[name] == file}, folder / file)
    index = {"metadata": {"total_size": sum(part.nbytes for part in state.values())}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_checkpoint(
    folder: Path,
    *,
    transformer: Mapping[str, Any] = TRANSFORMER,
    vq: Mapping[str, Any] = AUTOENCODER,
    tokenizer: str | None = None,
    shards: int = 1,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Path:
    """Writes the whole checkpoint into `folder` (made if absent) and hands the folder back."""
    (folder / "vqvae").mkdir(parents=True, exist_ok=True)
    offset = transformer.get("dimoo_token_ids", {}).get("code_offset", TABLE.code_offset)
    with torch.random.fork_rng():  # biases keep what the layers begin with
        torch.manual_seed(seed)
        network = Transformer(TransformerConfig.from_dict(transformer), code_offset=offset)
        autoencoder = VQ(VQConfig.from_dict(vq))
    random_weights(network, seed)
    random_weights(autoencoder, seed + 1)
    (folder / "config.json").write_text(json.dumps(dict(transformer), indent=1))
    (folder / "tokenizer.json").write_text(tokenizer or tokenizer_json(), encoding="utf-8")
    state = {name: part.detach().to(dtype).contiguous() for name, part in module_to_hub(network.state_dict()).items()}
    write_weights(folder, state, shards)
    (folder / "vqvae" / "config.json").write_text(json.dumps(dict(vq), indent=1))
    save_file(
        {name: part.detach().contiguous() for name, part in autoencoder.state_dict().items()},
        folder / "vqvae" / "diffusion_pytorch_model.safetensors",
    )
    return folder


def open_all(folder: Path) -> Transformer:
    """Every part of a checkpoint, read as the loader reads it; the transformer of it."""
    found = find(folder)
    load_tokenizer(found)
    load_vq(found)
    return load_transformer(found)
