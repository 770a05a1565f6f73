"""Low-rank branches (LoRA, arXiv 2106.09685) beside the layers of a transformer: y += s B(A x).

A branch is added to what its layer gives, and the layer's weight is never touched: so a branch is exact on weights of
every kind, bf16, fp8, int8 or streamed; its strength changes from one call to the next; and without it the base is what
it was, bit for bit. Which branches act is an argument of the transformer's call, so one network serves several sets of
them. They are added in an order of their own, whatever order they were named in: sums are rounded.

Shapes: K inputs, N outputs, r rank, V rows of an embedding, D width.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .in_place import overwritable

TARGETS = ("q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out")  # the linears of a block
MOST_STRENGTH = 100.0  # of either sign
_BLOCKS = "model.transformer.blocks."


class LowRank(nn.Module):
    """One branch. scale * up @ down is what it adds to a weight of shape [N,K]; up [N,r], down [r,K].

    Beside an embedding the weight is [V,D]: up [V,r] is looked up, down [r,D].
    """

    def __init__(self, down: Tensor, up: Tensor, alpha: float):
        super().__init__()
        self.down, self.up, self.alpha = nn.Parameter(down), nn.Parameter(up), alpha

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """alpha / r"""
        return self.alpha / self.rank

    def add(self, y: Tensor, x: Tensor, strength: float) -> Tensor:
        """y + strength * scale * up(down(x)); y [...,N], x [...,K]. Written to y unless autograd follows."""
        hidden = F.linear(x, self.down.to(x.dtype))
        return self._add(y, hidden, self.up.to(x.dtype), strength * self.scale)

    def add_embedded(self, y: Tensor, ids: Tensor, strength: float) -> Tensor:
        """The same beside an embedding; y [...,D], ids [...]."""
        hidden = F.embedding(ids, self.up).to(y.dtype)
        return self._add(y, hidden, self.down.to(y.dtype).t(), strength * self.scale)

    @staticmethod
    def _add(y: Tensor, hidden: Tensor, weight: Tensor, factor: float) -> Tensor:
        if not overwritable(y, hidden, weight):
            return y + F.linear(hidden * factor, weight)
        y.view(-1, y.shape[-1]).addmm_(hidden.flatten(0, -2), weight.t(), alpha=factor)  # needs no memory of y's size
        return y


class Adapter(nn.Module):
    """The branches of one LoRA, by the name of the module that each stands beside: model.transformer.blocks.0.q_proj.

    digest: tells adapters of different content apart, and orders them; see `digest_of`.
    """

    def __init__(self, branches: Mapping[str, LowRank], digest: str = ""):
        super().__init__()
        self.digest = digest
        self._branches = nn.ModuleDict({name.replace(".", "/"): branch for name, branch in branches.items()})

    @property
    def branches(self) -> dict[str, LowRank]:
        """Each branch by the name of its module."""
        return {name.replace("/", "."): cast(LowRank, branch) for name, branch in self._branches.items()}

    @property
    def rank(self) -> int:
        """The largest rank of its branches."""
        return max((branch.rank for branch in self.branches.values()), default=0)

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        return sum(part.nbytes for part in self.parameters())

    @classmethod
    def blank(
        cls,
        network: nn.Module,
        *,
        rank: int,
        alpha: float,
        targets: Iterable[str] = TARGETS,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Adapter:
        """A LoRA to be trained, fp32, beside the linears of every block called `targets`: down drawn from
        U(-1, 1) / sqrt(K), as in the paper's code, up zero, so that it changes nothing yet."""
        branches = {}
        for name, module in network.named_modules():
            if not name.startswith(_BLOCKS) or name.rpartition(".")[2] not in targets:
                continue
            weight = cast(Tensor, module.weight)
            outputs, inputs = weight.shape
            down = torch.empty(rank, inputs, device=device if device == "meta" else None)
            down.uniform_(-1, 1, generator=generator).mul_(inputs**-0.5)
            up = torch.zeros(outputs, rank, device=down.device)
            branches[name] = LowRank(down.to(device), up.to(device), alpha)
        return cls(branches)


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """16 hex digits that other names or numbers would change; for `Adapter.digest`."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Applied:
    """An adapter and how strongly it acts; name: what people call it."""

    adapter: Adapter
    strength: float = 1.0
    name: str = ""


Branch = tuple[LowRank, float]  # and its strength
_NONE: Mapping[str, Sequence[Branch]] = {}


class Adapters:
    """What one call of the transformer adds: the branches of several adapters, by module.

    One that is given several times acts once, with the sum of its strengths. Those of strength 0 are left out, so that
    they cost nothing and change nothing.
    """

    def __init__(self, applied: Iterable[Applied] = ()):
        same: dict[object, list[Applied]] = {}
        for one in sorted(applied, key=lambda one: (one.adapter.digest, one.strength)):
            if one.strength != 0:
                same.setdefault(one.adapter.digest or id(one.adapter), []).append(one)
        self.applied: tuple[Applied, ...] = ()
        self._inside: dict[str, dict[str, list[Branch]]] = {}
        for ones in same.values():
            strength = math.fsum(one.strength for one in ones)  # in any order the same
            if strength != 0:
                self.applied += tuple(ones)
                self._add(ones[0].adapter, strength)

    def _add(self, adapter: Adapter, strength: float) -> None:
        for name, branch in adapter.branches.items():
            prefix, _, leaf = name.rpartition(".")
            self._inside.setdefault(prefix, {}).setdefault(leaf, []).append((branch, strength))

    def inside(self, module: str) -> Mapping[str, Sequence[Branch]]:
        """The branches beside the layers of a module, by the layer's name in it."""
        return self._inside.get(module, _NONE)

    def __iter__(self) -> Iterator[Applied]:
        return iter(self.applied)

    def __len__(self) -> int:
        return len(self.applied)

    @property
    def rank(self) -> int:
        """The largest rank among them."""
        return max((one.adapter.rank for one in self), default=0)

    @property
    def nbytes(self) -> int:
        """What they take in memory."""
        return sum(adapter.nbytes for adapter in {id(one.adapter): one.adapter for one in self}.values())


def linear(layer: Callable[[Tensor], Tensor], x: Tensor, branches: Sequence[Branch] = ()) -> Tensor:
    """What a layer gives for x [...,K], with its branches: [...,N]."""
    y = layer(x)
    for branch, strength in branches:
        y = branch.add(y, x, strength)
    return y


def embedding(layer: Callable[[Tensor], Tensor], ids: Tensor, branches: Sequence[Branch] = ()) -> Tensor:
    """What an embedding gives for ids [...], with its branches: [...,D]."""
    y = layer(ids)
    for branch, strength in branches:
        y = branch.add_embedded(y, ids, strength)
    return y
