"""A hole in a large picture is cut out with its surroundings and put back, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dimoo_core.pictures.crop import (
    Region,
    distance_inside,
    feathered,
    region_around,
    resize,
    resize_mask,
    stitch,
    working_size,
)


def marked(height: int, width: int, top: int, left: int, bottom: int, right: int) -> Tensor:
    mask = torch.zeros(1, height, width)
    mask[:, top:bottom, left:right] = 1
    return mask


def test_the_region_is_the_marked_box_and_its_surroundings() -> None:
    mask = marked(600, 800, 200, 300, 240, 360)
    assert region_around(mask, context=1, scale=16) == Region(298, 196, 64, 48)
    assert region_around(mask, context=2, scale=16) == Region(266, 180, 128, 80)


@pytest.mark.parametrize("corner", [(0, 0), (0, 740), (560, 0), (560, 740)])
def test_at_the_border_it_is_moved_inside_and_not_cut(corner: tuple[int, int]) -> None:
    top, left = corner
    mask = marked(600, 800, top, left, top + 40, left + 60)
    region = region_around(mask, context=2, scale=16)
    assert (region.width, region.height) == (128, 80)
    assert bool(region.of(mask).sum() == mask.sum()) and region.of(mask).shape == (1, 80, 128)


def test_it_is_never_larger_than_the_picture_and_holds_every_mask_of_a_batch() -> None:
    everywhere = region_around(marked(50, 70, 0, 0, 50, 70), context=4, scale=16)
    assert everywhere == Region(0, 0, 70, 50)
    masks = torch.cat((marked(64, 64, 0, 0, 2, 2), marked(64, 64, 60, 60, 62, 62)))
    assert region_around(masks, context=1, scale=16) == Region(0, 0, 64, 64)


def test_an_empty_mask_and_strange_numbers_are_one_sentence() -> None:
    with pytest.raises(ValueError, match="marks nothing"):
        region_around(torch.zeros(1, 8, 8), context=2, scale=16)
    for context in (0.5, 17, float("nan")):
        with pytest.raises(ValueError, match="context is"):
            region_around(torch.ones(1, 8, 8), context=context, scale=16)
    with pytest.raises(ValueError, match="side is"):
        working_size(Region(0, 0, 64, 64), -1, 16)
    with pytest.raises(ValueError, match="feather is"):
        feathered(torch.ones(1, 8, 8), 257)


def test_the_working_size_has_the_area_asked_for_and_the_shape_of_the_region() -> None:
    assert working_size(Region(0, 0, 128, 80), 512, 16) == (640, 400)
    assert working_size(Region(0, 0, 128, 80), 0, 16) == (128, 80)
    assert working_size(Region(0, 0, 70, 5), 0, 16) == (64, 16), "a side below a cell is stretched to one"


def test_no_marked_spot_gets_lost_in_resizing() -> None:
    mask = marked(1000, 1000, 501, 333, 502, 334)
    assert resize_mask(mask, 64, 64).sum() == 1
    assert resize_mask(resize_mask(mask, 64, 64), 1000, 1000)[0, 501, 333] == 1


@pytest.mark.parametrize("side", [0, 64], ids=["its own size", "scaled"])
@pytest.mark.parametrize("feather", [0, 3])
def test_outside_the_mask_every_pixel_is_the_originals(side: int, feather: int) -> None:
    picture, mask = torch.rand(1, 3, 200, 300), marked(200, 300, 50, 60, 70, 90)
    region = region_around(mask, context=2, scale=16)
    painted = torch.rand(2, 3, *working_size(region, side, 16)[::-1])
    whole = stitch(picture, painted, feathered(region.of(mask), feather), region)
    outside = mask[0] == 0
    assert whole.shape == (2, 3, 200, 300)
    assert torch.equal(whole[:, :, outside], picture[:, :, outside].expand(2, -1, -1))
    assert not torch.equal(whole[0, :, ~outside], picture[0, :, ~outside])
    core = feathered(mask, feather)[0] == 1
    pasted = torch.zeros(2, 3, 200, 300)
    region.of(pasted).copy_(resize(painted, region.width, region.height))
    assert torch.equal(whole[:, :, core], pasted[:, :, core]), "in the middle it is the painted part alone"


def test_feathering_rises_inside_the_edge_only() -> None:
    soft = feathered(marked(9, 9, 2, 2, 9, 9), 3)[0]
    assert soft[5].tolist() == [0, 0, 0.25, 0.5, 0.75, 1, 1, 1, 1], "the picture's own border is no edge"
    assert torch.equal(feathered(marked(9, 9, 2, 2, 9, 9), 0), marked(9, 9, 2, 2, 9, 9))


def eroded_step_by_step(mask: Tensor, feather: int) -> Tensor:
    """What `feathered` means, in one pass per px."""
    inner, total = mask, mask
    for _ in range(feather):
        inner = 1 - F.max_pool2d(1 - inner[:, None], 3, stride=1, padding=1)[:, 0]
        total = total + inner
    return total / (feather + 1)


@pytest.mark.parametrize("feather", [0, 1, 2, 3, 6, 7, 8, 31, 256])
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 40, 33), (1, 1, 70), (1, 90, 3)])
def test_feathering_is_what_passes_of_one_px_each_would_give(feather: int, size: tuple[int, int, int]) -> None:
    for share in (0.0, 0.001, 0.02, 0.5, 1.0):
        mask = (torch.rand(size) >= share).float()
        assert torch.equal(feathered(mask, feather), eroded_step_by_step(mask, feather))


def test_distances_are_counted_from_the_edge_up_to_the_most() -> None:
    mask = marked(9, 20, 0, 5, 9, 20)
    assert distance_inside(mask, 4)[0, 4].tolist() == [0] * 5 + [1, 2, 3] + [4] * 12


class Counted(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += not any(word in str(function) for word in ("slice", "view", "alias", "narrow"))
        return function(*args, **(kwargs or {}))


def test_a_wide_feather_takes_few_passes() -> None:
    mask = marked(64, 64, 4, 4, 60, 60)
    with Counted() as wide:
        feathered(mask, 256)
    with Counted() as narrow:
        feathered(mask, 16)
    assert wide.count < 170, "of a few additions and minima each; one pass per px took more than 1000 operations"
    assert wide.count < 4 * narrow.count


def test_numbers_of_pictures_that_do_not_match_are_one_sentence() -> None:
    region = Region(0, 0, 8, 8)
    with pytest.raises(ValueError, match="3 painted pictures and 1 masks for 2"):
        stitch(torch.rand(2, 3, 8, 8), torch.rand(3, 3, 8, 8), torch.ones(1, 8, 8), region)
    for originals, painted, masks in ((1, 3, 1), (3, 1, 1), (3, 3, 3), (1, 1, 3), (3, 1, 3)):
        done = stitch(torch.rand(originals, 3, 8, 8), torch.rand(painted, 3, 8, 8), torch.ones(masks, 8, 8), region)
        assert len(done) == 3
