"""Teaching a LoRA: runs that stop, go on and end as if unbroken; guards; orders; samples that are what users get."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from dimoo_core import jobs, provenance
from dimoo_core.checkpoint.adapter_file import read_adapter
from dimoo_core.checkpoint.convert import KINDS
from dimoo_core.checkpoint.find import find
from dimoo_core.checkpoint.load import load_vq
from dimoo_core.model.adapters import TARGETS, Adapter, LowRank
from dimoo_core.model.config import TransformerConfig
from dimoo_core.pipeline import Pipeline, PlacedVQ, load
from dimoo_core.sampling.image import ImageSettings
from dimoo_core.sequence.prompt import DESCRIBE, GENERATE, Prompt
from dimoo_core.training import lora as lora_module
from dimoo_core.training.dataset import Sample, edit_prompt
from dimoo_core.training.engine import state_file
from dimoo_core.training.loop import Step, TrainSettings
from dimoo_core.training.lora import LoraBase, LoraData, LoraSettings, Taught, load_base, train_lora
from dimoo_core.training.run_log import read_log
from dimoo_core.training.run_settings import SETTINGS
from dimoo_core.training.samples import Request, requests_of
from dimoo_core.training.stopping import Stopped
from dimoo_core.training.watch import Watch

from ..tiny import CODES, TABLE, TRANSFORMER, write_checkpoint

QUIET = Watch(report=lambda line: None)
CPU = torch.device("cpu")
SHORT = TrainSettings(steps=6, rate=1e-2, matrix_rate=0.0, warm_up=2, save_every=4, schedule="cosine")
CONFIG = TransformerConfig.from_dict(TRANSFORMER)
LAST_BLOCK = "model.transformer.blocks.1"


def codes(height: int, width: int, seed: int) -> torch.Tensor:
    return torch.randint(CODES, (height, width), generator=torch.Generator().manual_seed(seed))


# pictures whose captions differ in length, an edit, a question
SAMPLES = [
    Sample(Prompt(GENERATE, "a fox"), codes(3, 4, 0), name="0"),
    Sample(Prompt(GENERATE, "a fox in a hut"), codes(3, 4, 1), name="1"),
    Sample(Prompt(GENERATE, "a hat"), codes(4, 3, 2), name="2"),
    Sample(edit_prompt("remove it", (codes(3, 4, 3)[None],)), codes(3, 4, 4), name="3"),
    Sample(Prompt(DESCRIBE, "what is it?", images=(codes(2, 2, 5)[None],)), "a hat", name="4"),
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def teach(tiny: Path, tmp_path: Path) -> Callable[..., Taught]:
    """Teaches a tiny base, in the folder `run` of the test's own; what is named changes the run."""
    return partial(taught, tiny, tmp_path)


def taught(
    checkpoint: Path,
    place: Path,
    name: str = "run",
    *,
    train: TrainSettings = SHORT,
    samples: Sequence[Sample] = SAMPLES,
    held_back: Sequence[Sample] = (),
    requests: Sequence[Request] = (),
    watch: Watch = QUIET,
    folder: str = "",
    base: LoraBase | None = None,
    **settings: Any,
) -> Taught:
    plan = LoraSettings(train, **{"rank": 2, "batch": 2, "check_every": 2, "sample_every": 2} | settings)
    data = LoraData(samples, held_back, requests, folder)
    return train_lora(
        base or base_of(checkpoint), data, plan, run=place / name, output=place / name / "lora.safetensors", watch=watch
    )


def base_of(checkpoint: Path) -> LoraBase:
    found = find(checkpoint)
    vq = PlacedVQ(load_vq(found), CPU)
    named = provenance.identified(checkpoint.name, found.files)
    return LoraBase(load_base(found, device=CPU, recompute=False), vq, named, ImageSettings(steps=2))


class Cancelled(Exception):
    """What a host raises where its user cancels."""


