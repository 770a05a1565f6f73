"""`train lora`: a LoRA taught from a folder of pictures."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from ..checkpoint.find import NANO, Found, find
from ..checkpoint.load import check_weights, load_vq
from ..checks import number_in, whole_number
from ..devices import Ranks
from ..files import check_writable
from ..locks import folder_lock
from ..model.adapters import TARGETS
from ..pictures.sizes import CELL
from ..pipeline import DTYPES, Pipeline, PlacedVQ, checkpoint_path
from ..provenance import identified_checkpoint
from ..sampling.noise import SEEDS
from ..sequence.prompt import GENERATE, Prompt, check_text
from ..training.batches import check_shares
from ..training.code_cache import FolderDataset, codec_name, encode_folder
from ..training.dataset import MOST_HELD, split
from ..training.folder import Survey, survey
from ..training.loop import Step
from ..training.lora import LORA_TRAINING, LoraBase, LoraData, LoraSettings, Taught, load_base, train_lora
from ..training.optimise import OPTIMISERS, SCHEDULES, check_installed
from ..training.plan import check_memory, plan_lines, step_cost
from ..training.processes import Replicated, joined, launched, own_device
from ..training.samples import Request, requests_of
from ..training.stopping import keeping
from ..training.watch import Watch
from .messages import say
from .output import check_not_read, progress, say_above
from .runs import check_outside

_DEFAULTS = LoraSettings()


def teach(args: argparse.Namespace) -> None:
    """A LoRA from a folder of pictures, captions, edits, questions; by one process or by all that torchrun starts."""
    found = find(checkpoint_path(args.checkpoint))
    check_weights(found)
    run: Path = args.run_folder or Path("runs") / args.pictures.resolve().name
    output: Path = args.output or run / "lora.safetensors"
    _check_places(args, found, run, output)
    settings = settings_of(args)
    where = own_device(args.device)
    with joined(where) if launched() else nullcontext():
        ranks = Ranks.from_environment()
        check_shares(settings.batch * settings.accumulate, ranks.size)
        report = say if ranks.rank == 0 else _silent
        side = found.defaults.side if args.side is None else args.side
        seen = survey(args.pictures, side=side, sides=found.defaults.sides, trigger=args.trigger)
        recompute = where.type != "cpu" if args.recompute is None else args.recompute
        cost = step_cost(found, seen.items, settings, DTYPES[args.dtype], recompute=recompute)
        check_memory(cost, where)
        for line in (*seen.report(), *plan_lines(seen.samples, settings, cost, where)):
            report(line)
        if args.check:
            return
        with folder_lock(run) if ranks.rank == 0 else nullcontext():
            taught = _taught(args, found, seen, settings, run, output, where, ranks, recompute=recompute)
        report(f"{taught.file}: use it with --lora {taught.file}, or put it into ComfyUI's folder models/loras")


def _silent(_line: str) -> None:
    """The lines of all processes but the first."""


def _check_places(args: argparse.Namespace, found: Found, run: Path, output: Path) -> None:
    """Raises ValueError where the run or the LoRA cannot be written, or would lie among what is read."""
    if output.suffix != ".safetensors":
        raise ValueError(f"--output is {output}; expected a file name that ends in .safetensors.")
    check_writable(run)
    check_writable(output.parent, [output.name])
    check_not_read(output, found.files)
    check_outside("--run", run, args.pictures)


def settings_of(args: argparse.Namespace) -> LoraSettings:
    """What the command line asks for; raises ValueError for a value that is out of range."""
    train = replace(
        LORA_TRAINING,
        steps=args.steps,
        rate=args.rate,
        warm_up=args.warm_up,
        weight_decay=args.weight_decay,
        clip=args.clip,
        save_every=args.save_every,
        seed=args.seed,
        optimizer=args.optimizer,
        schedule=args.schedule,
    )
    check_installed(train.optimiser)
    number_in("held_back", args.held_back, 0, MOST_HELD)
    whole_number("sample_seed", args.sample_seed, 0, SEEDS - 1)
    for text in args.sample_prompts:
        check_text("--sample-prompt", text)
    return LoraSettings(
        train,
        rank=args.rank,
        alpha=args.alpha,
        targets=tuple(args.targets),
        batch=args.batch,
        accumulate=args.accumulate,
        dropout=args.dropout,
        trigger=args.trigger.strip(),
        sample_every=args.sample_every,
        check_every=args.check_every,
    )


# The run ------------------------------------------------------------------------------------------------------------


def _taught(
    args: argparse.Namespace,
    found: Found,
    seen: Survey,
    settings: LoraSettings,
    run: Path,
    output: Path,
    where: torch.device,
    ranks: Ranks,
    *,
    recompute: bool,
) -> Taught:
    first = ranks.rank == 0
    vq = PlacedVQ(load_vq(found, device=where), where)
    with ranks.in_turn():
        dataset = _encoded(seen, vq, run, found, quiet=not first)
    taught, held_back = split(dataset, args.held_back, settings.train.seed)
    model = load_base(found, device=where, dtype=DTYPES[args.dtype], recompute=recompute)
    pipe = Pipeline(found, model, vq)
    base = LoraBase(model, vq, identified_checkpoint(found), pipe.image_settings(), pipe.place)
    data = LoraData(taught, held_back, _requests(args, found, dataset), str(seen.folder.resolve()))
    with _bar() as on_step:
        watch = Watch(lambda line: say_above(line, sys.stdout), on_step) if first else Watch(_silent)
        engine = partial(Replicated, where, mixed=False) if launched() else None
        return train_lora(base, data, settings, run=run, output=output, watch=watch, engine=engine)


def _encoded(seen: Survey, vq: PlacedVQ, run: Path, found: Found, *, quiet: bool) -> FolderDataset:
    count = len(seen.fitted)
    with keeping(f"the pictures that are encoded are kept in {run}"), progress("encode", "picture") as on_step:
        dataset = encode_folder(
            seen,
            vq,
            run,
            codec=codec_name(found),
            report=_silent if quiet else lambda line: say_above(line, sys.stderr),
            on_step=None if quiet else on_step,
        )
        if not quiet:
            on_step(count, count)
    return dataset


def _requests(args: argparse.Namespace, found: Found, dataset: FolderDataset) -> list[Request]:
    """What samples are made of: the prompts of the command line, else the first ones of the data."""
    if not args.sample_prompts:
        return requests_of(dataset, 2, args.sample_seed)
    width, height = found.defaults.size
    return [
        Request(Prompt(GENERATE, text), height // CELL, width // CELL, args.sample_seed + number)
        for number, text in enumerate(args.sample_prompts)
    ]


@contextmanager
def _bar() -> Iterator[Callable[[Step], None]]:
    """A bar that begins where the run does, so that it knows the time of its own steps alone."""
    with ExitStack() as stack:
        bars: list[tqdm] = []

        def on_step(step: Step) -> None:
            if not bars:
                made = tqdm(initial=step.number - 1, total=step.steps, desc="train lora", unit="step", file=sys.stderr)
                bars.append(stack.enter_context(made))
            bars[0].set_postfix(loss=f"{step.loss:.4f}", refresh=False)
            bars[0].update()

        yield on_step


# Arguments ----------------------------------------------------------------------------------------------------------


def lora_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "pictures",
        type=Path,
        metavar="folder",
        help="pictures with .txt captions, edits, questions: see docs/training.md",
    )
    add("--checkpoint", default=str(NANO), metavar="PATH", help="the base: bf16, fp8 or int8 (the built-in nano)")
    add(
        "--run",
        "--run-folder",  # torchrun takes --run for an option of its own, wherever it stands
        dest="run_folder",
        type=Path,
        metavar="RUN",
        help="folder of the run: state, log, samples (runs/NAME); with torchrun say --run-folder",
    )
    add("--output", type=Path, metavar="FILE", help="the LoRA, NAME.safetensors (RUN/lora.safetensors)")
    add("--trigger", default="", metavar="WORDS", help="put before every caption that does not have them")
    add("--check", action="store_true", help="look at the folder, print the report, and stop")
    add("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps ... (auto)")
    add("--dtype", choices=DTYPES, default="auto", help="dtype of the base; auto: as stored, fp8 and int8 too (auto)")
    group = parser.add_argument_group("training")
    add = group.add_argument
    add("--steps", type=int, default=1000, metavar="N", help="number of updates (1000)")
    add("--rate", type=float, default=1e-4, metavar="X", help="peak learning rate (1e-4)")
    add("--rank", type=int, default=_DEFAULTS.rank, metavar="R", help=f"rank of the branches ({_DEFAULTS.rank})")
    add("--alpha", type=float, metavar="X", help="branches are scaled by alpha / rank (the rank)")
    add("--targets", nargs="+", default=TARGETS, metavar="LAYER", help=f"layers of each block ({' '.join(TARGETS)})")
    add("--batch", type=int, default=1, metavar="N", help="samples in a pass (1)")
    add("--accumulate", type=int, default=1, metavar="N", help="passes in an update (1)")
    add("--schedule", choices=SCHEDULES, default="constant", help="of the rate, after the warm-up (constant)")
    add("--warm-up", type=int, default=50, metavar="N", help="updates in which the rate rises (50)")
    add("--optimizer", choices=OPTIMISERS, default="adamw", help="adamw8bit, adafactor and prodigy need their packages")
    add("--weight-decay", type=float, default=0.01, metavar="X", help="of the branches (0.01)")
    add("--clip", type=float, default=1.0, metavar="X", help="largest norm of a gradient (1)")
    add("--dropout", type=float, default=0.1, metavar="SHARE", help="of pictures taught without their words (0.1)")
    add("--side", type=int, metavar="PX", help="fit pictures to about SIDE x SIDE px (the checkpoint's)")
    add("--seed", type=int, default=0, metavar="N", help="of the start, the order and what is hidden (0)")
    add(
        "--recompute",
        action=argparse.BooleanOptionalAction,
        help="keep only the inputs of the blocks for the backward pass: far less memory, a third slower (not on a CPU)",
    )
    group = parser.add_argument_group("following it")
    add = group.add_argument
    add("--save-every", type=int, default=250, metavar="N", help="updates between two files of the LoRA (250)")
    add("--sample-every", type=int, default=100, metavar="N", help="updates between two samples; 0: none (100)")
    add(
        "--sample-prompt",
        dest="sample_prompts",
        action="append",
        default=[],
        metavar="TEXT",
        help="what samples show, several times for several (the first captions)",
    )
    add("--sample-seed", type=int, default=0, metavar="N", help="seed of the first sample (0)")
    add("--held-back", type=float, default=0.0, metavar="SHARE", help="of the pictures, which only check the rest (0)")
    add(
        "--check-every",
        type=int,
        default=_DEFAULTS.check_every,
        metavar="N",
        help=f"updates between two checks ({_DEFAULTS.check_every})",
    )
