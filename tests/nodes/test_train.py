"""DiMOO Train LoRA: what it learns from, where it leaves it, and that neither a cancel nor an error loses any of it."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from dimoo_core.locks import folder_lock

from .. import nodepack
from ..lora_files import random_lora, write_lora
from ..tiny import SHORT, write_checkpoint

NODES = nodepack.nodes()
convert, finding, headers, host, loop, plan, runs, teaching = (
    nodepack.part(name)
    for name in (
        "dimoo_core.checkpoint.convert",
        "dimoo_core.checkpoint.find",
        "dimoo_core.checkpoint.headers",
        "nodes.host",
        "dimoo_core.training.loop",
        "dimoo_core.training.plan",
        "dimoo_core.training.run_log",
        "nodes.teaching",
    )
)
KINDS = ("bf16", "int8")
STEPS = 6
QUICK = {"steps": STEPS, "rank": 2, "learning_rate": 0.01, "warm_up": 0, "sample_every": 0, "folder": "cats"}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("checkpoints")
    folder = write_checkpoint(place / "hub", transformer=SHORT | {"mlp_hidden_size": 52})
    for kind in KINDS:
        convert.convert(finding.find(folder), place / "dimoo" / f"tiny-{kind}.safetensors", kind)
    return place / "dimoo"


@pytest.fixture
def place(checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ComfyUI with its folders below a new one; input/cats holds three pictures and their texts."""
    import comfy.ldm.modules.attention as attention
    import folder_paths

    nodepack.put_checkpoint(checkpoints, monkeypatch)
    entry = ([str(tmp_path / "loras")], folder_paths.folder_names_and_paths["loras"][1])
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", entry)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path / "input"))
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path / "output"))
    monkeypatch.setattr(attention, "optimized_attention", attention.attention_pytorch)  # others ask a GPU for its size
    for number, text in enumerate(("a cat", "a grey cat asleep", "cat and mouse")):
        put(tmp_path / "input" / "cats" / f"{number}.png", text, seed=number)
    return tmp_path


@pytest.fixture
def bar(monkeypatch: pytest.MonkeyPatch) -> Iterator[list]:
    """Every (done, total, preview) that reaches ComfyUI's progress channel."""
    import comfy.model_management
    import comfy.utils

    seen: list = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda *values, **_: seen.append(values))
    for limit in ("PROGRESS_THROTTLE_MIN_INTERVAL", "PROGRESS_THROTTLE_MIN_PERCENT"):  # newer ones leave some out
        monkeypatch.setattr(comfy.utils, limit, 0, raising=False)
    yield seen
    comfy.model_management.interrupt_current_processing(False)


def put(path: Path, text: str | None, *, size: tuple[int, int] = (64, 48), seed: int = 0) -> None:
    """A picture of coloured noise and its text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(seed).integers(0, 256, (size[1] // 16, size[0] // 16, 3), np.uint8)
    Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).save(path)
    if text is not None:
        path.with_suffix(".txt").write_text(text, encoding="utf-8")


def run(name: str, /, **inputs: Any) -> Any:
    return nodepack.run(NODES[name], **inputs)


def load(kind: str = "bf16", **settings: Any) -> SimpleNamespace:
    model, vq = run("DimooLoader", checkpoint=f"tiny-{kind}.safetensors", **settings).args
    return SimpleNamespace(model=model, vq=vq)


def train(loaded: Any, **inputs: Any) -> SimpleNamespace:
    """The node's outputs; ComfyUI hands it every input as a list."""
    widgets = NODES["DimooTrainLora"].FINALIZE_SCHEMA().inputs
    given = {one.id: one.default for one in widgets if getattr(one, "default", None) is not None}
    given |= {"model": loaded.model, "vq": loaded.vq, **QUICK, **inputs}
    lists = {name: value if isinstance(value, list) else [value] for name, value in given.items()}
    output = run("DimooTrainLora", **lists)
    lora, loss, steps, file = output.args
    return SimpleNamespace(lora=lora, losses=loss["loss"], steps=steps, file=Path(file), ui=output.ui)


def drawn(model: Any, seed: int = 5) -> torch.Tensor:
    """The codes of a picture."""
    prompt, canvas = run("DimooTextEncode", text="a cat")[0], run("DimooEmptyCanvas", width=64, height=48)[0]
    return run("DimooSampler", model=model, prompt=prompt, canvas=canvas, seed=seed, steps=4, cfg=1.0)[0].codes


