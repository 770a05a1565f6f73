"""Picture files of every kind and state: read as they are meant, or refused in one sentence that names them."""

from __future__ import annotations

import io
import random
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, features

from dimoo_core.pictures import pixels as core
from dimoo_core.pictures.masks import load_mask
from dimoo_core.pictures.pixels import FORMATS, Picture, from_pil, known_formats, load_picture, to_pil

RGB_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def noise(mode: str = "RGB", size: tuple[int, int] = (24, 18)) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    return Image.fromarray(values if "A" in mode else values[..., :3]).convert(mode)


# Damaged files ------------------------------------------------------------------------------------------------------


def samples() -> dict[str, bytes]:
    """Small picture files of many formats and modes."""
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8769)[0x9286] = b"a comment"
    wanted = [
        ("PNG", "RGB", {}),
        ("PNG", "RGBA", {"exif": exif, "icc_profile": RGB_PROFILE, "dpi": (72, 72)}),
        ("PNG", "P", {"transparency": 3}),
        ("PNG", "L", {"transparency": 3}),
        ("PNG", "I;16", {}),
        ("JPEG", "RGB", {"exif": exif}),
        ("JPEG", "CMYK", {"progressive": True}),
        ("WEBP", "RGB", {"exif": exif}),
        ("WEBP", "RGBA", {"lossless": True}),
        ("AVIF", "RGB", {"exif": exif}),
        ("GIF", "P", {}),
        ("TIFF", "RGB", {}),
        ("TIFF", "F", {}),
        ("TIFF", "RGB", {"compression": "tiff_lzw"}),
        ("BMP", "RGB", {}),
        ("ICO", "RGBA", {}),
        ("JPEG2000", "RGB", {}),
        ("PPM", "RGB", {}),
        ("TGA", "RGB", {"compression": "tga_rle"}),
    ]
    Image.init()
    made = {}
    for kind, mode, options in wanted:
        if kind in Image.SAVE and (kind != "AVIF" or features.check("avif")):
            stream = io.BytesIO()
            picture = noise("L").convert("I").point(lambda v: v * 257).convert(mode) if mode == "I;16" else noise(mode)
            picture.save(stream, kind, **options)
            made[f"{kind} {mode} {' '.join(options)}"] = stream.getvalue()
    return made


