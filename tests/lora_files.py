"""LoRA files for tests and help pictures: of random numbers, or with an effect that anybody can see."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from dimoo_core.checkpoint.adapter_file import adapter_state
from dimoo_core.checkpoint.find import NANO, Found, find
from dimoo_core.checkpoint.load import load_tokenizer
from dimoo_core.model.quantised import LAYERS
from dimoo_core.model.transformer import Transformer

from .adapters import random_adapter

PREFIX = "diffusion_model.model.transformer."  # of the names that we write


def random_lora(found: Found, *, rank: int = 4, seed: int = 0) -> dict[str, Tensor]:
    """A LoRA beside every linear of the blocks of a checkpoint, fp32, with alpha = rank."""
    network = Transformer(found.config, code_offset=found.table.code_offset, ops=LAYERS, device="meta")
    return adapter_state(random_adapter(network, rank=rank, alpha=rank, seed=seed), torch.float32)


def word_lora(word: str, meant: str) -> dict[str, Tensor]:
    """A LoRA of rank 1 that lets DiMOO-nano read `word` as `meant`: it adds the difference of the two words' embeddings
    to that of the first."""
    found = find(NANO)
    (first,), (second,) = (load_tokenizer(found).encode(one) for one in (word, meant))
    table = found.weights["model.transformer.wte.weight"].read().float()
    chosen = torch.zeros(len(table), 1)
    chosen[first] = 1
    module = f"{PREFIX}wte"
    return {
        f"{module}.lora_A.weight": (table[second] - table[first])[None],
        f"{module}.lora_B.weight": chosen,
        f"{module}.alpha": torch.tensor(1.0),
    }


def write_lora(path: Path, state: dict[str, Tensor]) -> Path:
    """The file, in folders made for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path)
    return path
