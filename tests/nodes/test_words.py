"""Best Of, Caption Folder and Save Text, on a real ComfyUI with nano."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from .. import nodepack

NODES = nodepack.nodes()
scenes, captions = nodepack.part("dimoo_core.nano.scenes"), nodepack.part("nodes.captions")
caption = nodepack.part("dimoo_core.nano.captions").caption
SHORT = {"max_tokens": 32, "steps": 32, "block_length": 32}


def run(name: str, **inputs):
    return nodepack.run(NODES[name], **inputs)


@pytest.fixture(scope="module")
def loaded():
    return run("DimooLoader", checkpoint="DiMOO-nano (built in)").args


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ComfyUI's input and output folders, empty ones of our own."""
    import folder_paths

    for kind in ("input", "output"):
        (tmp_path / kind).mkdir()
        monkeypatch.setattr(folder_paths, f"{kind}_directory", str(tmp_path / kind))
    return tmp_path


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the page shows on the node that runs, one after the other."""
    texts: list[str] = []

    def show(text: str, node: str | None) -> None:
        assert node == "7", "the node's own id"
        texts.append(text)

    monkeypatch.setattr(nodepack.part("nodes.host"), "show_text", show)
    return texts


def scene(shape: str, colour: str = "red"):
    return scenes.Scene.one("white", shape, colour, "large", "in the middle")


def draw(shown) -> torch.Tensor:
    return scenes.draw(shown, 8, 8).movedim(0, -1)


def save(shown, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((draw(shown) * 255).round().byte().numpy()).save(path)


# Best Of ------------------------------------------------------------------------------------------------------------


def test_the_picture_that_shows_what_was_asked_comes_first(loaded, shown: list) -> None:
    model, vq = loaded
    wanted = scene("star", "blue")
    batch = torch.stack([draw(one) for one in (scene("circle"), scene("star"), wanted)])
    prompt = run("DimooTextEncode", text=caption(wanted))[0]
    best, ranked, scores, listed = run(
        "DimooBestOf", model=model, vq=vq, image=batch, prompt=prompt, judge_by="description"
    ).args
    assert torch.equal(best, batch[2:]) and torch.equal(ranked, batch[[2, 1, 0]])
    assert scores.splitlines()[0] == f"picture 3: 100.0%  {caption(wanted)}"
    assert shown == [scores] and listed == scores.splitlines(), "the page shows them on the node"


@pytest.mark.parametrize(
    "given",
    [lambda one: one, lambda one: (one * 255).round().byte()[None], lambda one: one.double()[None]],
    ids=["no batch", "uint8", "fp64"],
)
def test_the_best_of_other_packs_pictures_is_a_picture(loaded, shown: list, given) -> None:
    model, vq = loaded
    picture = draw(scene("star"))
    prompt = run("DimooTextEncode", text=caption(scene("star")))[0]
    best, ranked, *_ = run(
        "DimooBestOf", model=model, vq=vq, image=given(picture), prompt=prompt, judge_by="description"
    ).args
    assert best.shape == ranked.shape == (1, *picture.shape) and best.dtype == torch.float32
    assert (best - picture).abs().max() < 0.005


def test_prompts_that_no_picture_could_show_are_one_sentence(loaded) -> None:
    model, vq = loaded
    edit, *_ = run("DimooImageEdit", vq=vq, image=torch.rand(1, 64, 64, 3), edit_type="edit_add", text="x", side=128)
    for prompt in (edit, run("DimooTextEncode", text=" ")[0]):
        with pytest.raises(ValueError, match="connect DiMOO Text Encode"):
            run("DimooBestOf", model=model, vq=vq, image=torch.rand(1, 64, 64, 3), prompt=prompt)


# Captions -----------------------------------------------------------------------------------------------------------


def test_every_picture_of_a_folder_gets_its_words_once(loaded, places: Path) -> None:
    model, vq = loaded
    save(scene("circle"), places / "input" / "set" / "a.png")
    save(scene("star"), places / "input" / "set" / "deeper" / "b c.png")
    assert captions.folders() == ["set", "set/deeper"]
    given = {"model": model, "vq": vq, "folder": "set", "question": "describe the picture", **SHORT}
    said, files = run("DimooCaptionFolder", **given).args
    assert files == ["set/a.png", "set/deeper/b c.png"]
    assert said == [caption(scene("circle")), caption(scene("star"))]
    text = places / "input" / "set" / "a.txt"
    assert text.read_text(encoding="utf-8") == said[0] + "\n"
    text.write_text("mine", encoding="utf-8")
    assert run("DimooCaptionFolder", **given)[0] == ["mine", said[1]]
    assert run("DimooCaptionFolder", **given, again=True)[0] == said


def test_a_picture_that_cannot_be_read_stops_no_other(loaded, places: Path, shown: list) -> None:
    model, vq = loaded
    folder = places / "input" / "set"
    save(scene("circle"), folder / "a.jpg")
    save(scene("star"), folder / "a.png")
    save(scene("star"), folder / "c.png")
    (folder / "b.png").write_bytes(b"no picture")
    given = {"model": model, "vq": vq, "folder": "set", "question": "describe the picture", **SHORT}
    for _ in range(2):
        done = run("DimooCaptionFolder", **given)
        said, files = done.args
        assert files == ["set/a.jpg", "set/c.png"] and said[1] == caption(scene("star"))
        assert "circle" in said[0], "a.txt is that of the first of its name"
        lines = done.ui["text"]
        assert len(lines) == 4 and shown[-1] == "\n\n".join(lines)
        assert any(line.startswith("set/b.png: ") and "not a readable picture" in line for line in lines)
        assert any(line.startswith("set/a.png: left out") and "a.jpg" in line for line in lines)


def test_one_odd_file_costs_none_of_the_others(loaded, places: Path, shown: list) -> None:
    model, vq = loaded
    folder = places / "input" / "set"
    words = caption(scene("circle"))
    for name in ("a.png", "c.png", "d.png", "e.png", "n" * 251 + ".png"):
        save(scene("circle"), folder / name)
    (folder / "b.jpg").write_bytes(b"\0\0\0\x20ftypavif" + bytes(40))
    (folder / "a.txt").write_bytes(b"caf\xe9\r\n")
    (folder / "c.txt").mkdir()
    (folder / "d.txt").write_bytes(b"\xef\xbb\xbfmine")
    victim = places / "victim"
    victim.write_text("precious")
    (folder / "e.txt").symlink_to(places / "nowhere")
    (folder / "e.txt.part").symlink_to(victim)
    given = {"model": model, "vq": vq, "folder": "set", "question": "describe the picture", **SHORT}
    for _ in range(2):
        done = run("DimooCaptionFolder", **given)
        said, files = done.args
        assert dict(zip(files, said, strict=True)) == {
            "set/a.png": "caf\xe9",
            "set/d.png": "mine",
            "set/e.png": words,
            f"set/{'n' * 251}.png": words,
        }
        lines = "\n".join(done.ui["text"])
        assert "set/a.png: " in lines and "a.txt is not UTF-8" in lines
        assert "set/b.jpg: " in lines and "not a readable picture" in lines
        assert "set/c.png: " in lines and "c.txt cannot be written" in lines
    assert victim.read_text() == "precious" and not (places / "nowhere").exists()
    assert not (folder / "e.txt").is_symlink()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_no_caption_is_one_sentence(
    loaded, places: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(nodepack.part("dimoo_core.pictures.captions"), "atomic_write", fail)
    save(scene("circle"), places / "input" / "set" / "a.png")
    given = {"model": loaded[0], "vq": loaded[1], "folder": "set", "question": "describe the picture", **SHORT}
    said = rf"input/set cannot be written \({os.strerror(number)}\): name another place, or make it writable\.$"
    with pytest.raises(ValueError, match=said):
        run("DimooCaptionFolder", **given)


def test_a_cancel_ends_the_folder_and_leaves_nothing_half_done(
    loaded, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management as memory

    save(scene("circle"), places / "input" / "a.png")
    memory.interrupt_current_processing(True)
    given = {"model": loaded[0], "vq": loaded[1], "folder": ".", "question": "describe the picture", **SHORT}
    with pytest.raises(memory.InterruptProcessingException):
        run("DimooCaptionFolder", **given)
    assert [path.name for path in (places / "input").iterdir()] == ["a.png"]


def test_linked_folders_are_offered_and_captioned(loaded, places: Path) -> None:
    save(scene("star"), places / "far" / "a.png")
    (places / "input" / "linked").symlink_to(places / "far")
    assert captions.folders() == ["linked"]
    given = {"model": loaded[0], "vq": loaded[1], "folder": "linked", "question": "describe the picture", **SHORT}
    assert run("DimooCaptionFolder", **given).args == ([caption(scene("star"))], ["linked/a.png"])


def test_names_that_are_not_utf_8_can_be_shown(loaded, places: Path) -> None:
    try:
        save(scene("star"), places / "input" / os.fsdecode(b"\xff.png"))
    except OSError:
        pytest.skip("this file system has no such names")
    given = {"model": loaded[0], "vq": loaded[1], "folder": ".", "question": "describe the picture", **SHORT}
    done = run("DimooCaptionFolder", **given)
    assert done.args[1] == ["\ufffd.png"] and "\n".join(done.ui["text"]).encode()


def test_a_folder_without_one_readable_picture_is_one_sentence(loaded, places: Path) -> None:
    (places / "input" / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"None of the pictures .*not a readable picture"):
        run("DimooCaptionFolder", model=loaded[0], vq=loaded[1], folder=".", question="x", **SHORT)


def test_hidden_folders_are_not_offered(places: Path) -> None:
    save(scene("circle"), places / "input" / ".cache" / "a.png")
    assert captions.folders() == [captions.NOTHING]


def test_a_folder_that_has_grown_is_noticed(places: Path) -> None:
    save(scene("circle"), places / "input" / "a.png")
    node = NODES["DimooCaptionFolder"]
    before = node.fingerprint_inputs(folder=".")
    assert node.fingerprint_inputs(folder=".") == before
    save(scene("star"), places / "input" / "b.png")
    assert node.fingerprint_inputs(folder=".") != before


@pytest.mark.parametrize("name", ["..", "/etc", "set/../..", "absent", captions.NOTHING])
def test_nothing_outside_the_input_folder_is_read(loaded, places: Path, name: str) -> None:
    save(scene("circle"), places / "outside.png")
    save(scene("circle"), places / "input" / "set" / "a.png")
    with pytest.raises(ValueError, match="input folder"):
        run("DimooCaptionFolder", model=loaded[0], vq=loaded[1], folder=name, question="x")
    assert not list(places.rglob("*.txt"))


def test_texts_are_numbered_like_the_pictures_of_their_prefix(places: Path) -> None:
    folder = places / "output" / "set"
    folder.mkdir()
    (folder / "[x]_00001_.png").touch()  # as SaveImage leaves it
    names = [os.path.relpath(run("DimooSaveText", text=t, filename_prefix="set/[x]")[0], folder) for t in ("a", "b")]
    assert names == ["[x]_00001_.txt", "[x]_00002_.txt"]
    assert (folder / "[x]_00002_.txt").read_text(encoding="utf-8") == "b\n"


def test_a_text_never_replaces_another(places: Path) -> None:
    import nodes

    given = {"filename_prefix": "set/a_%width%x%height%"}
    pictures = torch.rand(2, 48, 64, 3)
    nodes.SaveImage().save_images(pictures, **given)
    assert Path(run("DimooSaveText", text="x", **given)[0]).name == "a_64x48_00001_.txt"
    for number in (1, 2):
        NODES["DimooSaveText"].fingerprint_inputs(**given)  # as ComfyUI does before a prompt
        nodes.SaveImage().save_images(pictures, **given)
        for text in ("b", "c", "d"):
            run("DimooSaveText", text=f"{text}{number}", **given)
    texts = {path.stem: path.read_text() for path in (places / "output" / "set").glob("*.txt")}
    assert len(texts) == 7 and texts["a_64x48_00001_"] == "x\n"
    assert texts["a_64x48_00003_"] == "b1\n" and texts["a_64x48_00004_"] == "c1\n"


@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        ("caption \ud83d", r"The file name has '\\ud83d', which no file name can have: type it again\.$"),
        ("captions \ud83d/a", r"The file name has '\\ud83d', which no file name can have: type it again\.$"),
        ("a\0b", r"The file name has '\\x00', which no file name can have: type it again\.$"),
        ("picture.png/a", r"output/picture\.png/a cannot be written \(Not a directory\): name another place"),
        ("a" * 300, r"cannot be written \(File name too long\): name another place"),
    ],
)
def test_a_prefix_that_no_file_can_have_is_one_sentence(places: Path, prefix: str, said: str) -> None:
    (places / "output" / "picture.png").touch()
    with pytest.raises(ValueError, match=said):
        run("DimooSaveText", text="x", filename_prefix=prefix)
    assert not list(places.rglob("*.txt"))


def test_nothing_is_saved_outside_the_output_folder(places: Path) -> None:
    with pytest.raises(Exception, match=r"output folder|outside"):
        run("DimooSaveText", text="x", filename_prefix="../../x")
    assert not list(places.rglob("*.txt"))
