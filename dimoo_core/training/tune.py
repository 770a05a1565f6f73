"""Fine-tuning: all weights of a checkpoint, on one device or sharded over many, to a checkpoint as published.

Weights are kept in fp32; passes compute in bf16, or in fp32 where that is asked for. The data are a file of codes, a
folder of encoded records, or a folder of pictures as `train lora` reads it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.convert import Chunk, Stored
from ..checkpoint.export import copy_vq, write_config
from ..checkpoint.find import Found
from ..checkpoint.load import load_tokenizer, load_transformer, load_vq
from ..checkpoint.shard_files import write_weights
from ..checks import number_in, whole_number
from ..devices import Ranks
from ..files import atomic_write_text
from ..model.transformer import Transformer, hub_shapes, hub_to_module
from ..provenance import identified_checkpoint
from ..sequence.prompt import DESCRIBE, DESCRIBE_QUESTION, GENERATE, Prompt
from ..sequence.token_table import TokenTable
from .batches import HeldBack, SampleBatches, check_shares
from .code_cache import codec_name, encode_folder
from .dataset import MOST_HELD, Dataset, Sample, split
from .engine import Engine, Single, attention_for_training, learn_every_row, state_file
from .folder import survey
from .loop import Step, Trainer, TrainSettings
from .orders import orders_for_all
from .pretokenise import read_codes
from .processes import check_shards, has_shared_state, joined, launched, local_size, own_device
from .room import check_room
from .run_log import RunLog
from .run_settings import check_same_run, settings_before, write_settings
from .sequences import RELEASED_LAYOUT, Layout, Sequences
from .shards import MANIFEST, RecordDataset, shard_file
from .stopping import keeping
from .watch import PRINTING, Watch

GENERATED = 4  # times that a captioned picture is drawn from its words, for each time that it is described

Report = Callable[[str], None]


# Settings -------------------------------------------------------------------------------------------------------------

# Of the released training, as its scripts and the settings published with the weights have them: 64 cards, 2 sequences
# in a pass and 4 passes each.
RELEASED: Mapping[str, Any] = {
    "rate": 2e-5,
    "betas": (0.9, 0.95),
    "weight_decay": 0.1,
    "clip": 4.0,
    "schedule": "constant",
    "batch": 2,
    "accumulate": 256,
    "warm_up_epochs": 0.001,
}
OURS: Mapping[str, Any] = {
    "rate": 1e-4,
    "betas": (0.9, 0.98),
    "weight_decay": 0.01,
    "clip": 1.0,
    "schedule": "linear",
    "batch": 8,
    "accumulate": 1,
}
PRESETS = {"ours": OURS, "released": RELEASED}
_WARM_UP = 100  # steps, where nobody says
_FIXED = ("base", "data")  # of a run: with others it would be another one


@dataclass(frozen=True)
class TuneSettings:
    """How all weights are taught.

    batch: sequences in a pass; accumulate: passes in a step, which all processes share, so that the settings and what
    is learnt do not depend on how many there are. released: sequences and losses as in the released training, see
    `Sequences`. misspelt: with its misspelt system prompt. held_back: the share of pictures that is not taught, whose
    loss is taken every `check_every` steps. warm_up_epochs: the warm-up as a share of an epoch, or as several (0: as
    many steps as `train` says). Raises ValueError for a number out of range.
    """

    train: TrainSettings
    batch: int = 8
    accumulate: int = 1
    released: bool = False
    misspelt: bool = False
    held_back: float = 0.0
    check_every: int = 100
    warm_up_epochs: float = 0.0

    def __post_init__(self) -> None:
        for name in ("batch", "accumulate", "check_every"):
            whole_number(name, getattr(self, name), 1)
        number_in("held_back", self.held_back, 0, MOST_HELD)
        number_in("warm_up_epochs", self.warm_up_epochs, 0, 1000)

    @classmethod
    def of(cls, preset: str, *, steps: int, warm_up: int | None, **chosen: Any) -> TuneSettings:
        """The settings of a preset, with those that are chosen and not None in place of its own."""
        values = {**PRESETS[preset], **{name: value for name, value in chosen.items() if value is not None}}
        own = {name: values.pop(name) for name in cls.__dataclass_fields__ if name in values}
        if warm_up is not None:
            own.pop("warm_up_epochs", None)
        train = TrainSettings(steps=steps, matrix_rate=0.0, warm_up=_WARM_UP if warm_up is None else warm_up, **values)
        return cls(train, released=preset == "released", **own)

    @property
    def step_samples(self) -> int:
        """Samples in a step."""
        return self.batch * self.accumulate

    def layout(self, table: TokenTable) -> Layout:
        """The layout of sequences for a checkpoint with these ids. A prompt that is cut keeps its `</user>`, whatever
        the released training does: the pictures would stand before one of its words."""
        own = Layout.of(table)
        if self.released:
            own = replace(RELEASED_LAYOUT, places=own.places, loses_end=False)
        return replace(own, misspelt=self.misspelt)


@dataclass(frozen=True)
class Placement:
    """Where a training runs: device, as `devices.device` has it; mixed: passes in bf16; shards: in how many parts the
    weights are cut (None: as many as there are processes); offload: these lie in the machine's memory."""

    device: str = "auto"
    mixed: bool = True
    shards: int | None = None
    offload: bool = False


