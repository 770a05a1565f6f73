"""Both networks against independent implementations: transformers' Llama and diffusers' VQModel, same random weights.

The weights travel by file in the published layout, through the very functions that load a downloaded checkpoint.

Tolerances are for fp32. Logits, latents and pixels here are numbers of size 1 to 5, sums of many products taken in
another order than the twin takes them: seen to differ by up to 1.3e-5, an eighth of ATOL. That is tight enough:
`test_the_tolerance_tells_a_mistake` shows that the smallest mistakes we could think of (an eps ten times as large, a
rope base half as large, other heads, a causal mask) are told apart.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import VQModel
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from dimoo_core.checkpoint.load import read_transformer, read_vq
from dimoo_core.model.config import TransformerConfig
from dimoo_core.model.transformer import Transformer, hub_to_module, module_to_hub, rope_table, rotate_
from dimoo_core.model.vq import VQ
from dimoo_core.nano.train_vq import naming_loss, painting_loss
from dimoo_core.sampling.branch import KeyValues

ATOL = 1e-4
OFFSET = 70  # first code id; the rows above are codes
VOCABULARY = 110

# d_model, layers, heads, key heads, feed-forward width, rope base, eps
LLAMAS = {
    "one layer, one head": (16, 1, 1, 1, 24, 10000.0, 1e-5),
    "nano's proportions": (80, 3, 5, 5, 224, 10000.0, 1e-5),
    "the 8B's base": (64, 2, 4, 4, 192, 500000.0, 1e-5),
    "grouped key heads": (64, 3, 8, 2, 96, 500000.0, 1e-6),
    "one key head for all": (48, 2, 6, 1, 100, 500.0, 1e-3),
    "deep": (32, 8, 2, 2, 64, 10000.0, 1e-5),
}
# published name of a Llama weight inside a layer -> ours
IN_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj",
    "self_attn.o_proj": "attn_out",
    "post_attention_layernorm": "ff_norm",
    "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "ff_out",
}
OUTSIDE = {"model.embed_tokens": "wte", "model.norm": "ln_f", "lm_head": "ff_out"}


def scramble(module: nn.Module, seed: int) -> None:
    """Random weights under which every part matters: matrices keep a signal's size, norms and biases say something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 16
            noise = torch.randn(parameter.shape, generator=generator) / fan_in**0.5
            parameter.copy_(noise if parameter.ndim > 1 else parameter + noise)


def draw_ids(batch: int, length: int, seed: int = 0) -> Tensor:
    """Ids [B,L], text and codes mixed."""
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------- the transformer


def llama(name: str) -> LlamaForCausalLM:
    width, layers, heads, key_heads, hidden, base, eps = LLAMAS[name]
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        rope_theta=base,
        rms_norm_eps=eps,
        tie_word_embeddings=False,
    )
    twin = LlamaForCausalLM(config).eval()
    scramble(twin, seed=1)
    return twin


def published_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem in OUTSIDE:
        return f"model.transformer.{OUTSIDE[stem]}.weight"
    _, _, layer, inner = stem.split(".", 3)
    return f"model.transformer.blocks.{layer}.{IN_LAYER[inner]}.weight"


