"""What a picture's file says of how it was made, and that this is enough to make it again."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageFile, features

from dimoo_core import provenance
from dimoo_core.checkpoint.find import find
from dimoo_core.cli.main import main
from dimoo_core.pictures.pixels import Picture, load_picture, to_pil

from .tiny import SHORT, write_checkpoint

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny", transformer=SHORT)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that commands run in, with a picture and a mask in it."""
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save("in.png")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    mask.save("mask.png")
    return tmp_path


def test_the_version_is_the_one_that_is_published() -> None:
    published = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert published and published[1] == provenance.VERSION


def test_a_fingerprint_is_of_what_is_in_the_files_and_not_of_where_they_lie(model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "another name")
    known = provenance.fingerprint(find(model).files)
    assert re.fullmatch("[0-9a-f]{16}", known)
    assert provenance.fingerprint(reversed(find(copy).files)) == known
    for file in find(copy).files:
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert provenance.fingerprint(find(copy).files if file.suffix != ".json" else (file,)) != known
        file.write_bytes(content)


def test_of_a_large_file_size_header_end_and_pieces_between_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "_WHOLE", 1 << 20)
    file, size = tmp_path / "weights", 4 << 20
    content = bytearray(np.random.default_rng(1).integers(0, 256, size, dtype=np.uint8))
    seen = set()
    for change in (None, 0, size // 2, size - 1, "longer", "all"):
        changed = bytearray(content)
        if isinstance(change, int):
            changed[change] ^= 1
            changed[change + 1 : change + 20_000] = bytes(len(changed[change + 1 : change + 20_000]))
        elif change == "longer":
            changed.append(0)
        elif change == "all":
            changed = bytearray(255 - byte for byte in content)
        file.write_bytes(changed)
        seen.add(provenance.fingerprint([file]))
        provenance._digest.cache_clear()  # the file may change more often than its clock ticks
    assert len(seen) == 6


# The command line ---------------------------------------------------------------------------------------------------


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in (*arguments, "--device", "cpu")]) == 0


def facts(path: Path) -> dict[str, Any]:
    with Image.open(path) as picture:
        return json.loads(picture.info[provenance.KEY])


def command(said: dict[str, Any]) -> list[str]:
    """The command line that a picture's facts stand for."""
    words = [said["command"], *(said[name]["name"] for name in ("image",) if name in said), said["prompt"]]
    for name, value in said.items():
        if name in ("version", "torch", "checkpoint", "command", "image", "prompt", "device") or value in (None, False):
            continue
        if name == "size":
            value = "x".join(map(str, value))
        elif name == "ml_cache":
            value = f"{value['ratio']},{value['warmup']},{value['refresh_interval']}"
        elif isinstance(value, dict):
            value = value["name"]
        words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return words


@pytest.mark.parametrize(
    "line",
    [
        "generate circle --seed 5 --batch 2 --ml-cache 0.5,0.25,2 --cfg 1.5 --negative blue --steps 6",
        "generate circle --size 32x80 --temperature 0.3",
        "generate circle --steps 6 --batch 2 --corrections 2 --polish 3 --order halton --shared-noise 0.5",
        "edit in.png --type canny_pred --seed 18446744073709551615 --batch 2",
        "inpaint in.png star --mask mask.png --grow 1",
        "inpaint in.png star --outpaint --mask-width 0.5 --polish 1 --order random --ml-cache 0.5,0.25,2",
    ],
)
def test_a_pictures_facts_are_enough_to_make_it_again(model: Path, here: Path, line: str) -> None:
    run(*line.split(), "--checkpoint", model, "-o", "made.png")
    for path in sorted(here.glob("made*.png")):
        said = facts(path)
        assert said["checkpoint"] == provenance.identified("tiny", find(model).files)
        run(*command(said), "--checkpoint", model, "-o", "again.png")
        assert np.array_equal(np.asarray(Image.open(path)), np.asarray(Image.open("again.png"))), path
        assert facts(here / "again.png") == said
        assert str(here) not in json.dumps(said) and str(model.parent) not in json.dumps(said)


