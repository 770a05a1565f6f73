"""Image Edit: names that people read, a negative prompt, and results at the picture's own size; on a real ComfyUI."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import dimoo_core
from dimoo_core.pictures.pixels import to_pil as pil_of
from dimoo_core.pipeline import Pipeline
from dimoo_core.sequence.prompt import EDITS

from .. import nodepack

NODES = nodepack.nodes()
NANO = "DiMOO-nano (built in)"


def run(name: str, **inputs):
    return nodepack.run(NODES[name], **inputs).args


@pytest.fixture(scope="module")
def model():
    return run("DimooLoader", checkpoint=NANO, weight_dtype="fp32")[0]


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    """The same checkpoint as Python and the command line use it."""
    return dimoo_core.load(dtype="fp32")


@pytest.fixture
def remarks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the page shows on the node that runs, one after the other."""
    shown: list[str] = []
    monkeypatch.setattr(nodepack.part("nodes.host"), "show_remark", lambda remark, node: shown.append(remark))
    return shown


def picture(width: int, height: int, *, batch: int = 1, channels: int = 3) -> torch.Tensor:
    """A smooth picture, as IMAGE."""
    small = torch.rand(batch, channels, 6, 6, generator=torch.Generator().manual_seed(3))
    return F.interpolate(small, (height, width), mode="bicubic").clamp(0, 1).movedim(1, -1).contiguous()


@pytest.mark.parametrize("edit_type", EDITS)
def test_a_readable_name_means_what_its_id_means(vq, edit_type: str) -> None:
    reference = {"reference_image": picture(64, 64)} if EDITS[edit_type].images == 2 else {}
    given = {"vq": vq, "image": picture(64, 64), "text": "a hat", **reference}
    by_label, by_id = (run("DimooImageEdit", **given, edit_type=one)[0] for one in (EDITS[edit_type].label, edit_type))
    assert by_label.task == by_id.task and by_label.task.name == edit_type
    assert all(torch.equal(*pair) for pair in zip(by_label.images, by_id.images, strict=True))


def test_an_error_names_the_edit_as_it_was_chosen(vq) -> None:
    with pytest.raises(ValueError, match="The edit type 'style of the reference image' takes the style of a reference"):
        run("DimooImageEdit", vq=vq, image=picture(64, 64), edit_type="style of the reference image")


def test_an_edit_with_a_negative_prompt_is_that_of_the_command_line(model, vq, pipe) -> None:
    image, settings = picture(128, 96), {"seed": 5, "steps": 4, "cfg": 3.0, "image_cfg": 1.5, "temperature": 0.8}
    words = {"text": "make the circle blue", "negative": "a red circle"}
    prompt, canvas, *_ = run("DimooImageEdit", vq=vq, image=image, edit_type="replace something", **words)
    filled = run("DimooSampler", model=model, prompt=prompt, canvas=canvas, **settings)[0]
    made = run("DimooVQDecode", vq=vq, canvas=filled)[0]
    source, known = image.movedim(-1, 1), {"negative": words["negative"], "progress": False, **settings}
    assert pipe.edit(source, words["text"], **known)[0].tobytes() == pil_of(made[0].movedim(-1, 0)).tobytes()
    assert (
        pipe.edit(source, words["text"], **{**known, "negative": ""})[0].tobytes()
        != pil_of(made[0].movedim(-1, 0)).tobytes()
    )


def test_without_a_side_the_checkpoints_own_is_taken(vq) -> None:
    given = {"vq": vq, "image": picture(300, 200), "edit_type": "map: canny edges"}
    own = run("DimooImageEdit", **given)
    assert vq.found.defaults.side == 128
    for side in (128, -1, -32):
        assert torch.equal(own[2], run("DimooImageEdit", **given, side=side)[2])
    assert run("DimooImageEdit", **given, side=256)[2].shape != own[2].shape


def test_an_edit_goes_back_into_the_picture_at_its_own_size(vq) -> None:
    image = picture(301, 197, batch=2)
    *_, fitted, crop = run("DimooImageEdit", vq=vq, image=image, edit_type="add something")
    back = run("DimooStitch", crop=crop, image=fitted)[0]
    assert back.shape == image.shape
    assert (back - image).abs().mean() < 0.005, "what was not changed lies where it was"
    dark = run("DimooStitch", crop=crop, image=torch.zeros_like(fitted))[0]
    kept = crop.mask[0] == 0
    assert torch.equal(dark[:, kept], image[:, kept]) and not bool(dark[:, ~kept].any())
    assert kept.all(dim=1).nonzero()[:, 0].tolist() == [*range(7), *range(189, 197)], "what fitting cut off"
    assert not kept[7:189].any()


