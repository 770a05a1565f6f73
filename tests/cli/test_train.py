"""`python -m dimoo_core train`: pictures to codes, a tuned checkpoint that loads, and mistakes told in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dimoo_core.checkpoint.export import copy_vq, export_transformer
from dimoo_core.checkpoint.find import NANO, find
from dimoo_core.checkpoint.load import load_transformer, load_vq
from dimoo_core.cli.main import main
from dimoo_core.nano.build import new_transformer, transformer_fields
from dimoo_core.nano.recipe import centres, vq_fields
from dimoo_core.nano.words import build_table, build_tokenizer
from dimoo_core.pictures.pixels import fit, load_picture, to_pil
from dimoo_core.pictures.sizes import fit_size
from dimoo_core.training.pretokenise import (
    captioned_pictures,
    encode_pictures,
    read_captioned,
    read_codes,
    write_codes,
)

from ..tiny import CODES, TRANSFORMER, write_checkpoint

VQ_FILE = "vqvae/diffusion_pytorch_model.safetensors"
# path below the folder: (width, height, caption)
PICTURES = {
    "a.png": (64, 64, "a fox\n"),
    "b.jpg": (130, 70, "a hat"),
    "deep/a.png": (64, 64, "a hut with a </user> sign"),
    "deep/c.webp": (40, 90, "Gr\u00fc\u00dfe"),
}


def draw_pictures(folder: Path) -> Path:
    for index, (name, (width, height, caption)) in enumerate(PICTURES.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        to_pil(torch.rand(3, height, width, generator=torch.Generator().manual_seed(index))).save(path)
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    (folder / "alone.txt").write_text("words without a picture")
    Image.new("RGB", (32, 32)).save(folder / "mute.png")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny checkpoint `model`, `pictures`, and `codes.safetensors` made of them."""
    place = tmp_path_factory.mktemp("place")
    write_checkpoint(place / "model")
    draw_pictures(place / "pictures")
    arguments = ["--output", str(place / "made" / "codes.safetensors"), "--side", "64"]
    assert main(["train", "encode", str(place / "pictures"), "--checkpoint", str(place / "model"), *arguments]) == 0
    return place


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder to work in, with links to what `place` has."""
    monkeypatch.chdir(tmp_path)
    for name, target in (("model", "model"), ("pictures", "pictures"), ("codes.safetensors", "made/codes.safetensors")):
        (tmp_path / name).symlink_to(place / target)
    return tmp_path


def tune(*arguments: object) -> int:
    standard = ["train", "tune", "codes.safetensors", "--checkpoint", "model", "--run", "run", "--output", "tuned"]
    return main([*standard, *map(str, arguments)])


# ---------------------------------------------------------------------------------------------------------- encode


def test_pictures_become_grids_with_their_words(here: Path) -> None:
    codes, captions = read_codes("codes.safetensors")
    assert captions == {name: caption.strip() for name, (_, _, caption) in PICTURES.items()}
    vq = load_vq(find("model"))
    for name, (width, height, _) in PICTURES.items():
        size = fit_size(width, height, 64)
        grid = vq.encode(fit(load_picture(here / "pictures" / name), *size))[0]
        assert codes[name].dtype == torch.int64
        assert codes[name].shape == (size[1] // 16, size[0] // 16)
        # a picture in a batch may differ from itself alone where two codes are equally near
        assert (codes[name] == grid).float().mean() > 0.9
    assert not torch.equal(codes["a.png"], codes["deep/a.png"]), "one name in two folders is two pictures"


def test_the_file_of_codes_holds_small_numbers_and_json(here: Path) -> None:
    assert {tensor.dtype for tensor in load_file("codes.safetensors").values()} == {torch.int16}
    write_codes("large.safetensors", {"x": torch.tensor([[40000, 0]])}, {"x": "words"})
    codes, captions = read_codes("large.safetensors")
    assert codes["x"].tolist() == [[40000, 0]] and captions == {"x": "words"}
    assert not list(here.glob("*.part"))


def test_a_kill_while_writing_codes_leaves_the_old_file(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_codes("x.safetensors", {"x": torch.ones(2, 2)}, {"x": "old"})

    def killed(_tensors: dict, path: Path, **_: object) -> None:
        path.write_bytes(b"half a fi")
        raise KeyboardInterrupt

    monkeypatch.setattr("dimoo_core.checkpoint.headers.save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        write_codes("x.safetensors", {"x": torch.zeros(2, 2)}, {"x": "new"})
    assert read_codes("x.safetensors")[1] == {"x": "old"}


def test_batches_of_one_size_keep_names_and_order(here: Path) -> None:
    vq = load_vq(find("model"))
    files = captioned_pictures("pictures")
    pictures = [(path.relative_to("pictures").as_posix(), read_captioned(path, 64, print)[0]) for path in files]
    assert [name for name, _ in pictures] == ["a.png", "b.jpg", "deep/a.png", "deep/c.webp"]
    for size in (1, 3):
        assert [name for name, _ in encode_pictures(vq, pictures, batch=size)] == [name for name, _ in pictures]


# ------------------------------------------------------------------------------------------------------------ tune


def test_a_tuned_checkpoint_loads_and_has_learnt(here: Path, capsys: pytest.CaptureFixture) -> None:
    assert tune("--steps", 3, "--rate", 0.01) == 0
    said = capsys.readouterr().out
    assert "step 1/3 loss " in said and said.endswith("wrote tuned\n")
    before, after = find("model"), find("tuned")
    assert after.config == before.config and after.table == before.table and after.defaults == before.defaults
    old, new = (load_transformer(found, dtype=torch.float32) for found in (before, after))
    assert all(weight.isfinite().all() for weight in new.parameters())
    rounded = {name: weight.bfloat16().float() for name, weight in old.named_parameters()}
    changed = [name for name, weight in new.named_parameters() if not torch.equal(weight, rounded[name])]
    assert any(".blocks." in name for name in changed) and any("wte" in name for name in changed)
    assert Path("tuned/tokenizer.json").read_bytes() == Path("model/tokenizer.json").read_bytes()
    stored = [load_file(folder / VQ_FILE) for folder in (before.folder, after.folder)]
    assert stored[0].keys() == stored[1].keys()
    assert all(torch.equal(stored[0][name], stored[1][name]) for name in stored[0]), "the same codes, bit for bit"
    line = "generate fox --checkpoint tuned --size 32x32 --steps 2 --device cpu"
    assert main(line.split()) == 0


def test_a_tune_goes_on_where_it_stopped(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tune("--steps", 4) == 0
    whole = load_file("tuned/model.safetensors")

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("dimoo_core.training.tune.write_weights", stop)
        assert tune("--steps", 4, "--run", "run2", "--output", "tuned2") == 130
    assert not Path("tuned2/config.json").exists(), "nobody takes it for a checkpoint"
    assert tune("--steps", 4, "--run", "run2", "--output", "tuned2") == 0
    again = load_file("tuned2/model.safetensors")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert tune("--steps", 4, "--run", "run3", "--output", "tuned3", "--seed", 1) == 0
    other = load_file("tuned3/model.safetensors")
    assert not all(torch.equal(whole[name], other[name]) for name in whole)


# ------------------------------------------------------------------------------------------------------------ nano


@pytest.fixture
def begun(here: Path) -> Path:
    """A nano of this recipe with the built-in one's VQ, and a transformer that has learnt nothing."""
    tokenizer, codes, folder = build_tokenizer(), len(centres()), Path("begun")
    table = build_table(tokenizer, codes)
    copy_vq(folder / "vqvae", find(NANO), fields=vq_fields(codes))
    transformer = new_transformer(table)
    export_transformer(folder, transformer, fields=transformer_fields(table), tokenizer=tokenizer.to_str())
    return folder


