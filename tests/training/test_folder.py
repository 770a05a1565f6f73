"""A folder to train on: every kind of file is taken for what it is, and what is left out is named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from dimoo_core.pictures.pixels import load_picture, picture_size
from dimoo_core.training.folder import Item, Survey, survey, with_trigger

SIDES = (64, 128)


def put(path: Path, text: str | bytes | None = None, size: tuple[int, int] = (64, 64), **options: object) -> Path:
    """A picture file, and the text beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path, **options)
    if text is not None:
        path.with_suffix(".txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def mask(picture: Path, box: tuple[int, int, int, int] | None, size: tuple[int, int] = (64, 64)) -> None:
    """The mask of a picture, white in the box (left, top, right, bottom)."""
    drawn = Image.new("L", size)
    if box is not None:
        drawn.paste(255, box)
    drawn.save(picture.with_name(f"{picture.stem}-masklabel.png"))


def ask(picture: Path, content: object) -> None:
    picture.with_suffix(".json").write_text(content if isinstance(content, str) else json.dumps(content))


def read(folder: Path, trigger: str = "") -> Survey:
    return survey(folder, side=64, sides=SIDES, trigger=trigger)


def named(found: Survey) -> dict[str, Item]:
    return {item.name: item for item in found.items}


def notes(found: Survey, *words: str) -> str:
    """The one note that has all these words."""
    (note,) = [note for note in found.notes if all(word in note for word in words)]
    return note


# Layout -------------------------------------------------------------------------------------------------------------


def test_pictures_have_their_captions_in_sub_folders_too(tmp_path: Path) -> None:
    put(tmp_path / "a.png", "a fox\n")
    put(tmp_path / "deep" / "er" / "b.jpg", "a hat")
    found = read(tmp_path)
    assert {name: item.text for name, item in named(found).items()} == {"a.png": "a fox", "deep/er/b.jpg": "a hat"}
    assert (found.pictures, found.found, found.missing, found.notes) == (2, 2, 0, ())


def test_hidden_files_are_passed_over(tmp_path: Path) -> None:
    put(tmp_path / "a.png", "a fox")
    (tmp_path / "._a.png").write_bytes(b"\0\5\x16\7")
    (tmp_path / ".DS_Store").write_bytes(b"\0")
    put(tmp_path / ".cache" / "b.png", "a thumbnail")
    assert named(read(tmp_path)).keys() == {"a.png"}


def test_a_folder_says_how_often_its_pictures_count(tmp_path: Path) -> None:
    for name in (
        "a.png",
        "3_few/b.png",
        "3_few/10_more/c.png",
        "3_few/plain/d.png",
        "2024_trip/e.png",
        "20240101_trip/g.png",
        "0_x/f.png",
    ):
        put(tmp_path / name, "words")
    found = read(tmp_path)
    repeats = {Path(name).name: item.repeats for name, item in named(found).items()}
    assert repeats == {"a.png": 1, "b.png": 3, "c.png": 10, "d.png": 3, "e.png": 1, "f.png": 0, "g.png": 1}
    assert found.samples == 19
    assert found.repeats == {"3_few": 3, "3_few/10_more": 10, "0_x": 0}
    assert any("3_few 3 times" in line for line in found.report())


def test_the_folder_itself_may_be_called_like_a_repeat(tmp_path: Path) -> None:
    put(tmp_path / "2024_holiday" / "a.png", "words")
    assert read(tmp_path / "2024_holiday").samples == 1


def test_an_edit_has_its_sources_in_order_and_is_mixed_with_plain_pictures(tmp_path: Path) -> None:
    put(tmp_path / "plain.png", "a fox")
    put(tmp_path / "2_set" / "target" / "sub" / "a.png", "make it red")
    for name in ("a.jpg", "a_1.png", "a_2.webp", "a_4.png"):
        put(tmp_path / "2_set" / "source" / "sub" / name)
    put(tmp_path / "2_set" / "target" / "b.png")
    put(tmp_path / "2_set" / "source" / "b.png", "make it blue")
    found = read(tmp_path)
    second, first = found.edits
    assert [image.path.name for image in first.images] == ["a.jpg", "a_1.png", "a_2.webp"]
    assert (first.text, first.repeats) == ("make it red", 2)
    assert (second.text, second.name) == ("make it blue", "2_set/target/b.png"), "the text may lie beside the source"
    assert [item.name for item in found.captioned] == ["plain.png"]
    assert "a_4.png" in notes(found, "1 source without a target")


def test_a_source_with_a_number_may_have_a_target_of_its_own(tmp_path: Path) -> None:
    for name in ("a.png", "a_1.png"):
        put(tmp_path / "target" / name, "change it")
        put(tmp_path / "source" / name)
    assert [[image.path.name for image in item.images] for item in read(tmp_path).edits] == [["a.png"], ["a_1.png"]]


def test_several_sources_make_one_prompt(tmp_path: Path) -> None:
    put(tmp_path / "target" / "a.png", "join them")
    put(tmp_path / "source" / "a.png"), put(tmp_path / "source" / "a_1.png")
    (item,) = read(tmp_path).items
    grid = torch.zeros(1, 4, 4, dtype=torch.long)
    prompt = item.prompt((grid, grid))
    assert (prompt.text, len(prompt.images)) == ("join them", 2) and "editing instruction" in prompt.task.system


def test_source_and_target_share_their_bucket_and_further_sources_do_not(tmp_path: Path) -> None:
    put(tmp_path / "target" / "a.png", "change it", (128, 64))
    put(tmp_path / "source" / "a.png", size=(64, 128))
    put(tmp_path / "source" / "a_1.png", size=(64, 128))
    found = read(tmp_path)
    (item,) = found.items
    first, second = item.images
    assert item.answer.fitted == first.fitted == (64, 32) and second.fitted == (32, 64)
    assert "source/a.png" in notes(found, "another size than the target")


def test_a_lone_source_or_target_is_a_folder_like_any(tmp_path: Path) -> None:
    put(tmp_path / "x" / "target" / "a.png", "a fox")
    put(tmp_path / "y" / "source" / "b.png", "a hat")
    found = read(tmp_path)
    assert len(found.captioned) == 2 and not found.edits
    assert "no folder source" in notes(found, str(tmp_path / "x" / "target"))
    assert "no folder target" in notes(found, str(tmp_path / "y" / "source"))


def test_a_target_without_a_source_is_named(tmp_path: Path) -> None:
    put(tmp_path / "target" / "a.png", "change it"), put(tmp_path / "source" / "a.png")
    put(tmp_path / "target" / "lost.png", "change it")
    found = read(tmp_path)
    assert len(found.edits) == 1 and notes(found, "Left out: target/lost.png", "folder source")


def test_questions_are_taught_beside_the_caption_or_alone(tmp_path: Path) -> None:
    ask(
        put(tmp_path / "a.png", "a fox"),
        [{"question": "What?", "answer": "A fox."}, {"question": "Who?", "answer": "It"}],
    )
    ask(put(tmp_path / "b.png", size=(48, 40)), [{"question": "What?", "answer": "A hat."}])
    found = read(tmp_path)
    assert [(item.name, item.text, item.answer) for item in found.questions] == [
        ("a.png", "What?", "A fox."),
        ("a.png", "Who?", "It"),
        ("b.png", "What?", "A hat."),
    ]
    assert found.missing == 0 and [item.name for item in found.captioned] == ["a.png"]
    assert found.questions[2].images[0].fitted == (64, 64), "as a picture that is asked about, not one to be drawn"
    assert found.questions[2].prompt((torch.zeros(1, 4, 4, dtype=torch.long),)).task.name == "describe"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not usable JSON"),
        ("[" * 100_000, "not usable JSON"),
        ({"question": "a", "answer": "b"}, "holds no questions"),
        (["What?"], "holds no questions"),
        ([], "holds no questions"),
        ([{"question": "What?"}], "entry 1: The answer is of type NoneType"),
        ([{"question": "a", "answer": "b"}, {"question": " ", "answer": "b"}], "entry 2: the question is empty"),
        ([{"question": "a\ud83d", "answer": "b"}], "half of a character"),
    ],
)
def test_questions_that_are_none_are_named(tmp_path: Path, content: object, message: str) -> None:
    ask(put(tmp_path / "a.png", "a fox"), content)
    found = read(tmp_path)
    assert len(found.items) == 1 and notes(found, "Left out: the questions about a.png", "a.json", message)


