"""Training in several processes: the same numbers as in one, states that any number of processes reads, stops."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dimoo_core.checkpoint.convert import convert
from dimoo_core.checkpoint.find import Found, find
from dimoo_core.checkpoint.load import load_transformer
from dimoo_core.training import processes, sharded
from dimoo_core.training.processes import LATEST, joined, own_device
from dimoo_core.training.sharded import sharded_transformer

from ..tiny import write_checkpoint
from .ranks import CPU, in_shards, lora, single

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return find(write_checkpoint(tmp_path_factory.mktemp("place") / "model"))


@pytest.fixture
def group() -> Iterator[None]:
    """This process as a group of one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with joined(CPU):
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def one(found: Found) -> dict[str, Any]:
    """What one process sees; two of the runs stop half way, and go on in two processes."""
    place = found.folder.parent
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seen: dict[str, Any] = {"single": single(found, place / "whole single", 6)}
    single(found, place / "from single", 3)
    seen["lora"] = lora(found, place / "whole lora", 3, several=False)
    with joined(CPU):
        seen["sharded"] = in_shards(found, place / "whole sharded", 6)
        in_shards(found, place / "from one", 3)
    torch.set_num_threads(threads)
    return seen


@pytest.fixture(scope="module")
def two(found: Found, one: dict[str, Any]) -> list[dict[str, Any]]:
    """What each of two processes sees."""
    place = found.folder.parent
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*torchrun, "-m", "tests.training.ranks", str(place)], cwd=ROOT, env=environment)
    assert done.returncode == 0
    return [json.loads((place / f"seen-{rank}.json").read_text()) for rank in (0, 1)]


def alike(first: Any, second: Any, tolerance: float = 1e-5) -> bool:
    return torch.allclose(torch.tensor(first).double(), torch.tensor(second).double(), rtol=tolerance, atol=0)


# ------------------------------------------------------------------------------------------------- the same numbers


