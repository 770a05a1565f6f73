"""DiMOO LoRA: files found and refused, what every job sees of them, and their place in memory."""

from __future__ import annotations

import hashlib
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dimoo_core.nano.judge import judge
from dimoo_core.training.live_bytes import LiveBytes

from .. import nodepack
from ..lora_files import random_lora, word_lora, write_lora
from ..tiny import TRANSFORMER, write_checkpoint
from .test_memory import holds, network

NODES = nodepack.nodes()
adapters, canvases, convert, core_jobs, finding, guidance, host, memory, provenance, sampling, text, tokens = (
    nodepack.part(name)
    for name in (
        "dimoo_core.model.adapters",
        "dimoo_core.sequence.canvas",
        "dimoo_core.checkpoint.convert",
        "dimoo_core.jobs",
        "dimoo_core.checkpoint.find",
        "dimoo_core.sampling.guidance",
        "nodes.host",
        "dimoo_core.memory",
        "nodes.provenance",
        "dimoo_core.sampling.image",
        "dimoo_core.sampling.text",
        "dimoo_core.sequence.token_table",
    )
)
KINDS = ("bf16", "fp8", "int8")
RED, BLUE = (f"a large {colour} circle on the left on a white background" for colour in ("red", "blue"))
GB = 10**9


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of checkpoints with weights of every kind, beside a folder of LoRAs for them."""
    place = tmp_path_factory.mktemp("place")
    folder = write_checkpoint(place / "hub", transformer=TRANSFORMER | {"mlp_hidden_size": 52})
    for kind in KINDS:
        convert.convert(finding.find(folder), place / "dimoo" / f"tiny-{kind}.safetensors", kind)
    loras = place / "loras"
    write_lora(loras / "one.safetensors", random_lora(finding.find(folder)))
    write_lora(loras / "styles" / "two.safetensors", random_lora(finding.find(folder), seed=1))
    write_lora(loras / "red is blue.safetensors", word_lora("red", "blue"))
    write_lora(loras / "a circle is a star.safetensors", word_lora("circle", "star"))
    return place


@pytest.fixture(autouse=True)
def only_these_files(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.ldm.modules.attention as attention
    import folder_paths

    nodepack.put_checkpoint(place / "dimoo", monkeypatch)
    entry = ([str(place / "loras")], folder_paths.folder_names_and_paths["loras"][1])
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", entry)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    monkeypatch.setattr(attention, "optimized_attention", attention.attention_pytorch)  # others ask a GPU for its size


def run(name: str, **inputs: Any) -> Any:
    return nodepack.run(NODES[name], **inputs)


def load(kind: str = "bf16", **settings: Any) -> SimpleNamespace:
    model, vq = run("DimooLoader", checkpoint=f"tiny-{kind}.safetensors", **settings).args
    return SimpleNamespace(model=model, vq=vq)


def with_lora(model: Any, lora: str = "one.safetensors", **inputs: Any) -> Any:
    return run("DimooLora", model=model, lora=lora, **inputs)[0]


def drawn(model: Any, **settings: Any) -> torch.Tensor:
    """The codes of a picture by the tiny model."""
    prompt, canvas = run("DimooTextEncode", text="a fox")[0], run("DimooEmptyCanvas", width=64, height=48)[0]
    ask = {"seed": 5, "steps": 4, "cfg": 1.0} | settings
    return run("DimooSampler", model=model, prompt=prompt, canvas=canvas, **ask)[0].codes


def scene(model: Any, vq: Any, text: str) -> Any:
    """What nano's picture of a text shows."""
    prompt, canvas = run("DimooTextEncode", text=text)[0], run("DimooEmptyCanvas", width=128, height=128)[0]
    ask = {"seed": 1, "steps": 16, "cfg": 0.0, "temperature": 0.6}
    filled = run("DimooSampler", model=model, prompt=prompt, canvas=canvas, **ask)[0]
    return judge(run("DimooVQDecode", vq=vq, canvas=filled)[0][0].movedim(-1, 0)).scene


# Files --------------------------------------------------------------------------------------------------------------


def test_safetensors_files_are_listed_with_slashes_and_nothing_else_is(place: Path) -> None:
    for name in ("styles/._two.safetensors", "old.pt", "notes.txt"):
        (place / "loras" / name).write_bytes(b"x")
    shown = NODES["DimooLora"].define_schema().inputs[1].options
    ours = ["a circle is a star.safetensors", "one.safetensors", "red is blue.safetensors", "styles/two.safetensors"]
    assert shown == ["none", *ours]