# Masks --------------------------------------------------------------------------------------------------------------


def test_a_mask_is_cropped_with_its_picture_and_snapped_to_cells(tmp_path: Path) -> None:
    # 96x64 px become 64x43, of which the middle 32 rows stay: of the mask's 13 rows the lower 8.
    mask(put(tmp_path / "a.png", "a fox", (96, 64)), (72, 0, 96, 20), (96, 64))
    mask(put(tmp_path / "b.png", "a hat", (32, 32)), (0, 0, 4, 4), (64, 64))
    found = read(tmp_path)
    wide, small = found.items
    assert (found.masks, found.pictures) == (2, 2) and "masks: 2" in found.report()
    assert wide.weights is not None and wide.weights.tolist() == [[0, 0, 0, 1], [0, 0, 0, 0]]
    assert small.weights is not None and small.weights.shape == (4, 4) and small.weights.sum() == 1


def test_masks_that_say_nothing_leave_their_picture_out(tmp_path: Path) -> None:
    put(tmp_path / "good.png", "words")
    mask(put(tmp_path / "black.png", "words"), None)
    mask(put(tmp_path / "shape.png", "words"), (0, 0, 9, 9), (64, 32))
    mask(put(tmp_path / "cut.png", "words", (96, 64)), (0, 56, 96, 64), (96, 64))
    put(tmp_path / "broken.png", "words").with_name("broken-masklabel.png").write_bytes(b"no picture")
    mask(tmp_path / "nobody.png", (0, 0, 9, 9))
    mask(put(tmp_path / "two.png", "words"), (0, 0, 9, 9))
    Image.new("L", (64, 64), 255).save(tmp_path / "two-masklabel.bmp")
    found = read(tmp_path)
    assert named(found).keys() == {"good.png", "two.png"}
    assert "two-masklabel.png" in notes(found, "1 mask with the stem of another") and found.items[1].weights.all()
    assert notes(found, "Left out: black.png", "black-masklabel.png", "empty")
    assert notes(found, "Left out: shape.png", "64x32 px and the picture 64x64 px")
    assert notes(found, "Left out: broken.png", "not a readable picture")
    assert notes(found, "Left out: cut.png", "cuts off")
    assert "nobody-masklabel.png" in notes(found, "1 mask without a picture")


