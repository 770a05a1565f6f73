"""Crop Around Mask, Stitch and feathered masks, on a real ComfyUI."""

from __future__ import annotations

import pytest
import torch

from .. import nodepack

NODES = nodepack.nodes()


def run(name: str, **inputs):
    return nodepack.run(NODES[name], **inputs).args


def test_a_small_hole_in_a_large_picture_is_painted_and_put_back(vq) -> None:
    picture, mask = torch.rand(1, 300, 400, 4), torch.zeros(1, 300, 400)
    mask[:, 101:110, 205:230] = 1
    cut, cut_mask, crop = run("DimooCropAroundMask", image=picture, mask=mask, context=3.0, side=128)
    assert cut.shape == (1, *cut_mask.shape[1:], 3) and cut.shape[1] % 16 == cut.shape[2] % 16 == 0
    assert abs(cut.shape[1] * cut.shape[2] - 128 * 128) < 128 * 32
    canvas, snapped, _ = run("DimooMaskPaint", vq=vq, image=cut, mode="inpaint", mask=cut_mask)
    assert 0 < int(canvas.unknown.sum()) < canvas.unknown.numel()
    painted = run("DimooVQDecode", vq=vq, canvas=canvas)[0]
    exact = run("DimooStitch", crop=crop, image=painted)[0]
    marked = mask[0] > 0
    assert torch.equal(exact[0][~marked], picture[0][~marked]), "colours under transparency too"
    assert torch.equal(exact[..., 3], picture[..., 3]), "transparency is kept"
    assert (exact[0][marked][:, :3] - 0.5).abs().mean() < 0.01, "unknown cells are decoded grey"
    whole_cells = run("DimooStitch", crop=crop, image=painted, mask=snapped)[0]
    new = (whole_cells[0] != picture[0]).any(dim=-1)
    assert bool(new[marked].all()) and marked.sum() < new.sum() < 4 * 32 * 48, "at most the cells around it"


def test_feathering_leaves_all_outside_the_snapped_mask_alone(vq) -> None:
    from comfy_extras.nodes_mask import ImageCompositeMasked

    picture, mask = torch.rand(1, 64, 96, 3), torch.zeros(1, 64, 96)
    mask[:, 20:40, 20:60] = 1
    canvas, hard, _ = run("DimooMaskPaint", vq=vq, image=picture, mode="inpaint", mask=mask)
    _, soft, _ = run("DimooMaskPaint", vq=vq, image=picture, mode="inpaint", mask=mask, feather=6)
    assert torch.equal(soft > 0, hard > 0) and bool(((soft > 0) & (soft < 1)).any()) and soft.max() == 1
    decoded = run("DimooVQDecode", vq=vq, canvas=canvas)[0]
    final = ImageCompositeMasked().composite(picture, decoded, 0, 0, False, soft)[0]
    assert torch.equal(final[0][hard[0] == 0], picture[0][hard[0] == 0])
    assert bool((final[0][soft[0] == 1] == 0.5).all())


def test_the_core_node_that_pads_works_with_mask_paint(vq) -> None:
    from nodes import ImagePadForOutpaint

    picture = torch.rand(1, 64, 96, 3)
    for feathering in (0, 20):
        padded, mask = ImagePadForOutpaint().expand_image(picture, 32, 0, 16, 48, feathering)
        canvas, snapped, _ = run("DimooMaskPaint", vq=vq, image=padded, mode="outpaint", mask=mask)
        assert canvas.codes.shape == (1, 7, 9)
        assert bool(canvas.unknown[0, :, :2].all() and canvas.unknown[0, 4:].all() and canvas.unknown[0, :, 8].all())
    assert snapped.shape == padded.shape[:3]


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"mask": torch.zeros(1, 64, 96)}, "mask is empty"),
        ({"mask": torch.ones(1, 32, 32)}, "32x32 px, the image 96x64 px"),
        ({"context": float("nan")}, "context is nan"),
    ],
)
def test_cuts_that_make_no_sense_are_one_sentence(inputs: dict, sentence: str) -> None:
    given = {"image": torch.rand(1, 64, 96, 3), "mask": torch.ones(1, 64, 96)} | inputs
    with pytest.raises(ValueError, match=sentence):
        run("DimooCropAroundMask", **given)


def test_a_crop_of_another_pack_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="connect DiMOO Crop Around Mask"):
        run("DimooStitch", crop=("x", "y"), image=torch.rand(1, 64, 96, 3))