def cancelled(bar: list, at: tuple[int, int], loaded: Any, **inputs: Any) -> None:
    """A run that is cancelled when it has reported `at`, so many of so many, as the page's button does it."""
    import comfy.model_management as management
    import comfy.utils

    def press(*values: Any, **_: Any) -> None:
        bar.append(values)
        management.interrupt_current_processing(values[:2] == at)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", press)
        with pytest.raises(management.InterruptProcessingException):
            train(loaded, **inputs)


def logged(place: Path, name: str = "my-lora") -> list[dict]:
    return runs.read_log(place / "output" / "dimoo" / "train" / name / "log.jsonl")


# What it learns from ------------------------------------------------------------------------------------------------


def test_folders_with_pictures_in_them_or_deeper_are_listed(place: Path) -> None:
    put(place / "input" / "pairs" / "source" / "a.png", None)
    put(place / "input" / "pairs" / "target" / "a.png", "make it blue")
    (place / "input" / "empty").mkdir()
    shown = NODES["DimooTrainLora"].define_schema().inputs[2].options
    assert shown == ["none", "cats", "pairs", "pairs/source", "pairs/target"]
    put(place / "input" / "one.png", "a dog")
    assert "." in NODES["DimooTrainLora"].define_schema().inputs[2].options


def test_a_folder_that_is_gone_or_elsewhere_is_named_before_it_runs_and_when_it_does(place: Path) -> None:
    node = NODES["DimooTrainLora"]
    for name in ("dogs", "../loras"):
        assert "no folder" in node.validate_inputs(folder=[name]) and "refresh the page" in node.validate_inputs([name])
        with pytest.raises(ValueError, match=r"There is no folder .* put pictures there"):
            train(load(), folder=[name])
    assert node.validate_inputs(folder=["cats"]) is True
    assert node.validate_inputs(folder=[None]) is True, "it comes from another node"


def test_a_folder_that_has_changed_is_looked_at_again(place: Path) -> None:
    ask, folder = NODES["DimooTrainLora"].fingerprint_inputs, place / "input" / "cats"
    seen = [ask(folder=["cats"], steps=[1])]
    assert ask(folder=["cats"], steps=[1]) == seen[0]
    for change in (
        lambda: (folder / "0.txt").write_text("a cat that sleeps"),
        lambda: put(folder / "3.png", None),
        lambda: (folder / "3.json").write_text("[]"),
    ):
        change()
        seen.append(ask(folder=["cats"], steps=[1]))
    assert len(set(seen)) == 4
    assert ask(folder=["none"]) == ask() == "", "then the pictures come from other nodes"


def test_a_lora_is_taught_of_a_folder_and_acts_from_the_socket_and_from_its_file(place: Path, bar: list) -> None:
    loaded = load()
    before = drawn(loaded.model)
    done = train(loaded, trigger="sks", alpha=4.0, rank=2)
    assert (done.steps, len(done.losses)) == (STEPS, STEPS) and all(loss > 0 for loss in done.losses)
    assert done.file == place / "loras" / "my-lora.safetensors"
    stored = load_file(done.file)
    assert stored.keys() == done.lora.keys() and all(torch.equal(stored[name], done.lora[name]) for name in stored)
    assert {float(value) for name, value in stored.items() if name.endswith(".alpha")} == {4.0}
    taught = [
        run("DimooLora", model=loaded.model, lora="my-lora.safetensors")[0],
        run("DimooLora", model=loaded.model, lora="none", lora_model=done.lora)[0],
    ]
    codes = [drawn(model) for model in taught]
    assert torch.equal(codes[0], codes[1]) and not torch.equal(codes[0], before)
    assert torch.equal(drawn(loaded.model), before), "the model itself has not learnt anything"
    assert [values[:2] for values in bar if values[1] == STEPS] == [(step, STEPS) for step in range(1, STEPS + 1)]