def test_a_checkpoint_has_its_own_name_however_it_was_typed(
    model: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "link").symlink_to(model)
    monkeypatch.chdir(model / "vqvae")
    for typed, name in (("..", "tiny"), ("../config.json", "tiny"), (here / "link", "link"), (model.parent, "tiny")):
        run("generate", "x", "--checkpoint", typed, "-o", here / "made.png")
        assert facts(here / "made.png")["checkpoint"]["name"] == name


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_other_formats_tell_it_in_their_description_as_far_as_there_is_room(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a.{suffix}"
    for words in ("a red circle", "\u4e00 \U0001f600"):
        provenance.save(Image.new("RGB", (16, 16)), file, {"prompt": words})
        assert json.loads(Image.open(file).getexif()[0x010E]) == {"dimoo": {"prompt": words}}
        assert provenance.read_metadata(file) == {"prompt": words}


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "jfif", "webp"] + ["avif"] * features.check("avif"))
def test_long_chinese_prompts_are_read_back_from_every_format(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    metadata = {"prompt": "\u4e00\u9f99 \U0001f600" * 4000, "seed": 7, "checkpoint": {"name": "caf\xe9"}}
    provenance.save(Image.new("RGB", (16, 16)), tmp_path / f"a.{suffix}", metadata)
    assert provenance.read_metadata(tmp_path / f"a.{suffix}") == metadata and not caplog.records


def test_of_a_jpeg_only_what_must_be_is_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    metadata = {"prompt": "\u4e00" * 30_000, "negative": "x" * 60_000, "seed": 7, "steps": 64}
    provenance.save(Image.new("RGB", (16, 16)), tmp_path / "a.jpg", metadata)
    kept = provenance.read_metadata(tmp_path / "a.jpg")
    assert kept == {"negative": "x" * 60_000, "seed": 7, "steps": 64, "left_out": ["prompt"]}
    assert "prompt left out" in caplog.text and "a.jpg" in caplog.text


def test_what_was_not_made_here_has_no_metadata(tmp_path: Path) -> None:
    picture = Image.new("RGB", (16, 16))
    for name, content in (("a", "no JSON"), ("b", '"text"'), ("c", "[" * 100_000), ("d", '{"other": 1}')):
        exif = Image.Exif()
        exif[0x010E] = content[:60_000]
        picture.save(tmp_path / f"{name}.jpg", exif=exif)
    picture.save(tmp_path / "e.png")
    (tmp_path / "f.png").write_bytes(b"no picture")
    for path in (*tmp_path.iterdir(), tmp_path / "absent.png"):
        assert provenance.read_metadata(path) is None


@pytest.mark.parametrize(("suffix", "most"), [("jpg", 12), ("webp", 0), ("png", 0), ("tif", 0)])
def test_pictures_lose_next_to_nothing_on_the_way_to_a_file(tmp_path: Path, suffix: str, most: int) -> None:
    rows = torch.linspace(0, 1, 64)
    colours = torch.stack(torch.meshgrid(rows, rows.flip(0), indexing="ij"))
    pixels = torch.cat((colours, (rows > 0.5).float().expand(1, 64, 64)))  # a sharp edge of colour
    provenance.save(to_pil(pixels), tmp_path / f"a.{suffix}", {})
    apart = (load_picture(tmp_path / f"a.{suffix}")[0] * 255 - (pixels * 255).round()).abs().max()
    assert float(apart) <= most


PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"] + ["avif"] * features.check("avif"))
def test_profile_and_dpi_are_written(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    provenance.save(Image.new("RGB", (16, 16)), path, {"seed": 1}, icc_profile=PROFILE, dpi=(300.0, 300.0))
    picture = Picture.load(path)
    assert picture.icc_profile == PROFILE
    assert suffix in ("webp", "avif") or picture.dpi == pytest.approx((300, 300), abs=0.1)


def test_a_profile_of_other_colours_is_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    grey = PROFILE[:16] + b"GRAY" + PROFILE[20:]
    provenance.save(Image.new("RGB", (16, 16)), tmp_path / "a.png", {}, icc_profile=grey)
    assert Picture.load(tmp_path / "a.png").icc_profile is None and "not for RGB" in caplog.text


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_transparency_is_kept_with_the_colours_under_it(tmp_path: Path, suffix: str) -> None:
    values = np.random.default_rng(0).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    provenance.save(Image.fromarray(values), tmp_path / f"a.{suffix}", {})
    assert np.array_equal(np.asarray(Image.open(tmp_path / f"a.{suffix}").convert("RGBA")), values)


def test_formats_without_transparency_get_the_picture_on_white(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for suffix in ("jpg", "ppm"):
        provenance.save(Image.new("RGBA", (16, 16), (9, 9, 9, 0)), tmp_path / f"a.{suffix}", {})
        assert bool((load_picture(tmp_path / f"a.{suffix}") == 1).all()) and "on white" in caplog.text


def test_a_disk_that_is_full_leaves_no_half_of_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.png"
    provenance.save(Image.new("RGB", (16, 16)), file, {})
    before, encode = file.read_bytes(), ImageFile._save

    def full(image: Image.Image, stream: Any, *rest: Any) -> None:
        encode(image, stream, *rest)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ImageFile, "_save", full)
    with pytest.raises(OSError, match="No space"):
        provenance.save(Image.new("RGB", (16, 16), "red"), file, {})
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


def test_formats_without_room_for_words_are_written_all_the_same(model: Path, here: Path) -> None:
    run("generate", "a red circle", "--checkpoint", model, "-o", "a.bmp")
    assert Image.open("a.bmp").size == (64, 48)


def test_a_picture_that_was_edited_is_known_by_its_fingerprint(model: Path, here: Path) -> None:
    run("edit", "in.png", "x", "--checkpoint", model, "-o", "out.png")
    assert facts(here / "out.png")["image"] == provenance.identified("in.png", [here / "in.png"])
