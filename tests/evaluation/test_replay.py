"""Parity: every recorded number of the released code comes out again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dimoo_core.evaluation.replay import Replay, main

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = dict(Replay(GOLDEN).cases())


@pytest.mark.parametrize("name", CASES)
def test_equal(name: str) -> None:
    assert CASES[name]() == ""


def test_every_recorded_tensor_belongs_to_a_case() -> None:
    recorded = {key.rsplit(".", 1)[0] for key in load_file(GOLDEN / "golden.safetensors") if "paint." not in key}
    assert recorded <= set(CASES)
    kinds = {name.split(".")[0] for name in CASES}
    assert kinds >= {"forward", "t2i", "i2i", "mmu", "vq", "paint", "crops", "prompts", "noise", "released_ids"}


def test_a_difference_is_told_counted_and_ends_in_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(GOLDEN, tmp_path / "golden"))
    tensors = load_file(folder / "golden.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if name.startswith(("t2i.onestep", "forward.short"))}
    kept["t2i.onestep.codes"][0, 0] += 1
    kept["forward.short.logits"] += 1
    save_file(kept, folder / "golden.safetensors")
    record = json.loads((folder / "golden.json").read_text())
    cases = {"t2i.onestep": record["cases"]["t2i.onestep"], "t2v.new": {}}
    (folder / "golden.json").write_text(json.dumps({"vocab": record["vocab"], "cases": cases}))
    (folder / "noise.safetensors").unlink()
    assert main([str(folder)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "0 of 3 cases equal"
    assert [line.split()[:2] for line in lines[:-1]] == [
        ["differs", "forward.short:"],
        ["differs", "t2i.onestep:"],
        ["differs", "t2v.new:"],
    ]


def test_a_folder_without_records_is_told_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert "cannot be replayed" in capsys.readouterr().err


def test_replaying_leaves_no_autograd_state() -> None:
    name = "t2i.mlcache"
    assert CASES[name]() == "" and not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