def test_two_processes_see_the_losses_of_one(one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    losses = [[loss for loss, _ in seen] for seen in (one["single"], one["sharded"], two[0]["straight"])]
    assert alike(losses[0], losses[1]) and alike(losses[0], losses[2])
    norms = [[norm for _, norm in seen] for seen in (one["single"], one["sharded"], two[0]["straight"])]
    assert alike(norms[0], norms[1], 1e-4) and alike(norms[0], norms[2], 1e-4)
    assert two[0]["straight"] == two[1]["straight"], "each process knows the numbers of all"
    assert two[0]["sum, most"] == two[1]["sum, most"] == [pytest.approx(1.2), 3]


def test_each_process_holds_half_of_each_weight(found: Found, two: list[dict[str, Any]]) -> None:
    rows = [weight.shape[0] for weight in load_transformer(found).parameters()]
    assert [sum(both) for both in zip(two[0]["rows held"], two[1]["rows held"], strict=True)] == rows
    assert max(two[0]["rows held"]) <= -(-max(rows) // 2)


@pytest.mark.parametrize("way", ["copies", "offloaded", "recomputed"])
def test_how_the_weights_are_kept_changes_no_number(two: list[dict[str, Any]], way: str) -> None:
    assert alike(two[0][way], two[0]["straight"][:3], 1e-4)


def test_passes_in_bf16_are_near_those_in_fp32(two: list[dict[str, Any]]) -> None:
    (loss, norm), (exact_loss, exact_norm) = two[0]["mixed"][0], two[0]["straight"][0]
    assert loss != exact_loss and loss == pytest.approx(exact_loss, rel=0.02)
    assert norm == pytest.approx(exact_norm, rel=0.1)


def test_two_processes_teach_a_lora_as_one_does(one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    assert alike(one["lora"], two[0]["lora"]) and two[0]["lora"] == two[1]["lora"]
    assert one["lora"][0][0] != one["lora"][1][0]


# ----------------------------------------------------------------------------------------------------------- states


def test_a_run_that_goes_on_in_as_many_processes_is_the_same_bit_for_bit(two: list[dict[str, Any]]) -> None:
    for seen in two:
        assert seen["first"] + seen["resumed"] == seen["straight"]


@pytest.mark.parametrize("way", ["from one", "from single"])
def test_a_run_of_one_process_goes_on_in_two(one: dict[str, Any], two: list[dict[str, Any]], way: str) -> None:
    assert alike(two[0][way], one["single"][3:], 1e-4) and len(two[0][way]) == 3


def test_a_run_of_two_processes_goes_on_in_one(
    found: Found, one: dict[str, Any], two: list[dict[str, Any]], group: None, tmp_path: Path
) -> None:
    run = shutil.copytree(found.folder.parent / "straight", tmp_path / "run")
    (run / LATEST).write_text("step-000003")
    assert alike(in_shards(found, run, 6), one["single"][3:], 1e-4)


def test_the_last_two_states_are_kept_in_safetensors(found: Found, two: list[dict[str, Any]]) -> None:
    folder = found.folder.parent / "broken"
    assert sorted(path.name for path in folder.iterdir()) == [LATEST, "step-000003", "step-000006"]
    shards = sorted((folder / "step-000006").iterdir())
    assert len(shards) == 2, "each process writes its own"
    half = load_file(shards[0])
    assert any(name.startswith("model/") for name in half) and any(name.endswith("/exp_avg_sq") for name in half)
    assert not (found.folder.parent / "from single" / "training.safetensors").exists(), "no two states beside another"


def test_a_stop_of_one_process_stops_all_after_the_same_step(found: Found, two: list[dict[str, Any]]) -> None:
    folder = found.folder.parent / "stopped"
    assert two[0]["stopped"] == two[1]["stopped"]
    assert two[0]["stopped"] == f"step 2 of 6 is kept in {folder}, the same command continues there"
    assert (folder / LATEST).read_text() == "step-000002"


def test_a_process_that_fails_by_itself_knows_it(two: list[dict[str, Any]]) -> None:
    assert two[1]["alone"] is False and two[0]["alone"] is False


def test_a_process_that_others_have_left_says_so(group: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: object, **__: object) -> None:
        raise RuntimeError("Connection closed by peer")

    engine = processes.Processes(CPU)
    for name, ask in (("all_reduce", lambda: engine.sum(1.0)), ("barrier", engine.wait)):
        with monkeypatch.context() as patch, pytest.raises(ValueError, match=r"^Another process .* see its message\.$"):
            patch.setattr(processes.dist, name, closed)
            ask()


@pytest.mark.parametrize("moment", ["while writing", "before it is put in place"])
def test_a_state_that_is_not_whole_is_never_read(
    found: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: None, moment: str
) -> None:
    whole = in_shards(found, tmp_path / "whole", 6)
    in_shards(found, tmp_path / "run", 3)

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        where = "write_data" if moment == "while writing" else "finish"
        patch.setattr(sharded._Writer, where, full)
        with pytest.raises(ValueError, match=r"could not be written \(no space left\); make room"):
            in_shards(found, tmp_path / "run", 4)
    assert (tmp_path / "run" / LATEST).read_text() == "step-000003"
    assert in_shards(found, tmp_path / "run", 6) == whole[3:]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [LATEST, "step-000003", "step-000006"]


def test_what_is_no_run_of_this_network_is_refused(found: Found, tmp_path: Path, group: None) -> None:
    in_shards(found, tmp_path / "run", 1)
    wide = dict(found.config_json) | {"mlp_hidden_size": 64}
    other = find(write_checkpoint(tmp_path / "wide", transformer=wide))
    with pytest.raises(ValueError, match="is a run of another network; name another folder"):
        in_shards(other, tmp_path / "run", 2)
    (file,) = (tmp_path / "run" / "step-000001").iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"step-000001 is damaged .* write the name of the other state into"):
        in_shards(found, tmp_path / "run", 2)
    (tmp_path / "run" / LATEST).write_text("../elsewhere")
    with pytest.raises(ValueError, match="latest does not name a state beside it"):
        in_shards(found, tmp_path / "run", 2)


# ------------------------------------------------------------------------------------------------------- the result


def test_two_processes_leave_a_checkpoint_as_published(found: Found, two: list[dict[str, Any]], tmp_path: Path) -> None:
    tuned = find(found.folder.parent / "tuned")
    assert tuned.config == found.config and tuned.table == found.table
    assert {entry.dtype for entry in tuned.weights.values()} == {"BF16"}
    before, after = (load_transformer(one, dtype=torch.float32).state_dict() for one in (found, tuned))
    assert all(not torch.equal(before[name], after[name]) for name in before if "norm" not in name)
    assert convert(tuned, tmp_path / "one.safetensors", "int8") > 0
    state = found.folder.parent / "straight" / "step-000006"
    halves = [load_file(path) for path in sorted(state.iterdir())]
    name = "model.transformer.blocks.1.ff_out.weight"
    learnt = torch.cat([half[f"model/{name}"] for half in halves])
    assert torch.equal(after[name], learnt.bfloat16().float())


# -------------------------------------------------------------------------------------------------------- mistakes


def test_shards_that_do_not_divide_the_processes_are_refused(found: Found, group: None) -> None:
    with pytest.raises(ValueError, match="shard is 3, which does not divide 1 processes"):
        sharded_transformer(found, CPU, shards=3)


def test_quantised_weights_are_taken_as_numbers(found: Found, group: None, tmp_path: Path) -> None:
    convert(found, tmp_path / "one.safetensors", "int8")
    small = find(tmp_path / "one.safetensors")
    whole = load_transformer(small, dtype=torch.float32, dequantised=True).state_dict()
    for name, weight in sharded_transformer(small, CPU).named_parameters():
        assert torch.equal(weight.full_tensor(), whole[name])


def test_several_processes_do_not_share_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(processes, "device", torch.device)
    assert own_device("cpu") == CPU and own_device("cuda") == torch.device("cuda:1")
    with pytest.raises(ValueError, match="cuda:0 is one card for several processes"):
        own_device("cuda:0")