def mutated(content: bytes, draw: random.Random) -> bytes:
    """A file with a few bytes changed, mostly in its headers, or cut, or longer."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 5, 20))):
        position = draw.randrange(max(1, min(len(changed), draw.choice((20, 100, 400, 10**9)))))
        what = draw.random()
        if what < 0.5:
            changed[position : position + 1] = bytes([draw.choice((0, 1, 127, 128, 255, draw.randrange(256)))])
        elif what < 0.6:
            del changed[position:]
        elif what < 0.8:
            number = draw.choice((0, 1, 65535, 1_000_000, 2**31, 2**32 - 1))
            changed[position : position + 4] = struct.pack(draw.choice("<>") + "I", number)
        else:
            changed[position:position] = draw.randbytes(3)
    return bytes(changed)


@pytest.mark.parametrize("name", samples())
def test_nothing_but_one_sentence_leaves_the_reader(tmp_path: Path, name: str) -> None:
    content, draw, path = samples()[name], random.Random(name), tmp_path / "odd.png"
    path.write_bytes(content)
    assert torch.isfinite(load_picture(path)).all(), "as it was written it can be read"
    refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(80):
            path.write_bytes(mutated(content, draw))
            for read in (load_picture, load_mask):
                try:
                    found = read(path)
                    assert found.numel() and bool(torch.isfinite(found).all())
                except ValueError as error:
                    assert str(path) in str(error) and "\n" not in str(error)
                    refused += 1
    assert refused > 5, "or the files were not damaged"


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_a_lack_of_memory_and_a_stop_are_not_taken_for_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    noise().save(tmp_path / "a.png")
    for name in ("open", "Image.load"):
        with monkeypatch.context() as patch:
            target = Image if name == "open" else Image.Image

            def fail(*_: object, **__: object) -> None:
                raise error

            patch.setattr(target, name.split(".")[-1], fail)
            patch.setattr("PIL.ImageFile.ImageFile.load", fail)
            with pytest.raises(error):
                load_picture(tmp_path / "a.png")


def test_an_exception_of_any_kind_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise().save(tmp_path / "a.png")
    kinds = (RuntimeError, struct.error, IndexError, KeyError, ZeroDivisionError, RecursionError, EOFError, SyntaxError)
    for error in kinds:

        def fail(*_: object, error: type[Exception] = error) -> None:
            raise error("decoder\nbroke" + "!" * 500)

        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
        with pytest.raises(ValueError, match=r"a\.png is not a readable picture \(.{1,80}\): save it as") as raised:
            load_picture(tmp_path / "a.png")
        assert "\n" not in str(raised.value)


def test_damaged_exif_costs_its_turn_and_not_the_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    noise().save(tmp_path / "a.jpg", exif=exif)
    assert load_picture(tmp_path / "a.jpg").shape == (1, 3, 24, 18)
    content = (tmp_path / "a.jpg").read_bytes()
    for junk in (b"Exif\0\0II*\0\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0"):
        start = content.index(b"Exif\0\0")
        (tmp_path / "a.jpg").write_bytes(content[:start] + junk + content[start + len(junk) :])
        assert load_picture(tmp_path / "a.jpg").shape[1] == 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_once_as_their_exif_says(tmp_path: Path, kind: str, orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    noise().save(tmp_path / "a", kind, exif=exif)
    with Image.open(tmp_path / "a") as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    assert torch.equal(load_picture(tmp_path / "a"), from_pil(expected))


def test_eps_and_what_else_would_start_a_program_is_not_read() -> None:
    assert not {"EPS", "WMF", "PDF", "FPX", "MIC"} & set(FORMATS)
    assert {"PNG", "JPEG", "GIF", "TIFF", "BMP"} <= set(known_formats())


def test_too_many_pixels_are_refused_by_the_header_alone(tmp_path: Path) -> None:
    def png(width: int, height: int) -> bytes:
        header = struct.pack(">II", width, height) + bytes([8, 2, 0, 0, 0])
        import zlib

        chunk = b"IHDR" + header
        return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))

    for width, height in ((20_000, 20_000), (1_000_000, 1_000), (11_000, 10_000)):
        (tmp_path / "a.png").write_bytes(png(width, height) + b"\0\0\0\0IDAT" + b"\0" * 40)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(ValueError, match=r"a\.png has .* at most 100 million"):
                load_picture(tmp_path / "a.png")


def test_truncated_pictures_are_not_filled_up(tmp_path: Path) -> None:
    noise(size=(200, 200)).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="truncated"):
        load_picture(tmp_path / "a.jpg")


# What the numbers mean ----------------------------------------------------------------------------------------------


def test_floats_are_0_to_1_whatever_they_hold(tmp_path: Path) -> None:
    values = np.array([[0.0, 0.25, 1.0, 7.0, -1.0]], dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert load_picture(tmp_path / "a.tif")[0, 0, 0].tolist() == [0, 0.25, 1, 1, 0]


def test_floats_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.0, np.nan]], dtype=np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif contains NaN"):
        load_picture(tmp_path / "a.tif")


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_dark_16_bit_picture_stays_dark(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(np.array([[0, 100, 200, 255]], dtype=np.uint16)).save(tmp_path / f"a.{suffix}")
    found = load_picture(tmp_path / f"a.{suffix}")[0, 0, 0].tolist()
    assert found == pytest.approx([0, 100 / 65535, 200 / 65535, 255 / 65535])


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L", "I"])
def test_whole_numbers_of_16_bits_and_more_are_0_to_65535(mode: str) -> None:
    for value in (1, 255, 300, 65535):
        assert float(from_pil(Image.new(mode, (2, 2), value)).max()) == pytest.approx(value / 65535)
    assert float(from_pil(Image.new("I", (1, 1), 10**9)).max()) == 1


# What belongs to a picture ------------------------------------------------------------------------------------------


def test_a_picture_has_transparency_profile_and_dpi(tmp_path: Path) -> None:
    noise("RGBA").save(tmp_path / "a.png", icc_profile=RGB_PROFILE, dpi=(300, 150))
    picture = Picture.load(tmp_path / "a.png")
    values = torch.from_numpy(np.array(noise("RGBA"))).permute(2, 0, 1)[None] / 255
    assert torch.equal(picture.pixels, values[:, :3]), "colours under transparency too"
    assert picture.alpha is not None and torch.equal(picture.alpha, values[:, 3:])
    assert picture.icc_profile == RGB_PROFILE and picture.dpi == pytest.approx((300, 150), abs=0.1)
    assert torch.equal(picture.on_white(), load_picture(tmp_path / "a.png"))
    assert torch.equal(picture.on_white(), values[:, :3] * values[:, 3:] + (1 - values[:, 3:]))


@pytest.mark.parametrize("mode", ["LA", "P", "L", "RGB"])
def test_transparency_is_found_in_every_mode(tmp_path: Path, mode: str) -> None:
    picture = noise(mode)
    marked = {"P": 5, "L": 100, "RGB": (1, 2, 3)}
    if mode in marked:
        picture.putpixel((0, 0), marked[mode])
    picture.save(tmp_path / "a.png", **({"transparency": marked[mode]} if mode in marked else {}))
    alpha = Picture.load(tmp_path / "a.png").alpha
    assert alpha is not None and float(alpha.min()) < 1
    noise(mode).save(tmp_path / "b.png")
    assert (Picture.load(tmp_path / "b.png").alpha is None) == (mode != "LA")


@pytest.mark.parametrize("dpi", [None, "x", (0, 0), (72,), (float("nan"), 72), (72, 10**9)])
def test_dpi_that_means_nothing_is_left_out(dpi: object) -> None:
    image = noise()
    image.info["dpi"] = dpi
    assert core._dpi(image) is None


def test_repainting_changes_nothing_outside_the_mask(tmp_path: Path) -> None:
    noise("RGBA", (32, 32)).save(tmp_path / "a.png")
    picture = Picture.load(tmp_path / "a.png")
    mask = torch.zeros(1, 32, 32)
    mask[:, :16, :16] = 1
    painted = torch.full((2, 3, 32, 32), 0.5)
    done = picture.repainted(painted, mask, mask)
    assert done.shape == (2, 4, 32, 32)
    saved = np.asarray(to_pil(done[1]))
    original = np.array(noise("RGBA", (32, 32)))
    outside = mask[0].numpy() == 0
    assert np.array_equal(saved[outside], original[outside]) and np.array_equal(saved[..., 3], original[..., 3])
    assert (saved[~outside][:, :3] == 128).all()


def test_a_hole_that_is_filled_can_be_seen() -> None:
    alpha = torch.ones(1, 1, 32, 32)
    alpha[..., 4:12, 4:12] = 0
    drawn = 1 - alpha[:, 0]
    picture = Picture(torch.rand(1, 3, 32, 32), alpha)
    assert bool((picture.repainted(torch.rand(1, 3, 32, 32), drawn, drawn)[:, 3] == 1).all())
    drawn[:, 0, 0] = 1
    kept = picture.repainted(torch.rand(1, 3, 32, 32), drawn, drawn)[:, 3:]
    assert torch.equal(kept, alpha), "some of what was painted is seen: its own transparency is kept"


# Masks as pictures --------------------------------------------------------------------------------------------------


def half(first: object, second: object, mode: str) -> Image.Image:
    """A picture whose left half is `first` and whose right half is `second`."""
    image = Image.new(mode, (8, 4), first)
    for position in range(16):
        image.putpixel((4 + position % 4, position // 4), second)
    return image


RIGHT = torch.tensor([0.0] * 4 + [1.0] * 4).expand(1, 4, 8)


@pytest.mark.parametrize(
    "image",
    [
        half(0, 255, "L"),
        half((0, 0, 0), (255, 255, 255), "RGB"),
        half(0, 1, "1"),
        half((200, 200, 200, 255), (0, 0, 0, 0), "RGBA"),
        half((0, 255), (255, 0), "LA"),
        half((0, 0, 0, 255), (255, 255, 255, 255), "RGBA"),
        half(0, 1, "L"),
        half((0, 0, 0), (1, 1, 1), "RGB"),
        half(0, 1, "I;16"),
        half(0, 65535, "I;16"),
        half(0.0, 1.0, "F"),
    ],
    ids=lambda image: f"{image.mode} {image.getextrema()}",
)
def test_masks_are_read_as_they_are_meant(tmp_path: Path, image: Image.Image) -> None:
    path = tmp_path / ("a.tif" if image.mode == "F" else "a.png")
    image.save(path)
    assert torch.equal((load_mask(path) > 0.5).float(), RIGHT)


@pytest.mark.parametrize("colours", [[0, 0, 0, 128, 0, 0], [60, 60, 60, 90, 0, 0], [0, 0, 0, 255, 255, 255]])
def test_labels_of_a_palette_are_marked_whatever_their_colour(tmp_path: Path, colours: list[int]) -> None:
    image = half(0, 1, "P")
    image.putpalette(colours)
    image.save(tmp_path / "a.png")
    assert torch.equal(load_mask(tmp_path / "a.png"), RIGHT)


def test_transparency_that_is_the_same_everywhere_marks_nothing(tmp_path: Path) -> None:
    for alpha in (255, 128, 0):
        half((0, 0, 0, alpha), (255, 255, 255, alpha), "RGBA").save(tmp_path / "a.png")
        assert torch.equal(load_mask(tmp_path / "a.png"), RIGHT)


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (Image.new("L", (4, 4), 77), r"Every value of the mask is 0\.30; white \(above 0\.5\) marks"),
        (Image.new("L", (4, 4), 0), r"The mask is empty and marks nothing \(0 everywhere\)"),
        (half(0, 77, "L"), r"go from 0\.00 to 0\.30"),
        (half(0, 255, "I;16"), r"go from 0\.00 to 0\.00389"),
    ],
)
def test_a_mask_that_marks_nothing_says_what_it_holds(tmp_path: Path, image: Image.Image, sentence: str) -> None:
    image.save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=rf"a\.png: .*{sentence}"):
        load_mask(tmp_path / "a.png")