class Followed:
    """Follows a run, and ends it with an exception after some step."""

    def __init__(self, error: BaseException | None = None, after: int = 0):
        self.error, self.after = error, after
        self.lines: list[str] = []
        self.steps: list[Step] = []
        self.sampled: list[int] = []

    @property
    def watch(self) -> Watch:
        return Watch(self.lines.append, self._step, lambda step, pictures: self.sampled.append(step))

    def _step(self, step: Step) -> None:
        self.steps.append(step)
        if self.error is not None and step.number == self.after:
            raise self.error

    def line(self, part: str) -> str:
        """The one line that has this in it."""
        (found,) = [line for line in self.lines if part in line]
        return found


def losses(run: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_log(run / "log.jsonl") if "loss" in line]


def contents(folder: Path) -> dict[Path, bytes]:
    """All of a run but its LoRA, whose file lists what it says of itself in any order."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.stem != "lora"}


def same_files(one: Path, two: Path) -> bool:
    first, second = load_file(one), load_file(two)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# ------------------------------------------------------------------------------------------------- stopping, going on


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Cancelled(), RuntimeError("broken")], ids=repr)
@pytest.mark.parametrize("after", [3, 4])
def test_a_run_that_was_ended_goes_on_as_if_unbroken(
    teach: Callable[..., Taught], tmp_path: Path, error: BaseException, after: int
) -> None:
    straight = teach("straight")
    with pytest.raises(Stopped if isinstance(error, KeyboardInterrupt) else type(error)):
        teach(watch=Followed(error, after).watch)
    kept = read_adapter(tmp_path / "run" / "lora.safetensors", CONFIG, TABLE.code_offset)
    assert any(bool(branch.up.any()) for branch in kept.adapter.branches.values()), "what it has learnt is written"
    followed = Followed()
    resumed = teach(watch=followed.watch)
    assert [step.number for step in followed.steps] == list(range(after + 1, 7)), "no step is made twice"
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")
    assert resumed.losses == straight.losses and len(straight.losses) == 6
    assert same_files(resumed.file, straight.file)
    assert followed.line("continues") == f"continues after step {after} of 6"


class Failing(list):
    """Samples of which none can be read once `reads` have been."""

    reads = 0

    def __getitem__(self, index):
        self.reads -= 1
        if self.reads < 0:
            raise OSError("the disk is gone")
        return super().__getitem__(index)


def test_data_that_cannot_be_read_any_more_cost_no_step_that_was_made(
    teach: Callable[..., Taught], tmp_path: Path
) -> None:
    straight = teach("straight")
    failing = Failing(SAMPLES)
    failing.reads = 5
    with pytest.raises(OSError, match="the disk is gone"):
        teach(samples=failing)
    assert len(losses(tmp_path / "run")) == 2, "five reads are two steps of two samples"
    assert teach().losses == straight.losses


def test_ctrl_c_inside_an_update_leaves_no_hole_in_the_log(
    teach: Callable[..., Taught], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, step = teach("straight"), torch.optim.AdamW.step
    made: list[None] = []

    def interrupted(self: torch.optim.AdamW, *rest: Any) -> Any:
        made.append(None)
        if len(made) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", interrupted)
        with pytest.raises(Stopped, match=r"step 3 of 6 is kept in .*; what it has learnt is in .*lora.safetensors"):
            teach()
    assert [number for number, _ in losses(tmp_path / "run")] == [1, 2, 3]
    assert teach().losses == straight.losses


def test_half_an_update_is_neither_saved_nor_written(
    teach: Callable[..., Taught], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teach(train=replace(SHORT, steps=4))
    output, state = tmp_path / "run" / "lora.safetensors", state_file(tmp_path / "run")
    before = output.read_bytes(), state.read_bytes()

    def broken(self: torch.optim.AdamW, *_: Any) -> None:
        self.param_groups[0]["params"][0].data.fill_(99.0)
        raise torch.OutOfMemoryError("too little")

    monkeypatch.setattr(torch.optim.AdamW, "step", broken)
    with pytest.raises(torch.OutOfMemoryError):
        teach()
    assert (output.read_bytes(), state.read_bytes()) == before


def test_a_stop_before_the_first_step_says_that_nothing_is_kept(teach: Callable[..., Taught], tmp_path: Path) -> None:
    def cancelled(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(Stopped, match=r"^nothing was written, no step was finished$"):
        teach(requests=requests_of(SAMPLES, 1), watch=Watch(lambda line: None, on_forming=cancelled))
    assert not (tmp_path / "run" / "lora.safetensors").exists()


def test_a_finished_run_does_nothing_and_says_so(teach: Callable[..., Taught], tmp_path: Path) -> None:
    held_back = SAMPLES[:1]
    first = teach(held_back=held_back, requests=requests_of(SAMPLES, 2))
    before, tensors = contents(tmp_path / "run"), load_file(first.file)
    followed = Followed()
    again = teach(held_back=held_back, requests=requests_of(SAMPLES, 2), watch=followed.watch)
    assert followed.line("nothing is left") == (
        "nothing is left to do: 6 steps are made, 6 are asked for; ask for more to go on"
    )
    assert not followed.steps and not followed.sampled and again.losses == first.losses and again.steps == 6
    assert contents(tmp_path / "run") == before
    assert all(torch.equal(tensors[name], tensor) for name, tensor in load_file(again.file).items())


def test_more_steps_and_another_rate_go_on_and_are_told(teach: Callable[..., Taught], tmp_path: Path) -> None:
    constant = replace(SHORT, schedule="constant")
    straight = teach("straight", train=replace(constant, steps=8))
    teach(train=constant)
    followed = Followed()
    longer = teach(train=replace(constant, steps=8), watch=followed.watch)
    assert followed.line("other settings") == "other settings than before from here on: steps 6 -> 8"
    assert longer.losses == straight.losses and same_files(longer.file, straight.file)
    followed = Followed()
    teach(train=replace(constant, steps=9, rate=5e-3), watch=followed.watch)
    assert "steps 8 -> 9, rate 0.01 -> 0.005" in followed.line("other settings")
    assert followed.steps[-1].rate == 5e-3


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rank": 4, "alpha": 2.0}, r"with rank 2, and this one has 4"),
        ({"alpha": 1.0}, r"with alpha 2.0, and this one has 1.0"),
        ({"targets": ("q_proj",)}, r"with targets .*, and this one has \['q_proj'\]"),
        ({"folder": "b"}, r"with folder a, and this one has b"),
        ({"train": replace(SHORT, optimizer="adafactor")}, r"a run with AdamW, and this one has Adafactor"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_run_goes_on_with_the_same_or_not_at_all(
    teach: Callable[..., Taught], tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    teach(folder="a")
    before = contents(tmp_path / "run")
    with pytest.raises(ValueError, match=named):
        teach(**{"folder": "a"} | change)
    assert contents(tmp_path / "run") == before


def test_a_run_on_another_base_is_refused(teach: Callable[..., Taught], tmp_path: Path) -> None:
    teach()
    other = base_of(write_checkpoint(tmp_path / "other", seed=7))
    with pytest.raises(ValueError, match=r"holds a run with base \w{16}, and this one has \w{16}; name another folder"):
        teach(base=other)


def test_where_no_step_was_kept_another_rank_may_begin(teach: Callable[..., Taught]) -> None:
    with pytest.raises(RuntimeError, match="no memory"):
        teach(samples=Raising(RuntimeError("no memory")))
    assert teach(rank=4).adapter.rank == 4


class Raising(list):
    def __init__(self, error: Exception):
        super().__init__(SAMPLES)
        self.error = error

    def __getitem__(self, index):
        raise self.error


# ----------------------------------------------------------------------------------------------------------- the log


def test_the_log_has_every_line_once_whatever_happened(teach: Callable[..., Taught], tmp_path: Path) -> None:
    def lines(name: str) -> list[tuple[int, tuple[str, ...]]]:
        return [
            (line["step"], tuple(name for name in line if "loss" in name))
            for line in read_log(tmp_path / name / "log.jsonl")
        ]

    held = {"held_back": SAMPLES[:2]}
    straight = teach("straight", **held)
    with pytest.raises(RuntimeError):  # after the held-back loss of step 0
        teach(**held, samples=Raising(RuntimeError()))
    with pytest.raises(RuntimeError):  # at a step that has one
        teach(**held, watch=Followed(RuntimeError(), 2).watch)
    with pytest.raises(Stopped):
        teach(**held, watch=Followed(KeyboardInterrupt(), 5).watch)
    resumed = teach(**held)
    assert lines("run") == lines("straight")
    assert [step for step, names in lines("run") if names == ("held_back_loss",)] == [0, 2, 4, 6]
    assert resumed.losses == straight.losses
    (last,) = [line for line in read_log(tmp_path / "run" / "log.jsonl") if line["step"] == 6 and "loss" in line]
    assert set(last) == {"step", "loss", "learning_rate", "gradient_norm", "seconds"}


def test_the_held_back_loss_says_what_training_does(teach: Callable[..., Taught], tmp_path: Path) -> None:
    teach(train=replace(SHORT, steps=40, rate=3e-2), held_back=SAMPLES, dropout=0.0)
    held = [one["held_back_loss"] for one in read_log(tmp_path / "run" / "log.jsonl") if "held_back_loss" in one]
    assert len(held) == 21 and held[-1] < 0.8 * held[0]


# -------------------------------------------------------------------------------------------------------- the guards


def hooked(monkeypatch: pytest.MonkeyPatch, module: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Changes the gradient that the B of a module gets."""
    blank = Adapter.blank

    def with_hook(*arguments: Any, **options: Any) -> Adapter:
        adapter = blank(*arguments, **options)
        adapter.branches[module].up.register_hook(change)
        return adapter

    monkeypatch.setattr(lora_module.Adapter, "blank", with_hook)