# Texts --------------------------------------------------------------------------------------------------------------


def test_captions_of_every_kind_are_counted(tmp_path: Path) -> None:
    put(tmp_path / "utf8.png", "\ufeffGr\u00fc\u00dfe")
    put(tmp_path / "utf16.png", "Gr\u00fc\u00dfe".encode("utf-16"))
    put(tmp_path / "cp1252.png", "Gr\u00fc\u00dfe \u201cx\u201d".encode("cp1252"))
    put(tmp_path / "empty.png", " \n")
    put(tmp_path / "none.png")
    put(tmp_path / "bare.png", "words".encode("utf-16-le"))
    put(tmp_path / "huge.png", "word " * 3000)
    found = read(tmp_path)
    texts = {name: item.text for name, item in named(found).items()}
    assert texts.pop("cp1252.png") == "Gr\u00fc\u00dfe \u201cx\u201d"
    assert texts == {"utf8.png": "Gr\u00fc\u00dfe", "utf16.png": "Gr\u00fc\u00dfe", "empty.png": ""}
    assert (found.found, found.missing, found.empty, found.unreadable) == (3, 1, 1, 2)
    assert notes(found, "cp1252.txt", "Windows-1252")
    assert notes(found, "Left out: bare.png", "UTF-16 without its mark")
    assert notes(found, "Left out: huge.png", "at most 10000")
    assert "none.png" in notes(found, "Left out: 1 picture without a text")
    assert "3 found, 1 missing, 1 empty (taught without words), 2 unreadable" in found.report()[1]


def test_a_trigger_word_is_put_before_captions_that_lack_it(tmp_path: Path) -> None:
    put(tmp_path / "a.png", "a fox"), put(tmp_path / "b.png", "an sks dog"), put(tmp_path / "c.png", "two masks")
    put(tmp_path / "empty.png", ""), put(tmp_path / "none.png")
    put(tmp_path / "set" / "target" / "e.png", "make it red"), put(tmp_path / "set" / "source" / "e.png")
    ask(tmp_path / "a.png", [{"question": "What?", "answer": "A fox."}])
    assert with_trigger("masks", "sks") == "sks, masks" and with_trigger("(sks)", "sks") == "(sks)"
    found = read(tmp_path, " sks ")
    assert [item.text for item in found.captioned] == ["sks, a fox", "an sks dog", "sks, two masks", "sks", "sks"]
    assert found.edits[0].text == "sks, make it red" and found.questions[0].text == "What?"
    assert "none.png" in notes(found, "Taught with the trigger word alone: 1 picture")


def test_a_folder_whose_captions_are_all_missing_is_refused_with_counts(tmp_path: Path) -> None:
    put(tmp_path / "a.png"), put(tmp_path / "b.png")
    put(tmp_path / "target" / "c.png"), put(tmp_path / "source" / "c.png")
    for trigger in ("", "sks"):
        with pytest.raises(
            ValueError, match=r"None of 3 pictures below .* has a text, .* NAME\.txt beside NAME\.png: write them"
        ):
            read(tmp_path, trigger)


