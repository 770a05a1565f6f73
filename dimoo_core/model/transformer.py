"""The Lumina-DiMOO transformer: token ids in, logits out.

Full bidirectional attention, RMSNorm before each half of a block, rotary positions, SwiGLU feed-forward, no biases.
The formulas are those of the released `modeling_llada.py`; what is computed is less:

* logits only at the positions (`rows`) and vocabulary rows (`vocab`) that the caller names, and in the last layer
  queries and feed-forward only at those positions;
* with a key/value store only the given positions are computed; they attend to the whole stored sequence. Keys are
  stored after rotation, so nothing is rotated twice;
* embedding and head are each two leaf layers, text rows and code rows, because an image job needs 8192 of 134548 head
  rows, and because ComfyUI moves memory layer by leaf layer;
* what lies between the matrix products is done in as few passes over memory as plain torch allows: fp32 is computed on
  the fly from what is stored narrower, sums and products go where an operand was. Only temporaries of the pass itself
  are overwritten, and of those none that autograd follows (`overwritable`).

Shapes: B batch, L sequence, n the positions given, r the rows asked for, D width, h heads, d head width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from . import adapters as branching
from .adapters import Adapters, Branch
from .config import TransformerConfig
from .in_place import add_, overwritable

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
Branches = Mapping[str, Sequence[Branch]]  # of low rank, by the layer of a module beside which they stand
NO_BRANCHES: Branches = {}
NO_ADAPTERS = Adapters()
_ROOT = "model.transformer"  # of the published names
_FUSED_NORM = hasattr(torch.ops.aten, "_fused_rms_norm")  # on GPUs, since torch 2.9


class KeyValueStore(Protocol):
    """A cache as the transformer uses it; it belongs to the caller, and nothing of it stays on a module."""

    def update(self, layer: int, positions: Tensor | None, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values [B,h,n,d] at positions [B,n] (None: all of them) and return all [B,h,L,d]."""
        ...