def test_a_gradient_that_is_no_number_names_the_module(
    teach: Callable[..., Taught], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teach(train=replace(SHORT, steps=2))
    before = state_file(tmp_path / "run").read_bytes()
    hooked(monkeypatch, f"{LAST_BLOCK}.v_proj", lambda gradient: gradient * torch.nan)
    with pytest.raises(ValueError, match=rf"of {LAST_BLOCK}.v_proj.lora_B at step 3 has .* Step 2 of 6 is kept"):
        teach()
    assert state_file(tmp_path / "run").read_bytes() == before


def test_of_a_gradient_that_spread_the_module_where_it_began_is_named(
    teach: Callable[..., Taught], monkeypatch: pytest.MonkeyPatch
) -> None:
    add = LowRank.add
    broken: list[LowRank] = []
    blank = Adapter.blank

    def remembered(*arguments: Any, **options: Any) -> Adapter:
        adapter = blank(*arguments, **options)
        broken.append(adapter.branches[f"{LAST_BLOCK}.k_proj"])
        return adapter

    def with_nan(self: LowRank, y: torch.Tensor, x: torch.Tensor, strength: float) -> torch.Tensor:
        result = add(self, y, x, strength)
        if self in broken and result.requires_grad:
            result.register_hook(lambda gradient: gradient * torch.nan)
        return result

    monkeypatch.setattr(lora_module.Adapter, "blank", remembered)
    monkeypatch.setattr(LowRank, "add", with_nan)
    with pytest.raises(ValueError, match=rf"The gradient of {LAST_BLOCK}.k_proj.lora_B at step 1"):
        teach()


def test_a_loss_that_is_no_number_ends_it(teach: Callable[..., Taught], tiny: Path, tmp_path: Path) -> None:
    base = base_of(tiny)
    base.model.transformer.layers["ln_f"].weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"The loss of step 1 is nan; .* Nothing was written, no step was finished"):
        teach(base=base)
    assert not state_file(tmp_path / "run").exists()


