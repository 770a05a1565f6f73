"""Pictures and masks of other packs, in every layout and dtype, at the edge of the pack."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from .. import nodepack

NODES, pixels = nodepack.nodes(), nodepack.part("nodes.pixels")
PICTURE = torch.linspace(0, 1, 2 * 32 * 48 * 3).reshape(2, 32, 48, 3)


def run(name: str, **inputs: Any) -> Any:
    return nodepack.run(NODES[name], **inputs).args


def square(height: int = 32, width: int = 48) -> Tensor:
    mask = torch.zeros(1, height, width)
    mask[:, :16, 16:32] = 1
    return mask


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_any_size_are_pictures_and_masks(dtype: torch.dtype) -> None:
    core = pixels.to_core(PICTURE.to(dtype))
    assert core.dtype == torch.float32 and torch.allclose(core, PICTURE.movedim(-1, 1), atol=0.01)
    assert torch.equal(pixels.mask_to_core(square().to(dtype), core), square())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_whole_numbers_are_0_to_255(dtype: torch.dtype) -> None:
    whole = (PICTURE * 255).round().to(dtype)
    assert torch.allclose(pixels.to_core(whole), PICTURE.movedim(-1, 1), atol=0.003)
    core = pixels.to_core(PICTURE)
    for marked in (1, 255):
        assert torch.equal(pixels.mask_to_core((square() * marked).to(dtype), core), square())


def test_yes_and_no_are_pictures_and_masks() -> None:
    core = pixels.to_core(PICTURE > 0.5)
    assert torch.equal(core, (PICTURE > 0.5).float().movedim(-1, 1))
    assert torch.equal(pixels.mask_to_core(square() > 0, core), square())


@pytest.mark.parametrize(
    "layout",
    [
        lambda mask: mask[0],
        lambda mask: mask,
        lambda mask: mask[:, None],
        lambda mask: mask[..., None],
        lambda mask: mask[0, ..., None],
        lambda mask: mask.expand(2, -1, -1)[:, None],
        lambda mask: mask.expand(2, -1, -1)[..., None],
    ],
)
def test_masks_of_every_layout_are_read(layout: Any) -> None:
    found = pixels.mask_to_core(layout(square()), PICTURE.movedim(-1, 1))
    assert found.shape[1:] == (32, 48) and torch.equal(found[:1], square())


@pytest.mark.parametrize("size", [(1, 9), (9, 1), (1, 1)])
def test_pictures_one_px_wide_have_masks_too(size: tuple[int, int]) -> None:
    picture = torch.rand(2, 3, *size)
    for mask in (torch.ones(2, *size), torch.ones(2, 1, *size), torch.ones(2, *size, 1), torch.ones(*size)):
        assert pixels.mask_to_core(mask, picture).shape[1:] == size


def test_one_picture_without_a_batch_is_a_batch_of_one() -> None:
    assert torch.equal(pixels.to_core(PICTURE[0]), pixels.to_core(PICTURE[:1]))


def test_what_needs_gradients_or_lies_elsewhere_comes_along() -> None:
    core = pixels.to_core(PICTURE.clone().requires_grad_())
    assert not core.requires_grad and core.device == nodepack.part("nodes.host").output_device()
    assert not pixels.mask_to_core(square().requires_grad_(), core).requires_grad


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (None, "image_2 is missing .None.; connect a picture"),
        (3, "image_2 is of type int; connect a picture"),
        ("a.png", "image_2 is of type str"),
        ([PICTURE], "image_2 is of type list"),
        (PICTURE[None], "image_2 has 5 dimensions; connect a picture"),
        (PICTURE[:0], "image_2 is empty, without pixels; connect a picture"),
        (torch.rand(1, 32, 48), "image_2 has 48 channels, a picture has 1 to 4"),
        (torch.full((1, 4, 4, 3), torch.nan), "image_2 contains NaN"),
        (torch.zeros(1, 4, 4, 3, dtype=torch.complex64), "image_2 holds complex numbers"),
    ],
)
def test_what_is_not_a_picture_is_one_sentence_with_the_inputs_name(image: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        pixels.to_core(image, "image_2")


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        (None, "mask is missing .None.; connect a mask"),
        (0.5, "mask is of type float"),
        ("mask", "mask is of type str"),
        (torch.rand(2, 32, 48, 3), "mask is a picture; connect a mask"),
        (torch.zeros(0, 32, 48), "mask is an empty mask"),
        (torch.full((1, 32, 48), torch.nan), "mask contains NaN"),
        (torch.ones(3, 32, 48), "3 masks for 2 images; connect one mask, or one per image"),
        (torch.full((1, 32, 48), 0.3), r"Every value of the mask is 0\.30"),
        (torch.ones(1, 8, 8), "mask is 8x8 px, the image 48x32 px"),
    ],
)
def test_what_is_not_a_mask_is_one_sentence(mask: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        pixels.mask_to_core(mask, PICTURE.movedim(-1, 1))


def test_several_masks_of_one_picture_are_united_and_of_several_are_one_each() -> None:
    masks = torch.zeros(3, 32, 48)
    for number in range(3):
        masks[number, number * 8 : number * 8 + 4] = 1
    assert torch.equal(pixels.mask_to_core(masks, torch.rand(1, 3, 32, 48))[0], masks.sum(dim=0))
    assert torch.equal(pixels.mask_to_core(masks, torch.rand(3, 3, 32, 48)), masks)


# Through the nodes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float16])
def test_mask_paint_and_stitch_take_masks_of_any_dtype(vq: Any, dtype: torch.dtype) -> None:
    image, mask = PICTURE[:1], square()
    expected = run("DimooMaskPaint", vq=vq, image=image, mode="inpaint", mask=mask)
    found = run("DimooMaskPaint", vq=vq, image=image, mode="inpaint", mask=mask.to(dtype))
    assert torch.equal(found[0].unknown, expected[0].unknown) and torch.equal(found[1], expected[1])
    cut, cut_mask, crop = run("DimooCropAroundMask", image=image, mask=mask.to(dtype), side=0)
    assert cut_mask.dtype == torch.float32
    done = run("DimooStitch", crop=crop, image=torch.zeros_like(cut), mask=cut_mask.to(dtype))[0]
    assert torch.equal(done[0][mask[0] == 0], image[0][mask[0] == 0])


def test_masks_of_a_segmenter_make_one_canvas(vq: Any) -> None:
    masks = torch.cat((square(), square().flip(2)))
    canvas, snapped, _ = run("DimooMaskPaint", vq=vq, image=PICTURE[:1], mode="inpaint", mask=masks)
    assert len(canvas.codes) == 1 and torch.equal(snapped, masks.amax(dim=0, keepdim=True))


@pytest.mark.parametrize(("cut", "painted", "result"), [(1, 1, 1), (1, 3, 3), (3, 1, 3), (3, 3, 3), (2, 3, None)])
def test_stitch_takes_one_for_all_or_one_each(cut: int, painted: int, result: int | None) -> None:
    image = torch.rand(cut, 32, 48, 3)
    piece, mask, crop = run("DimooCropAroundMask", image=image, mask=square(), side=0)
    given = {"crop": crop, "image": torch.rand(painted, *piece.shape[1:])}
    for more in ({}, {"mask": mask}, {"mask": mask.expand(max(cut, painted), -1, -1)}):
        if result is None:
            with pytest.raises(ValueError, match="3 painted images for a crop of 2 images; connect one, or one per"):
                run("DimooStitch", **given, **more)
        else:
            assert len(run("DimooStitch", **given, **more)[0]) == result


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_crop_and_stitch_keep_transparency(channels: int) -> None:
    image, mask = torch.rand(2, 32, 48, channels), square()
    cut, _, crop = run("DimooCropAroundMask", image=image, mask=mask, side=0)
    assert cut.shape[-1] == 3, "the model sees it on white"
    done = run("DimooStitch", crop=crop, image=torch.full_like(cut, 0.25))[0]
    outside = mask[0] == 0
    assert done.shape == (2, 32, 48, 3 if channels in (1, 3) else 4)
    colours = image[..., : channels - (channels in (2, 4))].expand(-1, -1, -1, 3)
    assert torch.equal(done[:, outside][..., :3], colours[:, outside])
    assert bool((done[:, ~outside][..., :3] == 0.25).all())
    if channels in (2, 4):
        assert torch.equal(done[..., 3], image[..., -1])


def test_a_transparent_hole_that_is_filled_becomes_opaque() -> None:
    image = torch.rand(1, 32, 48, 4)
    image[..., 3] = 1 - square()
    cut, _, crop = run("DimooCropAroundMask", image=image, mask=square(), side=0)
    assert bool((run("DimooStitch", crop=crop, image=cut)[0][..., 3] == 1).all())
