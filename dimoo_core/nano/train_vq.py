"""Trains a VQ autoencoder whose codes are fixed beforehand.

Each cell of each training picture has a label, the index of a cluster of cells that look alike (`cluster`). The encoder
learns to name the label (cross entropy over distances to the codebook), the decoder learns to paint the picture from
the labels, the codebook learns from both. There is no straight-through estimator, so no code can die, and codes mean
what the labels mean: where a label says what is in a cell and not what is behind it, the decoder takes the background
from the neighbours, and pictures with different backgrounds share codes.

Shapes: N pictures, B batch, H W cells, s pixels per cell, K codes, F features of a cell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import number_in, whole_number
from ..model.vq import VQ


def cluster(features: Tensor, size: int, *, seed: int = 0, rounds: int = 20) -> tuple[Tensor, Tensor]:
    """Labels [N] and centres [K,F], K <= size, for cells with features [N,F]: alike cells share a label.

    Lloyd's algorithm over the distinct cells, seeded by k-means++; with `size` or fewer distinct cells each is its own.
    """
    distinct, labels = features.unique(dim=0, return_inverse=True)
    if len(distinct) <= size:
        return labels, distinct
    generator = torch.Generator().manual_seed(seed)
    centres = distinct[torch.randint(len(distinct), (1,), generator=generator)]
    while len(centres) < size:
        nearest = torch.cdist(distinct, centres).min(dim=1).values ** 2
        centres = torch.cat((centres, distinct[torch.multinomial(nearest, 1, generator=generator)]))
    for _ in range(rounds):
        owner = torch.cdist(distinct, centres).argmin(dim=1)
        sums = torch.zeros_like(centres).index_add_(0, owner, distinct)
        counts = owner.bincount(minlength=size)[:, None]
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
    return torch.cdist(distinct, centres).argmin(dim=1)[labels], centres


def codebook_from(centres: Tensor, width: int) -> Tensor:
    """A codebook [K,width] to begin with: the principal components of the clusters' centres [K,F].

    Alike cells start alike, so what the networks learn of one code serves its neighbours. Components are whitened by
    half, or colour, which is most of the variance, would drown shape. Columns beyond the components there are stay 0.
    """
    centred = centres - centres.mean(dim=0)
    _, scale, axes = torch.linalg.svd(centred, full_matrices=False)
    components = centred @ axes[:width].T / scale[:width].clamp(min=1e-6).sqrt()
    return F.pad(components / components.std(), (0, width - components.shape[1]))


@dataclass(frozen=True)
class VQTrainSettings:
    """Settings: steps, pictures a step, peak learning rate, steps of warm-up. Raises ValueError for absurd ones."""

    steps: int
    batch: int = 12
    rate: float = 3e-3
    warm_up: int = 50

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch", 2), ("warm_up", 1)):
            whole_number(name, getattr(self, name), least)
        number_in("rate", self.rate, 0, 1)


def naming_loss(vq: VQ, pixels: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of the labels [B,H,W] under distances of the pixels' [B,3,H*s,W*s] latents to the codebook.

    Cells are weighed by how rare their label is in the batch (square root), or plain background would be all.
    """
    latents = vq.latents(pixels).flatten(2).transpose(1, 2)
    codebook = vq.quantize.embedding.weight
    logits = 2 * latents @ codebook.T - codebook.square().sum(dim=1)  # minus squared distance, up to a constant
    labels = labels.flatten()
    weights = labels.bincount(minlength=len(codebook)).float()[labels].rsqrt()
    losses = F.cross_entropy(logits.flatten(0, 1), labels, reduction="none")
    return (losses * weights).sum() / weights.sum()


def painting_loss(painted: Tensor, pixels: Tensor) -> Tensor:
    """Squared and absolute error of pictures [B,3,h,w], heavier where the true one has contrast: thin lines count."""
    local = F.avg_pool2d(pixels, 5, stride=1, padding=2, count_include_pad=False)
    weights = 1 + 20 * (pixels - local).abs().mean(dim=1, keepdim=True)
    error = painted - pixels
    return (weights * (error.square() + 0.1 * error.abs())).mean()


Losses = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]
OnStep = Callable[[int, float, float], None]


def train_vq(
    vq: VQ, batches: Iterable[tuple[Tensor, Tensor]], settings: VQTrainSettings, on_step: OnStep | None = None
) -> None:
    """Train in place on batches of (pixels [B,3,H*s,W*s] in 0..1, labels [B,H,W]); `on_step(step, naming, painting)`.

    The codebook should have been begun with `codebook_from`. The encoder, which learns faster, reads half of each
    batch; from half-way on it reads those pictures as the decoder painted them, every other step: generated pictures
    are encoded too.
    """

    def losses(step: int, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        painted = vq.reconstruct(labels)
        own = step > settings.steps // 2 and step % 2
        half = len(pixels) // 2
        read = (painted.detach().clamp(0, 1) if own else pixels)[:half]
        return naming_loss(vq, read, labels[:half]), painting_loss(painted, pixels)

    codebook = [*vq.quantize.parameters(), *vq.quant_conv.parameters(), *vq.post_quant_conv.parameters()]
    _descend([vq.encoder.parameters(), vq.decoder.parameters(), codebook], losses, batches, settings, on_step)


def polish_decoder(
    vq: VQ, batches: Iterable[tuple[Tensor, Tensor]], settings: VQTrainSettings, on_step: OnStep | None = None
) -> None:
    """Train the decoder alone, in place; encoder and codebook stay, so codes that were made with them stay true."""

    def losses(step: int, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros(()), painting_loss(vq.reconstruct(labels), pixels)

    _descend([vq.decoder.parameters()], losses, batches, settings, on_step)


def _descend(
    parts: Iterable[Iterable[Tensor]],
    losses: Losses,
    batches: Iterable[tuple[Tensor, Tensor]],
    settings: VQTrainSettings,
    on_step: OnStep | None,
) -> None:
    groups = [list(part) for part in parts]
    optimiser = torch.optim.AdamW([{"params": group} for group in groups], weight_decay=0.01, betas=(0.9, 0.95))
    for step, (pixels, labels) in zip(range(settings.steps), batches, strict=False):
        for group in optimiser.param_groups:
            group["lr"] = settings.rate * min((step + 1) / settings.warm_up, 1 - step / settings.steps)
        naming, painting = losses(step, pixels.contiguous(memory_format=torch.channels_last), labels)
        optimiser.zero_grad(set_to_none=True)
        (naming + painting).backward()
        for tensors in groups:  # separately, or the large gradients of one would drown the others
            torch.nn.utils.clip_grad_norm_(tensors, 1.0)
        optimiser.step()
        if on_step is not None:
            on_step(step, naming.item(), painting.item())
