"""The VQ in tiles gives what it gives whole, whatever the size; and choosing codes takes little memory.

Sums in another order differ by rounding: seen up to 5e-5 of values of size 6, in fp32. A seam, or a norm that knew its
tile alone, would be off by a tenth and more; `test_the_tolerance_tells_a_mistake` holds that.
"""

from __future__ import annotations

import copy
from itertools import chain

import pytest
import torch
from torch import Tensor, nn

from dimoo_core.checkpoint.find import NANO, find
from dimoo_core.checkpoint.load import load_vq
from dimoo_core.model import vq_tiles as tiles
from dimoo_core.model.config import VQConfig
from dimoo_core.model.vq import VQ
from dimoo_core.nano.scenes import draw, every_scene
from dimoo_core.training.live_bytes import LiveBytes

from ..tiny import AUTOENCODER

ATOL = 3e-4  # a thirteenth of 1/255
LITTLE = 2**11  # values in a tile: many tiles of the least height even for small pictures
PLAIN = {"tiny": AUTOENCODER, "with attention": {**AUTOENCODER, "mid_block_add_attention": True}}
PLAIN["widths that change"] = {**AUTOENCODER, "block_out_channels": [8, 16, 8, 12], "layers_per_block": 2}
SIZES = [(20, 12), (3, 40), (40, 3), (1, 1), (13, 1)]  # cells, width and height


def network(settings: dict) -> VQ:
    """Random weights under which every part matters: matrices keep a signal's size, norms and biases say something."""
    vq, generator = VQ(VQConfig.from_dict(settings)), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in vq.parameters():
            noise = torch.randn(part.shape, generator=generator) / (part[0].numel() if part.ndim > 1 else 16) ** 0.5
            part.copy_(noise if part.ndim > 1 else 1 + noise)
    return vq


@pytest.fixture(scope="module", params=[*PLAIN, "nano"])
def vq(request: pytest.FixtureRequest) -> VQ:
    return load_vq(find(NANO)) if request.param == "nano" else network(PLAIN[request.param])


def codes_for(vq: VQ, size: tuple[int, int], batch: int = 1) -> Tensor:
    width, height = size
    generator = torch.Generator().manual_seed(1)
    return torch.randint(vq.config.codebook_size, (batch, height, width), generator=generator)


def close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and float((one - other).abs().max()) <= ATOL


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_decoding_in_strips_equals_decoding_whole(vq: VQ, size: tuple[int, int]) -> None:
    codes = codes_for(vq, size)
    whole, stripped = (vq.decode(codes, tile=tile) for tile in (None, LITTLE))
    assert whole.shape == (1, 3, size[1] * vq.scale, size[0] * vq.scale) and close(whole, stripped)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_encoding_in_strips_gives_the_same_codes(vq: VQ, size: tuple[int, int]) -> None:
    pixels = vq.decode(codes_for(vq, size)).contiguous()
    with torch.no_grad():
        whole, stripped = (vq.latents(pixels, tile=tile) for tile in (None, LITTLE))
        assert close(whole / whole.abs().max(), stripped / whole.abs().max())
        nearest = vq.quantize.distances(whole).sort(dim=-1).values
    same = vq.encode(pixels) == vq.encode(pixels, tile=LITTLE)
    tied = nearest[..., 1] - nearest[..., 0] < 10 * ATOL  # two codes as near as rounding: either is right
    assert (same | tied).all() and same.float().mean() > 0.99


def test_every_picture_of_a_batch_has_its_own_norms() -> None:
    vq = network(AUTOENCODER)
    codes = codes_for(vq, (6, 9), batch=3)
    assert close(vq.decode(codes, tile=LITTLE), vq.decode(codes))
    pixels = vq.decode(codes) * torch.tensor([0.1, 0.5, 1.0])[:, None, None, None]
    assert torch.equal(vq.encode(pixels, tile=LITTLE), vq.encode(pixels))


def test_the_tolerance_tells_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    vq = network(AUTOENCODER)
    codes = codes_for(vq, (8, 20))
    whole = vq.decode(codes)
    honest = tiles._moments

    def of_the_first_tile(groups: int, source: tiles.Map, rows: int):
        return honest(groups, tiles.Map(min(rows, source.height), source.rows), rows)

    def alone(conv: nn.Module, source: tiles.Map) -> tiles.Map:
        return tiles.Map(source.height, lambda start, end: conv(source.rows(start, end)))

    mistakes = {"dimoo_core.model.vq_tiles._moments": of_the_first_tile}  # norms must know the whole map
    mistakes["dimoo_core.model.vq.conv3"] = alone  # zeros instead of the neighbours' rows
    mistakes["dimoo_core.model.vq_tiles._REACH"] = 1  # a result where the next tile still needs what was there
    for name, mistake in mistakes.items():
        with monkeypatch.context() as patched:
            patched.setattr(name, mistake)
            assert not close(vq.decode(codes, tile=LITTLE), whole), name


