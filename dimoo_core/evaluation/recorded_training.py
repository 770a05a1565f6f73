"""A record of what the released training computes: its folder, its two vocabularies, and what was made of them.

Seed, sizes and the folders of weights are read from the record.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from ..checkpoint.headers import read_json, weight_errors
from ..checkpoint.load import read_transformer
from ..files import MAX_TEXT
from ..model.config import TransformerConfig
from ..model.transformer import Transformer, hub_to_module
from ..sequence.prompt import Prompt, Task
from ..sequence.tokenizer import TextTokenizer
from ..training.dataset import Sample
from ..training.engine import attention_for_training
from ..training.objective import HiddenBatch, TrainingSequence, hide
from ..training.released_files import read_codes_file
from ..training.sequences import RELEASED_LAYOUT, Sequences
from .recorded import token_table

TRAINING = "golden_training.json"


class TrainingRecord:
    """A folder laid out like `tests/golden_training`. Its paths are relative to it. Raises ValueError where it is no
    such folder."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.content = read_json(self.folder / TRAINING, MAX_TEXT)
        tensors = self.folder / "golden_training.safetensors"
        with weight_errors(tensors):
            self.tensors: Mapping[str, Tensor] = load_file(tensors)
        self.published, self.toy = World(self, ""), World(self, "toy_")

    def tensor(self, name: str) -> Tensor:
        """A recorded tensor. Raises ValueError where there is none."""
        if name not in self.tensors:
            raise ValueError(f"the tensor {name} is not recorded")
        return self.tensors[name]


class World:
    """One of a folder's two vocabularies, whose keys and tensors begin with `prefix`."""

    def __init__(self, record: TrainingRecord, prefix: str):
        self.record, self.prefix = record, prefix
        vocab = self.own("vocab")
        if not isinstance(vocab, Mapping) or "rows" not in vocab:
            raise ValueError(f"{TRAINING} has no {prefix}vocab with its rows.")
        self.table = token_table(vocab)
        self.rows: int = vocab["rows"]

    def own(self, key: str) -> Any:
        """What the record holds under a key of this vocabulary. Raises ValueError where it does not."""
        if (name := f"{self.prefix}{key}") not in self.record.content:
            raise ValueError(f"{TRAINING} has no {name}.")
        return self.record.content[name]

    def tensor(self, name: str) -> Tensor:
        """A recorded tensor of this vocabulary. Raises ValueError where there is none."""
        return self.record.tensor(f"{self.prefix}{name}")

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        text = (self.record.folder / self.own("tokenizer")["file"]).read_text(encoding="utf-8")
        return TextTokenizer.from_str(text)

    @cached_property
    def sequences(self) -> Sequences:
        return Sequences(self.tokenizer, self.table, layout=RELEASED_LAYOUT)

    def codes(self, path: str) -> Tensor:
        return read_codes_file(self.record.folder / path, self.table)

    def sample(self, name: str) -> Sample:
        """A record as a sample; the two short forms are written out."""
        record = self.own("records")[name]
        given = record["user_image"]
        paths = [given] if isinstance(given, str) and given else list(given)
        task = Task(name, record["system_prompt"], images=len(paths))
        text = " ".join([record["user_prompt"]] * record.get("user_prompt_repeat", 1))
        prompt = Prompt(task, text, images=tuple(self.codes(path)[None] for path in paths))
        if record["answer_image"]:
            return Sample(prompt, self.codes(record["answer_image"]), name=name)
        words = record["answer_text"].split(" ")
        count = record.get("answer_words", len(words))
        return Sample(prompt, " ".join(words[place % len(words)] for place in range(count)), name=name)

    def sequence(self, name: str) -> tuple[TrainingSequence, HiddenBatch]:
        """A recorded sequence with nothing hidden, and with what was hidden."""
        case = self.own("sequences")[name]
        choose = RecordedDraws.of(case["draws"])
        sequence = self.sequences.draw(self.sample(case["record"]), choose)
        return sequence, hide(sequence, self.table.mask, choose)

    def batch(self, names: Sequence[str]) -> HiddenBatch:
        """Recorded sequences as the released training joins them: the shorter filled with id 0, which is attended to.
        Ours never fills a sequence; only the recorded numbers need it."""
        hidden = [self.sequence(name)[1] for name in names]
        longest = max(batch.ids.shape[1] for batch in hidden)
        filled = [replace(batch, ids=F.pad(batch.ids, (0, longest - batch.ids.shape[1]))) for batch in hidden]
        return HiddenBatch.stack(filled)

    @cached_property
    def config(self) -> TransformerConfig:
        return TransformerConfig.from_dict(self._config_json())

    def network(self, *, rounded: bool = False) -> Transformer:
        """The transformer with its weights as recorded, or `rounded` to bf16, ready to be trained."""
        offset = self.table.code_offset
        if self.prefix:
            options = {"dtype": torch.float32, "attention": attention_for_training}
            network = read_transformer(self._toy_folder, code_offset=offset, **options)
        else:
            network = Transformer(self.config, code_offset=offset, attention=attention_for_training, device="meta")
            network.load_state_dict(self._made_weights(), assign=True)
        if rounded:
            network.to(torch.bfloat16).to(torch.float32)
        return network.requires_grad_(True).recompute()

    @property
    def _toy_folder(self) -> Path:
        return self.record.folder / self.record.content["toy_weights"]["folder"]

    def _config_json(self) -> dict[str, Any]:
        return read_json(self._toy_folder / "config.json") if self.prefix else self.record.content["weights"]["config"]

    def _made_weights(self) -> dict[str, Tensor]:
        """Weights by parameter, by the record's formula."""
        weights = self.record.content["weights"]
        state = {}
        for name, facts in weights["tensors"].items():
            tensor = made_weight(weights["seed"], name, facts["shape"], facts["exponent"])
            for key, rows in hub_to_module(name, self.table.code_offset):
                state[key] = tensor if rows is None else tensor[rows]
        return state


class RecordedDraws(random.Random):
    """Numbers that were drawn before, one after the other."""

    def __init__(self, numbers: Iterable[float]):
        super().__init__(0)
        self.numbers = iter(numbers)

    def random(self) -> float:
        return next(self.numbers)

    @classmethod
    def of(cls, draws: Mapping[str, Any]) -> RecordedDraws:
        """The draws of a sequence. What was chosen to be hidden gets the lowest numbers."""
        numbers = [] if draws["drop"] is None else [draws["drop"]]
        for section in draws["sections"]:
            order = [1.0] * section["length"]
            for place, chosen in enumerate(section["chosen"]):
                order[chosen] = place / section["length"]
            numbers += [section["r"], *order]
        return cls(numbers)


def made_weight(seed: int, name: str, shape: Sequence[int], exponent: int | None) -> Tensor:
    """The fp32 weight of the record's formula: SplitMix64 (Steele et al. 2014) of the flat index, keyed with seed and
    name; the top byte becomes the number. exponent: the power of two that scales it; None: that of a norm, near 1."""
    key = np.frombuffer(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], dtype="<u8")[0]
    with np.errstate(over="ignore"):
        z = np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + key
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    byte = torch.from_numpy(((z ^ (z >> np.uint64(31))) >> np.uint64(56)).astype(np.int64))
    weight = 1 + (byte // 8 - 16) / 128 if exponent is None else (2 * byte - 255) / 256 * 2.0**exponent
    return weight.float().view(*shape)
