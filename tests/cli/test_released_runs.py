"""Work that version 0.1.0 began is continued: `list-0.1.0` was made by its own code, see its README."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from dimoo_core.checkpoint.find import NANO
from dimoo_core.cli.main import main
from dimoo_core.provenance import KEY
from dimoo_core.training.engine import Single
from dimoo_core.training.pretokenise import read_codes

RELEASED = Path(__file__).parents[1] / "released" / "list-0.1.0"
LIST = "list prompts.txt -o pictures --checkpoint model --device cpu --ml-cache balanced --negative blue"
# What 0.1.0 wrote into a picture, command by command: keys may be added to these and never taken away.
SHARED = {
    *("version", "torch", "checkpoint", "command", "prompt", "negative", "seed", "steps", "cfg", "temperature"),
    *("ml_cache", "guidance_start", "device", "dtype", "vq_strips"),
}
KEYS = {
    "generate x": {"size"},
    "edit in/a.png x": {"image", "type", "reference", "side", "image_cfg"},
    "inpaint in/a.png x --mask-width 0.5": {"image", "mask", "mask_width", "mask_height", "outpaint", "grow"},
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(RELEASED, tmp_path / "run0")
    monkeypatch.chdir(tmp_path / "run0")
    return tmp_path / "run0"


def metadata(path: str) -> dict:
    with Image.open(path) as image:
        return json.loads(image.info[KEY])


def test_a_released_list_is_continued(here: Path) -> None:
    assert metadata("pictures/00001.png")["version"] == "0.1.0"
    before = {path.name: path.read_bytes() for path in Path("pictures").glob("*.png")}
    assert len(before) == 3
    for line in (LIST, f"{LIST} --vq-tiles", f"{LIST} --dtype fp32"):
        assert main(line.split()) == 0
        assert {path.name: path.read_bytes() for path in Path("pictures").glob("*.png")} == before
    Path("pictures/00002.png").unlink()
    with Path("prompts.txt").open("a") as file:
        file.write("a yellow star\n")
    assert main(LIST.split()) == 0
    after = {path.name: path.read_bytes() for path in Path("pictures").glob("*.png")}
    assert after.keys() == {"00001.png", "00002.png", "00003.png", "00004.png"}
    assert all(after[name] == before[name] for name in ("00001.png", "00003.png"))
    old, new = metadata(str(RELEASED / "pictures" / "00002.png")), metadata("pictures/00002.png")
    changed = {name for name, value in old.items() if new.get(name) != value}
    assert changed <= {"version", "torch"} and new["polish"] == 0 and new["order"] == "confidence"


def test_a_released_list_with_other_settings_is_not_replaced(here: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([*LIST.split(), "--steps", "3"]) == 2
    assert "3 of 3 pictures in pictures were made with other settings" in capsys.readouterr().err


def test_released_codes_are_read(here: Path) -> None:
    codes, captions = read_codes("codes.safetensors")
    assert captions == {"a.png": "a a", "b.png": "a b"} and codes["a.png"].shape == (4, 4)
    line = "train encode in --checkpoint model --output again.safetensors --side 64"
    assert main(line.split()) == 0
    again, _ = read_codes("again.safetensors")
    assert all(torch.equal(codes[name], again[name]) for name in codes)


def test_a_released_tune_is_continued(here: Path, capsys: pytest.CaptureFixture) -> None:
    line = "train tune codes.safetensors --checkpoint model --run run --output tuned --steps 4 --device cpu"
    assert main(line.split()) == 0
    said = capsys.readouterr().out
    assert "step 3/4" in said and "step 1/4" not in said
    with safe_open("run/training.safetensors", "pt") as file:
        assert file.metadata()["step"] == "4"
    assert main(["generate", "x", "--checkpoint", "tuned", "--device", "cpu", "-o", "a.png"]) == 0


def test_a_released_run_of_nano_is_kept_and_refused(here: Path, capsys: pytest.CaptureFixture) -> None:
    """Its folder as 0.1.0 lays it out: `vqvae`, `codes.safetensors`, `transformer/training.safetensors`. The world has
    more words since, so its weights cannot be trained further."""
    shutil.copytree(NANO / "vqvae", "nano/vqvae")
    Path("nano/codes.safetensors").write_bytes(b"never opened")
    released = {"model.transformer.wte.text.weight": torch.nn.Parameter(torch.zeros(93, 160))}
    Single(torch.device("cpu")).save(Path("nano/transformer"), 100, released, [])
    before = Path("nano/transformer/training.safetensors").read_bytes()
    assert main(["train", "nano", "--run", "nano", "--output", "out"]) == 2
    said = capsys.readouterr().err
    assert "training.safetensors is a run of another network; name another folder" in said
    assert Path("nano/transformer/training.safetensors").read_bytes() == before


@pytest.mark.parametrize("line", KEYS)
def test_metadata_keys_only_grow(here: Path, line: str) -> None:
    assert main([*line.split(), "--checkpoint", "model", "--device", "cpu", "-o", "a.png"]) == 0
    assert metadata("a.png").keys() >= SHARED | KEYS[line]