# Data -----------------------------------------------------------------------------------------------------------------


class CaptionedCodes:
    """The samples of a file of codes: each picture is drawn from its caption, and described.

    Raises ValueError where a picture has codes that the checkpoint does not have.
    """

    def __init__(self, codes: Mapping[str, Tensor], captions: Mapping[str, str], table: TokenTable):
        self.codes, self.captions, self.pictures = codes, captions, sorted(codes)
        known = table.codebook_size
        for name, grid in codes.items():
            if int(grid.max()) >= known or int(grid.min()) < 0:
                raise ValueError(
                    f"The picture {name} has codes up to {int(grid.max())}, but the checkpoint knows {known}; encode "
                    "the pictures with the VQ of this checkpoint."
                )

    def __len__(self) -> int:
        return len(self.pictures) * (GENERATED + 1)

    def __getitem__(self, index: int, /) -> Sample:
        number, turn = divmod(index, GENERATED + 1)
        name = self.pictures[number]
        codes, caption = self.codes[name], self.captions[name]
        if turn < GENERATED:
            return Sample(Prompt(GENERATE, caption), codes, name=name)
        return Sample(Prompt(DESCRIBE, DESCRIBE_QUESTION, images=(codes[None],)), caption, name=name)


def open_dataset(
    found: Found, source: Path, *, run: Path, where: torch.device, ranks: Ranks, report: Report
) -> Dataset:
    """What is to be taught to a checkpoint: a file of codes, a folder of encoded records, or one of pictures, which are
    encoded first, by one process after the other, and kept in the folder `run`.

    Raises ValueError where it is none of them, or was encoded for another checkpoint.
    """
    if not source.is_dir():
        return CaptionedCodes(*read_codes(source), found.table)
    if (source / MANIFEST).is_file() or shard_file(source, 0).is_file():
        records = RecordDataset(source)
        if records.facts.codebook_size != found.table.codebook_size:
            raise ValueError(
                f"{source} has codes of a VQ that knows {records.facts.codebook_size}, but the checkpoint knows "
                f"{found.table.codebook_size}; encode the records with the VQ of this checkpoint."
            )
        return records
    pictures = survey(source, side=found.defaults.side, sides=found.defaults.sides)
    for line in pictures.report():
        report(line)
    with ranks.in_turn():
        vq = load_vq(found, device=where)
        return encode_folder(pictures, vq, run, codec=codec_name(found), report=report)


# The job --------------------------------------------------------------------------------------------------------------