def test_a_branch_that_does_not_learn_is_named_after_ten_updates(
    teach: Callable[..., Taught], monkeypatch: pytest.MonkeyPatch
) -> None:
    hooked(monkeypatch, f"{LAST_BLOCK}.up_proj", torch.zeros_like)
    followed = Followed()
    named = rf"The LoRA of {LAST_BLOCK}.up_proj is still zero after {{}} updates \(1 of 14 modules\)"
    with pytest.raises(ValueError, match=named.format(10)):
        teach(train=replace(SHORT, steps=30), watch=followed.watch)
    assert len(followed.steps) == 9, "nobody is told of the tenth as of one that went well"
    with pytest.raises(ValueError, match=named.format(11)):  # going on does not get past it
        teach(train=replace(SHORT, steps=30))


def test_the_written_file_is_read_again_and_its_effect_told(teach: Callable[..., Taught]) -> None:
    followed = Followed()
    result = teach(watch=followed.watch)
    assert followed.line("wrote") == f"wrote {result.file}: it moves the logits by {100 * result.effect:.3g} %"
    assert result.effect > 0.001 and not any("warning" in line for line in followed.lines)
    longer = teach("longer", train=replace(SHORT, steps=20, rate=5e-2))
    assert longer.effect > 2 * result.effect


