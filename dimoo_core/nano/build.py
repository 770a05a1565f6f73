"""Building DiMOO-nano from nothing: VQ, transformer, checkpoint. A stopped build resumes.

Each stage leaves its result in the run's folder, and one whose result is there is not run again. The transformer's
training goes on from its last whole step; the VQ's, which is short, begins again. Either way the same weights come out.
What ships is what `train nano` made without further settings.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ..checkpoint.export import copy_vq, export_transformer, export_vq
from ..checkpoint.find import Found, find
from ..checkpoint.load import load_transformer, read_vq
from ..model.config import TransformerConfig, VQConfig
from ..model.transformer import Transformer
from ..model.vq import VQ
from ..sequence.token_table import TokenTable
from ..sequence.tokenizer import TextTokenizer
from ..training.engine import Single, attention_for_training
from ..training.loop import DrawnBatches, Trainer, TrainSettings
from ..training.objective import Batch
from ..training.stopping import keeping
from .lessons import ANSWER, Course, Lessons
from .recipe import centres, vq_batches, vq_fields
from .train_vq import VQTrainSettings, codebook_from, polish_decoder, train_vq
from .words import build_table, build_tokenizer

VQ_TRAINING = VQTrainSettings(steps=1400)
POLISH = VQTrainSettings(steps=500, rate=2e-3)
TRAINING = TrainSettings(steps=16_000, save_every=50)
FIRST_WORDS, ALL_PLACES = 1000, 3500  # the steps before which these lessons end
FURTHER = TrainSettings(steps=4200, rate=1e-3, matrix_rate=1e-2, decay=0.45, seed=1)  # of a finished nano
DEFAULTS = {
    "size": [128, 128],
    "side": 128,
    "sides": [128, 160],
    "steps": 16,
    "cfg": 0.0,
    "image_cfg": 0.0,
    "temperature": 1.0,
    "max_tokens": ANSWER,
    "text_steps": ANSWER,
    "block_length": ANSWER,
}

Report = Callable[[str], None]


def transformer_fields(table: TokenTable) -> dict[str, Any]:
    """`config.json` of nano."""
    return {
        "model_type": "llada",
        "architectures": ["LLaDAModelLM"],
        "d_model": 160,
        "n_heads": 5,
        "n_kv_heads": 5,
        "n_layers": 6,
        "mlp_hidden_size": 448,
        "activation_type": "silu",
        "block_type": "llama",
        "layer_norm_type": "rms",
        "rms_norm_eps": 1e-5,
        "rope": True,
        "rope_theta": 10000.0,
        "max_sequence_length": 512,
        "vocab_size": table.codes.stop,
        "embedding_size": table.codes.stop,
        "weight_tying": False,
        "include_bias": False,
        "include_qkv_bias": False,
        "mask_token_id": table.mask,
        "eos_token_id": table.end_of_text,
        "pad_token_id": table.pad,
        "dimoo_token_ids": table.to_dict(),
        "dimoo_defaults": DEFAULTS,
    }


def build(
    run: Path,
    output: Path,
    *,
    report: Report,
    vq_trainings: tuple[VQTrainSettings, VQTrainSettings] = (VQ_TRAINING, POLISH),
    training: TrainSettings = TRAINING,
    start: Path | None = None,
) -> None:
    """All stages: work in the folder `run`, and write the finished checkpoint to `output`. `report` gets lines of
    progress.

    With `start`, a finished nano, its VQ is kept and its transformer is trained further. Raises ValueError where
    `start` is not a nano of this vocabulary and size, and `Stopped` on Ctrl-C, saying what is kept.
    """
    given = None if start is None else _find_nano(start)
    vq_folder = run / "vqvae"
    if not (vq_folder / "config.json").exists():
        if given is None:
            _build_vq(vq_folder, *vq_trainings, training.seed, report)
        else:
            copy_vq(vq_folder, given, fields=vq_fields(given.table.codebook_size))
    vq = read_vq(vq_folder)
    tokenizer = build_tokenizer()
    table = build_table(tokenizer, vq.config.codebook_size)
    torch.manual_seed(training.seed)  # again, or the weights would depend on whether the VQ was just trained
    transformer = new_transformer(table)
    if given is not None:
        transformer.load_state_dict(load_transformer(given, dtype=torch.float32, dequantised=True).state_dict())
    transformer.train()
    trainer = Trainer(
        transformer,
        dict(transformer.named_parameters()),
        course(Lessons(TextTokenizer(tokenizer), table), training, further=given is not None),
        training,
        engine=Single(torch.device("cpu")),
        folder=run / "transformer",
    )
    trainer.run(lambda step: report(f"transformer {step.number}/{step.steps} loss {step.loss:.4f}"))
    transformer.eval()
    with keeping(f"the training is finished and kept in {run}, the same command writes the checkpoint"):
        text = tokenizer.to_str(pretty=True)
        export_transformer(output, transformer, fields=transformer_fields(table), tokenizer=text)
        export_vq(output / "vqvae", vq, fields=vq_fields(vq.config.codebook_size))
    report(f"wrote {output}")


def new_transformer(table: TokenTable) -> Transformer:
    """An untrained transformer of nano's size; embeddings begin small, as in LLaMA."""
    config = TransformerConfig.from_dict(transformer_fields(table))
    transformer = Transformer(config, code_offset=table.code_offset, attention=attention_for_training)
    for weight in transformer.layers["wte"].parameters():
        torch.nn.init.normal_(weight, std=0.02)
    return transformer