@pytest.mark.parametrize("name", ["styles/two.safetensors", "styles\\two.safetensors"])
def test_a_name_saved_on_windows_is_the_same_file(name: str) -> None:
    base, node = load().model, NODES["DimooLora"]
    assert node.validate_inputs(lora=name) is True
    assert node.fingerprint_inputs(lora=name, strength=1.0) == node.fingerprint_inputs(lora="styles/two.safetensors")
    assert torch.equal(drawn(with_lora(base, name)), drawn(with_lora(base, "styles/two.safetensors")))


def test_a_file_that_is_gone_is_named_before_the_prompt_runs_and_when_it_does() -> None:
    said = NODES["DimooLora"].validate_inputs(lora="gone.safetensors")
    assert "no LoRA 'gone.safetensors' in models/loras" in said
    for name in ("gone.safetensors", "../dimoo/tiny-bf16.safetensors", "old.pt", ["one.safetensors"]):
        with pytest.raises(ValueError, match=r"There is no LoRA .* choose one of the list"):
            with_lora(load().model, name)
    assert NODES["DimooLora"].validate_inputs(lora=None) is True, "it comes from another node"


def test_no_lora_at_all_is_no_silent_nothing() -> None:
    with pytest.raises(ValueError, match=r"^No LoRA is chosen; choose a file of the list, or connect lora_model\.$"):
        with_lora(load().model, "none")


def test_folders_that_cannot_be_read_hide_the_files_and_not_the_node(monkeypatch) -> None:
    import folder_paths

    def away(_: str) -> list[str]:
        raise OSError("Stale file handle")

    monkeypatch.setattr(folder_paths, "get_filename_list", away)
    assert NODES["DimooLora"].define_schema().inputs[1].options == ["none"]


def test_a_replaced_file_is_noticed(place: Path) -> None:
    ask, path = NODES["DimooLora"].fingerprint_inputs, place / "loras" / "mine.safetensors"
    shutil.copy(place / "loras" / "one.safetensors", path)
    before = ask(lora=path.name, strength=1.0)
    assert ask(lora=path.name, strength=1.0) == before
    shutil.copy(place / "loras" / "red is blue.safetensors", path)
    assert ask(lora=path.name, strength=1.0) != before
    path.unlink()


def test_a_lora_of_another_model_is_refused_with_the_layer_that_does_not_fit(place: Path, tmp_path: Path) -> None:
    wider = write_checkpoint(tmp_path / "wider", transformer=TRANSFORMER | {"d_model": 64})
    write_lora(place / "loras" / "wider.safetensors", random_lora(finding.find(wider)))
    with pytest.raises(ValueError, match=r"^wider\.safetensors .*blocks\.0\.\w+") as refused:
        with_lora(load().model, "wider.safetensors")
    assert "\n" not in str(refused.value)
    (place / "loras" / "wider.safetensors").unlink()


@pytest.mark.parametrize("strength", [100.5, -101.0, float("nan"), "much"])
def test_a_strength_that_is_none_is_refused(strength: object) -> None:
    with pytest.raises(ValueError, match=r"^strength is .* from -100 to 100\.$"):
        with_lora(load().model, strength=strength)


# What is told -------------------------------------------------------------------------------------------------------


@pytest.fixture
def told(monkeypatch, caplog) -> list[str]:
    """What the nodes show; all of it must be in the log, too."""
    texts: list[str] = []

    def show(text: str, _: str | None) -> None:
        assert all(sentence in caplog.text for sentence in text.split("\n\n"))
        texts.append(text)

    caplog.set_level("INFO")
    monkeypatch.setattr(host, "_logged", set())  # what an earlier test was told stands in its log
    monkeypatch.setattr(host, "show_text", show)
    return texts


def test_keys_that_fit_nothing_are_named_on_the_node_and_the_others_act(place: Path, told: list[str]) -> None:
    state = random_lora(finding.find(place / "hub")) | {"text_encoder.q.lora_A.weight": torch.ones(2, 3)}
    write_lora(place / "loras" / "more.safetensors", state)
    base = load().model
    result = run("DimooLora", model=base, lora="more.safetensors")
    assert "text_encoder.q.lora_A.weight" in told[0] and result.ui["text"] == told[0].split("\n\n")
    assert torch.equal(drawn(result[0]), drawn(with_lora(base)))
    (place / "loras" / "more.safetensors").unlink()