def hub_folder(twin: LlamaForCausalLM, name: str, folder: Path) -> Path:
    """The twin's weights as a downloaded checkpoint would hold them."""
    fields = ("d_model", "n_layers", "n_heads", "n_kv_heads", "mlp_hidden_size", "rope_theta", "rms_norm_eps")
    config = dict(zip(fields, LLAMAS[name], strict=True)) | {"model_type": "llada", "vocab_size": VOCABULARY}
    (folder / "config.json").write_text(json.dumps(config))
    state = {published_name(part): tensor.detach() for part, tensor in twin.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    return folder


def twin_logits(twin: LlamaForCausalLM, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Logits [B,L,V] of the twin; the mask that is added to its scores is zero, so all positions see all."""
    zeros = torch.zeros(len(ids), 1, ids.shape[1], ids.shape[1])
    with torch.no_grad():
        return twin(input_ids=ids, attention_mask=zeros if mask is None else mask, use_cache=False).logits


@pytest.fixture(params=LLAMAS)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Transformer, LlamaForCausalLM]:
    twin = llama(request.param)
    return read_transformer(hub_folder(twin, request.param, tmp_path), code_offset=OFFSET), twin


@pytest.fixture
def model(tmp_path: Path) -> Transformer:
    """Two layers, grouped key heads."""
    return read_transformer(hub_folder(llama("grouped key heads"), "grouped key heads", tmp_path), code_offset=OFFSET)


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (2, 37), (1, 300)])
def test_logits_equal_llamas(pair: tuple[Transformer, LlamaForCausalLM], batch: int, length: int) -> None:
    ours, twin = pair
    ids = draw_ids(batch, length)
    expected = twin_logits(twin, ids)
    assert expected.std() > 0.3, "logits that say nothing would prove nothing"
    assert_close(ours(ids), expected, rtol=0, atol=ATOL)


def test_the_tolerance_tells_a_mistake(tmp_path: Path) -> None:
    twin = llama("the 8B's base")
    folder, ids = hub_folder(twin, "the 8B's base", tmp_path), draw_ids(2, 37)
    right, expected = read_transformer(folder, code_offset=OFFSET), twin_logits(twin, ids)
    mistakes = [{"rope_theta": 250000.0}, {"rms_norm_eps": 1e-4}, {"n_heads": 8, "n_kv_heads": 8}]
    for mistake in mistakes:
        wrong = Transformer(replace(right.config, **mistake), code_offset=OFFSET)
        wrong.load_state_dict(right.state_dict())
        assert (wrong(ids) - expected).abs().max() > 3 * ATOL, mistake
    causal = torch.full((2, 1, 37, 37), float("-inf")).triu(1)
    assert (twin_logits(twin, ids, causal) - right(ids)).abs().max() > 100 * ATOL


@pytest.mark.parametrize("base", [500.0, 10000.0, 500000.0])
@pytest.mark.parametrize("width", [2, 16, 128])
def test_rope_alone_equals_llamas(base: float, width: int) -> None:
    twin = LlamaRotaryEmbedding(LlamaConfig(hidden_size=width, num_attention_heads=1, rope_theta=base))
    positions = torch.tensor([[0, 1, 2, 3, 50, 700, 4000, 9000], [9000, 5, 5, 1, 0, 64, 65, 66]])
    x = torch.randn(2, 3, 8, width, generator=torch.Generator().manual_seed(0))
    expected, _ = apply_rotary_pos_emb(x, x, *twin(x, positions))
    # an angle is a position times a frequency, good to 24 bits: at position p it is known to about p / 2**23
    allowed = 1e-6 + x.abs().max() * positions[:, None, :, None] * 2.0**-22
    assert ((rotate_(x.clone(), rope_table(positions, width, base)) - expected).abs() <= allowed).all()


def test_rope_turns_by_distance_alone() -> None:
    queries, keys = torch.randn(2, 1, 1, 1, 32, generator=torch.Generator().manual_seed(0))

    def score(query_at: int, key_at: int) -> Tensor:
        tables = [rope_table(torch.tensor([[place]]), 32, 10000.0) for place in (query_at, key_at)]
        return (rotate_(queries.clone(), tables[0]) * rotate_(keys.clone(), tables[1])).sum()

    assert_close(score(7, 3), score(107, 103), rtol=0, atol=ATOL)
    assert_close(score(5, 5), (queries * keys).sum(), rtol=0, atol=ATOL)
    assert (score(7, 3) - score(3, 7)).abs() > 100 * ATOL, "forwards is not backwards"


def test_published_names_go_there_and_back(model: Transformer) -> None:
    state = model.state_dict()
    hub = module_to_hub(state)
    assert set(hub) == {published_name(name) for name in llama("grouped key heads").state_dict()}
    places = {place: (name, rows) for name in hub for place, rows in hub_to_module(name, OFFSET)}
    assert set(places) == set(state)
    for place, (name, rows) in places.items():
        assert torch.equal(hub[name][rows or slice(None)], state[place])


# ----------------------------------------------------------------------------- less computed, the same numbers


@pytest.mark.parametrize("rows", [[[0], [36]], [[3, 4, 36], [0, 20, 1]], [[5, 5], [2, 2]], [[], []]])
def test_wanted_rows_equal_those_of_the_whole(model: Transformer, rows: list[list[int]]) -> None:
    ids, index = draw_ids(2, 37), torch.tensor(rows, dtype=torch.int64)
    whole = model(ids)
    expected = torch.stack([whole[item, index[item]] for item in range(2)])
    assert_close(model(ids, rows=index), expected, rtol=0, atol=ATOL)


@pytest.mark.parametrize("depth", [1, 2])
def test_wanted_rows_whatever_the_depth(depth: int) -> None:
    config = TransformerConfig(32, depth, 2, 1, 48, VOCABULARY, 10000.0, 1e-5)
    model = Transformer(config, code_offset=OFFSET)
    scramble(model, 0)
    ids, index = draw_ids(1, 9), torch.tensor([[8, 2]])
    assert_close(model(ids, rows=index), model(ids)[:, [8, 2]], rtol=0, atol=ATOL)


@pytest.mark.parametrize(
    "vocab",
    [
        slice(OFFSET, VOCABULARY),
        slice(OFFSET + 3, OFFSET + 9),
        slice(0, OFFSET),
        slice(5, 60),
        slice(OFFSET - 2, OFFSET + 2),
        slice(None),
        slice(OFFSET, None),
    ],
)
def test_wanted_vocabulary_equals_that_of_the_whole(model: Transformer, vocab: slice) -> None:
    ids = draw_ids(2, 11)
    assert_close(model(ids, vocab=vocab), model(ids)[..., vocab], rtol=0, atol=ATOL)


def test_a_code_slice_leaves_the_text_head_alone(model: Transformer) -> None:
    seen: list[str] = []
    head = model.layers["ff_out"]
    for name, part in head.named_children():
        part.register_forward_hook(lambda *_, name=name: seen.append(name))
    model(draw_ids(1, 5), vocab=slice(OFFSET, VOCABULARY))
    assert seen == ["codes"]


def test_rows_save_the_last_layers_work(model: Transformer) -> None:
    lengths: list[int] = []
    model.blocks[-1].ff_proj.register_forward_pre_hook(lambda _, inputs: lengths.append(len(inputs[0])))
    model(draw_ids(1, 20), rows=torch.tensor([[1, 2, 3]]))
    assert lengths == [3]


def test_a_full_pass_into_a_store_is_the_plain_pass(pair: tuple[Transformer, LlamaForCausalLM]) -> None:
    ours, twin = pair
    ids = draw_ids(2, 37)
    assert_close(ours(ids, cache=KeyValues()), twin_logits(twin, ids), rtol=0, atol=ATOL)


def test_a_partial_pass_over_unchanged_ids_changes_nothing(pair: tuple[Transformer, LlamaForCausalLM]) -> None:
    ours, twin = pair
    ids, store = draw_ids(2, 37), KeyValues()
    expected = twin_logits(twin, ids)
    ours(ids, cache=store)
    for positions in ([[0, 5, 36], [7, 8, 9]], [[20], [0]], [list(range(37)), list(range(36, -1, -1))]):
        index = torch.tensor(positions)
        got = ours(ids.gather(1, index), positions=index, cache=store)
        assert_close(got, torch.stack([expected[item, index[item]] for item in range(2)]), rtol=0, atol=ATOL)


def test_a_partial_pass_serves_rows_and_vocabulary_too(model: Transformer) -> None:
    ids, store, codes = draw_ids(2, 37), KeyValues(), slice(OFFSET, VOCABULARY)
    expected = model(ids, cache=store)
    index, rows = torch.tensor([[0, 5, 36], [7, 8, 9]]), torch.tensor([[2, 0], [1, 1]])
    got = model(ids.gather(1, index), positions=index, cache=store, rows=rows, vocab=codes)
    places = index.gather(1, rows)
    assert_close(got, torch.stack([expected[item, places[item], codes] for item in range(2)]), rtol=0, atol=ATOL)


@torch.no_grad()
def test_changed_ids_are_seen_by_all_that_follow() -> None:
    """In one layer keys depend on their own id alone, so a partial pass over what changed is exact everywhere."""
    config = TransformerConfig(48, 1, 6, 3, 64, VOCABULARY, 10000.0, 1e-5)
    model = Transformer(config, code_offset=OFFSET).eval()
    scramble(model, 0)
    before, store, index = draw_ids(2, 21), KeyValues(), torch.tensor([[4, 20], [0, 11]])
    model(before, cache=store)
    after = before.scatter(1, index, (before.gather(1, index) + 1) % VOCABULARY)
    expected = model(after)
    got = model(after.gather(1, index), positions=index, cache=store)
    assert_close(got, torch.stack([expected[item, index[item]] for item in range(2)]), rtol=0, atol=ATOL)
    others = torch.tensor([[1, 2], [19, 3]])
    got = model(after.gather(1, others), positions=others, cache=store)
    assert_close(got, torch.stack([expected[item, others[item]] for item in range(2)]), rtol=0, atol=ATOL)


def test_every_parameter_learns(pair: tuple[Transformer, LlamaForCausalLM]) -> None:
    model = pair[0].train().requires_grad_(True)
    ids = torch.arange(VOCABULARY).repeat(1, 2)
    model(ids).logsumexp(dim=-1).mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_a_parameter_that_learns_alone_learns_what_it_would_beside_all_others(
    pair: tuple[Transformer, LlamaForCausalLM],
) -> None:
    """What is overwritten in a pass is nothing that autograd has kept, whichever weights are frozen."""
    model, ids = pair[0].train().requires_grad_(True), torch.arange(VOCABULARY).repeat(1, 2)
    rows = torch.tensor([[3, 9, 20]])
    for options in ({}, {"rows": rows, "chunk_rows": 7}):
        model.requires_grad_(True).zero_grad()
        model(ids, **options).logsumexp(dim=-1).mean().backward()
        expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        for name, parameter in model.named_parameters():
            model.requires_grad_(False).zero_grad()
            parameter.requires_grad_(True)
            model(ids, **options).logsumexp(dim=-1).mean().backward()
            assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def held(module: nn.Module) -> dict[str, dict[str, Any]]:
    """Everything that hangs on a module and its parts, by identity; of tensors their version too."""

    def entries(values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        for name, value in values.items():
            if isinstance(value, dict):
                yield from ((f"{name}/{key}", part) for key, part in entries(value))
            else:
                yield name, (id(value), value._version if isinstance(value, Tensor) else None)

    return {path: dict(entries(vars(part))) for path, part in module.named_modules()}


def test_nothing_is_stored_on_a_module_during_a_call(model: Transformer, tmp_path: Path) -> None:
    before, ids, store = held(model), draw_ids(1, 12), KeyValues()
    model(ids, cache=store)
    model(ids[:, :2], positions=torch.tensor([[0, 1]]), cache=store, rows=torch.tensor([[1]]), vocab=slice(OFFSET, 100))
    assert held(model) == before
    vq = vq_pair("nano's proportions", tmp_path / "vqvae")[0]
    before = held(vq)
    vq.decode(vq.encode(picture(vq.scale)))
    vq.mean_colours()
    assert held(vq) == before
    vq.config = replace(vq.config)
    assert held(vq) != before, "this check would see it"


# ---------------------------------------------------------------------------------------------------------- the VQ

# widths of the levels, layers per block, latent channels, codebook width, codes, groups, attention in the middle
AUTOENCODERS = {
    "nano's proportions": ([8, 16, 24, 32, 40], 1, 16, None, 64, 1, False),
    "with attention": ([16, 16, 32], 2, 8, None, 50, 8, True),
    "a narrow codebook": ([8, 16], 1, 12, 5, 40, 4, False),
    "a wide codebook, attention": ([8, 8, 8, 16], 3, 4, 9, 40, 2, True),
    "one level": ([16], 2, 6, None, 30, 16, True),
    "aMUSEd's shape, thinner": ([8, 16, 16, 32, 48], 2, 8, None, 128, 8, False),
}


def vq_pair(name: str, folder: Path) -> tuple[VQ, VQModel]:
    """The twin, and ours read from the folder that diffusers wrote."""
    widths, layers, latent, width, codes, groups, attention = AUTOENCODERS[name]
    twin = VQModel(
        block_out_channels=widths,
        down_block_types=["DownEncoderBlock2D"] * len(widths),
        up_block_types=["UpDecoderBlock2D"] * len(widths),
        layers_per_block=layers,
        latent_channels=latent,
        vq_embed_dim=width,
        num_vq_embeddings=codes,
        norm_num_groups=groups,
        mid_block_add_attention=attention,
        lookup_from_codebook=True,
        force_upcast=True,
    ).eval()
    scramble(twin, seed=2)
    twin.save_pretrained(folder)
    return read_vq(folder), twin


def picture(scale: int, height: int = 4, width: int = 3) -> Tensor:
    """Two pictures [2,3,H*s,W*s] in 0..1."""
    return torch.rand(2, 3, height * scale, width * scale, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=AUTOENCODERS)
def autoencoders(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[VQ, VQModel]:
    return vq_pair(request.param, tmp_path)


@torch.no_grad()
def test_latents_equal_diffusers(autoencoders: tuple[VQ, VQModel]) -> None:
    ours, twin = autoencoders
    pixels = picture(ours.scale)
    expected = twin.encode(pixels).latents
    assert expected.shape[2:] == (4, 3) and expected.std() > 0.05
    assert_close(ours.latents(pixels), expected, rtol=0, atol=ATOL)


@torch.no_grad()
def test_codes_equal_diffusers(autoencoders: tuple[VQ, VQModel]) -> None:
    ours, twin = autoencoders
    pixels = picture(ours.scale, 8, 8)
    codes = ours.encode(pixels)
    latents = ours.latents(pixels)
    _, _, (_, _, expected) = twin.quantize(twin.encode(pixels).latents)
    best, second = ours.quantize.distances(latents).topk(2, largest=False).values.unbind(-1)
    clear = second - best > ATOL  # two codes may be equally near; which of them is taken is rounding
    assert clear.float().mean() > 0.95 and len(codes.unique()) > 1
    assert torch.equal(codes[clear], expected.view(codes.shape)[clear])


@torch.no_grad()
def test_decoded_pictures_equal_diffusers(autoencoders: tuple[VQ, VQModel]) -> None:
    ours, twin = autoencoders
    size = ours.config.codebook_size
    codes = torch.randint(size, (2, 4, 3), generator=torch.Generator().manual_seed(3))
    shape = (*codes.shape, ours.config.embed_dim)
    expected = twin.decode(codes, force_not_quantize=True, shape=shape).sample
    assert_close(ours.reconstruct(codes), expected, rtol=0, atol=ATOL)
    pixels = ours.decode(codes)
    assert_close(pixels, expected.clamp(0, 1), rtol=0, atol=ATOL)
    assert pixels.shape == (2, 3, 4 * ours.scale, 3 * ours.scale)
    assert ours.scale == 2 ** (len(twin.decoder.up_blocks) - 1)


def test_encode_and_decode_leave_no_autograd_state(autoencoders: tuple[VQ, VQModel]) -> None:
    ours = autoencoders[0].requires_grad_(True)
    pixels = picture(ours.scale).requires_grad_(True)
    codes = ours.encode(pixels)
    assert codes.dtype == torch.int64 and not ours.decode(codes).requires_grad
    assert ours.latents(pixels).requires_grad and ours.reconstruct(codes).requires_grad, "training has what it needs"


def test_every_parameter_of_the_vq_learns(autoencoders: tuple[VQ, VQModel]) -> None:
    ours = autoencoders[0].train().requires_grad_(True)
    pixels, labels = picture(ours.scale), torch.arange(24).view(2, 4, 3) % ours.config.codebook_size
    (naming_loss(ours, pixels, labels) + painting_loss(ours.reconstruct(labels), pixels)).backward()
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_a_parameter_of_the_vq_that_learns_alone_learns_what_it_would_beside_all_others(
    autoencoders: tuple[VQ, VQModel],
) -> None:
    ours = autoencoders[0].train().requires_grad_(True)
    pixels, labels = picture(ours.scale), torch.arange(24).view(2, 4, 3) % ours.config.codebook_size

    def gradients() -> dict[str, Tensor]:
        ours.zero_grad()
        (naming_loss(ours, pixels, labels) + painting_loss(ours.reconstruct(labels), pixels)).backward()
        return {name: one.grad.clone() for name, one in ours.named_parameters() if one.grad is not None}

    expected = gradients()
    for name, parameter in ours.named_parameters():
        ours.requires_grad_(False)
        parameter.requires_grad_(True)
        assert_close(gradients()[name], expected[name], rtol=1e-3, atol=1e-6, msg=name)


def test_the_twins_weights_are_all_taken(autoencoders: tuple[VQ, VQModel]) -> None:
    ours, twin = (part.state_dict() for part in autoencoders)
    assert ours.keys() == twin.keys()
    assert all(torch.equal(ours[name], twin[name]) for name in ours)