@pytest.mark.parametrize("name", ["a.caption", "a.png.txt"])
def test_captions_under_another_name_are_told(tmp_path: Path, name: str) -> None:
    put(tmp_path / "a.png")
    (tmp_path / name).write_text("a fox")
    with pytest.raises(ValueError, match=rf"rename what lies there instead \(1 file such as {name}\)"):
        read(tmp_path)
    put(tmp_path / "b.png", "a hat")
    assert notes(read(tmp_path), f"rename {name}")


# Pictures -----------------------------------------------------------------------------------------------------------


def test_of_two_pictures_of_one_stem_the_first_is_taken(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg", "a fox"), put(tmp_path / "a.png"), put(tmp_path / "b" / "a.png", "a hat")
    found = read(tmp_path)
    assert named(found).keys() == {"a.jpg", "b/a.png"} and found.duplicates == 1
    assert "a.png" in notes(found, "Left out: 1 picture with the stem of another")


@pytest.mark.filterwarnings("ignore:Image size")
def test_broken_pictures_are_named_and_left_out(tmp_path: Path) -> None:
    put(tmp_path / "good.png", "words")
    for name, content in (("junk.png", b"no picture"), ("cut.gif", b"GIF89a"), ("zero.png", b"")):
        put(tmp_path / name, "words").write_bytes(content)
    Image.new("1", (12_000, 12_000)).save(put(tmp_path / "bomb.png", "words"))
    put(tmp_path / "target" / "e.png", "words"), put(tmp_path / "source" / "e.png").write_bytes(b"")
    found = read(tmp_path)
    assert named(found).keys() == {"good.png"}
    for name in ("junk.png", "cut.gif", "zero.png", "bomb.png", "target/e.png"):
        assert notes(found, f"Left out: {name}.")
    assert "at most 100 million" in notes(found, "bomb.png")


def test_only_the_headers_of_pictures_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "a.png", "a fox"), put(tmp_path / "b.jpg", "a hat"), put(tmp_path / "c.webp", "a cat")

    def decoded(*_: object, **__: object) -> None:
        raise AssertionError("a picture was decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    monkeypatch.setattr("PIL.WebPImagePlugin.WebPImageFile.load", decoded)
    assert len(read(tmp_path).items) == 3


@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_size_is_that_of_the_turned_picture(tmp_path: Path, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = put(tmp_path / f"a.{kind}", "words", (128, 64), exif=exif)
    pixels = load_picture(path)
    assert picture_size(path) == (pixels.shape[3], pixels.shape[2]) == ((64, 128) if orientation > 4 else (128, 64))
    (item,) = read(tmp_path).items
    assert item.answer.fitted == ((32, 64) if orientation > 4 else (64, 32))


def test_sizes_and_small_pictures_are_counted(tmp_path: Path) -> None:
    for number, size in enumerate([(64, 64), (640, 640), (128, 64), (60, 64), (16, 16)]):
        put(tmp_path / f"{number}.png", "words", size)
    found = read(tmp_path)
    assert found.sizes == {(64, 64): 4, (64, 32): 1} and found.upscaled == 2
    assert "sizes: 4 at 64x64 px, 1 at 64x32 px" in found.report()
    assert any(line.startswith("scaled up: 2 pictures") for line in found.report())


@pytest.mark.parametrize("bad", ["absent", "file", "empty", "broken"])
def test_a_folder_without_anything_to_teach_is_refused(tmp_path: Path, bad: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    put(tmp_path / "broken" / "a.png", "words").write_bytes(b"x")
    message = {"empty": "holds no pictures", "broken": r"Of 1 picture below .* none can be taught: Left out: a\.png"}
    with pytest.raises(ValueError, match=message.get(bad, "is not a folder")):
        read(tmp_path / bad)


def test_a_side_without_buckets_is_refused_before_the_folder_is_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="side is 8"):
        survey(tmp_path / "absent", side=8, sides=SIDES)


def test_a_report_does_not_go_on_for_ever(tmp_path: Path) -> None:
    put(tmp_path / "good.png", "words")
    for number in range(40):
        put(tmp_path / f"{number}.png", b"\xe9")
    put(tmp_path / "none.png")
    found = read(tmp_path)
    assert len(found.notes) == 41 and len(found.report()) < 30 and found.report()[-1] == "note: 21 more notes"
    assert any("1 picture without a text: none.png" in line for line in found.report()), (
        "what concerns many comes first"
    )


@pytest.mark.skipif(os.name == "nt", reason="names of files are Unicode there")
def test_names_that_are_not_utf8_are_read(tmp_path: Path) -> None:
    put(tmp_path / os.fsdecode(b"caf\xe9.png"), "a caf\u00e9")
    (item,) = read(tmp_path).items
    assert item.name == "caf\ufffd.png"