def test_a_lora_without_effect_is_told(teach: Callable[..., Taught]) -> None:
    followed = Followed()
    result = teach(train=replace(SHORT, steps=12, rate=0.0, weight_decay=0.0), watch=followed.watch)
    assert result.effect == 0
    assert followed.line("warning") == (
        f"warning: {result.file} changes nothing that the model says; train more steps, or at a higher rate"
    )


# ------------------------------------------------------------------------------------------------- orders and samples


class Ordering(Followed):
    """Asks for something after a step."""

    def __init__(self, run: Path, orders: dict[int, str]):
        super().__init__()
        self.run, self.orders = run, orders

    def _step(self, step: Step) -> None:
        super()._step(step)
        if step.number in self.orders:
            (self.run / self.orders[step.number]).touch()


def test_files_in_the_folder_ask_it_to_save_to_sample_and_to_stop(teach: Callable[..., Taught], tmp_path: Path) -> None:
    straight = teach("straight")
    run = tmp_path / "run"
    ordering = Ordering(run, {1: "save.txt", 2: "sample", 4: "stop"})
    asked = teach(watch=ordering.watch, requests=requests_of(SAMPLES, 1), sample_every=0)
    assert (run / "lora-000002.safetensors").is_file() and ordering.sampled == [3]
    assert asked.steps == 5 and asked.file.is_file() and ordering.line("as asked") == "stops after step 5, as asked"
    assert not [name for name in ("save", "save.txt", "sample", "stop") if (run / name).exists()]
    followed = Followed()
    ended = teach(watch=followed.watch, sample_every=0)
    assert followed.line("continues") == "continues after step 5 of 6"
    assert ended.losses == straight.losses and same_files(ended.file, straight.file)


