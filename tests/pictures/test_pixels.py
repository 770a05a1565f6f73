"""Pictures and masks of every kind: handled, or refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dimoo_core.pictures.masks import RECTANGLE, cells_to_mask, centred_rectangle, load_mask, mask_to_cells
from dimoo_core.pictures.pixels import composite, fit, from_pil, load_picture, mosaic, to_pil, to_rgb
from dimoo_core.pictures.sizes import MAX_RATIO, buckets, check_size, fit_size, understanding_size


@given(st.integers(1, 20_000), st.integers(1, 20_000), st.sampled_from([32, 128, 512, 1024]))
@settings(max_examples=200, deadline=None)
def test_every_size_has_a_bucket_of_about_the_asked_area(width: int, height: int, side: int) -> None:
    across, down = fit_size(width, height, side)
    assert across % 32 == 0 and down % 32 == 0 and across * down <= side * side
    assert max(across, down) <= MAX_RATIO * min(across, down)


def test_buckets_leave_no_shape_out() -> None:
    assert buckets(32) == [(32, 32)]
    assert {(w, h) for w, h in buckets(128)} == {(h, w) for w, h in buckets(128)}
    for side in (0, 31, 5000, 512.0):
        with pytest.raises(ValueError, match="side is"):
            buckets(side)


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (333, 1000), (20_000, 16), (640, 480), (130, 127)])
def test_any_picture_is_fitted(size: tuple[int, int]) -> None:
    wanted = fit_size(*size, 128)
    fitted = fit(torch.rand(1, 3, size[1], size[0]), *wanted)
    assert fitted.shape == (1, 3, wanted[1], wanted[0]) and 0 <= float(fitted.min()) <= float(fitted.max()) <= 1


def test_a_picture_that_fits_is_untouched_and_the_crop_is_centred() -> None:
    pixels = torch.rand(2, 3, 64, 64)
    assert torch.equal(fit(pixels, 64, 64), pixels)
    stripe = torch.zeros(1, 3, 64, 128)
    stripe[:, :, :, 60:68] = 1
    middle = fit(stripe, 64, 64)
    assert torch.equal(middle, middle.flip(3)) and float(middle[0, 0, 0, 32]) == 1


def test_pictures_are_described_at_the_sizes_of_training() -> None:
    sides = (512, 1024)
    assert understanding_size(300, 300, sides, images=1) == (512, 512)
    assert understanding_size(700, 650, sides, images=1) == (688, 640)
    assert understanding_size(4000, 3000, sides, images=1) == fit_size(4000, 3000, 1024)
    assert understanding_size(700, 650, sides, images=2) == fit_size(700, 650, 512)
    assert understanding_size(40_000, 8, sides, images=1) == fit_size(40_000, 8, 1024), "no side may become 0"
    assert understanding_size(128, 128, (128, 128), images=1) == (128, 128)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_grey_and_alpha_become_rgb(channels: int) -> None:
    pixels = torch.rand(2, channels, 5, 6)
    rgb = to_rgb(pixels)
    assert rgb.shape == (2, 3, 5, 6)
    if channels in (2, 4):
        pixels[:, -1] = 0
        assert (to_rgb(pixels) == 1).all(), "what is transparent becomes white"


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.zeros(1, 5, 4, 4), r"shape \[1, 5, 4, 4\]"),
        (torch.zeros(3, 4, 4), r"shape \[3, 4, 4\]"),
        (torch.zeros(1, 3, 0, 4), r"shape \[1, 3, 0, 4\]"),
        (torch.full((1, 3, 4, 4), float("nan")), "contains NaN"),
    ],
)
def test_what_is_no_picture_is_refused(pixels: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_rgb(pixels)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I", "I;16", "F", "HSV", "LAB"]
)
def test_pil_pictures_of_every_mode_become_rgb(mode: str) -> None:
    pixels = from_pil(Image.new(mode, (7, 5)))
    assert pixels.shape == (1, 3, 5, 7) and 0 <= float(pixels.min()) <= float(pixels.max()) <= 1


def test_16_bit_grey_keeps_its_brightness() -> None:
    picture = Image.new("I;16", (2, 1), 65535)
    picture.putpixel((0, 0), 32768)
    assert from_pil(picture)[0, 0, 0].tolist() == pytest.approx([0.5, 1.0], abs=0.01)


def test_a_picture_survives_the_way_to_a_file_and_back(tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (3, 5, 7)).float() / 255
    to_pil(pixels).save(tmp_path / "picture.png")
    assert torch.equal(load_picture(tmp_path / "picture.png")[0], pixels)
    assert load_mask(tmp_path / "picture.png").shape == (1, 5, 7)


def test_exif_turns_the_picture(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 4))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert load_picture(tmp_path / "turned.jpg").shape == (1, 3, 8, 4)


def test_files_that_are_no_pictures_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (64, 64), (1, 2, 3)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    for name, message in (
        ("absent.png", "cannot be read"),
        ("text.png", "not a readable picture"),
        ("cut.png", "not a readable"),
    ):
        with pytest.raises(ValueError, match=message):
            load_picture(tmp_path / name)
    monkeypatch.setattr("dimoo_core.pictures.pixels.MAX_PIXELS", 1000)
    with pytest.raises(ValueError, match="64x64 px, at most"):
        load_picture(tmp_path / "whole.png")


@pytest.mark.parametrize(("size", "near"), [((1000, 1024), "992x1024"), ((1, 1), "16x16"), ((0, 16), "16x16")])
def test_sizes_that_are_no_multiple_are_refused_with_the_nearest_that_is(size: tuple[int, int], near: str) -> None:
    with pytest.raises(ValueError, match=f"must be multiples of 16 px, at least 16: use {near}"):
        check_size(*size)


def test_a_canvas_of_20000_px_is_refused() -> None:
    assert check_size(1536, 768) == (48, 96)
    with pytest.raises(ValueError, match="1562500 cells, at most 65536"):
        check_size(20_000, 20_000)


def test_every_touched_cell_is_repainted_and_a_rectangle_rounds() -> None:
    mask = torch.zeros(1, 64, 64)
    mask[0, 17, 17] = 1
    assert mask_to_cells(mask, (4, 4)).nonzero().tolist() == [[0, 1, 1]]
    assert not mask_to_cells(mask, (4, 4), coverage=RECTANGLE).any()
    assert mask_to_cells(mask, (4, 4), grow=1).sum() == 9
    assert mask_to_cells(mask, (4, 4), grow=64).all()


@pytest.mark.parametrize("size", [(64, 64), (32, 32), (640, 481), (3, 5), (1, 1)])
def test_a_mask_of_any_size_is_laid_over_the_grid(size: tuple[int, int]) -> None:
    assert mask_to_cells(torch.ones(2, *size), (4, 6)).all()
    assert not mask_to_cells(torch.zeros(2, *size), (4, 6)).any()
    assert mask_to_cells(torch.ones(2, *size), (4, 6)).shape == (2, 4, 6)


def test_masks_and_ratios_out_of_range_are_refused() -> None:
    for ratio in (-0.1, 1.1, float("nan"), None):
        with pytest.raises(ValueError, match="mask_w_ratio is"):
            centred_rectangle(64, 64, width_ratio=ratio, height_ratio=1.0)
    for grow in (-1, 65, 1.5):
        with pytest.raises(ValueError, match="grow is"):
            mask_to_cells(torch.ones(1, 4, 4), (4, 4), grow=grow)
    with pytest.raises(ValueError, match="mask of shape"):
        mask_to_cells(torch.ones(4, 4), (4, 4))


def test_compositing_keeps_the_original_bit_for_bit() -> None:
    original, painted = torch.rand(2, 1, 3, 32, 32)
    cells = torch.tensor([[[True, False], [False, False]]])
    mixed = composite(original, painted, cells_to_mask(cells))
    assert torch.equal(mixed[:, :, :16, :16], painted[:, :, :16, :16])
    assert torch.equal(mixed[:, :, 16:], original[:, :, 16:]) and torch.equal(
        mixed[:, :, :, 16:], original[:, :, :, 16:]
    )


@pytest.mark.parametrize("strange", [torch.nan, torch.inf])
def test_compositing_takes_nothing_from_where_the_mask_does_not_say(strange: float) -> None:
    original, painted = torch.rand(2, 1, 3, 4, 4)
    mask = torch.zeros(1, 4, 4)
    mask[:, :, 2:] = 1
    mixed = composite(torch.where(mask > 0, strange, original), torch.where(mask > 0, painted, strange), mask)
    assert torch.equal(mixed, torch.where(mask > 0, painted, original))


def test_the_mosaic_shows_codes_and_greys_holes() -> None:
    colours = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    shown = mosaic(torch.tensor([[[0, 1]]]), torch.tensor([[[False, True]]]), colours)
    assert shown[0, :, 0].T.tolist() == [[1.0, 0.0, 0.0], [0.5, 0.5, 0.5]]