def tune(
    found: Found,
    source: Path,
    settings: TuneSettings,
    *,
    run: Path,
    output: Path,
    placement: Placement = Placement(),
    watch: Watch = PRINTING,
    hold: Callable[[Path], AbstractContextManager[None]] = lambda folder: nullcontext(),
) -> bool:
    """Fine-tune a checkpoint on `source`: work in the folder `run`, and write the tuned checkpoint to `output`.

    Every process that torchrun starts calls it alike; alone it needs no torchrun. A run that was stopped continues, on
    as many processes or others. `hold` keeps other runs out of a folder; the first process calls it, and is told by the
    result. Raises ValueError where it does not fit into memory, and where data or run do not fit the checkpoint;
    `Stopped` on Ctrl-C, saying what is kept.
    """
    where = own_device(placement.device)
    several = launched() or has_shared_state(run)
    with joined(where) if several else nullcontext():
        ranks = Ranks.from_environment()
        with hold(run) if ranks.rank == 0 else nullcontext():
            _Run(found, source, settings, run, placement, watch, where, ranks, several).go(output)
    return ranks.rank == 0


class _Run:
    """One run of `tune` in one process."""

    def __init__(
        self,
        found: Found,
        source: Path,
        settings: TuneSettings,
        run: Path,
        placement: Placement,
        watch: Watch,
        where: torch.device,
        ranks: Ranks,
        several: bool,
    ):
        self.found, self.settings, self.run, self.watch = found, settings, run, watch
        self.first = ranks.rank == 0
        self._check(placement, where, ranks, several)
        self.source, self.base, self.mixed = source, identified_checkpoint(found), placement.mixed
        has_state = state_file(run).is_file() or has_shared_state(run)
        before = settings_before(run, self._report) if has_state else {}
        check_same_run(run, before, self._origin(), _FIXED)
        data = open_dataset(found, source, run=run, where=where, ranks=ranks, report=self._report)
        taught, held_back = split(data, settings.held_back, settings.train.seed) if settings.held_back else (data, None)
        self.settings = settings = with_warm_up(settings, len(taught))
        self.network, self.engine = _placed(found, where, placement, several)
        sequences = Sequences(load_tokenizer(found), found.table, layout=settings.layout(found.table))
        mask, at_once = found.table.mask, settings.batch
        batches = SampleBatches(
            taught,
            sequences,
            mask,
            size=settings.step_samples,
            at_once=at_once,
            seed=settings.train.seed,
            rank=ranks.rank,
            ranks=ranks.size,
        )
        self.held_back = None if held_back is None else HeldBack(held_back, sequences, mask, at_once)
        weights = dict(self.network.named_parameters())
        self.trainer = Trainer(self.network, weights, batches, settings.train, engine=self.engine, folder=run)
        if self.first:
            write_settings(run, before, self._facts(len(taught)), self._report)
        if self.held_back is not None:
            for line in self.held_back.notes():
                self._report(line)
        self.log = RunLog(run, self.trainer.step, quiet=not self.first)

    def _check(self, placement: Placement, where: torch.device, ranks: Ranks, several: bool) -> None:
        """Raises ValueError where a process would have no sequence, or the memory does not suffice."""
        settings = self.settings
        check_shares(settings.step_samples, ranks.size)
        if placement.offload and not several:
            raise ValueError("Weights are offloaded only where torchrun starts the training; start it with torchrun.")
        if settings.train.optimizer != "adamw" and several:
            raise ValueError(f"{settings.train.optimizer} does not train in shards; choose adamw.")
        blank = Transformer(self.found.config, code_offset=self.found.table.code_offset, device="meta")
        count = sum(weight.numel() for weight in blank.parameters())
        shards = ranks.size if placement.shards is None else placement.shards
        check_shards(shards, ranks.size)
        check_room(count, where, shards=shards, processes=local_size(), offload=placement.offload)

    def go(self, output: Path) -> None:
        made, steps = self.trainer.step, self.settings.train.steps
        if made >= steps:
            self._report(f"nothing is left to do: {made} steps are made, {steps} are asked for; ask for more to go on")
        elif made:
            self._report(f"continues after step {made} of {steps}")
        try:
            self.trainer.run(self._after_step, self.log.record)
        finally:
            self.log.close()
        self.network.eval()
        with keeping(f"the training is finished and kept in {self.run}, the same command writes the checkpoint"):
            export(output, self.found, self.network, self.engine)

    def _after_step(self, step: Step) -> None:
        orders = orders_for_all(self.run, self.engine)
        if "save" in orders:
            self.trainer.save()
        if "sample" in orders:
            self._report("no samples: they are made while a LoRA is taught, not of a fine-tune")
        if step.number % self.settings.check_every == 0 or step.number == step.steps:
            self._look(step.number)
        if "stop" in orders:
            self.trainer.end()
            self._report(f"stops after step {step.number}, as asked")
        if self.first:
            self.watch.on_step(step)

    def _look(self, step: int) -> None:
        """The held-back loss, and the curve."""
        if self.held_back is not None:
            loss = self.held_back.loss(self.network, self.engine)
            self._report(f"held-back loss at step {step}: {loss:.4f}")
            self.log.add(step, held_back_loss=loss)
        self.log.draw()

    def _origin(self) -> dict[str, Any]:
        """What a run was begun with, and goes on with."""
        return {"base": dict(self.base), "data": str(self.source.resolve())}

    def _facts(self, samples: int) -> dict[str, Any]:
        """The origin of the run and its settings."""
        facts = {"samples": samples, "mixed": self.mixed, **asdict(self.settings)}
        return {**self._origin(), **json.loads(json.dumps(facts))}

    def _report(self, line: str) -> None:
        if self.first:
            self.watch.report(line)


