"""The Lumina-DiMOO transformer: token ids in, logits out.

Full bidirectional attention, RMSNorm before each half of a block, rotary positions, SwiGLU feed-forward, no biases.
The formulas are those of the released `modeling_llada.py`; what is computed is less:

* logits only at the positions (`rows`) and vocabulary rows (`vocab`) that the caller names, and in the last layer
  queries and feed-forward only at those positions;
* with a key/value store only the given positions are computed; they attend to the whole stored sequence. Keys are
  stored after rotation, so nothing is rotated twice;
* several sequences, such as the branches of guidance, may go through the layers together: their rows lie one after the
  other, and only attention tells them apart. Then each weight is brought in, and each kernel launched, once for all;
* embedding and head are each two leaf layers, text rows and code rows, because an image job needs 8192 of 134548 head
  rows and few rows of the embedding, and because ComfyUI moves memory layer by leaf layer;
* what lies between the matrix products is done in as few passes over memory as plain torch allows: fp32 is computed on
  the fly from what is stored narrower, sums and products go where an operand was. Only temporaries of the pass itself
  are overwritten, and of those none that autograd follows (`overwritable`).

Shapes: B batch, L sequence, n the positions given, r the rows asked for, D width, h heads, d head width, V vocabulary;
N rows of all parts of a pass, the sum of their B*n, and R those that the last layer goes on with, the sum of B*r.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from . import adapters as branching
from .adapters import Adapters, Branch
from .config import TransformerConfig
from .in_place import add_
from .kernels import rotate_, swiglu_
from .text_rows import TextRows

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
Layer = Callable[[Tensor], Tensor]
Layers = Mapping[str, Layer]  # of a block, by name
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


@dataclass(frozen=True, eq=False)
class Part:
    """What one sequence brings to a pass: ids [B,n], standing at positions [B,n] (None: 0..n-1, the whole sequence).

    With a cache its keys and values are stored, and attention sees all that is stored. rows [B,r]: indices into the n
    given ids whose logits are returned (None: all).
    """

    ids: Tensor
    positions: Tensor | None = None
    cache: KeyValueStore | None = None
    rows: Tensor | None = None


def sdpa(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention without a mask through torch; queries [B,h,n,d], keys and values [B,h,L,d] -> [B,h,n,d]."""
    return F.scaled_dot_product_attention(queries, keys, values)