def sdpa(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention without a mask through torch; queries [B,h,n,d], keys and values [B,h,L,d] -> [B,h,n,d]."""
    return F.scaled_dot_product_attention(queries, keys, values)


def rope_table(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines [B,1,n,d] in fp32 for positions [B,n], made for each pass on the positions' device."""
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions[:, None, :, None].float() / theta**exponents
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate_(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions in fp32, first half paired with second half; x [B,h,n,d] -> same shape, dtype and strides.

    The products are fp32 whatever x is, by promotion. x is overwritten unless autograd follows it. Not by addcmul,
    which would save a pass: it may fuse product and sum and then rounds otherwise.
    """
    cos, sin = table
    half = x.shape[-1] // 2
    straight, crossed = x * cos, x * sin
    if not overwritable(x):
        first, second = straight[..., :half] - crossed[..., half:], straight[..., half:] + crossed[..., :half]
        return torch.cat((first, second), dim=-1).to(x.dtype)
    torch.sub(straight[..., :half], crossed[..., half:], out=x[..., :half])
    torch.add(straight[..., half:], crossed[..., :half], out=x[..., half:])
    return x


def rotate_in_chunks_(x: Tensor, table: tuple[Tensor, Tensor], chunk_rows: int | None) -> Tensor:
    """`rotate_`, of at most `chunk_rows` of the B*n rows at a time where x may be overwritten."""
    if chunk_rows is None or not overwritable(x):
        return rotate_(x, table)
    size = max(chunk_rows // len(x), 1)
    for part, cos, sin in zip(*(one.split(size, dim=2) for one in (x, *table)), strict=True):
        rotate_(part, (cos, sin))
    return x


def swiglu_(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up of one shape, written to `gate` unless autograd follows one of them."""
    return F.silu(gate, inplace=True).mul_(up) if overwritable(gate, up) else F.silu(gate) * up


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x [B,n,D] at index [B,r] -> [B,r,D]."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


class RMSNorm(nn.RMSNorm):
    """torch's, in three passes over a wide input instead of eight where torch has no fused kernel.

    bf16 is rounded before the weights are applied, as in the released code.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x [...,D] -> the same shape and dtype"""
        if not overwritable(x, self.weight) or (x.is_cuda and _FUSED_NORM):
            return super().forward(x)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = norm.square_().div_(x.shape[-1]).add_(self.eps).rsqrt_()
        return torch.mul(x, scale, out=torch.empty_like(x)).mul_(self.weight)


class SplitEmbedding(nn.Module):
    """Embedding of `rows` ids in two leaves: text ids [0, offset) and code ids [offset, rows)."""

    def __init__(self, rows: int, width: int, offset: int, ops, **where):
        super().__init__()
        self.offset = offset
        self.text = ops.Embedding(offset, width, **where)
        self.codes = ops.Embedding(rows - offset, width, **where)

    def forward(self, ids: Tensor, branches: Branches = NO_BRANCHES) -> Tensor:
        """ids [B,n] -> [B,n,D]"""
        text, codes = ids.clamp(max=self.offset - 1), (ids - self.offset).clamp(min=0)
        text = branching.embedding(self.text, text, branches.get("text", ()))
        codes = branching.embedding(self.codes, codes, branches.get("codes", ()))
        return torch.where((ids < self.offset)[..., None], text, codes)


class SplitHead(nn.Module):
    """Head in two leaves, so that an image job touches the code rows alone."""

    def __init__(self, width: int, rows: int, offset: int, ops, **where):
        super().__init__()
        self.offset, self.rows = offset, rows
        self.text = ops.Linear(width, offset, bias=False, **where)
        self.codes = ops.Linear(width, rows - offset, bias=False, **where)

    def forward(self, x: Tensor, vocab: slice | None, branches: Branches = NO_BRANCHES) -> Tensor:
        """x [B,r,D] -> logits [B,r,V] of the vocabulary rows `vocab` (None: all)."""
        start, stop, _ = (vocab or slice(None)).indices(self.rows)
        parts = []
        if start < self.offset:
            parts.append(branching.linear(self.text, x, branches.get("text", ()))[..., start:stop])
        if stop > self.offset:
            codes = branching.linear(self.codes, x, branches.get("codes", ()))
            parts.append(codes[..., max(start - self.offset, 0) : stop - self.offset])
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def layer_norm(ops) -> type[nn.Module]:
    """The norm of a namespace of layers; for torch's own, the leaner one above."""
    return RMSNorm if ops is nn else ops.RMSNorm


class Block(nn.Module):
    """One layer; the parameter names are those of the published checkpoint.

    recomputes: in training, only the input is kept for the backward pass, which computes all else again.
    """

    recomputes = False

    def __init__(self, config: TransformerConfig, attention: Attention, ops, **where):
        super().__init__()
        width, hidden = config.d_model, config.mlp_hidden_size
        kv_width = config.n_kv_heads * config.head_dim
        self.head_dim, self.groups, self.attention = config.head_dim, config.n_heads // config.n_kv_heads, attention
        norm = layer_norm(ops)
        self.attn_norm = norm(width, eps=config.rms_norm_eps, **where)
        self.q_proj = ops.Linear(width, width, bias=False, **where)
        self.k_proj = ops.Linear(width, kv_width, bias=False, **where)
        self.v_proj = ops.Linear(width, kv_width, bias=False, **where)
        self.attn_out = ops.Linear(width, width, bias=False, **where)
        self.ff_norm = norm(width, eps=config.rms_norm_eps, **where)
        self.ff_proj = ops.Linear(width, hidden, bias=False, **where)
        self.up_proj = ops.Linear(width, hidden, bias=False, **where)
        self.ff_out = ops.Linear(hidden, width, bias=False, **where)

    def _project(self, branches: Branches, name: str, x: Tensor) -> Tensor:
        return branching.linear(getattr(self, name), x, branches.get(name, ()))

    def _heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "b n (h d) -> b h n d", d=self.head_dim)

    def forward(
        self,
        x: Tensor,
        table: tuple[Tensor, Tensor],
        store: Callable[[Tensor, Tensor], tuple],
        *,
        rows: Tensor | None = None,
        chunk_rows: int | None = None,
        branches: Branches = NO_BRANCHES,
    ) -> Tensor:
        """x [B,n,D] -> [B,n,D], or [B,r,D] where only `rows` [B,r] go on; `store` takes new keys and values and returns
        all of the sequence. `branches` of low rank stand beside the linears.

        x may be overwritten: the result may be x itself.
        """
        if self.recomputes and torch.is_grad_enabled():

            def layer(kept: Tensor, *rest) -> Tensor:
                # an input that autograd does not follow would be overwritten, and the second time be another one
                return self._layer(kept if kept.requires_grad else kept.clone(), *rest)

            return checkpoint(layer, x, table, store, rows, chunk_rows, branches, use_reentrant=False)
        return self._layer(x, table, store, rows, chunk_rows, branches)

    def _layer(
        self,
        x: Tensor,
        table: tuple[Tensor, Tensor],
        store: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        rows: Tensor | None,
        chunk_rows: int | None,
        branches: Branches,
    ) -> Tensor:
        return self._feed(self._attend(x, table, store, rows, chunk_rows, branches), chunk_rows, branches)

    def _attend(
        self,
        x: Tensor,
        table: tuple[Tensor, Tensor],
        store: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        rows: Tensor | None,
        chunk_rows: int | None,
        branches: Branches,
    ) -> Tensor:
        """x + attention(x), [B,n,D] or [B,r,D]. This takes the most memory, so nothing is held longer than needed."""
        project = partial(self._project, branches)
        normed = self.attn_norm(x)
        keys, own = rotate_in_chunks_(self._heads(project("k_proj", normed)), table, chunk_rows), normed
        if rows is not None:
            x, own = take_rows(x, rows), take_rows(normed, rows)
            cos, sin = (take_rows(part[:, 0].expand(len(rows), -1, -1), rows)[:, None] for part in table)
            table = (cos, sin)
        queries = rotate_in_chunks_(self._heads(project("q_proj", own)), table, chunk_rows)
        del own
        values = self._heads(project("v_proj", normed))  # computed last: rotating queries and keys needs temporaries
        del normed
        keys, values = store(keys, values)
        if self.groups > 1:
            keys, values = (part.repeat_interleave(self.groups, dim=1) for part in (keys, values))
        attended = rearrange(self.attention(queries, keys, values), "b h n d -> b n (h d)")
        del queries, keys, values
        return add_(x, project("attn_out", attended))

    def _feed(self, x: Tensor, chunk_rows: int | None, branches: Branches) -> Tensor:
        """x + feed-forward(x), x [B,n,D], at most `chunk_rows` of the B*n rows at a time: they do not mix here."""
        flat = x.reshape(1, -1, x.shape[-1])
        # Chunks of one size: a product of very few rows may go through another kernel, and round otherwise.
        chunks = flat.chunk(1 if chunk_rows is None else math.ceil(flat.shape[1] / chunk_rows) or 1, dim=1)
        fed = [add_(chunk, self._feed_forward(chunk, branches)) for chunk in chunks]
        overwritten = all(after is before for after, before in zip(fed, chunks, strict=True))
        return (flat if overwritten else torch.cat(fed, dim=1)).view(x.shape)

    def _feed_forward(self, x: Tensor, branches: Branches) -> Tensor:
        project = partial(self._project, branches)
        normed = self.ff_norm(x)
        return project("ff_out", swiglu_(project("ff_proj", normed), project("up_proj", normed)))


class Transformer(nn.Module):
    """The network. `ops` is a namespace with Linear, Embedding and RMSNorm; `attention` takes and gives [B,h,n,d]."""

    def __init__(
        self,
        config: TransformerConfig,
        *,
        code_offset: int,
        ops=nn,
        attention: Attention = sdpa,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.config, self.code_offset = config, code_offset
        where = {"device": device, "dtype": dtype}
        blocks = [Block(config, attention, ops, **where) for _ in range(config.n_layers)]
        layers = {
            "wte": SplitEmbedding(config.vocab_size, config.d_model, code_offset, ops, **where),
            "blocks": nn.ModuleList(blocks),
            "ln_f": layer_norm(ops)(config.d_model, eps=config.rms_norm_eps, **where),
            "ff_out": SplitHead(config.d_model, config.vocab_size, code_offset, ops, **where),
        }
        self.model = nn.ModuleDict({"transformer": nn.ModuleDict(layers)})

    @property
    def layers(self) -> nn.ModuleDict:
        """wte, blocks, ln_f and ff_out, which the published names keep under `model.transformer`."""
        return cast(nn.ModuleDict, self.model["transformer"])

    @property
    def blocks(self) -> nn.ModuleList:
        return cast(nn.ModuleList, self.layers["blocks"])

    def forward(
        self,
        ids: Tensor,
        *,
        positions: Tensor | None = None,
        cache: KeyValueStore | None = None,
        rows: Tensor | None = None,
        vocab: slice | None = None,
        chunk_rows: int | None = None,
        adapters: Adapters = NO_ADAPTERS,
    ) -> Tensor:
        """Logits [B,r,V] in the compute dtype for ids [B,n] int64.

        positions [B,n]: where the ids stand in the sequence (None: 0..n-1, the whole sequence). With a `cache` their
        keys and values are stored, and attention sees all that is stored. rows [B,r]: indices into the n given ids
        whose logits are returned (None: all). vocab: the vocabulary rows of those logits (None: all).
        chunk_rows: chunk size for rotation and feed-forward, in rows of the B*n (None: all at once); results are
        bit-identical unless it is tiny. adapters: low-rank branches that act in this call.
        """
        where = torch.arange(ids.shape[1], device=ids.device)[None] if positions is None else positions
        table = rope_table(where, self.config.head_dim, self.config.rope_theta)
        x = self.layers["wte"](ids, adapters.inside(f"{_ROOT}.wte"))
        last = len(self.blocks) - 1
        for index, block in enumerate(self.blocks):

            def store(keys: Tensor, values: Tensor, layer: int = index) -> tuple[Tensor, Tensor]:
                return (keys, values) if cache is None else cache.update(layer, positions, keys, values)

            x = block(
                x,
                table,
                store,
                rows=rows if index == last else None,
                chunk_rows=chunk_rows,
                branches=adapters.inside(f"{_ROOT}.blocks.{index}"),
            )
        return self.layers["ff_out"](self.layers["ln_f"](x), vocab, adapters.inside(f"{_ROOT}.ff_out"))

    def recompute(self, blocks: bool = True) -> Transformer:
        """Whether training keeps only the inputs of the blocks, and computes what is in them again backward."""
        for block in self.blocks:
            cast(Block, block).recomputes = blocks
        return self


_SPLIT = (f"{_ROOT}.wte", f"{_ROOT}.ff_out")


def hub_to_module(name: str, code_offset: int) -> list[tuple[str, slice | None]]:
    """Where a published tensor goes: module parameter names, each with the tensor rows it takes (None: all)."""
    stem, _, leaf = name.rpartition(".")
    if stem not in _SPLIT:
        return [(name, None)]
    return [(f"{stem}.text.{leaf}", slice(0, code_offset)), (f"{stem}.codes.{leaf}", slice(code_offset, None))]


def module_to_hub(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the module under the published names; the inverse of `hub_to_module`."""
    state = dict(state)
    for stem in _SPLIT:
        parts = [state.pop(f"{stem}.{part}.weight") for part in ("text", "codes")]
        state[f"{stem}.weight"] = torch.cat(parts)
    return state


def hub_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Published names and shapes of a module's tensors, by arithmetic: `torch.cat` on meta imports for seconds."""
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    for stem in _SPLIT:
        text, codes = (shapes.pop(f"{stem}.{part}.weight") for part in ("text", "codes"))
        shapes[f"{stem}.weight"] = (text[0] + codes[0], *text[1:])
    return shapes
