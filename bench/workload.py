"""What the benchmarks run: models with random weights, and jobs whose sequences are laid out as in the pack.

Weights do not matter for time, but the tokens of two ways of computing are compared. So the head's are drawn six times
as wide, lest rounding decides which token is the most certain; those of queries and keys twice as wide, lest all
positions give the same; and nothing leads to a special token, lest an answer ends early.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dimoo_core.model.config import TransformerConfig, VQConfig
from dimoo_core.model.transformer import Attention, Transformer
from dimoo_core.sampling.guidance import Branch
from dimoo_core.sampling.image import ImageSettings, sample_image
from dimoo_core.sampling.text import TextSettings, sample_text
from dimoo_core.sequence.canvas import Canvas
from dimoo_core.sequence.layout import image_answer, prompt_prefix, text_answer
from dimoo_core.sequence.token_table import RELEASED, TokenTable

SPECIALS = tuple(name for name in RELEASED.to_dict() if name not in ("code_offset", "codebook_size"))
Finish = Callable[[str, nn.Module], None]
_WIDER = {"transformer.ff_out.text": 6, "transformer.ff_out.codes": 6, "q_proj": 2, "k_proj": 2}


@dataclass(frozen=True)
class Size:
    """A transformer's size: width D, layers, heads, MLP width, vocabulary V and how many of it are image codes."""

    width: int
    layers: int
    heads: int
    hidden: int
    vocabulary: int
    codes: int

    @property
    def table(self) -> TokenTable:
        """The released ids where they fit, else the nine special ones right below the codes."""
        offset = self.vocabulary - self.codes
        if (offset, self.codes) == (RELEASED.code_offset, RELEASED.codebook_size):
            return RELEASED
        ids = {name: offset - len(SPECIALS) + index for index, name in enumerate(SPECIALS)}
        return TokenTable(**ids, code_offset=offset, codebook_size=self.codes)

    @property
    def config(self) -> TransformerConfig:
        return TransformerConfig(
            self.width, self.layers, self.heads, self.heads, self.hidden, self.vocabulary, 500_000.0, 1e-5
        )

    def build(
        self,
        device: torch.device | str,
        dtype: torch.dtype,
        *,
        ops=nn,
        finish: Finish | None = None,
        attention: Attention = F.scaled_dot_product_attention,
    ) -> Transformer:
        """A transformer of this size with random weights, made on its device layer by layer; `finish(name, layer)`
        changes a layer before the next is made. On "meta" there are no weights."""
        offset = self.table.code_offset
        network = Transformer(self.config, code_offset=offset, ops=ops, attention=attention, device="meta", dtype=dtype)
        network = network.eval().requires_grad_(False)
        if torch.device(device).type == "meta":
            return network
        chance = torch.Generator(device).manual_seed(0)
        for name, layer in network.named_modules():
            if not list(layer.parameters(recurse=False)):
                continue
            fill(name, layer.to_empty(device=device, recurse=False), chance)
            if name.endswith("transformer.ff_out.text"):
                layer.weight[list(self.table.specials)] = 0
            if finish is not None:
                finish(name, layer)
        return network


TINY = Size(32, 2, 2, 96, 320, 64)  # takes seconds and measures nothing
RELEASED_SIZE = Size(4096, 32, 32, 12288, 134_548, 8192)
RELEASED_VQ = VQConfig(3, 3, (128, 256, 256, 512, 768), 2, 256, 8192, 256, 32, True)


def fill(name: str, layer: nn.Module, chance: torch.Generator) -> None:
    """Random weights in place: norms are ones, rows of a matrix have about length 1, or what `_WIDER` says."""
    if layer.weight.ndim == 1:
        layer.weight.fill_(1)
        return
    wider = max((factor for end, factor in _WIDER.items() if name.endswith(end)), default=1)
    layer.weight.normal_(std=1.0 if "wte" in name else wider * layer.weight.shape[1] ** -0.5, generator=chance)


@dataclass(frozen=True)
class ImageJob:
    """Text-to-image, or an edit where `picture` is given: canvas and input picture (H, W) in cells, `words` tokens of
    prompt, guidance scales of the branches as the nodes have them."""

    cells: tuple[int, int]
    words: int
    picture: tuple[int, int] | None = None
    scale: float = 4.0

    def prompts(self, table: TokenTable, device: torch.device | str) -> tuple[Tensor, list[Branch]]:
        """Prefix ids [1,P] and the branches it is guided away from."""
        text, blind = words(self.words, table, 1), words(self.words // 2, table, 2)
        images = () if self.picture is None else (picture_codes(self.picture, table),)
        branches = [Branch(prompt_prefix(blind, images, table).to(device), self.scale)]
        if images:
            branches.append(Branch(prompt_prefix(text, (), table).to(device), self.scale))
        return prompt_prefix(text, images, table).to(device), branches

    def run(self, network: Transformer, table: TokenTable, settings: ImageSettings) -> list[int]:
        """The codes of the picture, row by row."""
        prefix, branches = self.prompts(table, next(network.parameters()).device)
        blank = Canvas.empty(1, *self.cells)
        canvas = sample_image(network, table, blank, prefix, branches, settings=settings)
        return canvas.codes.flatten().tolist()

    def sequences(self, table: TokenTable) -> tuple[list[Tensor], list[float]]:
        """The whole sequences [1,L] of all branches, holes as mask ids, and the scales of all but the first."""
        prefix, branches = self.prompts(table, "cpu")
        answer = image_answer(Canvas.empty(1, *self.cells), table)
        prefixes = [prefix, *(branch.prefix for branch in branches)]
        return [torch.cat((one, answer), dim=1) for one in prefixes], [branch.scale for branch in branches]


@dataclass(frozen=True)
class TextJob:
    """A question of `words` tokens about a picture of (H, W) cells."""

    picture: tuple[int, int]
    words: int

    def prefix(self, table: TokenTable) -> Tensor:
        """Prefix ids [1,P]."""
        return prompt_prefix(words(self.words, table, 3), (picture_codes(self.picture, table),), table)

    def run(self, network: Transformer, table: TokenTable, settings: TextSettings) -> list[int]:
        """The ids of the answer."""
        prefix = self.prefix(table).to(next(network.parameters()).device)
        return sample_text(network, table, prefix, settings=settings)[0]

    def sequence(self, table: TokenTable, tokens: int) -> Tensor:
        """The whole sequence [1,L] with an answer of `tokens` mask ids."""
        return torch.cat((self.prefix(table), text_answer(torch.full((1, tokens), table.mask), table)), dim=1)


def words(count: int, table: TokenTable, seed: int) -> list[int]:
    """Random text ids."""
    chance = torch.Generator().manual_seed(seed)
    return torch.randint(min(table.specials), (count,), generator=chance).tolist()


def picture_codes(cells: tuple[int, int], table: TokenTable) -> Tensor:
    """Random codes [1,H,W]."""
    return torch.randint(table.codebook_size, (1, *cells), generator=torch.Generator().manual_seed(4))