def course(lessons: Lessons, training: TrainSettings, *, further: bool = False) -> Course:
    """The lessons of a run in their order; batches are larger while the learning rate falls. `further`: of a nano that
    knows its places already."""

    def drawn(draw: Callable[[random.Random], list[Batch]]) -> DrawnBatches:
        return DrawnBatches(draw, lessons.examples.table.mask, training.seed)

    everything = drawn(lessons.everything)
    if further:
        return Course([(training.steps, everything)])
    falling = round((1 - training.decay) * training.steps)
    first = [(FIRST_WORDS, drawn(lessons.first_words)), (ALL_PLACES, drawn(lessons.all_places))]
    return Course([*first, (falling, drawn(lessons.half_of_everything)), (training.steps, everything)])


def named_right(vq: VQ, batches: int = 20) -> tuple[int, int]:
    """Of how many pictures the VQ names every cell as `labels_of` does, and of how many in all."""
    right = pictures = 0
    for pixels, labels in islice(vq_batches(12, seed=2), batches):
        right += int((vq.encode(pixels) == labels).flatten(1).all(dim=1).sum())
        pictures += len(pixels)
    return right, pictures


def _find_nano(folder: Path) -> Found:
    """A finished nano of this vocabulary and size."""
    found = find(folder)
    table = build_table(build_tokenizer(), found.table.codebook_size)
    if found.table != table or found.config != TransformerConfig.from_dict(transformer_fields(table)):
        raise ValueError(f"{folder} is not a nano of this recipe: its words, codes or size differ; name one that is.")
    return found


def _build_vq(folder: Path, training: VQTrainSettings, polish: VQTrainSettings, seed: int, report: Report) -> None:
    with keeping("nothing is kept, the VQ's training was not finished"):
        vq = _trained_vq(training, polish, seed, report)
        export_vq(folder, vq, fields=vq_fields(vq.config.codebook_size))
    with keeping(f"the VQ is finished and kept in {folder}, the same command continues from there"):
        right, pictures = named_right(read_vq(folder))
        report(f"the VQ names every cell of {right} of {pictures} pictures right")


def _trained_vq(training: VQTrainSettings, polish: VQTrainSettings, seed: int, report: Report) -> VQ:
    torch.manual_seed(seed)
    vq = VQ(VQConfig.from_dict(vq_fields(len(centres()))))
    with torch.no_grad():
        for weight in vq.parameters():
            if weight.ndim == 4:  # convolutions are faster so
                weight.data = weight.data.to(memory_format=torch.channels_last)
        vq.quantize.embedding.weight.copy_(codebook_from(centres(), vq.config.embed_dim))

    def on_step(step: int, naming: float, painting: float) -> None:
        report(f"vq {step + 1} naming {naming:.4f} painting {painting:.5f}")

    train_vq(vq, vq_batches(training.batch), training, on_step)
    polish_decoder(vq, vq_batches(polish.batch, seed=1), polish, on_step)
    return vq