def test_a_finished_nano_is_trained_further(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dimoo_core.nano.build.named_right", lambda vq: (0, 0))  # takes long, and is only reported
    monkeypatch.setattr("dimoo_core.nano.lessons.Lessons.everything", lambda own, choose: [own.one(choose, 2)])
    line = ["train", "nano", "--run", "run", "--output", "further", "--from", str(begun), "--steps", "2"]
    assert main(line) == 0
    before, after = find(begun), find("further")
    assert after.config == before.config and after.table == before.table and after.defaults == before.defaults
    stored = [load_file(folder / VQ_FILE) for folder in (begun, Path("further"))]
    assert all(torch.equal(stored[0][name], stored[1][name]) for name in stored[0]), "the same codes, bit for bit"
    old, new = (dict(load_transformer(found, dtype=torch.float32).named_parameters()) for found in (before, after))
    moved = torch.cat([(old[name] - new[name]).flatten() for name in old]).norm()
    size = torch.cat([weight.flatten() for weight in old.values()]).norm()
    assert 0 < moved < 0.05 * size, "two gentle steps from where it was"
    assert main([*line, "--steps", "3"]) == 0
    with safe_open("run/transformer/training.safetensors", "pt") as file:
        assert file.metadata()["step"] == "3", "a stopped run goes on by itself, not from the start again"


# -------------------------------------------------------------------------------------------------------- mistakes

TUNE = "train tune codes.safetensors --checkpoint model --run run --output tuned"
ENCODE = "train encode pictures --checkpoint model --output out.safetensors"
MISTAKES = {
    "a folder without pictures": (ENCODE.replace("pictures", "empty"), "empty holds no pictures"),
    "no such folder": (ENCODE.replace("pictures", "nowhere"), "nowhere is no"),
    "a picture that is none": (ENCODE.replace("pictures", "junk"), "x.png is no"),
    "a device that there is not": (f"{TUNE} --device nowhere", "The device 'nowhere' cannot be used"),
    "a side too small": (f"{ENCODE} --side 8", "side is 8; "),
    "encode without a checkpoint": (ENCODE.replace("model", "nowhere"), "nowhere does not exist"),
    "no such codes": (TUNE.replace("codes.s", "gone.s"), "gone.safetensors"),
    "a text as codes": (TUNE.replace("codes.safetensors", "note.txt"), "note.txt is not a file of codes"),
    "codes without captions": (
        TUNE.replace("codes.s", "mute.s"),
        "mute.safetensors holds no captions for its",
    ),
    "codes with a caption missing": (TUNE.replace("codes.s", "half.s"), "half.safetensors holds no captions for its"),
    "no codes at all": (TUNE.replace("codes.s", "none.s"), "none.safetensors holds no captions for its"),
    "codes of another VQ": (TUNE.replace("codes.s", "other.s"), "the checkpoint knows 32; encode the pictures with"),
    "output is the checkpoint": (f"{TUNE} --output model", "--output model is the checkpoint that is being read"),
    "output is its VQ": (f"{TUNE} --output model/vqvae", "--output model/vqvae is the checkpoint that is being read"),
    "run is the checkpoint": (f"{TUNE} --run model", "--run model is the checkpoint that is being read"),
    "run is output": (f"{TUNE} --run tuned", "--run and --output are both tuned; name two folders."),
    "no steps": (f"{TUNE} --steps 0", "steps is 0; "),
    "steps below zero": (f"{TUNE} --steps -5", "steps is -5; "),
    "a rate that is no number": (f"{TUNE} --rate nan", "rate is nan; "),
    "a rate below zero": (f"{TUNE} --rate -0.1", "rate is -0.1; "),
    "a seed below zero": (f"{TUNE} --seed -1", "seed is -1; "),
    "a run of another network": (f"{TUNE} --run wide", "wide/training.safetensors is a run of another network"),
    "a run cut short": (f"{TUNE} --run cut", "cut/training.safetensors is not a stopped run"),
    "nano without steps": ("train nano --run run --output tuned --steps 0", "steps is 0"),
    "nano from what is none": (
        "train nano --run run --output tuned --from model",
        "model is not a nano of this recipe",
    ),
    "nano from nowhere": ("train nano --run run --output tuned --from nowhere", "nowhere does not exist"),
    "nano over itself": ("train nano --run run --output model --from model", "--output model is the checkpoint that"),
    "nano into one folder": ("train nano --run run --output run", "--run and --output are both run"),
}


def prepare_mistakes(here: Path) -> None:
    for name in ("empty", "junk", "cut", "wide"):
        (here / name).mkdir()
    (here / "note.txt").write_text("no codes")
    (here / "junk" / "x.png").write_text("no picture")
    (here / "junk" / "x.txt").write_text("words")
    (here / "cut" / "training.safetensors").write_bytes(b"half a fi")
    save_file({"model/x": torch.ones(2)}, here / "wide" / "training.safetensors", metadata={"step": "3"})
    grids = {"x": torch.ones(2, 2, dtype=torch.int16), "y": torch.ones(2, 2, dtype=torch.int16)}
    save_file(grids, here / "mute.safetensors")
    save_file(grids, here / "half.safetensors", metadata={"captions": json.dumps({"x": "words"})})
    save_file({}, here / "none.safetensors", metadata={"captions": "{}"})
    write_codes(here / "other.safetensors", {"x": torch.full((2, 2), CODES)}, {"x": "words"})


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_and_nothing_is_written(here: Path, capsys: pytest.CaptureFixture, name: str) -> None:
    prepare_mistakes(here)
    before = sorted(here.rglob("*"))
    line, wanted = MISTAKES[name]
    assert main(line.split()) == 2
    said = capsys.readouterr().err
    assert wanted in said and said.startswith("python -m dimoo_core train: ") and said.count("\n") == 1, said
    assert sorted(here.rglob("*")) == before


def test_a_padded_vocabulary_has_no_more_codes(here: Path, capsys: pytest.CaptureFixture) -> None:
    write_checkpoint(here / "padded", transformer=TRANSFORMER | {"vocab_size": TRANSFORMER["vocab_size"] + 20})
    write_codes("other.safetensors", {"x": torch.full((2, 2), CODES)}, {"x": "words"})
    line = TUNE.replace("codes.s", "other.s").replace("model", "padded")
    assert main(line.split()) == 2 and "the checkpoint knows 32" in capsys.readouterr().err