def test_samples_begin_with_step_0_and_the_sheet_grows(teach: Callable[..., Taught], tmp_path: Path) -> None:
    heights: list[int] = []

    class Growing(Followed):
        def _step(self, step: Step) -> None:
            super()._step(step)
            heights.append(Image.open(tmp_path / "run" / "samples.png").height)

    growing = Growing()
    teach(watch=growing.watch, requests=requests_of(SAMPLES, 2))
    assert growing.sampled == [0, 2, 4, 6]
    names = sorted(path.name for path in (tmp_path / "run" / "samples").iterdir())
    assert names == [f"step-{step:06d}-{number}.png" for step in (0, 2, 4, 6) for number in (1, 2)]
    row = heights[0]
    assert heights == [row, 2 * row, 2 * row, 3 * row, 3 * row, 4 * row]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "the device has too little memory beside the training"),
        (RuntimeError("MPS backend out of memory"), "MPS backend out of memory"),
        (ValueError("the prompt is too long"), "the prompt is too long"),
        (OSError("no space left"), "no space left"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_sample_that_fails_is_a_line_and_never_the_end(
    teach: Callable[..., Taught], monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    straight = teach("straight")

    def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(jobs, "plan_image", failing)
    followed = Followed()
    sampled = teach(watch=followed.watch, requests=requests_of(SAMPLES, 2))
    assert [line for line in followed.lines if line.startswith("no samples")] == [
        f"no samples at step {step}: {words}" for step in (0, 2, 4, 6)
    ]
    assert sampled.losses == straight.losses and not followed.sampled


# --------------------------------------------------------------------------------------------------- what it leaves


def test_the_file_says_what_it_is_and_not_where_its_pictures_lay(
    teach: Callable[..., Taught], tiny: Path, tmp_path: Path
) -> None:
    result = teach(folder="/home/somebody/pictures", trigger="zwx", alpha=4.0)
    with safe_open(result.file, "pt") as file:
        metadata, names = file.metadata(), set(file.keys())
    layers = [f"diffusion_model.model.transformer.blocks.{block}.{name}" for block in (0, 1) for name in TARGETS]
    assert names == {f"{layer}.{part}" for layer in layers for part in ("lora_A.weight", "lora_B.weight", "alpha")}
    named = {name: metadata[name] for name in ("modelspec.architecture", "modelspec.trigger_phrase", "ss_network_dim")}
    assert named == {
        "modelspec.architecture": "lumina-dimoo/lora",
        "modelspec.trigger_phrase": "zwx",
        "ss_network_dim": "2",
    }
    assert metadata["ss_network_alpha"] == "4" and json.loads(metadata["trained_words"]) == ["zwx"]
    own = json.loads(metadata["dimoo"])
    assert own["base"]["fingerprint"] == provenance.identified("", find(tiny).files)["fingerprint"]
    assert (own["step"], own["rank"], own["train"]["rate"], own["samples"]) == (6, 2, 1e-2, 5)
    assert "somebody" not in json.dumps(metadata)
    assert json.loads((tmp_path / "run" / SETTINGS).read_text())["folder"] == "/home/somebody/pictures"


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_the_pictures_that_users_of_the_file_get(
    nano_files: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    """And nothing of the base's file is changed."""
    before = nano_files[kind].read_bytes()
    grids = [torch.randint(256, (8, 8), generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    samples = [
        Sample(Prompt(GENERATE, f"a red {name}"), grid) for name, grid in zip(("star", "ring"), grids, strict=True)
    ]
    found = find(nano_files[kind])
    pipe = Pipeline(found, load_base(found, device=CPU, recompute=False), PlacedVQ(load_vq(found), CPU))
    base = LoraBase(pipe.model, pipe.vq, {"fingerprint": "0"}, pipe.image_settings(steps=4), pipe.place)
    requests = [Request(samples[0].prompt, 8, 8, seed=11)]
    train = replace(SHORT, steps=5, save_every=4, rate=0.1, warm_up=0)
    result = taught(
        nano_files[kind], tmp_path, train=train, samples=samples, requests=requests, base=base, sample_every=4
    )
    assert result.effect > 0.01 and result.losses[-1] > 0
    assert nano_files[kind].read_bytes() == before
    users = load(nano_files[kind], device="cpu").with_lora(tmp_path / "run" / "lora-000004.safetensors")
    (picture,) = users.generate("a red star", seed=11, steps=4, size=(128, 128), progress=False)
    seen = Image.open(tmp_path / "run" / "samples" / "step-000004-1.png")
    assert seen.tobytes() == picture.tobytes()
    plain = Image.open(tmp_path / "run" / "samples" / "step-000000-1.png")
    assert plain.tobytes() != seen.tobytes(), "it has learnt something that shows"


def test_settings_that_cannot_be_read_are_told_and_written_anew(teach: Callable[..., Taught], tmp_path: Path) -> None:
    teach(train=replace(SHORT, steps=2))
    (tmp_path / "run" / SETTINGS).write_text("{")
    followed = Followed()
    assert teach(watch=followed.watch).steps == 6
    assert followed.line("cannot be read") == f"{tmp_path / 'run' / SETTINGS} cannot be read, and is written anew"
    assert json.loads((tmp_path / "run" / SETTINGS).read_text())["train"]["steps"] == 6
