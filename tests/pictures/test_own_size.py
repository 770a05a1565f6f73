"""A picture that was fitted for an edit comes back at its own size, and nothing in it has moved."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dimoo_core.pictures.crop import Region, at_own_size, shown_by, stitch, window_mask
from dimoo_core.pictures.pixels import fit
from dimoo_core.pictures.sizes import Window, fit_size, fitted_window

REACH = 2  # px to each side in which a shift is looked for
# (width, height) of the picture and the side that it is fitted to: odd, large, small, and both long ways
CASES = [
    ((301, 197), 128),
    ((301, 197), 512),
    ((1500, 1001), 512),
    ((90, 300), 128),
    ((301, 90), 128),
    ((75, 53), 256),
    ((640, 416), 512),
    ((999, 70), 128),
    ((61, 803), 128),
]


def smooth(width: int, height: int, waves: float) -> Tensor:
    """A picture [1,3,height,width] without a pattern, whose finest detail is `waves` px wide."""
    size = max(4, round(height / waves)), max(4, round(width / waves))
    small = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(7))
    return F.interpolate(small, (height, width), mode="bicubic", align_corners=False).clamp(0, 1)


def there_and_back(picture: Tensor, side: int) -> tuple[Tensor, Tensor, Window]:
    """A picture as an edit that changes nothing would give it back, the mask of what it shows, and the window."""
    height, width = picture.shape[2:]
    frame = fit_size(width, height, side)
    fitted = fit(picture, *frame)
    window, mask = shown_by(fitted, picture)
    return at_own_size(fitted, window, width, height), mask, window


def shift(moved: Tensor, still: Tensor, mask: Tensor, dim: int) -> float:
    """By how many px `moved` [1,3,h,w] lies farther along an axis than `still`: the lowest point of the parabola
    through the squared differences at the best whole shift and its neighbours."""
    inside = -F.max_pool2d(-mask[None], 8 * REACH + 1, stride=1, padding=4 * REACH)[0] > 0.5  # without the edges
    errors = []
    for step in range(-REACH, REACH + 1):
        errors.append(float(((moved.roll(-step, dims=dim) - still)[:, :, inside[0]] ** 2).mean()))
    best = min(range(len(errors)), key=errors.__getitem__)
    assert 0 < best < 2 * REACH, f"off by {best - REACH} px or more"
    before, least, after = errors[best - 1 : best + 2]
    return best - REACH + (before - after) / (2 * (before - 2 * least + after))


@pytest.mark.parametrize(("size", "side"), CASES)
def test_a_fitted_picture_comes_back_where_it_was(size: tuple[int, int], side: int) -> None:
    width, height = size
    frame = fit_size(width, height, side)
    picture = smooth(width, height, 10 * max(1.0, max(width / frame[0], height / frame[1])))
    back, mask, _ = there_and_back(picture, side)
    assert back.shape == picture.shape
    for dim in (2, 3):
        if picture.shape[dim] > 12 * REACH:
            assert abs(shift(back, picture, mask, dim)) < 0.05
    assert float(((back - picture).abs() * mask).mean()) < 0.01
    assert float(((back - picture).abs() * mask).max()) < 0.25, "the outermost pixels too"


@pytest.mark.parametrize(("dim", "by"), [(2, 1), (3, -1)])
def test_a_shift_of_one_pixel_would_be_seen(dim: int, by: int) -> None:
    picture = smooth(301, 197, 12)
    back, mask, _ = there_and_back(picture, 512)
    assert abs(shift(back.roll(by, dims=dim), picture, mask, dim) - by) < 0.1


@pytest.mark.parametrize(("size", "side"), CASES)
def test_outside_of_what_the_model_saw_every_pixel_is_the_originals(size: tuple[int, int], side: int) -> None:
    width, height = size
    picture = torch.rand(2, 3, height, width)
    back, mask, window = there_and_back(1 - picture, side)
    whole = stitch(picture, back, mask, Region(0, 0, width, height))
    kept = mask[0] == 0
    assert torch.equal(whole[:, :, kept], picture[:, :, kept])
    assert torch.equal(whole[:, :, ~kept], back[:, :, ~kept])
    assert abs(float(mask.sum()) / float(window.width * window.height) - 1) < 0.05, "and it saw all the rest"


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (3, 2), (1, 900), (5, 700), (4000, 3)])
def test_the_tiniest_and_longest_pictures_come_back_too(size: tuple[int, int]) -> None:
    back, mask, _ = there_and_back(torch.full((1, 3, size[1], size[0]), 0.25), 512)
    assert back.shape == (1, 3, size[1], size[0]) and bool(mask.any())
    assert torch.allclose(back, torch.tensor(0.25), atol=1e-4)


def test_a_picture_of_the_fitted_size_comes_back_bit_for_bit() -> None:
    picture = torch.rand(1, 3, 128, 128)
    assert torch.equal(there_and_back(picture, 128)[0], picture)


def test_a_picture_that_was_enlarged_since_comes_back_to_the_same_place() -> None:
    picture = smooth(301, 197, 20)
    frame = fit_size(301, 197, 128)
    window = fitted_window((301, 197), frame)
    larger = F.interpolate(fit(picture, *frame), scale_factor=4, mode="bicubic").clamp(0, 1)
    back, mask = at_own_size(larger, window, 301, 197), window_mask(window, 301, 197)
    assert all(abs(shift(back, picture, mask, dim)) < 0.05 for dim in (2, 3))


@pytest.mark.parametrize(
    ("size", "frame"), [((301, 197), (160, 96)), ((3001, 1999), (640, 416)), ((997, 40), (256, 64))]
)
def test_the_window_is_what_fit_shows(size: tuple[int, int], frame: tuple[int, int]) -> None:
    """Of a picture whose colours are the positions of its pixels, the fitted one shows the window's positions."""
    width, height = size
    across = ((torch.arange(width) + 0.5) / width).expand(height, -1)
    down = ((torch.arange(height) + 0.5) / height)[:, None].expand(-1, width)
    seen = fit(torch.stack((across, down, across))[None], *frame)[0]
    window = fitted_window(size, frame)
    for colours, start, length, whole in (
        (seen[0].mean(dim=0), window.left, window.width, width),
        (seen[1].mean(dim=1), window.top, window.height, height),
    ):
        cells = len(colours)
        wanted = (float(start) + (torch.arange(cells) + 0.5) * float(length) / cells) / whole
        assert float((colours - wanted)[2:-2].abs().max()) * whole < 0.02 * math.ceil(float(length) / cells)
    assert window.left >= 0 and window.left + window.width <= width and window.top + window.height <= height
    assert min(window.left, window.top) < 4, "one axis is shown whole, but for what halving leaves out"
