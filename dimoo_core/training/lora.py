"""Teaching a LoRA: low-rank branches beside the layers of a base that stays as it is stored, bf16, fp8 or int8.

The job takes a loaded base and a dataset, wherever they come from: the command line, a node, Python. It keeps in its
folder all that the run is: state, log, curve, samples, settings; and it writes the LoRA's file at the end and at every
stop. Three guards stand watch: a gradient that is not finite, a branch that does not learn, and the written file, which
is read again and whose effect is measured.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .. import jobs, provenance
from ..checkpoint.adapter_file import read_adapter, write_adapter
from ..checkpoint.find import Found
from ..checkpoint.load import load_tokenizer, load_transformer
from ..checks import number_in, whole_number
from ..model.adapters import TARGETS, Adapter, Applied
from ..sampling.image import ImageSettings
from .batches import HeldBack, SampleBatches
from .dataset import Dataset
from .engine import Engine, Named, Single, attention_for_training, state_file
from .loop import Step, Trainer, TrainSettings
from .objective import HiddenBatch, Network
from .orders import orders_for_all
from .run_log import RunLog
from .run_settings import check_same_run, settings_before, write_settings
from .samples import Request, Samples
from .sequences import Layout, Sequences
from .stopping import Stopped
from .watch import PRINTING, Watch

UPDATES_TO_LEARN = 10  # after so many at a rate above 0, every branch must have moved
_ARCHITECTURE = "lumina-dimoo"
_IMPLEMENTATION = "https://github.com/Alpha-VLLM/Lumina-DiMOO"
_FILE_DTYPE = torch.bfloat16
_FIXED = ("base", "folder", "rank", "alpha", "targets")  # of a run: with others what it has learnt means something else

# where to begin: what people's LoRAs are mostly taught with
LORA_TRAINING = TrainSettings(
    steps=1000,
    rate=1e-4,
    matrix_rate=0.0,
    warm_up=50,
    save_every=250,
    betas=(0.9, 0.99),
    schedule="constant",
)

Report = Callable[[str], None]


@dataclass(frozen=True)
class LoraSettings:
    """How a LoRA is taught.

    rank r, and alpha, by whose ratio the branches are scaled (None: r, so by 1). targets: the linears of each block
    that get one. batch: sequences in a pass; accumulate: passes in a step. dropout: the share of pictures that are
    taught without their words. trigger: the word that stands for what is taught. save_every: steps between two files of
    the LoRA; sample_every: between samples (0: none); check_every: between held-back losses. Raises ValueError for a
    number out of range.
    """

    train: TrainSettings = LORA_TRAINING
    rank: int = 16
    alpha: float | None = None
    targets: tuple[str, ...] = TARGETS
    batch: int = 1
    accumulate: int = 1
    dropout: float = 0.1
    trigger: str = ""
    sample_every: int = 100
    check_every: int = 50

    def __post_init__(self) -> None:
        for name, least in (("rank", 1), ("batch", 1), ("accumulate", 1), ("sample_every", 0), ("check_every", 1)):
            whole_number(name, getattr(self, name), least)
        if self.alpha is not None:
            number_in("alpha", self.alpha, 1e-6, 1e6)
        number_in("dropout", self.dropout, 0, 1)
        unknown = [name for name in self.targets if name not in TARGETS]
        if unknown or not self.targets:
            raise ValueError(f"targets is {', '.join(unknown) or 'empty'}; expected some of {', '.join(TARGETS)}.")

    @property
    def scaled_alpha(self) -> float:
        return float(self.rank if self.alpha is None else self.alpha)


@dataclass(frozen=True, eq=False)
class LoraData:
    """What is taught, what is held back to be checked, and what samples are made of. folder: where all of it comes
    from, so that no run goes on with the data of another; empty: not from a folder."""

    taught: Dataset
    held_back: Dataset | None = None
    requests: Sequence[Request] = ()
    folder: str = ""


@dataclass(frozen=True, eq=False)
class LoraBase:
    """The model that a LoRA is taught beside: its network frozen, with blocks that compute themselves again backward;
    `identified` is its name and fingerprint; the settings are those of its samples."""

    model: jobs.Model
    vq: jobs.Autoencoder
    identified: Mapping[str, str]
    sampling: ImageSettings
    place: jobs.Placer = jobs.where_the_weights_are


@dataclass(frozen=True, eq=False)
class Taught:
    """What came of a run: the file, the LoRA in it, the steps, the loss of each, and by what share of their spread it
    moves the logits of one batch (measured in the first process)."""

    file: Path
    adapter: Adapter
    steps: int
    losses: list[float] = field(default_factory=list)
    effect: float = 0.0


def load_base(
    found: Found, *, device: torch.device, dtype: torch.dtype | None = None, recompute: bool = True
) -> jobs.Model:
    """A checkpoint as the base of a LoRA: frozen, its weights as they are stored, fp8 and int8 too, unless `dtype`
    names another. recompute: blocks keep only their inputs for the backward pass, and compute all else again."""
    transformer = load_transformer(
        found, device=device, dtype=dtype, dequantised=dtype is not None, attention=attention_for_training
    ).recompute(recompute)
    formats = found.formats if dtype is None else frozenset()
    return jobs.Model(transformer, load_tokenizer(found), found.table, found.defaults.sides, formats)


def train_lora(
    base: LoraBase,
    data: LoraData,
    settings: LoraSettings,
    *,
    run: Path,
    output: Path,
    watch: Watch = PRINTING,
    engine: Callable[[Named], Engine] | None = None,
) -> Taught:
    """Teach a LoRA: work in the folder `run`, where a run that was stopped continues, and write the file `output`.

    engine: makes the one that trains these weights (None: on one device). Of several processes all call this alike, and
    the first writes, makes samples and tells. Steps that `run` has made already are not made again. Raises ValueError
    where `run` holds another run, and where a guard finds that nothing sensible is learnt; `Stopped` on Ctrl-C.
    Whatever ends it, the state in `run` and the file are those of the last whole step.
    """
    alone = partial(_alone, base.model.device)
    return _Run(base, data, settings, run, output, watch, engine or alone).go()


def _alone(device: torch.device, _weights: Named) -> Engine:
    return Single(device, mixed=False)


class _Run:
    """One run of `train_lora`, with what its parts share."""

    def __init__(
        self,
        base: LoraBase,
        data: LoraData,
        settings: LoraSettings,
        run: Path,
        output: Path,
        watch: Watch,
        engine: Callable[[Named], Engine],
    ):
        self.base, self.data, self.settings, self.run, self.output = base, data, settings, run, output
        self.watch, model = watch, base.model
        before = settings_before(run, watch.report) if state_file(run).is_file() else {}
        check_same_run(run, before, self._facts(), _FIXED)
        generator = torch.Generator().manual_seed(settings.train.seed)
        self.adapter = Adapter.blank(
            model.transformer,
            rank=settings.rank,
            alpha=settings.scaled_alpha,
            targets=settings.targets,
            generator=generator,
            device=model.device,
        )
        weights = {f"{name}.{part}": weight for name, part, weight in _parts(self.adapter)}
        self.engine = engine(weights)
        self.first = self.engine.rank == 0
        self.model = model.with_adapters([Applied(self.adapter)])
        self.network: Network = self.model.network
        self.learning = not settings.train.rate  # whether all branches have been seen to move; without a rate none can
        sequences = Sequences(model.tokenizer, model.table, layout=_layout(model, settings))
        batches = SampleBatches(
            data.taught,
            sequences,
            model.table.mask,
            size=settings.batch * settings.accumulate,
            at_once=settings.batch,
            seed=settings.train.seed,
            rank=self.engine.rank,
            ranks=self.engine.size,
        )
        self.batches = batches
        self.held_back = None
        if data.held_back is not None and len(data.held_back):
            self.held_back = HeldBack(data.held_back, sequences, model.table.mask, at_once=settings.batch)
            for line in self.held_back.notes():
                watch.report(line)
        self.trainer = Trainer(self.network, weights, batches, settings.train, engine=self.engine, folder=run)
        if self.first:
            write_settings(run, before, self._facts(), watch.report)
        self.log = RunLog(run, self.trainer.step, quiet=not self.first)
        self.updates = sum(line.get("learning_rate", 0) > 0 for line in self.log.lines)  # that had a rate
        self.samples = Samples(run, data.requests, base.sampling, base.vq, place=base.place, step=self.trainer.step)

    def go(self) -> Taught:
        trainer, steps = self.trainer, self.settings.train.steps
        if trainer.step >= steps:
            made = f"{trainer.step} steps are made, {steps} are asked for"
            self.watch.report(f"nothing is left to do: {made}; ask for more to go on")
        elif trainer.step:
            self.watch.report(f"continues after step {trainer.step} of {steps}")
        try:
            self._look(trainer.step)
            trainer.run(self._after_step, self._record)
        except BaseException as error:
            kept = trainer.kept
            if trainer.step and trainer.whole:
                self._write(self.output)
                kept = f"{kept}; what it has learnt is in {self.output}"
            if isinstance(error, KeyboardInterrupt):
                raise Stopped(kept) from error
            raise
        finally:
            self.log.close()
        self._write(self.output)
        effect = self._effect() if self.first else 0.0
        return Taught(self.output, self.adapter, trainer.step, self.log.losses(), effect)

    def _effect(self) -> float:
        """By what share of their spread the written file, read again, moves the logits of the first batch."""
        model = self.base.model
        file = read_adapter(self.output, model.transformer.config, model.table.code_offset)
        written = model.with_adapters([Applied(file.adapter.to(self.engine.device))])
        effect = _moved(model.network, written.network, self.batches.step(0)[0].to(self.engine.device))
        self.watch.report(f"wrote {self.output}: it moves the logits by {100 * effect:.3g} %")
        if not effect:
            self.watch.report(
                f"warning: {self.output} changes nothing that the model says; train more steps, or at a higher rate"
            )
        return effect

    def _record(self, step: Step) -> None:
        self.updates += step.rate > 0
        self.log.record(step)

    def _after_step(self, step: Step) -> None:
        settings = self.settings
        self._check_learning()
        orders = orders_for_all(self.run, self.engine)
        if "save" in orders:
            self.trainer.save()
        if step.number % settings.train.save_every == 0 or "save" in orders:
            self._write(self.output.with_stem(f"{self.output.stem}-{step.number:06d}"))
        self._look(step.number, asked="sample" in orders)
        if "stop" in orders:
            self.trainer.end()
            self.watch.report(f"stops after step {step.number}, as asked")
        self.watch.on_step(step)

    def _look(self, step: int, *, asked: bool = False) -> None:
        """Held-back loss and samples, where they are due and not there yet, samples also where somebody asked: the
        business of the first process, for which the others wait."""
        if not self.first:
            return
        checked, sampled = (
            every > 0 and (step % every == 0 or step == self.settings.train.steps)
            for every in (self.settings.check_every, self.settings.sample_every)
        )
        if self.held_back is not None and checked and not self.log.has(step, "held_back_loss"):
            loss = self.held_back.loss(self.network, self.engine)
            self.log.add(step, held_back_loss=loss)
            self.watch.report(f"held-back loss at step {step}: {loss:.4f}")
        if checked:
            self.log.draw()
        if asked or (sampled and not self.samples.made(step)):
            pictures = self.samples.make(step, self._as_written, self.watch.report, self.watch.on_forming)
            if pictures:
                self.watch.on_samples(step, pictures)

    def _as_written(self) -> jobs.Model:
        """The base with the LoRA as its file would have it, and users would load it."""
        norm = next(self.base.model.transformer.layers["ln_f"].parameters())  # never quantised
        written = deepcopy(self.adapter).requires_grad_(False).to(_FILE_DTYPE).to(norm.dtype)
        return self.base.model.with_adapters([Applied(written)])

    def _check_learning(self) -> None:
        """Raises ValueError where a branch is still zero after ten updates: nothing would be learnt, in silence."""
        if self.learning or self.updates < UPDATES_TO_LEARN:
            return
        still = [name for name, branch in self.adapter.branches.items() if not bool(branch.up.any())]
        if still:
            raise ValueError(
                f"The LoRA of {still[0]} is still zero after {self.updates} updates ({len(still)} of "
                f"{len(self.adapter.branches)} modules): no gradient reaches it, so nothing is learnt there; leave it "
                "out of the targets, or report this."
            )
        self.learning = True

    def _write(self, file: Path) -> None:
        if self.engine.rank == 0:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_adapter(file, self.adapter, self._metadata(), _FILE_DTYPE)

    def _metadata(self) -> dict[str, str]:
        """What the file says of itself: for people's tools in their words, for us the rest."""
        settings, trigger = self.settings, self.settings.trigger
        spec = {
            "sai_model_spec": "1.0.0",
            "architecture": f"{_ARCHITECTURE}/lora",
            "implementation": _IMPLEMENTATION,
            "title": self.output.stem,
        }
        named = {f"modelspec.{name}": value for name, value in spec.items()}
        facts = {name: value for name, value in self._facts().items() if name != "folder"}  # nobody else's business
        if trigger:
            named |= {"modelspec.trigger_phrase": trigger, "trained_words": json.dumps([trigger])}
        return {
            "format": "pt",
            **named,
            "ss_network_module": "networks.lora",
            "ss_network_dim": str(settings.rank),
            "ss_network_alpha": f"{settings.scaled_alpha:g}",
            "ss_base_model_version": _ARCHITECTURE,
            "ss_steps": str(self.trainer.step),
            "dimoo": json.dumps({**provenance.versions(), **facts, "step": self.trainer.step}),
        }

    def _facts(self) -> dict[str, Any]:
        """The settings of the run, its base and its data."""
        held_back = 0 if self.data.held_back is None else len(self.data.held_back)
        return {
            "base": dict(self.base.identified),
            "folder": self.data.folder,
            "samples": len(self.data.taught),
            "held_back": held_back,
            **json.loads(json.dumps(asdict(self.settings))),
            "alpha": self.settings.scaled_alpha,
        }


def _layout(model: jobs.Model, settings: LoraSettings) -> Layout:
    own = Layout.of(model.table)
    return Layout(places=own.places, rows="codes", unconditional=settings.dropout)


def _parts(adapter: Adapter):
    for name, branch in adapter.branches.items():
        yield name, "lora_A", branch.down
        yield name, "lora_B", branch.up


@torch.no_grad()
def _moved(plain: Network, other: Network, batch: HiddenBatch) -> float:
    """The root mean square of what changes in the logits, as a share of their own spread."""
    first, second = (network(batch.ids, rows=batch.rows, vocab=batch.vocab).float() for network in (plain, other))
    spread = (first - first.mean(dim=-1, keepdim=True)).square().mean().sqrt()
    return float(((second - first).square().mean().sqrt() / spread.clamp(min=1e-12)).cpu())