def with_warm_up(settings: TuneSettings, samples: int) -> TuneSettings:
    """With the warm-up in steps, where it is said in epochs of so many samples."""
    if not settings.warm_up_epochs:
        return settings
    steps = math.ceil(settings.warm_up_epochs * samples / settings.step_samples)
    return replace(settings, train=replace(settings.train, warm_up=steps))


def _placed(found: Found, where: torch.device, placement: Placement, several: bool) -> tuple[Transformer, Engine]:
    """All weights of a checkpoint to be trained, in fp32, and the engine that trains them."""
    if several:
        try:
            from .sharded import Sharded, sharded_transformer
        except ImportError as error:
            raise ValueError(
                f"torch {torch.__version__} cannot train in several processes ({error}); install torch 2.9 or later."
            ) from None
        network = sharded_transformer(
            found, where, shards=placement.shards, mixed=placement.mixed, offload=placement.offload
        )
        return _recomputing(network, where), Sharded(network, where)
    network = load_transformer(
        found, device=where, dtype=torch.float32, dequantised=True, attention=attention_for_training
    )
    learn_every_row(network.requires_grad_(True).train())
    return _recomputing(network, where), Single(where, mixed=placement.mixed)


def _recomputing(network: Transformer, where: torch.device) -> Transformer:
    """Blocks keep only their inputs for the backward pass: a third more work, which a CPU has no need of."""
    return network.recompute(where.type != "cpu")


def export(folder: Path, found: Found, network: Transformer, engine: Engine) -> None:
    """The checkpoint in bf16, as published: gathered tensor by tensor, by all processes, and written by the first."""
    weights = dict(network.named_parameters())

    def chunks(tensor: Stored) -> Iterator[Chunk]:
        offset = 0
        for name, _ in hub_to_module(tensor.name, found.table.code_offset):
            numbers = engine.whole(weights[name], torch.bfloat16)
            yield Chunk(tensor.name, offset, numbers)
            offset += numbers.nbytes

    tensors = [Stored(name, "BF16", shape) for name, shape in hub_shapes(network).items()]
    if engine.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").unlink(missing_ok=True)  # it says that the rest is whole, and comes last
        atomic_write_text(folder / "tokenizer.json", found.tokenizer_text())
        write_weights(folder, tensors, chunks)
        copy_vq(folder / "vqvae", found, fields=found.vq_config_json)
        write_config(folder, found.config_json)
    else:
        for tensor in tensors:
            for _ in chunks(tensor):
                pass