def test_what_acts_is_told_and_what_cannot_act_as_well(place: Path, told: list[str]) -> None:
    base = load().model
    with_lora(base)
    assert told == ["one.safetensors: 14 layers, rank 4"]
    with_lora(base, strength=0.0)
    assert told[1] == "The strength is 0: this LoRA does nothing."
    untrained = {
        key: torch.zeros_like(part) if ".lora_B." in key else part
        for key, part in random_lora(finding.find(place / "hub")).items()
    }
    with_lora(base, "none", lora_model=untrained)
    assert "changes nothing" in told[2]
    with_lora(base, lora_model=random_lora(finding.find(place / "hub")))
    assert "The file of the list is not used" in told[3]


# What it does -------------------------------------------------------------------------------------------------------


def test_nano_draws_as_the_lora_says_and_two_of_them_act_together() -> None:
    model, vq = run("DimooLoader", checkpoint="DiMOO-nano (built in)").args
    blue = with_lora(model, "red is blue.safetensors")
    both = with_lora(blue, "a circle is a star.safetensors")
    seen = [(one.colour, one.shape) for one in (scene(each, vq, RED).figure for each in (model, blue, both))]
    assert seen == [("red", "circle"), ("blue", "circle"), ("blue", "star")]


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_loras_changes_no_token_and_taking_them_away_gives_the_base(kind: str) -> None:
    base = load(kind).model
    before = drawn(base)
    one, two = with_lora(base, strength=0.7), with_lora(base, "styles/two.safetensors", strength=-0.4)
    both = drawn(with_lora(one, "styles/two.safetensors", strength=-0.4))
    assert torch.equal(drawn(with_lora(two, strength=0.7)), both)
    assert not any(torch.equal(drawn(other), both) for other in (base, one, two)), "each of them does something"
    assert torch.equal(drawn(base), before) and torch.equal(drawn(with_lora(base, strength=0.0)), before)


@pytest.mark.parametrize("kind", KINDS)
def test_neither_the_weights_nor_the_file_are_changed(kind: str, place: Path) -> None:
    base, path = load(kind).model, place / "loras" / "one.safetensors"

    def state() -> list[str]:
        weights = base.core.transformer.state_dict().items()
        bits = [getattr(part, "_qdata", part).contiguous().view(torch.uint8) for _, part in weights if part.ndim]
        return [hashlib.sha256(one.numpy().tobytes()).hexdigest() for one in bits]

    before, file = state(), path.read_bytes()
    lora = with_lora(base, strength=2.0)
    drawn(lora)
    assert lora.core.transformer is base.core.transformer and lora.patcher is base.patcher
    assert not base.patcher.patches and state() == before and path.read_bytes() == file


def jobs(model: Any, vq: Any) -> dict[str, Any]:
    """What every node makes of a model."""
    picture = torch.linspace(0, 1, 2 * 48 * 128 * 3).view(2, 48, 128, 3)
    prompt = run("DimooTextEncode", text="a fox")[0]
    edit, blank, *_ = run("DimooImageEdit", vq=vq, image=picture[:1], text="x", side=128).args
    hole = run("DimooMaskPaint", vq=vq, image=picture[:1], mask_w_ratio=0.5, mask_h_ratio=1.0)[0]
    answer = {"question": "?", "max_tokens": 8, "steps": 4, "block_length": 8, "temperature": 1.0}
    settings = {"model": model, "seed": 5, "steps": 4, "cfg": 1.0}
    return {
        "picture": drawn(model),
        "with ML-Cache": drawn(model, ml_cache="fast", steps=8),
        "edit": run("DimooSampler", prompt=edit, canvas=blank, **settings)[0].codes,
        "inpaint": run("DimooSampler", prompt=prompt, canvas=hole, **settings)[0].codes,
        "answers": run("DimooDescribe", model=model, vq=vq, image=picture, **answer)[0],
        "best of": run("DimooBestOf", model=model, vq=vq, image=picture, prompt=prompt, judge_by="description")[2],
    }


