"""Every job on a device that is not there: the very results of the CPU, and what the host waits for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from bench import waits
from bench.rehearsal import OnDevice, Rehearsal
from dimoo_core import provenance
from dimoo_core.checkpoint.find import NANO, find
from dimoo_core.checkpoint.load import load_vq
from dimoo_core.model.transformer import sdpa
from dimoo_core.pipeline import Pipeline, PlacedVQ, load
from dimoo_core.sampling import image as image_loop
from dimoo_core.sampling.image import ImageSettings
from dimoo_core.sampling.ml_cache import PRESETS, CachePolicy
from dimoo_core.sampling.orders import ORDERS
from dimoo_core.sampling.text_cache import TextPolicy
from dimoo_core.sequence.prompt import GENERATE, Prompt
from dimoo_core.training import lora as lora_module
from dimoo_core.training.dataset import Sample
from dimoo_core.training.loop import TrainSettings
from dimoo_core.training.lora import LoraBase, LoraData, LoraSettings, load_base, train_lora
from dimoo_core.training.watch import Watch

from .lora_files import random_lora
from .tiny import write_checkpoint

PICTURE = Image.linear_gradient("L").resize((128, 128)).convert("RGB")
CAPTION = "a large red circle on the left on a white background"
GUIDED = {"steps": 3, "cfg": 2.0, "image_cfg": 2.0, "progress": False}
CORRECTED = {"corrections": 2, "polish": 2, "shared_noise": 0.5}

JOBS: dict[str, Callable[[Pipeline], Any]] = {
    "generate": lambda pipeline: pipeline.generate(CAPTION, batch=2, **GUIDED),
    "late guidance": lambda pipeline: pipeline.generate(CAPTION, guidance_start=0.3, **GUIDED),
    "ml_cache": lambda pipeline: pipeline.generate(CAPTION, ml_cache="balanced", **GUIDED | {"steps": 8}),
    "published cache": lambda pipeline: pipeline.generate(CAPTION, ml_cache=CachePolicy(warmup=0.0), **GUIDED),
    "corrected": lambda pipeline: pipeline.generate(CAPTION, batch=2, order="halton", **CORRECTED, **GUIDED),
    "edit": lambda pipeline: pipeline.edit(PICTURE, "make it blue", **GUIDED),
    "edit, ml_cache": lambda pipeline: pipeline.edit(PICTURE, "make it blue", ml_cache="fast", **GUIDED),
    "inpaint": lambda pipeline: pipeline.inpaint(PICTURE, "a blue square", mask_width=0.5, **GUIDED),
    "inpaint, corrected, ml_cache": lambda pipeline: pipeline.inpaint(
        PICTURE, "a blue square", mask_width=0.5, ml_cache="balanced", **CORRECTED, **GUIDED | {"steps": 8}
    ),
    "describe": lambda pipeline: pipeline.describe(PICTURE, progress=False, **waits.SHORT_ANSWER),
    "describe, kept": lambda pipeline: pipeline.describe(
        PICTURE, progress=False, speed=TextPolicy(prefix_refresh=2, answer_refresh=4), **waits.SHORT_ANSWER
    ),
    "describe, fast": lambda pipeline: pipeline.describe(
        PICTURE, progress=False, speed="fast", temperature=0.5, cfg=1.0, **waits.SHORT_ANSWER
    ),
}


@pytest.fixture
def seen() -> Iterator[Rehearsal]:
    with Rehearsal() as seen:
        yield seen


@pytest.fixture(scope="module")
def on_the_cpu() -> Pipeline:
    return load(device="cpu")


@pytest.mark.parametrize("job", JOBS)
def test_every_job_gives_what_the_cpu_gives(on_the_cpu: Pipeline, job: str) -> None:
    expected = JOBS[job](on_the_cpu)
    with Rehearsal() as seen:
        assert JOBS[job](load(device=seen.device)) == expected
    assert seen.waits, "nothing was rehearsed"


@pytest.mark.parametrize("job", ["ml_cache", "describe, kept"])
def test_short_passes_are_recorded_and_replayed(on_the_cpu: Pipeline, job: str) -> None:
    with Rehearsal() as seen:
        made = JOBS[job](load(device=seen.device))
    assert seen.replays >= 2 and made == JOBS[job](on_the_cpu)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_weights_of_one_byte_give_what_the_cpu_gives(nano_files: dict[str, Path], kind: str) -> None:
    expected = JOBS["generate"](load(nano_files[kind], device="cpu"))
    with Rehearsal() as seen:
        assert JOBS["generate"](load(nano_files[kind], device=seen.device)) == expected


def test_a_lora_gives_what_the_cpu_gives(on_the_cpu: Pipeline, seen: Rehearsal) -> None:
    lora = random_lora(find(NANO))
    with_lora = load(device=seen.device).with_lora(lora, 0.5)
    made = JOBS["generate"](with_lora)
    assert made == JOBS["generate"](on_the_cpu.with_lora(lora, 0.5)) != JOBS["generate"](on_the_cpu)


@pytest.mark.parametrize("job", ["generate", "describe, fast", "training"])
def test_devices_without_fp64_can_do_it(tmp_path: Path, job: str) -> None:
    with Rehearsal("mps") as seen:
        if job == "training":
            taught(tmp_path, seen.device)
        else:
            JOBS[job](load(device=seen.device))


@pytest.mark.parametrize("device", ["mps", "xpu:0", "privateuseone:0"])
def test_metal_arc_and_directml_have_no_fp64(device: str) -> None:
    with Rehearsal(device) as seen, pytest.raises(TypeError, match=rf"test_rehearsal.py:\d+: {device} has no fp64"):
        torch.zeros(2, device=seen.device).double()
    with Rehearsal() as seen:
        assert torch.zeros(2, device=seen.device).double().tolist() == [0, 0]


def test_a_training_step_has_the_loss_of_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora_module, "attention_for_training", sdpa)  # the CPU has a way of its own, which rounds apart
    with Rehearsal() as seen:
        found = taught(tmp_path / "device", seen.device)
    assert found == taught(tmp_path / "cpu", torch.device("cpu"))


def taught(folder: Path, device: torch.device) -> tuple[list[float], list]:
    """The losses of two steps on one picture, and the weights of the LoRA."""
    found = find(write_checkpoint(folder / "tiny"))
    vq = PlacedVQ(load_vq(found, device=device), device)
    plan = LoraSettings(
        TrainSettings(steps=2, rate=1e-2, matrix_rate=0.0, warm_up=0), rank=2, dropout=0.0, sample_every=0
    )
    samples = [Sample(Prompt(GENERATE, CAPTION), torch.arange(12).view(3, 4), name="0")]
    taught = train_lora(
        LoraBase(load_base(found, device=device), vq, provenance.identified("tiny", found.files), ImageSettings(2)),
        LoraData(samples, held_back=samples),
        plan,
        run=folder / "run",
        output=folder / "lora.safetensors",
        watch=Watch(report=lambda line: None),
    )
    return taught.losses, [part.tolist() for part in taught.adapter.parameters()]


# What a step may wait for --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def figures() -> dict[str, int]:
    return waits.figures()


@pytest.mark.parametrize("kind", ["image", "cached", "text"])
def test_a_step_waits_once(figures: dict[str, int], kind: str) -> None:
    assert figures[f"waits_{kind}_step"] == 1


@pytest.mark.parametrize("kind", ["image", "text"])
def test_a_step_sends_nothing_for_which_the_host_waits(figures: dict[str, int], kind: str) -> None:
    assert figures[f"copies_to_device_{kind}_step"] == 0


@pytest.mark.parametrize("order", ORDERS)
def test_a_corrected_step_and_a_polishing_pass_wait_no_longer(figures: dict[str, int], order: str) -> None:
    steps = waits.image_steps(order=order, **CORRECTED)["full"]
    each = len(steps) // 2  # of two pictures; what all polishing passes need is made before the first
    del steps[each + waits.STEPS - 1], steps[waits.STEPS - 1]
    assert waits.most(steps, "waits") == figures["waits_image_step"]
    assert waits.most(steps, "copies_to_device") == figures["copies_to_device_image_step"]


def test_who_reads_the_canvas_and_sends_numbers_at_each_step_is_counted(figures: dict[str, int]) -> None:
    def look(canvas) -> None:
        canvas.codes.cpu()
        torch.tensor([1, 2], device=canvas.codes.device)

    steps = waits.image_steps(PRESETS["balanced"], look)
    assert waits.most(steps["full"], "waits") == figures["waits_image_step"] + 2
    assert waits.most(steps["cached"], "waits") == figures["waits_cached_step"] + 2
    every = [*steps["full"], *steps["cached"]]
    assert waits.most(every, "copies_to_device") == figures["copies_to_device_image_step"] + 1


def test_who_reads_the_tokens_and_sends_numbers_at_each_step_is_counted(figures: dict[str, int]) -> None:
    steps = waits.text_steps(lambda tokens: torch.tensor(tokens.tolist(), device=tokens.device))
    assert waits.most(steps, "waits") == figures["waits_text_step"] + 2
    assert waits.most(steps, "copies_to_device") == figures["copies_to_device_text_step"] + 1


def test_a_tensor_left_on_the_cpu_stops_the_job(monkeypatch: pytest.MonkeyPatch, seen: Rehearsal) -> None:
    pipeline, known = load(device=seen.device), image_loop.cell_positions
    monkeypatch.setattr(image_loop, "cell_positions", lambda height, width, _: known(height, width, "cpu"))
    with pytest.raises(RuntimeError, match=r"at sampling/\w+\.py:\d+: expected all tensors to be on cuda"):
        pipeline.generate(CAPTION, **GUIDED)


# The device itself ---------------------------------------------------------------------------------------------------


def test_tensors_say_where_they_are(seen: Rehearsal) -> None:
    made = [
        torch.zeros(2, device="cuda"),
        torch.ones(2).to("cuda"),
        torch.ones(2).cuda(),
        torch.zeros_like(torch.ones(2), device=seen.device),
        torch.zeros(2, device=seen.device).new_ones(3) + 1,
        torch.nn.Linear(2, 2, device="cuda").weight,
        torch.nn.Linear(2, 2).to(seen.device).weight,
    ]
    assert all(isinstance(one, OnDevice) and one.is_cuda and one.device == seen.device for one in made)
    assert made[0].cpu().device.type == torch.zeros(1).device.type == "cpu"


WAITS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "int": lambda x: int(x[0]),
    "bool": lambda x: bool(x.any()),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu"),
    "copy_": lambda x: torch.empty(3).copy_(x),
    "nonzero": lambda x: x.nonzero(),
    "a mask as index": lambda x: x[x > 1],
    "where": lambda x: torch.where(x > 1),
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x + 1),
    "tensor": lambda x: torch.tensor([1.0], device=x.device),
    "new_tensor": lambda x: x.new_tensor([1.0]),
    "a list as index": lambda x: x[[0, 2]],
    "sent from pageable memory": lambda x: torch.ones(3).to(x.device, non_blocking=True),
}
FREE: dict[str, Callable[[Tensor], object]] = {
    "arithmetic": lambda x: (x + 1).mul_(2).softmax(0),
    "one number of the CPU": lambda x: x * torch.tensor(2.0),
    "views": lambda x: x[1:].view(1, 2).t(),
    "a mask as a choice": lambda x: torch.where(x > 1, x, 0.0),
    "one number where a mask is": lambda x: x.masked_fill(x > 1, 3.0),
    "made there": lambda x: torch.arange(3, device=x.device) + x.new_zeros(3),
    "another dtype": lambda x: x.to(torch.bfloat16).float(),
    "sent from pinned memory": lambda x: torch.ones(3).pin_memory().to(x.device, non_blocking=True),
}


@pytest.mark.parametrize("way", WAITS)
def test_each_way_to_wait_is_counted_once_with_its_place(seen: Rehearsal, way: str) -> None:
    x = torch.arange(3.0, device=seen.device)
    WAITS[way](x)
    ((place, count),) = seen.waits.items()
    assert count == 1 and "tests/test_rehearsal.py:" in place


@pytest.mark.parametrize("way", FREE)
def test_what_the_device_does_alone_is_not_counted(seen: Rehearsal, way: str) -> None:
    FREE[way](torch.arange(3.0, device=seen.device))
    assert not seen.waits and not seen.copies_to_device and not seen.copies_to_host


MIXES: dict[str, Callable[[Tensor, Tensor], object]] = {
    "sum": lambda x, other: x + other,
    "product": lambda x, other: x[None] @ other[:, None],
    "index": lambda x, other: x[other.long()],
    "cat": lambda x, other: torch.cat((x, other)),
    "in place": lambda x, other: other.add_(x),
}


@pytest.mark.parametrize("way", MIXES)
def test_tensors_of_the_cpu_are_refused(seen: Rehearsal, way: str) -> None:
    x = torch.arange(3.0, device=seen.device)
    with pytest.raises(RuntimeError, match=r"at tests/test_rehearsal.py:\d+: expected all tensors to be on cuda"):
        MIXES[way](x, torch.ones(3))
    with pytest.raises(TypeError, match="copy it to the CPU first"):
        x.numpy()


def test_a_recorded_graph_repeats_operations_and_not_what_python_does(seen: Rehearsal) -> None:
    x, total, calls = torch.ones(2, device=seen.device), torch.zeros(2, device=seen.device), []
    with torch.cuda.graph(graph := torch.cuda.CUDAGraph()):
        total.zero_().add_(x[:1] * 2 + torch.arange(2, device=seen.device))
        calls.append(1)
    x.fill_(3)
    graph.replay()
    assert total.tolist() == [6, 7] and len(calls) == seen.replays == 1
    with pytest.raises(RuntimeError, match="not permitted while a graph is recorded"), torch.cuda.graph(graph):
        x.sum().item()


def test_gradients_are_those_of_the_cpu(seen: Rehearsal) -> None:
    numbers = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))

    def gradient(device: str) -> list:
        weight = torch.nn.Parameter(numbers.to(device))
        (weight.to(torch.bfloat16).float() @ torch.ones(4, 2, device=device)).square()[1:].sum().backward()
        assert weight.grad is not None and weight.grad.device.type == device
        return weight.grad.tolist()

    assert gradient("cuda") == gradient("cpu")


def test_what_is_left_of_a_rehearsal_is_of_no_use() -> None:
    with Rehearsal() as seen:
        left = torch.zeros(2, device=seen.device)
    with pytest.raises(RuntimeError, match="whose Rehearsal is over"):
        left + 1