def test_a_map_can_be_cut_in_any_way() -> None:
    whole = torch.rand(2, 3, 23, 5)
    for rows in (1, 4, 8, 23, 40):
        cut = list(tiles.spans(23, rows))
        assert [start for start, _ in cut] == [0, *(end for _, end in cut[:-1])] and cut[-1][1] == 23
        assert torch.equal(tiles.Map(23, lambda start, end: whole[:, :, start:end]).whole(rows), whole)


@pytest.mark.parametrize("rows", [2, 3, 8, 23, 40])
def test_a_sum_may_take_the_memory_of_what_it_is_computed_from(rows: int) -> None:
    conv = nn.Conv2d(3, 3, 3, padding=1).requires_grad_(False)
    x = torch.rand(2, 3, 23, 5)
    expected = x + conv(conv(x))
    source = tiles.Map.of(x)
    result = tiles.total(tiles.conv3(conv, tiles.conv3(conv, source)), source, rows, x)
    assert result.memory is x and torch.allclose(x, expected, atol=1e-6)


def test_pictures_are_made_without_autograd() -> None:
    vq = network(AUTOENCODER)
    for tile in (None, LITTLE):
        assert not vq.decode(codes_for(vq, (3, 3)), tile=tile).requires_grad


def test_choosing_codes_holds_few_distances_at_a_time() -> None:
    vq = VQ(VQConfig.from_dict({**AUTOENCODER, "num_vq_embeddings": 8192}), device="meta")
    latents = torch.zeros(1, 8, 256, 256, device="meta")  # of 4096x4096 px: 2.1 GB of distances
    with LiveBytes() as measured, torch.no_grad():
        assert vq.quantize.nearest(latents).shape == (1, 256, 256)
    assert measured.peak < 50 * 2**20


def test_choosing_codes_in_parts_chooses_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    vq = network(AUTOENCODER)
    latents = torch.randn(2, 8, 9, 7, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        wanted = vq.quantize.distances(latents).argmin(dim=-1)
        monkeypatch.setattr("dimoo_core.model.vq._DISTANCES_CHUNK", 1000)
        assert torch.equal(vq.quantize.nearest(latents), wanted)


@torch.no_grad()
def test_colours_of_previews_are_those_of_endless_fields(vq: VQ) -> None:
    decoder, count = copy.deepcopy(vq.decoder), vq.codebook_size
    low = decoder.lowest(vq._latents_of(torch.arange(count)[:, None, None].expand(-1, 3, 3)))
    x = low[:, :, 2:4, 2:4].mean(dim=(2, 3), keepdim=True)
    for part in decoder.modules():
        if isinstance(part, nn.Conv2d) and part.padding != (0, 0):
            part.padding_mode, part.padding = "replicate", (1, 1)  # the edge goes on for ever
            part._reversed_padding_repeated_twice = [1] * 4
    for layer in chain.from_iterable(level.layers() for level in decoder._levels()[1:]):
        x = layer(x)
    field = decoder.conv_out(nn.functional.silu(decoder.conv_norm_out(x)))
    assert field.shape[2] == vq.scale // 2
    assert close(field, field[:, :, :1, :1].expand_as(field)), "a field has one colour"
    assert close(vq.mean_colours(), field[:, :, 0, 0].clamp(0, 1))


@torch.no_grad()
def test_a_preview_looks_like_the_picture() -> None:
    vq = load_vq(find(NANO))
    colours, errors = vq.mean_colours(), []
    for scene in list(every_scene())[::150]:
        codes = vq.encode(draw(scene, 16, 16)[None])
        seen = nn.functional.avg_pool2d(vq.decode(codes), vq.scale)
        errors.append((colours[codes].movedim(-1, 1) - seen).abs().amax(dim=1).flatten())
    error = 255 * torch.cat(errors)
    assert error.mean() < 9 and error.median() < 6 and (error > 16).float().mean() < 0.05


def test_how_a_picture_lies_in_memory_changes_no_code() -> None:
    vq = network(AUTOENCODER)
    pixels = vq.decode(codes_for(vq, (20, 12))).contiguous()
    as_in_comfyui = pixels.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        exact = vq.double().latents(pixels.double())
        latents: list[Tensor] = []
        nearest = vq.float().quantize.nearest
        vq.quantize.nearest = lambda given: latents.append(given) or nearest(given)
        assert torch.equal(vq.encode(as_in_comfyui), vq.encode(pixels))
    assert all(close(given, exact.float()) for given in latents)