def test_pictures_and_texts_from_other_nodes_are_taught(place: Path) -> None:
    images = [torch.rand(2, 48, 64, 3), torch.rand(1, 40, 40, 4)]
    several = train(load(), folder="none", images=images, texts=["one", "two", "three"], name="several")
    one = train(load(), folder="none", images=images, texts=["sks"], name="one text")
    assert several.steps == one.steps == STEPS
    assert several.file.is_file() and one.file.name == "one text.safetensors"
    assert several.losses != one.losses


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"folder": "none"}, "There is nothing to learn from: choose a folder .* or connect images and texts"),
        ({"images": [torch.rand(1, 48, 64, 3)], "texts": ["a"]}, "Choose a folder, or connect .*; the node has both"),
        ({"folder": "none", "texts": ["a"]}, "Connect images and texts, both"),
        ({"folder": "none", "images": [torch.rand(1, 48, 64, 3)]}, "Connect images and texts, both"),
        ({"folder": "none", "images": [torch.rand(3, 48, 64, 3)], "texts": ["a", "b"]}, "Got 3 pictures and 2 texts"),
        ({"folder": "none", "images": [torch.rand(2, 48, 64, 3)], "texts": ["", " "]}, "None of 2 pictures has a text"),
        ({"folder": "none", "images": [torch.rand(2, 9)], "texts": ["a"]}, "The images has 2 dimensions"),
        ({"rank": 0}, "rank is 0"),
        ({"optimizer": "prodigy"}, "prodigy"),
        ({"schedule": "steps"}, "schedule is 'steps'; expected one of constant"),
        ({"name": "../mine"}, r"The name is '\.\./mine'; expected the name of a file"),
        ({"name": ""}, "The name is ''"),
        ({"name": "lora."}, r"The name is 'lora\.'; expected the name of a file"),
        ({"name": "\u732b" * 80}, "expected the name of a file, .* up to 200 bytes"),
        ({"name": "Con"}, "The name is 'Con', which Windows keeps for a device"),
        ({"name": "lpt1.v2"}, "which Windows keeps for a device"),
    ],
)
def test_what_cannot_be_taught_is_one_sentence_and_nothing_is_written(
    place: Path, inputs: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        train(load(), **inputs)
    assert "\n" not in str(refused.value)
    assert not (place / "loras").exists()


def test_a_folder_without_any_text_is_refused_before_anything_is_made(place: Path) -> None:
    put(place / "input" / "bare" / "a.png", None)
    with pytest.raises(ValueError, match=r"None of 1 picture below .* has a text"):
        train(load(), folder="bare")
    assert not (place / "output").exists()


def test_a_lora_is_taught_on_the_model_alone(place: Path) -> None:
    loaded = load()
    write_lora(place / "loras" / "one.safetensors", random_lora(loaded.model.found))
    loaded.model = run("DimooLora", model=loaded.model, lora="one.safetensors")[0]
    with pytest.raises(ValueError, match=r"^The model has a LoRA already, .*; connect DiMOO Loader\.$"):
        train(loaded)


# Runs: stopped, resumed, finished, others ---------------------------------------------------------------------------


@pytest.mark.parametrize("at", [1, 4])
def test_a_cancel_keeps_what_was_learnt_and_queueing_again_goes_on_exactly(place: Path, bar: list, at: int) -> None:
    straight = train(load(), name="straight")
    cancelled(bar, (at, STEPS), load())
    kept = load_file(place / "loras" / "my-lora.safetensors")
    assert len(logged(place)) == at + 1, "it stops within a step"
    assert any(bool(value.any()) for name, value in kept.items() if "lora_B" in name)
    done = train(load())
    assert done.file.name == "my-lora.safetensors" and done.losses == straight.losses
    assert all(torch.equal(done.lora[name], straight.lora[name]) for name in straight.lora)


def test_a_cancel_while_pictures_are_encoded_or_a_sample_forms_loses_nothing(place: Path, bar: list) -> None:
    straight = train(load(), name="straight", sample_every=3)
    for at in ((1, 3), (0, STEPS)):  # when one picture is encoded; at the first step of the first sample
        cancelled(bar, at, load(), sample_every=3)
    assert (place / "output" / "dimoo" / "train" / "my-lora" / "codes.safetensors").is_file()
    assert not (place / "loras" / "my-lora.safetensors").exists()
    assert train(load(), sample_every=3).losses == straight.losses


def test_a_finished_run_is_not_run_again_and_goes_on_with_more_steps(place: Path, bar: list) -> None:
    first = train(load())
    content, lines = first.file.read_bytes(), logged(place)
    again = train(load())
    assert (again.file, again.steps, again.losses) == (first.file, STEPS, first.losses)
    assert logged(place) == lines and load_file(first.file).keys() == again.lora.keys()
    more = train(load(), steps=STEPS + 2)
    assert (more.file, more.steps) == (first.file, STEPS + 2) and more.losses[:STEPS] == first.losses
    assert more.file.read_bytes() != content
    assert any("steps 6 -> 8" in line for line in more.ui["text"])


@pytest.mark.parametrize(
    "other", [{"learning_rate": 0.02}, {"rank": 4}, {"training_seed": 1}, {"held_back": 0.3}, {"trigger": "sks"}, {}]
)
def test_another_run_of_the_same_name_leaves_the_file_of_the_first_alone(place: Path, other: dict[str, Any]) -> None:
    first = train(load(), steps=2)
    content = first.file.read_bytes()
    if not other:
        (place / "input" / "cats" / "0.txt").write_text("another text")
    second = train(load(), steps=2, **other)
    assert second.file.name == "my-lora-2.safetensors" and first.file.read_bytes() == content
    assert train(load(), steps=2, **other).file == second.file, "and is found again"


def test_two_programs_do_not_work_in_one_run(place: Path) -> None:
    first = train(load(), steps=1)
    with folder_lock(place / "output" / "dimoo" / "train" / "my-lora"):
        with pytest.raises(ValueError, match=r"Another process is working in .*my-lora: wait until it has finished"):
            train(load(), steps=2)
        assert train(load(), name="other", steps=1).steps == 1
    assert train(load(), steps=2).file == first.file


def test_a_file_or_a_run_of_somebody_else_is_not_touched(place: Path) -> None:
    theirs = write_lora(place / "loras" / "my-lora.safetensors", {"x": torch.zeros(1)})
    content, folder = theirs.read_bytes(), place / "output" / "dimoo" / "train" / "my-lora-2"
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text("{}")  # of the command line
    assert train(load(), steps=1).file.name == "my-lora-3.safetensors"
    assert theirs.read_bytes() == content and [path.name for path in folder.iterdir()] == ["settings.json"]


def test_an_error_in_the_middle_keeps_what_was_learnt(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, steps = loop.loss_sum, []

    def failing(*args: Any) -> torch.Tensor:
        steps.append(1)
        if len(steps) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*args)

    straight = train(load(), name="straight")
    monkeypatch.setattr(loop, "loss_sum", failing)
    with pytest.raises(torch.OutOfMemoryError):  # ComfyUI knows it, and says what can be done
        train(load())
    assert (place / "loras" / "my-lora.safetensors").is_file() and len(logged(place)) == 3
    assert train(load()).losses == straight.losses


def test_it_is_saved_on_the_way_and_orders_are_taken(place: Path) -> None:
    train(load(), save_every=4)
    assert (place / "loras" / "my-lora-000004.safetensors").is_file()
    folder = place / "output" / "dimoo" / "train" / "my-lora"
    (folder / "stop.txt").write_text("")
    stopped = train(load(), steps=STEPS + 5)
    assert stopped.steps == STEPS + 1 and not (folder / "stop.txt").exists()


def test_a_run_that_never_began_keeps_no_name_from_others(place: Path) -> None:
    images = [torch.rand(3, 48, 64, 3)]
    with pytest.raises(ValueError, match="Got 3 pictures and 2 texts"):
        train(load(), folder="none", images=images, texts=["a", "b"])
    assert train(load(), folder="none", images=images, texts=["a", "b", "c"]).file.name == "my-lora.safetensors"


def test_a_file_of_that_name_in_another_lora_folder_stays_the_one_that_is_found(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import folder_paths

    (first, *_), kinds = folder_paths.folder_names_and_paths["loras"]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([first, str(place / "shared")], kinds))
    theirs = write_lora(place / "shared" / "my-lora.safetensors", {"x": torch.zeros(1)})
    assert train(load(), steps=1).file == place / "loras" / "my-lora-2.safetensors"
    assert host.lora_path("my-lora.safetensors") == theirs


@pytest.mark.parametrize("kept", ["loras", "output/dimoo"])
def test_a_place_that_cannot_be_written_is_told_before_anything_is_encoded(
    place: Path, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    (place / kept).parent.mkdir(exist_ok=True)
    (place / kept).write_text("")
    monkeypatch.setattr(teaching, "encode_folder", lambda *_, **__: pytest.fail("encoded"))
    with pytest.raises(ValueError, match=f"{kept} is a file, expected a folder"):
        train(load())


def test_a_full_disk_is_one_sentence(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(headers, "save_file", full)
    with pytest.raises(ValueError, match=r"cannot be written \(I/O error: No space left on device .*make room"):
        train(load())


# The model, the card, the page --------------------------------------------------------------------------------------


def test_the_vq_of_another_checkpoint_never_meets_its_codes(place: Path, tmp_path: Path) -> None:
    loaded = load()
    assert not any("encoded anew" in line for line in train(loaded).ui["text"])
    loaded.vq = load("int8").vq  # another file
    assert any("made by another VQ" in line for line in train(loaded).ui["text"])
    loaded.vq = dataclasses.replace(loaded.vq, vq=SimpleNamespace(codebook_size=40))
    with pytest.raises(ValueError, match=r"knows 32 codes, the VQ of .* has 40: connect model and vq of the same"):
        train(loaded)


@pytest.mark.parametrize(("kind", "weight_dtype", "kept"), [("int8", "auto", True), ("int8", "bf16", False)])
def test_the_base_is_stored_as_the_loaded_model_is(
    place: Path, checkpoints: Path, kind: str, weight_dtype: str, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, bases = teaching.load_base, []
    monkeypatch.setattr(teaching, "load_base", lambda *args, **how: bases.append(real(*args, **how)) or bases[-1])
    file = checkpoints / f"tiny-{kind}.safetensors"
    content = file.read_bytes()
    done = train(load(kind, weight_dtype=weight_dtype))
    dtypes = {part.dtype for part in bases[0].transformer.parameters()}
    assert (torch.int8 in dtypes) == kept and bool(bases[0].formats) == kept
    assert all(not part.is_inference() for part in bases[0].transformer.parameters())
    assert file.read_bytes() == content and done.steps == STEPS


def test_the_card_is_the_trainings_alone_and_is_free_again_afterwards(
    place: Path, bar: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management as management

    real, order, networks = teaching.load_base, [], []

    def base(*args: Any, **how: Any) -> Any:
        assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
        assert management.loaded_models() == [], "the loaded model and the VQ have left"
        made = real(*args, **how)
        networks.append(weakref.ref(made.transformer))
        order.append("base")
        return made

    monkeypatch.setattr(teaching, "load_base", base)
    loaded = load()
    before = drawn(loaded.model)
    assert management.loaded_models()
    train(loaded)
    cancelled(bar, (2, STEPS), loaded, name="cancelled")
    gc.collect()
    assert order == ["base", "base"] and [network() for network in networks] == [None, None]
    assert torch.equal(drawn(loaded.model), before)


def test_too_little_memory_is_told_before_anything_is_encoded(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teaching, "free_bytes", lambda _: 10_000)
    monkeypatch.setattr(plan, "memory_bytes", lambda: 10_000)
    monkeypatch.setattr(teaching, "encode_folder", lambda *_, **__: pytest.fail("encoded"))
    with pytest.raises(ValueError, match=r"^A step needs \d+\.\d kB, and cpu has \d+\.\d kB: use an int8 checkpoint"):
        train(load())
    assert not (place / "output").exists()


def test_the_page_sees_what_is_taught_how_far_it_is_and_what_the_model_paints(
    place: Path, bar: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[tuple[str, str]] = []
    monkeypatch.setattr(host, "show_text", lambda text, node: texts.append((text, node)))
    monkeypatch.setattr(teaching, "_SAID_EVERY", 0.0)
    done = train(load(), sample_every=3, sample_prompts="a cat\n\n  a dog \n", held_back=0.4)
    assert {node for _, node in texts} == {"7"}
    shown = [text for text, _ in texts]
    assert any("encoding" in text and "2 of 3" in text for text in shown)
    assert any(f"step 4 of {STEPS}, loss {done.losses[3]:.4f}, " in text and " left" in text for text in shown)
    assert "cats holds 3 pictures" in shown[-1] and "held-back loss at step 6" in shown[-1]
    assert "it moves the logits by" in done.ui["text"][-1]
    previews = [values for values in bar if values[2] is not None]
    forming = [values for values in previews if values[2][1].width == values[2][1].height]
    assert len(previews) == 3 * (2 * 4 + 1), "two samples of four steps, then both on a sheet, at steps 0, 3 and 6"
    assert {values[0] for values in previews} == {0, 2, 3, 5, 6} and forming, "a sample forms before its step is over"
    assert done.ui["images"] == [
        {"filename": name, "subfolder": "dimoo/train/my-lora", "type": "output"} for name in ("samples.png", "loss.png")
    ]
    assert len(list((place / "output" / "dimoo" / "train" / "my-lora" / "samples").iterdir())) == 3 * 2


def test_samples_for_which_the_memory_is_missing_cost_no_training(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(teaching._VQOutside, "decode", short)
    done = train(load(), sample_every=3)
    assert done.steps == STEPS and sum("too little memory beside the training" in one for one in done.ui["text"]) == 3