def rope_table(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines [B,1,n,d] in fp32 for positions [B,n], on the positions' device."""
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions[:, None, :, None].float() / theta**exponents
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


Angles = tuple[Tensor, Tensor]  # cosines and sines [N,1,d]


def _angles(positions: Tensor, config: TransformerConfig) -> Angles:
    """The angles of rows at positions [N]."""
    cos, sin = (table[0].transpose(0, 1) for table in rope_table(positions[None], config.head_dim, config.rope_theta))
    return cos, sin


class RotaryTable:
    """The angles of all positions of the sequences of a run, made once for all its passes."""

    def __init__(self, length: int, config: TransformerConfig, device: torch.device | str):
        """For positions 0..length-1."""
        self.cos, self.sin = _angles(torch.arange(length, device=device), config)  # [L,1,d]

    def of(self, parts: Sequence[Part]) -> Angles:
        """The angles [N,1,d] of the rows of a pass over `parts`."""
        if len(parts) == 1 and parts[0].positions is None and len(parts[0].ids) == 1:
            length = parts[0].ids.shape[1]
            return self.cos[:length], self.sin[:length]
        where = _positions(parts)
        return self.cos.index_select(0, where), self.sin.index_select(0, where)


def _positions(parts: Sequence[Part]) -> Tensor:
    """Where the ids of all parts stand, [N]."""
    where = [
        torch.arange(part.ids.shape[1], device=part.ids.device).expand(part.ids.shape)
        if part.positions is None
        else part.positions
        for part in parts
    ]
    return torch.cat([one.reshape(-1) for one in where])


def rotate_in_chunks_(x: Tensor, angles: Angles, chunk_rows: int | None) -> Tensor:
    """`rotate_` of x [N,h,d], at most `chunk_rows` rows at a time where x may be overwritten."""
    if chunk_rows is None or x.requires_grad:
        return rotate_(x, angles)
    for part, cos, sin in zip(*(one.split(chunk_rows) for one in (x, *angles)), strict=True):
        rotate_(part, (cos, sin))
    return x


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x [B,n,D] at index [B,r] -> [B,r,D]."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


class RMSNorm(nn.RMSNorm):
    """torch's, in three passes over a wide input instead of eight where torch has no fused kernel.

    bf16 is rounded before the weights are applied, as in the released code.
    """

    _parameters: dict[str, Tensor]  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """x [...,D] -> the same shape and dtype"""
        weight = self._parameters["weight"]
        if x.requires_grad or weight.requires_grad or (_FUSED_NORM and x.is_cuda):
            return super().forward(x)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = norm.square_().div_(x.shape[-1]).add_(self.eps).rsqrt_()
        return torch.mul(x, scale, out=torch.empty_like(x)).mul_(weight)


class Linear(nn.Linear):
    """torch's, without what it looks up for a bias that no layer has."""

    _parameters: dict[str, Tensor]  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """x [...,K] -> [...,N]"""
        return F.linear(x, self._parameters["weight"])


def layer_class(ops, name: str) -> type[nn.Module]:
    """Linear or RMSNorm of a namespace of layers; for torch's own, the leaner ones above."""
    lean = {"Linear": Linear, "RMSNorm": RMSNorm}
    return lean[name] if ops is nn else getattr(ops, name)


def held(layer: Layer, like: Tensor) -> AbstractContextManager[Layer]:
    """A layer for several products with rows like these: one whose weight is cast or streamed has that done once."""
    hold = getattr(layer, "held", None)
    return nullcontext(layer) if hold is None else hold(like)


def set_apart(holder: nn.Module, name: str) -> nn.Module:
    """Takes a layer out of its holder, which still uses it but no longer moves, counts or saves it."""
    layer = getattr(holder, name)
    delattr(holder, name)
    vars(holder)[name] = layer  # setattr would make it a part again
    return layer


class SplitEmbedding(nn.Module):
    """Embedding of `rows` ids in two leaves: text ids [0, offset) and code ids [offset, rows)."""

    def __init__(self, rows: int, width: int, offset: int, ops, **where):
        super().__init__()
        self.offset = offset
        self.text = ops.Embedding(offset, width, **where)
        self.codes = ops.Embedding(rows - offset, width, **where)

    def forward(self, ids: Tensor, branches: Branches = NO_BRANCHES, text_rows: TextRows | None = None) -> Tensor:
        """ids [...] -> [...,D]; with `text_rows` the layer of text ids is not used."""
        text, codes = ids.clamp(max=self.offset - 1), (ids - self.offset).clamp(min=0)
        text = branching.embedding(text_rows or self.text, text, branches.get("text", ()))
        codes = branching.embedding(self.codes, codes, branches.get("codes", ()))
        return torch.where((ids < self.offset)[..., None], text, codes)


class SplitHead(nn.Module):
    """Head in two leaves, so that an image job touches the code rows alone."""

    def __init__(self, width: int, rows: int, offset: int, ops, **where):
        super().__init__()
        self.offset, self.rows = offset, rows
        linear = layer_class(ops, "Linear")
        self.text = linear(width, offset, bias=False, **where)
        self.codes = linear(width, rows - offset, bias=False, **where)

    def forward(self, x: Tensor, vocab: slice | None, branches: Branches = NO_BRANCHES) -> Tensor:
        """x [...,D] -> logits [...,V] of the vocabulary rows `vocab` (None: all)."""
        start, stop, _ = (vocab or slice(None)).indices(self.rows)
        parts = []
        if start < self.offset:
            parts.append(branching.linear(self.text, x, branches.get("text", ()))[..., start:stop])
        if stop > self.offset:
            codes = branching.linear(self.codes, x, branches.get("codes", ()))
            parts.append(codes[..., max(start - self.offset, 0) : stop - self.offset])
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


@dataclass(frozen=True, eq=False)
class Span:
    """Where the rows of a part lie in a pass: `entering` of the N in a layer, `leaving` of the R after the last."""

    part: Part
    entering: slice
    leaving: slice


class Pass:
    """What is the same in every layer of a pass: how the rows of its parts lie, one part after the other, the angles of
    their positions, and the rows that go on after the last layer.

    ids: [N] of all parts. rows: [R] of the N, or None where all go on. chunk_rows: as for the transformer.
    """

    def __init__(self, parts: Sequence[Part], angles: Angles, chunk_rows: int | None):
        flat = [part.ids.reshape(-1) for part in parts]
        self.ids = flat[0] if len(flat) == 1 else torch.cat(flat)
        self.angles, self.chunk_rows = angles, chunk_rows
        self.rows: Tensor | None = None
        self.leaving_angles = angles
        if any(part.rows is not None for part in parts):
            starts = accumulate((part.ids.numel() for part in parts[:-1]), initial=0)
            asked = [_flat_rows(part, start) for part, start in zip(parts, starts, strict=True)]
            self.rows = asked[0] if len(asked) == 1 else torch.cat(asked)
            self.leaving_angles = angles[0].index_select(0, self.rows), angles[1].index_select(0, self.rows)
        entering = _slices(part.ids.numel() for part in parts)
        leaving = _slices((part.ids if part.rows is None else part.rows).numel() for part in parts)
        self.spans = [Span(*one) for one in zip(parts, entering, leaving, strict=True)]

    def part_of(self, y: Tensor, span: Span) -> Tensor:
        """What a part gets of y [R,V] -> [B,r,V]."""
        batch = span.part.ids.shape[0]
        return y[span.leaving].unflatten(0, (batch, (span.leaving.stop - span.leaving.start) // batch))


def _flat_rows(part: Part, start: int) -> Tensor:
    """The rows that a part asks for, [B*r], among those of the pass, where its own begin at `start`."""
    batch, length = part.ids.shape
    if part.rows is None:
        return torch.arange(start, start + batch * length, device=part.ids.device)
    if batch == 1:
        return part.rows[0] + start if start else part.rows[0]
    items = torch.arange(start, start + batch * length, length, device=part.ids.device)
    return (part.rows + items[:, None]).reshape(-1)


def _slices(counts: Iterable[int]) -> list[slice]:
    return [slice(*ends) for ends in pairwise(accumulate(counts, initial=0))]


class Block(nn.Module):
    """One layer; the parameter names are those of the published checkpoint.

    recomputes: in training, only the input is kept for the backward pass, which computes all else again.
    """

    recomputes = False
    _modules: dict[str, nn.Module]  # type: ignore[assignment]

    def __init__(self, config: TransformerConfig, attention: Attention, ops, **where):
        super().__init__()
        width, hidden = config.d_model, config.mlp_hidden_size
        kv_width = config.n_kv_heads * config.head_dim
        self.heads, self.kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, config.head_dim
        self.groups, self.attention = config.n_heads // config.n_kv_heads, attention
        linear, norm = layer_class(ops, "Linear"), layer_class(ops, "RMSNorm")
        self.attn_norm = norm(width, eps=config.rms_norm_eps, **where)
        self.q_proj = linear(width, width, bias=False, **where)
        self.k_proj = linear(width, kv_width, bias=False, **where)
        self.v_proj = linear(width, kv_width, bias=False, **where)
        self.attn_out = linear(width, width, bias=False, **where)
        self.ff_norm = norm(width, eps=config.rms_norm_eps, **where)
        self.ff_proj = linear(width, hidden, bias=False, **where)
        self.up_proj = linear(width, hidden, bias=False, **where)
        self.ff_out = linear(hidden, width, bias=False, **where)

    def forward(
        self, x: Tensor, through: Pass, layer: int, *, last: bool = False, branches: Branches = NO_BRANCHES
    ) -> Tensor:
        """x [N,D] of all parts of a pass, in its layer number `layer` -> [N,D], or [R,D] after the `last` one.
        `branches` of low rank stand beside the linears.

        x may be overwritten: the result may be x itself.
        """
        if self.recomputes and torch.is_grad_enabled():

            def again(kept: Tensor, *rest) -> Tensor:
                # an input that autograd does not follow would be overwritten, and the second time be another one
                return self._layer(kept if kept.requires_grad else kept.clone(), *rest)

            return checkpoint(again, x, through, layer, last, branches, use_reentrant=False)
        return self._layer(x, through, layer, last, branches)

    def _layer(self, x: Tensor, through: Pass, layer: int, last: bool, branches: Branches) -> Tensor:
        # not by attribute, for which torch calls Python
        layers: Layers = _with_branches(self._modules, branches) if branches else self._modules
        return self._feed(layers, self._attend(layers, x, through, layer, last), through.chunk_rows)

    def _attend(self, layers: Layers, x: Tensor, through: Pass, layer: int, last: bool) -> Tensor:
        """x + attention(x), [N,D] or [R,D]. This takes the most memory, so nothing is held longer than needed."""
        normed = layers["attn_norm"](x)
        keys = layers["k_proj"](normed).view(-1, self.kv_heads, self.head_dim)
        keys, own, angles = rotate_in_chunks_(keys, through.angles, through.chunk_rows), normed, through.angles
        if last and through.rows is not None:
            x, own = x.index_select(0, through.rows), normed.index_select(0, through.rows)
            angles = through.leaving_angles
        queries = layers["q_proj"](own).view(-1, self.heads, self.head_dim)
        queries = rotate_in_chunks_(queries, angles, through.chunk_rows)
        del own
        # computed last: rotating queries and keys needs temporaries
        values = layers["v_proj"](normed).view(-1, self.kv_heads, self.head_dim)
        del normed
        mixed = []
        for span in through.spans:
            rows = span.leaving if last else span.entering
            mixed.append(self._mix(span.part, layer, queries[rows], keys[span.entering], values[span.entering]))
        del queries, keys, values
        attended = mixed[0] if len(through.spans) == 1 else torch.cat(mixed)
        del mixed
        return add_(x, layers["attn_out"](attended))

    def _mix(self, part: Part, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attention of one part: queries [B*r,h,d], keys and values [B*n,h,d] -> [B*r,h*d]. The part's cache takes the
        new keys and values and gives those of the whole sequence."""
        batch = part.ids.shape[0]
        queries, keys, values = _by_head(queries, batch), _by_head(keys, batch), _by_head(values, batch)
        if part.cache is not None:
            keys, values = part.cache.update(layer, part.positions, keys, values)
        if self.groups > 1:
            keys, values = (one.repeat_interleave(self.groups, dim=1) for one in (keys, values))
        return self.attention(queries, keys, values).transpose(1, 2).reshape(-1, self.heads * self.head_dim)

    def _feed(self, layers: Layers, x: Tensor, chunk_rows: int | None) -> Tensor:
        """x + feed-forward(x), x [N,D], at most `chunk_rows` of the rows at a time: they do not mix here."""
        if chunk_rows is None or x.shape[0] <= chunk_rows:
            return add_(x, _feed_forward(layers, x))
        # Chunks of one size: a product of very few rows may go through another kernel, and round otherwise.
        chunks = x.chunk(math.ceil(x.shape[0] / chunk_rows))
        with ExitStack() as stack:
            names = ("ff_proj", "up_proj", "ff_out")
            layers = dict(layers) | {name: stack.enter_context(held(layers[name], x)) for name in names}
            fed = [add_(chunk, _feed_forward(layers, chunk)) for chunk in chunks]
        overwritten = all(after is before for after, before in zip(fed, chunks, strict=True))
        return x if overwritten else torch.cat(fed)


def _by_head(x: Tensor, batch: int) -> Tensor:
    """[B*n,h,d] -> [B,h,n,d]"""
    if batch == 1:
        return x.transpose(0, 1)[None]
    return x.unflatten(0, (batch, x.shape[0] // batch)).transpose(1, 2)


def _feed_forward(layers: Layers, x: Tensor) -> Tensor:
    normed = layers["ff_norm"](x)
    return layers["ff_out"](swiglu_(layers["ff_proj"](normed), layers["up_proj"](normed)))


@dataclass(frozen=True, eq=False)
class WithBranches:
    """A layer and the branches of low rank beside it, as one."""

    layer: Layer
    branches: Sequence[Branch]

    def __call__(self, x: Tensor) -> Tensor:
        return branching.linear(self.layer, x, self.branches)

    @contextmanager
    def held(self, like: Tensor) -> Iterator[Layer]:
        """As for `held`: the branches are small, and where they are needed."""
        with held(self.layer, like) as layer:
            yield WithBranches(layer, self.branches)


def _with_branches(layers: Layers, branches: Branches) -> Layers:
    return {name: WithBranches(one, branches[name]) if name in branches else one for name, one in layers.items()}


@dataclass(frozen=True)
class TextTables:
    """The text rows of embedding and head, where whoever manages memory has taken them out of the network."""

    embedding: nn.Module
    head: nn.Module


class Transformer(nn.Module):
    """The network. `ops` is a namespace with Linear, Embedding and RMSNorm; `attention` takes and gives [B,h,n,d].

    text_tables: the two layers that `set_text_apart` took out; None where they are part of the network.
    """

    text_tables: TextTables | None = None

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
            "ln_f": layer_class(ops, "RMSNorm")(config.d_model, eps=config.rms_norm_eps, **where),
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
        text_rows: TextRows | None = None,
        rotary: RotaryTable | None = None,
    ) -> Tensor:
        """Logits [B,r,V] in the compute dtype for ids [B,n] int64; the first four arguments are those of a `Part`.

        vocab: the vocabulary rows of those logits (None: all). chunk_rows: chunk size for rotation and feed-forward, in
        rows of the B*n (None: all at once); results are bit-identical unless it is tiny. adapters: low-rank branches
        that act in this call. text_rows: the embedding of text ids, where that layer is apart. rotary: the angles of
        at least as many positions as the sequence has, where the caller has made them for several passes.
        """
        (logits,) = self.together(
            [Part(ids, positions, cache, rows)],
            vocab=vocab,
            chunk_rows=chunk_rows,
            adapters=adapters,
            text_rows=text_rows,
            rotary=rotary,
        )
        return logits

    def together(
        self,
        parts: Sequence[Part],
        *,
        vocab: slice | None = None,
        chunk_rows: int | None = None,
        adapters: Adapters = NO_ADAPTERS,
        text_rows: TextRows | None = None,
        rotary: RotaryTable | None = None,
    ) -> list[Tensor]:
        """The logits [B,r,V] of each part, from one pass of all of them through the layers; otherwise as `forward`.
        A part's numbers are those that it has alone, but for the rounding of larger products."""
        angles = _angles(_positions(parts), self.config) if rotary is None else rotary.of(parts)
        through = Pass(parts, angles, chunk_rows)
        layers = self.layers
        x = layers["wte"](through.ids, adapters.inside(f"{_ROOT}.wte"), text_rows)
        last = len(self.blocks) - 1
        for index, block in enumerate(self.blocks):
            inside = adapters.inside(f"{_ROOT}.blocks.{index}")
            x = block(x, through, index, last=index == last, branches=inside)
        logits = layers["ff_out"](layers["ln_f"](x), vocab, adapters.inside(f"{_ROOT}.ff_out"))
        return [through.part_of(logits, span) for span in through.spans]

    def set_text_apart(self) -> TextTables:
        """Takes the text rows of embedding and head out of the network, for an owner of memory who brings them where
        they are needed. The head stays a layer that is called; the embedding is asked for rows (`TextRows`)."""
        if self.text_tables is None:
            wte, head = (set_apart(self.layers[name], "text") for name in ("wte", "ff_out"))
            self.text_tables = TextTables(wte, head)
        return self.text_tables

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
