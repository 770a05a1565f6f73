"""The released code itself, from a checkout (commit 81344e6), over this pack's weights; it needs transformers 4.46."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import torch

from dimoo_core.model.transformer import Transformer, module_to_hub
from dimoo_core.sequence.token_table import TokenTable

from ..workload import ImageJob, TextJob
from .timing import Run

NEEDED = ("model/modeling_xllmx_dimoo.py", "generators/image_generation_generator.py", "utils/generation_utils.py")
_LIKE_THE_HUB = {  # its config.json, as far as the code reads it; sizes come from our transformer
    **{"activation_type": "silu", "block_type": "llama", "block_group_size": 1, "layer_norm_type": "rms"},
    **{"rope": True, "rope_full_precision": True, "alibi": False, "flash_attention": False, "mlp_ratio": 4},
    **{"attention_dropout": 0.0, "residual_dropout": 0.0, "embedding_dropout": 0.0, "layer_norm_with_affine": True},
    **{"attention_layer_norm": False, "include_bias": False, "include_qkv_bias": False, "weight_tying": False},
    **{"input_emb_norm": False, "scale_logits": False, "use_cache": False, "multi_query_attention": None},
    **{"init_fn": "mitchell", "init_std": 0.02, "max_sequence_length": 8192, "init_device": "meta"},
}


def check_checkout(folder: Path) -> None:
    """Raises ValueError where the folder is no checkout of the released code."""
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} has no {missing[0]}; expected a checkout of the released code: give the folder that holds its "
            "model/, generators/ and utils/."
        )


class ReleasedCode:
    """Its model and its three generators. Weights are shared where this pack has not split them."""

    name = "the released code"

    def __init__(self, folder: Path, transformer: Transformer, table: TokenTable):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))  # its files import each other by these names
        self.table, self.device = table, next(transformer.parameters()).device
        self.model = _model(transformer)

    def image(self, job: ImageJob, steps: int, *, cached: bool) -> Run:
        """A run of text-to-image or of an edit; only the former has a cache, with the published policy."""
        from generators.image_generation_generator import generate_image
        from generators.image_to_image_generator import generate_i2i

        table = self.table
        prefix, branches = job.prompts(table, self.device)
        ids = job.sequences(table)[0][0].to(self.device)
        how = {
            "seq_len": job.cells[0] * job.cells[1],
            "newline_every": job.cells[1],
            "timesteps": steps,
            "temperature": 1.0,
            "cfg_scale": job.scale,
            "code_start": prefix.shape[1] + 2,
            "mask_token_id": table.mask,
            "newline_id": table.newline,
            "codebook_size": table.codebook_size,
            "text_vocab_size": table.code_offset,
        }
        blind = [branch.prefix for branch in branches]

        def run() -> list[int]:
            chance = torch.Generator(self.device).manual_seed(0)
            if job.picture is None:
                codes = generate_image(
                    self.model, ids.clone(), uncon_ids=blind[0], use_cache=cached, generator=chance, **how
                )
                self.model.caching(False)  # it would keep what it has until the next picture
            else:
                codes = generate_i2i(
                    self.model,
                    ids.clone(),
                    uncon_text=blind[0],
                    uncon_image=blind[1],
                    cfg_img=job.scale,
                    generator=chance,
                    **how,
                )
            return codes.flatten().tolist()

        return run

    def answer(self, job: TextJob, tokens: int, block: int) -> Run:
        """A run of an answer, one token a step."""
        from generators.text_understanding_generator import generate_text_understanding

        ids = job.sequence(self.table, tokens).to(self.device)
        start = int((ids[0] == self.table.mask).nonzero()[0])
        how = {"steps": tokens, "gen_length": tokens, "block_length": block}

        def run() -> list[int]:
            filled = generate_text_understanding(
                self.model, ids.clone(), mask_id=self.table.mask, code_start=start, **how
            )
            return filled[0, start : start + tokens].tolist()

        return run


def _model(transformer: Transformer) -> torch.nn.Module:
    from model import LLaDAForMultiModalGeneration
    from model.configuration_llada import LLaDAConfig
    from model.modeling_llada import LLaDAModel, create_model_config_from_pretrained_config

    ours = transformer.config
    weights = {name: part.detach() for name, part in module_to_hub(transformer.state_dict()).items()}
    vocabulary = len(weights["model.transformer.wte.weight"])
    config = LLaDAConfig(
        d_model=ours.d_model,
        n_heads=ours.n_heads,
        n_kv_heads=ours.n_heads,
        n_layers=ours.n_layers,
        mlp_hidden_size=ours.mlp_hidden_size,
        rope_theta=ours.rope_theta,
        rms_norm_eps=ours.rms_norm_eps,
        vocab_size=vocabulary,
        embedding_size=vocabulary,
        **_LIKE_THE_HUB,
    )
    inner = create_model_config_from_pretrained_config(config)
    inner.init_device = "meta"
    with contextlib.redirect_stdout(None):  # it prints its configuration
        model = LLaDAForMultiModalGeneration(config, model=LLaDAModel(inner, init_params=False))
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)
