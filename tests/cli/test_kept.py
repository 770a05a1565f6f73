"""What a job must not lose: transparency, colour profile and dpi of a picture; the other files beside an odd one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from dimoo_core.cli.main import main
from dimoo_core.training.pretokenise import read_codes

from ..tiny import SHORT, write_checkpoint

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny", transformer=SHORT)


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def noise(width: int = 70, height: int = 50) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 4), dtype=np.uint8)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_inpaint_keeps_transparency_profile_and_dpi(model: Path, here: Path, mode: str) -> None:
    source = Image.fromarray(noise()).convert(mode)
    source.save("in.png", dpi=(300, 300), **({"icc_profile": PROFILE} if mode == "RGBA" else {}))
    mask = Image.new("L", source.size)
    mask.paste(255, (0, 0, 16, 16))
    mask.save("mask.png")
    assert run("inpaint", "in.png", "x", "--mask", "mask.png", "--checkpoint", model, "--batch", 2, "-o", "out") == 0
    before = np.asarray(source.convert("RGBA"))
    for path in Path("out").iterdir():
        with Image.open(path) as made:
            after = np.asarray(made)
            assert made.info["dpi"] == pytest.approx((300, 300), abs=0.1)
            assert made.info.get("icc_profile") == (PROFILE if mode == "RGBA" else None)
        outside = np.ones(before.shape[:2], dtype=bool)
        outside[:16, :16] = False
        assert np.array_equal(after[outside], before[outside]), "colours under transparency too"
        assert np.array_equal(after[..., 3], before[..., 3])
        assert not np.array_equal(after[:16, :16], before[:16, :16])


def test_a_transparent_hole_is_a_mask_and_can_be_seen_once_filled(model: Path, here: Path) -> None:
    values = noise(64, 64)
    values[..., 3] = 255
    values[20:30, 20:30, 3] = 0
    Image.fromarray(values).save("in.png")
    assert run("inpaint", "in.png", "x", "--mask", "in.png", "--checkpoint", model, "-o", "out.png") == 0
    after = np.asarray(Image.open("out.png"))
    assert (after[..., 3] == 255).all()
    changed = (after != values).any(axis=-1)
    assert changed[20:30, 20:30].all() and not changed[:16].any() and not changed[:, 32:].any()


def test_a_mask_that_marks_nothing_says_what_was_seen(model: Path, here: Path, capsys: pytest.CaptureFixture) -> None:
    Image.fromarray(noise()).save("in.png")
    Image.new("L", (70, 50), 77).save("mask.png")
    assert run("inpaint", "in.png", "x", "--mask", "mask.png", "--checkpoint", model, "-o", "out.png") == 2
    assert "Every value of the mask is 0.30" in capsys.readouterr().err and not Path("out.png").exists()


def test_edit_keeps_profile_and_dpi(model: Path, here: Path) -> None:
    Image.fromarray(noise()).save("in.png", dpi=(300, 300), icc_profile=PROFILE)
    assert run("edit", "in.png", "x", "--checkpoint", model, "-o", "out.png") == 0
    with Image.open("out.png") as made:
        assert made.mode == "RGB" and made.info["icc_profile"] == PROFILE and "dpi" in made.info


def odd_files(folder: Path) -> None:
    folder.mkdir()
    for name in ("a.png", "c.png", "d.png"):
        Image.fromarray(noise()[..., :3]).save(folder / name)
    (folder / "b.jpg").write_bytes(b"\0\0\0\x20ftypavif" + bytes(40))
    (folder / "c.txt").mkdir()


def test_captions_of_a_folder_survive_odd_files(model: Path, here: Path, capsys: pytest.CaptureFixture) -> None:
    odd_files(here / "in")
    assert run("caption", "in", "--checkpoint", model) == 2
    assert (here / "in" / "a.txt").exists() and (here / "in" / "d.txt").exists()
    said = capsys.readouterr().err
    assert "b.jpg is not a readable picture" in said and "c.txt cannot be written" in said
    assert "2 of 4 pictures have no new caption" in said.splitlines()[-1]


def test_encode_reads_captions_of_any_encoding_and_leaves_out_what_it_cannot_read(
    model: Path, here: Path, capsys: pytest.CaptureFixture
) -> None:
    odd_files(here / "in")
    (here / "in" / "a.txt").write_bytes(b"caf\xe9\r\n")
    (here / "in" / "b.txt").write_text("never read")
    (here / "in" / "d.txt").write_bytes(b"\xef\xbb\xbfcaf\xc3\xa9")
    line = ("train", "encode", "in", "--output", "codes.safetensors", "--side", 64, "--checkpoint", model)
    assert run(*line) == 2, "somebody should look"
    codes, captions = read_codes("codes.safetensors")
    assert captions == {"a.png": "caf\xe9", "d.png": "caf\xe9"} and codes.keys() == captions.keys()
    said = capsys.readouterr().err
    assert "b.jpg is not a readable picture" in said and "a.txt is not UTF-8" in said
