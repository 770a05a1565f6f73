"""Building DiMOO-nano from nothing: VQ, codes of every picture, transformer, checkpoint. A stopped build resumes.

Each stage leaves its result in the run's folder; a stage whose result is there is not run again. TRAINING, and the
lessons as they stand, are the recipe from nothing.

The transformer that ships was not made in one such run, but by 2900 steps of an earlier mixture (fewer open captions,
any cells of them hidden, one picture in five of the second format) and 4200 more as `train nano --from` makes them. Of
these only the last 1050 hid cells as `shape_unseen` does, and before the last 450 one size was more frequent where the
words left it open. The VQ is that of the first run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
from ..training.pretokenise import encode_pictures, read_codes, write_codes
from ..training.stopping import keeping
from .lessons import Codes, Lessons
from .recipe import centres, edge_scenes, vq_batches, vq_fields
from .scenes import FORMATS, Scene, caption, draw, draw_edges, every_scene
from .train_vq import VQTrainSettings, codebook_from, polish_decoder, train_vq
from .words import build_table, build_tokenizer

VQ_TRAINING = VQTrainSettings(steps=1400)
POLISH = VQTrainSettings(steps=500, rate=2e-3)
TRAINING = TrainSettings(steps=10_000)
FURTHER = TrainSettings(steps=4200, rate=1e-3, matrix_rate=1e-2, decay=0.45, seed=1)  # of a finished nano
DEFAULTS = {
    "size": [128, 128],
    "side": 128,
    "sides": [128, 160],
    "steps": 16,
    "cfg": 0.0,
    "image_cfg": 0.0,
    "temperature": 1.0,
    "max_tokens": 32,
    "text_steps": 32,
    "block_length": 32,
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
    torch.manual_seed(training.seed)
    given = None if start is None else _find_nano(start)
    vq_folder = run / "vqvae"
    if not (vq_folder / "config.json").exists():
        with keeping("nothing is kept, the VQ's training was not finished"):
            if given is None:
                _build_vq(vq_folder, *vq_trainings, report)
            else:
                copy_vq(vq_folder, given, fields=vq_fields(given.table.codebook_size))
    vq = read_vq(vq_folder)
    with keeping(f"the finished VQ is kept in {vq_folder}, the same command encodes the pictures from the first"):
        codes = _all_codes(run / "codes.safetensors", vq, report)
    tokenizer = build_tokenizer()
    table = build_table(tokenizer, vq.config.codebook_size)
    lessons = Lessons(TextTokenizer(tokenizer), table, codes)
    transformer = new_transformer(table)
    if given is not None:
        transformer.load_state_dict(load_transformer(given, dtype=torch.float32, dequantised=True).state_dict())
    transformer.train()
    trainer = Trainer(
        transformer,
        dict(transformer.named_parameters()),
        DrawnBatches(lessons.draw, table.mask, training.seed),
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


def _find_nano(folder: Path) -> Found:
    """A finished nano of this vocabulary and size."""
    found = find(folder)
    table = build_table(build_tokenizer(), found.table.codebook_size)
    if found.table != table or found.config != TransformerConfig.from_dict(transformer_fields(table)):
        raise ValueError(f"{folder} is not a nano of this recipe: its words, codes or size differ; name one that is.")
    return found


def _build_vq(folder: Path, training: VQTrainSettings, polish: VQTrainSettings, report: Report) -> None:
    fields = vq_fields(len(centres()))
    vq = VQ(VQConfig.from_dict(fields))
    with torch.no_grad():
        for weight in vq.parameters():
            if weight.ndim == 4:  # convolutions are faster so
                weight.data = weight.data.to(memory_format=torch.channels_last)
        vq.quantize.embedding.weight.copy_(codebook_from(centres(), vq.config.embed_dim))

    def on_step(step: int, naming: float, painting: float) -> None:
        report(f"vq {step + 1} naming {naming:.4f} painting {painting:.5f}")

    train_vq(vq, vq_batches(training.batch), training, on_step)
    polish_decoder(vq, vq_batches(polish.batch, seed=1), polish, on_step)
    export_vq(folder, vq, fields=fields)


def _name(scene: Scene, edges: bool, height: int, width: int) -> str:
    return f"{'edges' if edges else 'picture'} {height}x{width} {caption(scene)}"


def _all_codes(file: Path, vq: VQ, report: Report) -> Codes:
    """Codes [H,W] of every picture of the world, made by the very weights that ship: rounding them changes codes."""
    keys = [(scene, False, h, w) for scene in every_scene() for h, w in FORMATS]
    keys += [(scene, True, h, w) for scene in edge_scenes() for h, w in FORMATS]
    keys.sort(key=lambda key: key[1:])
    if not file.exists():
        report(f"encoding {len(keys)} pictures")
        pictures = ((_name(*key), _picture(*key)) for key in keys)
        write_codes(file, dict(encode_pictures(vq, pictures)), {_name(*key): caption(key[0]) for key in keys})
    grids, _ = read_codes(file)
    return {key: grids[_name(*key)] for key in keys}


def _picture(scene: Scene, edges: bool, height: int, width: int) -> Tensor:
    return (draw_edges if edges else draw)(scene, height, width)