def test_stitching_an_edit_fades_keeps_alpha_and_heeds_a_mask(vq) -> None:
    image = torch.cat((picture(301, 197), torch.linspace(0, 1, 301).expand(1, 197, -1)[..., None]), dim=-1)
    *_, fitted, crop = run("DimooImageEdit", vq=vq, image=image, edit_type="add something")
    black, shown = torch.zeros_like(fitted), crop.mask[0] == 1
    faded = run("DimooStitch", crop=crop, image=black, feather=10)[0]
    assert torch.equal(faded[..., 3], image[..., 3])
    assert 0 < faded[0, 12, 150, :3].max() < image[0, 12, 150, :3].max(), "at the cut"
    assert not bool(faded[0, 98, 0, :3].any()), "the picture's own border is no cut"
    mask = torch.zeros(1, *fitted.shape[1:3])
    mask[:, :, :80] = 1
    left = run("DimooStitch", crop=crop, image=black, mask=mask)[0]
    assert torch.equal(left[:, :, 152:], image[:, :, 152:])
    assert not bool(left[0, :, :148][shown[:, :148]][:, :3].any())


def test_one_result_of_one_picture_goes_back_and_other_numbers_are_one_sentence(vq) -> None:
    *_, fitted, crop = run("DimooImageEdit", vq=vq, image=picture(301, 197), edit_type="add something")
    assert run("DimooStitch", crop=crop, image=fitted.expand(3, -1, -1, -1))[0].shape == (3, 197, 301, 3)
    *_, two, pair = run("DimooImageEdit", vq=vq, image=picture(301, 197, batch=2), edit_type="add something")
    with pytest.raises(ValueError, match="Got 3 painted images for a crop of 2 images"):
        run("DimooStitch", crop=pair, image=two[:1].expand(3, -1, -1, -1))


def test_a_changed_size_is_said_on_the_node_and_in_the_log(vq, remarks: list, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run("DimooImageEdit", vq=vq, image=picture(300, 200), edit_type="add something")
        run("DimooImageEdit", vq=vq, image=picture(128, 128), edit_type="add something")
    sentence = "300x200 px became 160x96 px: connect crop to DiMOO Stitch to get the picture back at its own size."
    assert remarks == [sentence, ""]
    assert [record.message for record in caplog.records if "became" in record.message] == [
        f"DiMOO Image Edit: {sentence}"
    ]


def test_what_encoding_cuts_off_is_said_on_the_node(vq, remarks: list) -> None:
    run("DimooVQEncode", vq=vq, image=picture(101, 70))
    run("DimooVQEncode", vq=vq, image=picture(96, 64))
    assert remarks == ["101x70 px became 96x64 px: each cell is 16 px, and the edges are cut off.", ""]


def test_a_rectangle_in_place_of_a_mask_is_said_on_the_node(vq, remarks: list) -> None:
    mask = torch.zeros(1, 96, 128)
    mask[:, :20] = 1
    ratios = {"mask_h_ratio": 1.0, "mask_w_ratio": 0.25}
    for given in (ratios, {**ratios, "mode": "outpaint"}, {**ratios, "mask": mask}):
        run("DimooMaskPaint", vq=vq, image=picture(128, 96), **given)
    assert remarks == [
        "mask is not connected: the centred rectangle of mask_h_ratio 1 and mask_w_ratio 0.25 is repainted.",
        "mask is not connected: all outside the centred rectangle of mask_h_ratio 1 and mask_w_ratio 0.25 is "
        "repainted.",
        "",
    ]


def test_an_edit_of_the_command_line_at_its_own_size_is_that_of_stitch(model, vq, pipe, tmp_path) -> None:
    image = picture(203, 131)
    Image.fromarray((image[0] * 255).round().byte().numpy()).save(tmp_path / "a.png")
    exact = torch.frombuffer(bytearray(Image.open(tmp_path / "a.png").tobytes()), dtype=torch.uint8).view(image.shape)
    prompt, canvas, _, crop = run(
        "DimooImageEdit", vq=vq, image=exact.float() / 255, edit_type="edit_replace", text="make the circle blue"
    )
    filled = run("DimooSampler", model=model, prompt=prompt, canvas=canvas, seed=2, steps=4)[0]
    stitched = run("DimooStitch", crop=crop, image=run("DimooVQDecode", vq=vq, canvas=filled)[0])[0]
    made = pipe.edit(tmp_path / "a.png", "make the circle blue", own_size=True, seed=2, steps=4, progress=False)[0]
    assert made.size == (203, 131) and made.tobytes() == pil_of(stitched[0].movedim(-1, 0)).tobytes()