def same(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize("kind", KINDS)
def test_every_job_sees_it_and_sees_the_same_where_the_weights_are_streamed(kind: str, monkeypatch) -> None:
    monkeypatch.setattr(nodepack.part("nodes.best"), "_DESCRIPTION", text.TextSettings(8, 4, 8))
    loaded = load(kind)
    plain, lora = jobs(loaded.model, loaded.vq), jobs(with_lora(loaded.model), loaded.vq)
    assert [job for job in plain if same(plain[job], lora[job])] == []

    def ready(networks, _scratch: int, _beside: tuple = ()) -> torch.device:
        for patcher in networks:
            patcher.unpatch_model(patcher.offload_device)
            patcher.load(patcher.load_device, lowvram_model_memory=max(int(0.3 * patcher.model_size()), 1))
        return networks[0].load_device

    monkeypatch.setattr(host, "ready", ready)
    streamed = jobs(with_lora(loaded.model), loaded.vq)
    assert [job for job in lora if not same(streamed[job], lora[job])] == []


def test_tensors_on_a_socket_do_what_their_file_does_and_stay_as_they_are(place: Path) -> None:
    base, state = load().model, random_lora(finding.find(place / "hub"))
    kept = {key: part.clone() for key, part in state.items()}
    assert torch.equal(drawn(with_lora(base, "none", lora_model=state)), drawn(with_lora(base)))
    assert torch.equal(drawn(with_lora(base, "styles/two.safetensors", lora_model=state)), drawn(with_lora(base)))
    assert all(torch.equal(state[key], part) for key, part in kept.items())
    with pytest.raises(ValueError, match="lora_model input got int"):
        with_lora(base, "none", lora_model=3)


# Memory -------------------------------------------------------------------------------------------------------------


def test_it_is_counted_and_cast_once_to_what_is_computed_in(place: Path) -> None:
    base = load().model
    lora = with_lora(base)
    numbers = sum(part.numel() for key, part in random_lora(finding.find(place / "hub")).items() if "lora_" in key)
    (patcher,) = lora.adapters
    assert patcher.model_size() == numbers * base.itemsize
    assert lora.get_ram_usage() == base.get_ram_usage() + patcher.model_size()
    assert {part.dtype for part in patcher.model.parameters()} == {base.compute}
    assert not any(part.requires_grad for part in patcher.model.parameters())


@torch.inference_mode()  # in which ComfyUI runs nodes, and which weights must not leave while they move
def placed(model: Any) -> Any:
    """Brings a model into memory for a question; what it takes there."""
    plan = core_jobs.plan_text(model.core, [torch.zeros(1, 2, 2, dtype=torch.int64)], "x", text.TextSettings())
    model.place(plan)
    held = memory.held_bytes(model.core.transformer.config, model.itemsize, model.core.formats)
    return plan.scratch_bytes(model.itemsize, memory.CHUNK_ROWS) + held


def test_it_comes_and_goes_with_the_model() -> None:
    import comfy.model_management as management

    lora = with_lora(with_lora(load().model), "styles/two.safetensors")
    before, wanted = drawn(lora), {id(lora.patcher), *map(id, lora.adapters)}

    def loaded() -> set[int]:
        return {id(entry.model) for entry in management.current_loaded_models} & wanted

    placed(lora)
    assert loaded() == wanted and len(wanted) == 3
    management.unload_all_models()
    assert loaded() == set()
    assert torch.equal(drawn(lora), before)


@pytest.fixture
def card(monkeypatch) -> Iterator[SimpleNamespace]:
    """A stand-in for a card of `room` bytes: to ComfyUI the CPU under its other name, cpu:0, is a device of its own."""
    import comfy.model_management as management

    managed, on_card = host.managed, weakref.WeakSet()

    def noted(module: torch.nn.Module, devices: tuple[torch.device, torch.device]) -> Any:
        patcher = managed(module, devices)
        if devices[0].index is not None:
            on_card.add(patcher)
        return patcher

    def free(device: torch.device | None = None, torch_free_too: bool = False) -> Any:
        left = state.room - sum(one.loaded_size() for one in on_card)
        return (left, left) if torch_free_too else left

    state = SimpleNamespace(room=8 * GB)
    management.unload_all_models()
    monkeypatch.setattr(host, "managed", noted)
    monkeypatch.setattr(management, "get_free_memory", free)
    monkeypatch.setattr(management, "minimum_inference_memory", lambda: 0)
    monkeypatch.setattr(management, "EXTRA_RESERVED_VRAM", 0)
    monkeypatch.setattr(management, "MIN_WEIGHT_MEMORY_RATIO", 0)
    monkeypatch.setattr(management, "is_device_cpu", lambda device: device.index is None)
    monkeypatch.setattr(management, "vram_state", management.VRAMState.NORMAL_VRAM)
    monkeypatch.setattr(host, "transformer_devices", lambda: (torch.device("cpu", 0), torch.device("cpu")))
    yield state
    management.unload_all_models()


def there(patcher: Any) -> float:
    """The share of a model's layers that is on the card."""
    layers = [part for part in patcher.model.modules() if list(part.parameters(recurse=False))]
    return sum(getattr(part, "comfy_patched_weights", False) for part in layers) / len(layers)


@pytest.mark.parametrize("share", [2.0, 0.6, 0.0], ids=["the model fits", "a part of it fits", "nothing of it fits"])
def test_on_a_card_it_is_there_whole_however_little_of_the_model_is(card: SimpleNamespace, share: float) -> None:
    lora = with_lora(with_lora(load().model), "styles/two.safetensors")
    wanted = drawn(lora)
    small = sum(one.model_size() for one in lora.adapters)
    card.room = placed(lora) + small + int(share * lora.patcher.model_size())
    for _ in range(3):  # the next job finds what the last one left
        placed(lora)
        assert [there(one) for one in lora.adapters] == [1, 1]
        assert (there(lora.patcher) == 1) == (share == 2.0)
        assert (there(lora.patcher) == 0) == (share == 0.0)
    assert torch.equal(drawn(lora), wanted)


def pushed_out(patcher: Any) -> None:
    """What ComfyUI does when another model needs the room."""
    patcher.partially_unload(patcher.offload_device, patcher.model_size() // 2)


def brought_in(patcher: Any) -> None:
    """What ComfyUI does where there is little room."""
    patcher.detach()
    patcher.load(patcher.load_device, lowvram_model_memory=patcher.model_size() // 2)


@pytest.mark.parametrize("move", [pushed_out, brought_in])
def test_one_that_is_on_the_card_in_part_is_brought_there_whole(card: SimpleNamespace, move) -> None:
    lora = with_lora(load().model)
    (patcher,) = lora.adapters
    placed(lora)
    with torch.inference_mode():
        move(patcher)
    assert 0 < there(patcher) < 1
    placed(lora)
    assert there(patcher) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("rank", [16, 256])
@pytest.mark.parametrize("chunk_rows", [None, memory.CHUNK_ROWS], ids=["whole", "in parts"])
def test_sampling_with_it_takes_what_was_estimated(dtype: torch.dtype, rank: int, chunk_rows: int | None) -> None:
    net, table = network(dtype, layers=2), tokens.RELEASED
    adapter = adapters.Adapter.blank(net, rank=rank, alpha=rank, device="meta").to(dtype).requires_grad_(False)
    model = core_jobs.Model(net, None, table, (512, 1024)).with_adapters([adapters.Applied(adapter)])
    prefix = torch.zeros(1, 60, dtype=torch.int64, device="meta")
    blank, settings = canvases.Canvas.empty(1, 64, 64), sampling.ImageSettings(steps=2)
    plan = core_jobs.ImagePlan(model, prefix, (guidance.Branch(prefix, 1.0),), blank, settings)
    with LiveBytes(answer=64 * 64) as measured:
        plan.run(core_jobs.Placement("meta", chunk_rows))
    assert holds(plan.scratch_bytes(dtype.itemsize, chunk_rows), measured.peak)


# Metadata -----------------------------------------------------------------------------------------------------------


def test_pictures_name_their_loras_with_fingerprint_and_strength(place: Path) -> None:
    def node(**inputs: Any) -> dict[str, Any]:
        return {"class_type": "DimooLora", "inputs": inputs}

    prompt = {
        "1": node(lora="styles\\two.safetensors", strength=0.5),
        "2": node(lora="none", strength=1.0, lora_model=["9", 0]),
        "3": node(lora="gone.safetensors", strength=1.0),
        "4": node(lora=["8", 0], strength=1.0),
        "5": {"class_type": "LoraLoader", "inputs": {"lora": "one.safetensors"}},
        "6": node(lora="one.safetensors", strength=0.0),
    }
    file = place / "loras" / "styles" / "two.safetensors"
    found = nodepack.part("dimoo_core.provenance").identified("styles\\two.safetensors", [file])
    told = provenance.metadata(prompt)
    assert told["loras"] == {"1": {**found, "strength": 0.5}, "2": {"trained_by": "9", "strength": 1.0}}
    assert "loras" not in provenance.metadata({"1": {"class_type": "DimooSampler", "inputs": {}}})
