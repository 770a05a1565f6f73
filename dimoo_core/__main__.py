"""The command line: ``python -m dimoo_core generate | edit | inpaint | describe | ...``. It needs no ComfyUI.

A command is a row of `COMMANDS`: what it is for, examples, a function that adds its arguments and one that runs it.
What a user got wrong comes as a ValueError or OSError of one sentence and ends the program with status 2.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from . import jobs, provenance
from .cache import CANDIDATES, PRESETS, CachePolicy
from .checkpoint import CELL, NANO, Defaults, Found, find, load_tokenizer, load_transformer, load_vq
from .convert import KINDS, convert
from .devices import device
from .download import REPO, download
from .folder import caption_file, lacking_captions, pictures_below, shared_captions, write_whole
from .image import PAINTED, RECTANGLE, centred_rectangle, load_mask, load_picture, to_pil
from .noise import SEEDS
from .prompt import EDITS
from .prompt_list import Job, Team, read_jobs, work_off
from .sampling import ImageSettings
from .strips import STRIP
from .text_policy import SPEEDS
from .text_sampling import TextSettings
from .train import EXAMPLES as TRAIN_EXAMPLES
from .train import train, train_arguments
from .vq import VQ

PROGRAM = "python -m dimoo_core"
GOES_ON = "what is done is kept, the same command goes on from there"
DTYPES = {"auto": None, "fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Command:
    """One subcommand; `examples` are command lines without the program's name."""

    summary: str
    examples: tuple[str, ...]
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]
    stopped: str = "nothing was written"


# What the commands do -----------------------------------------------------------------------------------------------


def generate(args: argparse.Namespace) -> None:
    """Pictures from words."""
    found = find(args.checkpoint)
    settings, files = image_settings(args, found.defaults), picture_files(args)
    made = facts(args, found)
    model, vq = load(found, args)
    with progress("generate") as on_step:
        pictures = jobs.generate(
            model,
            vq,
            jobs.text_prompt(args.prompt, args.negative),
            args.size or found.defaults.size,
            settings=settings,
            cfg=chosen(args.cfg, found.defaults.cfg),
            batch=args.batch,
            on_step=on_step,
        )
    save(pictures, files, made)


def edit(args: argparse.Namespace) -> None:
    """A picture changed as a text says."""
    found = find(args.checkpoint)
    settings, files = image_settings(args, found.defaults), picture_files(args)
    picture = load_picture(args.image)
    reference = None if args.reference is None else load_picture(args.reference)
    made = facts(args, found)
    model, vq = load(found, args)
    request = jobs.Edit(args.type, args.prompt, args.negative, reference, side=chosen(args.side, found.defaults.side))
    with progress("edit") as on_step:
        pictures = jobs.edit(
            model,
            vq,
            picture,
            request,
            settings=settings,
            cfg=chosen(args.cfg, found.defaults.cfg),
            image_cfg=chosen(args.image_cfg, found.defaults.image_cfg),
            batch=args.batch,
            on_step=on_step,
        )
    save(pictures, files, made)


def inpaint(args: argparse.Namespace) -> None:
    """A part of a picture painted anew; every pixel outside of it stays as it was."""
    found = find(args.checkpoint)
    settings, files = image_settings(args, found.defaults), picture_files(args)
    picture = load_picture(args.image)
    mask, coverage = wanted_mask(args, picture)
    made = facts(args, found)
    model, vq = load(found, args)
    height, width = picture.shape[2:]
    picture, mask = padded(picture, vq.scale, "replicate"), padded(mask[:, None], vq.scale, "constant")[:, 0]
    cells = jobs.painted_cells(vq, picture, mask, coverage=coverage, grow=args.grow)
    with progress("inpaint") as on_step:
        pictures = jobs.inpaint(
            model,
            vq,
            picture,
            cells.expand(args.batch, -1, -1),
            jobs.text_prompt(args.prompt, args.negative),
            settings=settings,
            cfg=chosen(args.cfg, found.defaults.cfg),
            on_step=on_step,
        )
    save(pictures[:, :, :height, :width], files, made)


def describe(args: argparse.Namespace) -> None:
    """An answer to a question about pictures."""
    found = find(args.checkpoint)
    settings = text_settings(args, found.defaults)
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
    pictures = [load_picture(path) for path in args.images]
    model, vq = load(found, args)
    with progress("describe") as on_step:
        answers = jobs.describe_pictures(model, vq, pictures, args.question, settings=settings, on_step=on_step)
    print(answers[0])
    if args.output is not None:
        args.output.write_text(answers[0] + "\n", encoding="utf-8")


def caption(args: argparse.Namespace) -> None:
    """A text file beside every picture of a folder."""
    found = find(args.checkpoint)
    settings = text_settings(args, found.defaults)
    every = pictures_below(args.folder)
    wanted, shared = lacking_captions(every, again=args.again), shared_captions(every)
    have = len(every) - len(shared) - len(wanted)
    print(f"{len(every)} pictures, {have} of them have a caption already", file=sys.stderr)
    for path, owner in shared.items():
        print(f"{path} is left out: {caption_file(path).name} is the caption of {owner.name}", file=sys.stderr)
    if not wanted:
        return
    model, vq = load(found, args)
    unreadable = 0
    for path in tqdm(wanted, desc="caption", unit="picture", file=sys.stderr):
        try:
            picture = load_picture(path)
        except ValueError as error:
            unreadable += 1
            tqdm.write(str(error), file=sys.stderr)
            continue
        (words,) = jobs.describe_pictures(model, vq, [picture], args.question, settings=settings)
        write_whole(caption_file(path), words + "\n")
        tqdm.write(f"{path}: {words}", file=sys.stdout)
    if unreadable:
        raise ValueError(f"{unreadable} of {len(wanted)} pictures have no new caption, see above; mend or remove them.")


def prompt_list(args: argparse.Namespace) -> None:
    """A picture for every prompt of a list; several processes of torchrun share the work."""
    found = find(args.checkpoint)
    usual = image_settings(args, found.defaults)
    check_folder(args.output)
    size = args.size or found.defaults.size
    cfg = chosen(args.cfg, found.defaults.cfg)
    job = Job("", args.negative, size, usual.seed, usual.steps, cfg, usual.temperature)
    listed = read_jobs(args.list, job, CELL)
    team = Team.from_environment()
    if args.device == "auto":
        args.device = team.device
    model, vq = load(found, args)

    shared = facts(args, found)

    def said(one: Job) -> dict[str, Any]:
        return {**shared, **one.to_dict()}

    def make(one: Job, path: Path) -> None:
        settings = replace(usual, steps=one.steps, temperature=one.temperature, seed=one.seed)
        prompt = jobs.text_prompt(one.prompt, one.negative)
        (picture,) = jobs.generate(model, vq, prompt, one.size, settings=settings, cfg=one.cfg)
        provenance.save(to_pil(picture), path, said(one))

    own = len(listed[team.rank :: team.size])
    with reproducible(args.device), tqdm(total=own, desc="list", unit="picture", file=sys.stderr) as bar:
        results = work_off(listed, args.output, make, facts=said, team=team, on_done=lambda *_: bar.update())
    team.leave()
    if team.rank == 0:
        print(results)


def fetch(args: argparse.Namespace) -> None:
    """A checkpoint from the hub."""
    folder = args.folder or model_folder()
    print(f"Downloading {args.repo} into {folder} ...", file=sys.stderr)
    place = download(args.repo, folder, revision=args.revision, endpoint=args.endpoint)
    find(place)
    print(place)


def convert_checkpoint(args: argparse.Namespace) -> None:
    """A checkpoint as one file."""
    with progress("convert", unit="B") as on_step:
        size = convert(find(args.source), args.output, args.dtype, on_step=on_step)
    print(f"{args.output}: {size / 1e9:.2f} GB; ComfyUI finds it in its folder models/dimoo.")


# Their parts --------------------------------------------------------------------------------------------------------


def load(found: Found, args: argparse.Namespace) -> tuple[jobs.Model, OnDevice]:
    """The networks of a checkpoint, on the device and in the dtype that the user named."""
    where = device(args.device)
    wanted = DTYPES[args.dtype]
    transformer = load_transformer(found, device=where, dtype=wanted, dequantised=wanted is not None)
    model = jobs.Model(transformer, load_tokenizer(found), found.table, found.defaults.sides)
    return model, OnDevice(load_vq(found, device=where), where, STRIP if args.vq_strips else None)


@dataclass(frozen=True, eq=False)
class OnDevice:
    """A VQ as the jobs use it: pictures come from the CPU and go back there.

    One at a time is enough for a whole batch to need no more memory than a picture, and to give the very same bits.
    """

    vq: VQ
    device: torch.device
    strip: int | None = None

    @property
    def scale(self) -> int:
        """Pixels per cell along each side."""
        return self.vq.scale

    def encode(self, pixels: Tensor) -> Tensor:
        """pixels [B,3,h,w] -> codes [B,H,W]"""
        return torch.cat([self.vq.encode(one.to(self.device), strip=self.strip).cpu() for one in pixels.split(1)])

    def decode(self, codes: Tensor) -> Tensor:
        """codes [B,H,W] -> pixels [B,3,h,w]"""
        return torch.cat([self.vq.decode(one.to(self.device), strip=self.strip).cpu() for one in codes.split(1)])


def chosen(value: float | None, default: float) -> float:
    """What the user said, or the checkpoint's default."""
    return default if value is None else value


def image_settings(args: argparse.Namespace, defaults: Defaults) -> ImageSettings:
    """How to sample pictures; raises ValueError for a setting out of range."""
    steps, temperature = chosen(args.steps, defaults.steps), chosen(args.temperature, defaults.temperature)
    return ImageSettings(steps, temperature, args.seed, args.ml_cache, args.guidance_start)


def text_settings(args: argparse.Namespace, defaults: Defaults) -> TextSettings:
    """How to sample an answer; raises ValueError where steps and blocks do not divide."""
    return TextSettings(
        max_tokens=chosen(args.max_tokens, defaults.max_tokens),
        steps=chosen(args.steps, defaults.text_steps),
        block_length=chosen(args.block_length, defaults.block_length),
        temperature=args.temperature,
        cfg=args.cfg,
        seed=args.seed,
        policy=SPEEDS[args.speed],
    )


def wanted_mask(args: argparse.Namespace, picture: Tensor) -> tuple[Tensor, float]:
    """What to repaint of a picture [1,3,h,w], [1,h,w] in 0..1, and the share of a cell that has to be marked."""
    height, width = picture.shape[2:]
    if args.mask is None:
        mask = centred_rectangle(width, height, width_ratio=args.mask_width, height_ratio=args.mask_height)
    else:
        mask = F.interpolate(load_mask(args.mask)[None], (height, width), mode="nearest-exact")[0]
    mask = (mask > 0.5).float()
    return (1 - mask if args.outpaint else mask), (RECTANGLE if args.mask is None else PAINTED)


def padded(pixels: Tensor, scale: int, mode: str) -> Tensor:
    """[B,C,h,w] continued to the right and below up to the next multiples of `scale` px."""
    height, width = pixels.shape[2:]
    return F.pad(pixels, (0, -width % scale, 0, -height % scale), mode=mode)


def model_folder() -> Path:
    """`models/dimoo` of the ComfyUI that this pack is installed in, else `models` here."""
    home = Path(__file__).absolute().parents[2]
    return home.parent / "models" / "dimoo" if home.name == "custom_nodes" else Path("models")


@contextmanager
def reproducible(name: str) -> Iterator[None]:
    """On a CPU one thread computes: the last bits of a sum depend on how many share it, and torchrun gives each of
    its processes another number of them than a process has that is alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if device(name).type == "cpu" else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def progress(title: str, unit: str = "step") -> Iterator[Callable[[int, int, object], None]]:
    """Gives the jobs' `on_step`: a bar on stderr that appears with the first step and goes with the `with`."""
    with ExitStack() as stack:
        bars: list[tqdm] = []

        def on_step(done: int, total: int, _state: object) -> None:
            if not bars:
                bars.append(
                    stack.enter_context(
                        tqdm(total=total, desc=title, unit=unit, unit_scale=unit == "B", file=sys.stderr)
                    )
                )
            bars[0].update(done - bars[0].n)

        yield on_step


def picture_files(args: argparse.Namespace) -> list[Path]:
    """Where the pictures of a batch go, each named after its own seed; made sure of before the work begins.

    A file that the user names is overwritten, a file named by us never. Raises ValueError where no picture can be.
    """
    if args.batch < 1:
        raise ValueError(f"--batch is {args.batch}; a whole number from 1 is needed.")
    output, seeds = args.output or Path(), [(args.seed + item) % SEEDS for item in range(args.batch)]
    if output.is_dir() or not output.suffix:
        output.mkdir(parents=True, exist_ok=True)
        return [unused(output, f"{args.command}-{seed}") for seed in seeds]
    if Image.registered_extensions().get(output.suffix.lower()) not in Image.SAVE:  # some can be read only
        raise ValueError(f"--output is {output}; a folder or a picture file such as picture.png is needed.")
    output.parent.mkdir(parents=True, exist_ok=True)
    return [output] if args.batch == 1 else [output.with_stem(f"{output.stem}-{seed}") for seed in seeds]


def check_folder(path: Path) -> None:
    """Raises ValueError where a folder is wanted and the user names a file."""
    if not path.is_dir() and (path.exists() or path.suffix.lower() in Image.registered_extensions()):
        raise ValueError(f"--output is {path}; the pictures of a list need a folder; name one, such as pictures.")


def unused(folder: Path, stem: str) -> Path:
    """folder/stem.png, numbered where that name is taken."""
    path, number = folder / f"{stem}.png", 2
    while path.exists():
        path, number = folder / f"{stem}-{number}.png", number + 1
    return path


def facts(args: argparse.Namespace, found: Found) -> dict[str, Any]:
    """How a picture is made, to be written into its file: all that was said on the command line, defaults filled in.

    Files are told by name and fingerprint, never by where they lie.
    """
    place = Path(os.path.abspath(found.path))  # not resolved: the links of the hub's cache lead to nameless files
    name = "DiMOO-nano" if place == NANO.absolute() else place.name
    said = {
        key: value for key, value in vars(args).items() if key not in ("run", "checkpoint", "batch", "output", "list")
    }
    for key, value in said.items():
        if value is None:
            said[key] = getattr(found.defaults, key, None)
        elif isinstance(value, Path):
            said[key] = provenance.identified(value.name, [value])
        elif is_dataclass(value):
            said[key] = asdict(value)
    checkpoint = provenance.identified(name, found.files)
    return {**provenance.versions(), "checkpoint": checkpoint, **said, "device": device(args.device).type}


def save(pictures: Tensor, files: Sequence[Path], made: dict[str, Any]) -> None:
    """Writes pictures [B,3,h,w] with what `facts` says of the first of them, and says where they are."""
    for item, (picture, path) in enumerate(zip(pictures, files, strict=True)):
        provenance.save(to_pil(picture), path, {**made, "seed": (made["seed"] + item) % SEEDS})
        print(path)


# Their arguments ----------------------------------------------------------------------------------------------------


def size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT in px."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} came; WIDTHxHEIGHT in px is wanted, such as 1024x768")
    return int(parts[0]), int(parts[1])


def cache(text: str) -> CachePolicy | None:
    """A preset of ML-Cache, or its numbers: three as published, then perhaps the candidates and the prefix interval."""
    if text in PRESETS:
        return PRESETS[text]
    try:
        ratio, warmup, refresh, *ours = text.split(",")
        candidates, prefix = [*ours, *("all", "1")[len(ours) :]]
        return CachePolicy(float(ratio), float(warmup), int(refresh), candidates, int(prefix))
    except ValueError as error:
        names = ", ".join(PRESETS)
        raise argparse.ArgumentTypeError(
            f"{text!r} came; one of {names} is wanted, or RATIO,WARMUP,REFRESH[,CANDIDATES[,PREFIX]] such as 0.9,0.3,5 "
            f"or 0.9,0.3,5,holes,10 ({error})"
        ) from None


def common_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--checkpoint",
        type=Path,
        default=NANO,
        metavar="PATH",
        help="a folder as published, or a file that `convert` made (built-in DiMOO-nano)",
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps ... (auto)")
    group.add_argument("--dtype", choices=DTYPES, default="auto", help="of the transformer; auto: as stored (auto)")
    group.add_argument(
        "--vq-strips",
        action="store_true",
        help="turn pictures into codes and back in strips: a third of the memory and less, twice the time",
    )
    group.add_argument(
        "--seed", type=int, metavar="N", default=0, help="0 to 2^64-1; picture i of a batch has seed + i (0)"
    )


def sampling_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    ours = "the checkpoint's own, else"
    group.add_argument("--steps", type=int, metavar="N", help=f"more are slower and better ({ours} {Defaults.steps})")
    group.add_argument(
        "--cfg", type=float, metavar="X", help=f"how closely to follow the text; 0: fastest ({ours} {Defaults.cfg:g})"
    )
    group.add_argument(
        "--temperature",
        type=float,
        metavar="X",
        help=f"variety; 0: the same picture for every seed ({ours} {Defaults.temperature:g})",
    )
    group.add_argument("--negative", default="", metavar="TEXT", help="what not to show")
    group.add_argument(
        "--ml-cache",
        type=cache,
        metavar="CACHE",
        help=f"{', '.join(PRESETS)}, or RATIO,WARMUP,REFRESH[,CANDIDATES[,PREFIX]] such as 0.9,0.3,5 or "
        f"0.9,0.3,5,holes,10: faster, a little worse. CANDIDATES: {' or '.join(CANDIDATES)} (all); PREFIX: in how many "
        "steps prompt and input pictures are computed once (1) (off)",
    )
    group.add_argument(
        "--guidance-start",
        type=float,
        metavar="SHARE",
        default=0.0,
        help="share of the steps, at the beginning, that go without guidance: faster (0)",
    )
    common_arguments(parser)


def batch_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, metavar="N", default=1, help="how many pictures (1)")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="PATH", help="a picture file or a folder (here, as COMMAND-SEED.png)"
    )


def generate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="what to show")
    parser.add_argument(
        "--size", type=size, metavar="WxH", help="px, in steps of 16 (the checkpoint's, else 1024x1024)"
    )
    batch_arguments(parser)
    sampling_arguments(parser)


def edit_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", type=Path, help="the picture to start from")
    parser.add_argument("prompt", nargs="?", default="", help="what to change; some types need no words")
    parser.add_argument(
        "--type", choices=EDITS, default="edit_replace", metavar="TYPE", help=f"{', '.join(EDITS)} (edit_replace)"
    )
    parser.add_argument("--reference", type=Path, metavar="IMAGE", help="the style to take, for image_ref_transfer")
    parser.add_argument(
        "--side", type=int, metavar="PX", help=f"fit to about SIDE x SIDE px (the checkpoint's, else {Defaults.side})"
    )
    parser.add_argument(
        "--image-cfg",
        type=float,
        metavar="X",
        help=f"how closely to follow the picture (the checkpoint's, else {Defaults.image_cfg:g})",
    )
    batch_arguments(parser)
    sampling_arguments(parser)


def inpaint_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", type=Path, help="the picture to repaint")
    parser.add_argument("prompt", help="what the whole picture is to show")
    parser.add_argument("--mask", type=Path, metavar="IMAGE", help="white where to repaint, of any size")
    parser.add_argument("--mask-width", type=float, default=0.2, metavar="SHARE", help="of a centred rectangle (0.2)")
    parser.add_argument("--mask-height", type=float, default=1.0, metavar="SHARE", help="the same, its height (1.0)")
    parser.add_argument("--outpaint", action="store_true", help="repaint what is NOT marked")
    parser.add_argument("--grow", type=int, default=0, metavar="CELLS", help="widen the mask by cells of 16 px (0)")
    batch_arguments(parser)
    sampling_arguments(parser)


def describe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", type=Path, nargs="+", metavar="image", help="one picture, or several to ask about")
    answer_arguments(parser)
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="also write the answer to this text file")


def caption_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="where the pictures are, folders in it included")
    parser.add_argument("--again", action="store_true", help="also those that have a caption already")
    answer_arguments(parser)


def list_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("list", type=Path, help="a .txt (a prompt per line), .json or .jsonl file")
    parser.add_argument(
        "--size", type=size, metavar="WxH", help="px, in steps of 16 (the checkpoint's, else 1024x1024)"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FOLDER",
        default=Path("pictures"),
        help="the folder of the pictures, 00001.png and so on, and of results.json (pictures)",
    )
    sampling_arguments(parser)


def answer_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--question", default="Describe the image.", help="what to ask (Describe the image.)")
    group = parser.add_argument_group("sampling")
    ours = "the checkpoint's own, else"
    group.add_argument("--max-tokens", type=int, metavar="N", help=f"longest answer ({ours} {Defaults.max_tokens})")
    group.add_argument(
        "--steps", type=int, metavar="N", help=f"a multiple of the number of blocks ({ours} {Defaults.text_steps})"
    )
    group.add_argument(
        "--block-length", type=int, metavar="N", help=f"it divides --max-tokens ({ours} {Defaults.block_length})"
    )
    group.add_argument("--temperature", type=float, metavar="X", default=0.0, help="0: the likeliest answer (0)")
    group.add_argument(
        "--cfg", type=float, metavar="X", default=0.0, help="above 0 weighs pictures and question more (0)"
    )
    group.add_argument(
        "--speed",
        choices=SPEEDS,
        default="exact",
        help="balanced and fast read the picture once or a few times, not at every step, and write several words a "
        "step where they are sure; now and then another word (exact)",
    )
    common_arguments(parser)


def download_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("repo", nargs="?", default=REPO, help=f"OWNER/NAME on the hub ({REPO})")
    parser.add_argument(
        "--folder",
        type=Path,
        metavar="DIR",
        help="where the folder NAME is made (models/dimoo of the ComfyUI that has this pack, else models)",
    )
    parser.add_argument("--revision", default="main", metavar="REV", help="a branch, tag or commit (main)")
    parser.add_argument(
        "--endpoint", metavar="URL", help="a mirror of the hub (the environment's HF_ENDPOINT, else the hub)"
    )


def convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="checkpoint", help="a folder as published")
    parser.add_argument("output", type=Path, help="the file to write, NAME.safetensors")
    parser.add_argument(
        "--dtype",
        choices=KINDS,
        default="bf16",
        help="of the blocks' matrices: of 16.2 GB fp8 leaves 10.8 and int8 9.2, both a little less exact (bf16)",
    )


COMMANDS: dict[str, Command] = {
    "generate": Command(
        "a picture from words",
        (
            'generate "a large red circle on a blue background"',
            'generate "a green square" --batch 4 --seed 7 -o pictures/',
        ),
        generate_arguments,
        generate,
    ),
    "edit": Command(
        "a picture changed as you say, or its edges, depth, another style",
        (
            'edit generate-0.png "make the circle yellow"',
            "edit generate-0.png --type canny_pred -o edges.png",
            "edit photo.jpg --type image_ref_transfer --reference painting.jpg --checkpoint models/Lumina-DiMOO",
        ),
        edit_arguments,
        edit,
    ),
    "inpaint": Command(
        "a part of a picture painted anew, the rest untouched",
        (
            'inpaint generate-0.png "a small green square on a blue background" --mask mask.png',
            'inpaint photo.png "a wide beach" --mask-width 0.6 --outpaint --checkpoint models/Lumina-DiMOO',
        ),
        inpaint_arguments,
        inpaint,
    ),
    "describe": Command(
        "what a picture shows, in words",
        ("describe generate-0.png", 'describe a.jpg b.jpg --question "What changed?" --checkpoint models/Lumina-DiMOO'),
        describe_arguments,
        describe,
    ),
    "caption": Command(
        "a text file beside every picture of a folder",
        ("caption pictures/", 'caption pictures/ --question "What is in the foreground?" --again'),
        caption_arguments,
        caption,
        stopped=GOES_ON,
    ),
    "list": Command(
        "a picture for every prompt of a list, with resume",
        (
            "list prompts.txt -o pictures/",
            "list prompts.jsonl -o pictures/ --checkpoint models/Lumina-DiMOO --ml-cache balanced",
        ),
        list_arguments,
        prompt_list,
        stopped=GOES_ON,
    ),
    "download": Command(
        "the 8B model from the Hugging Face Hub; goes on where it was cut",
        (
            "download --folder ComfyUI/models/dimoo",
            "download Alpha-VLLM/Lumina-DiMOO --revision main --endpoint https://mirror.example",
        ),
        download_arguments,
        fetch,
        stopped=GOES_ON,
    ),
    "convert": Command(
        "a checkpoint as one file, for ComfyUI's model folder and for smaller cards",
        (
            "convert models/Lumina-DiMOO ComfyUI/models/dimoo/Lumina-DiMOO-int8.safetensors --dtype int8",
            "convert models/Lumina-DiMOO ComfyUI/models/dimoo/Lumina-DiMOO.safetensors",
        ),
        convert_arguments,
        convert_checkpoint,
    ),
    "train": Command(
        "networks taught: DiMOO-nano built from nothing, or a fine-tune",
        TRAIN_EXAMPLES,
        train_arguments,
        train,
        stopped=GOES_ON,
    ),
}


# The program --------------------------------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; what it hands back has `command` and `run`."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Lumina-DiMOO: one model that generates, edits, inpaints and describes pictures.\n"
        "Without --checkpoint the built-in DiMOO-nano works: a toy world of coloured shapes, for trying things out.",
        epilog=examples([command.examples[0] for command in COMMANDS.values()])
        + f"\n\n{PROGRAM} COMMAND --help tells all settings of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        one = commands.add_parser(
            name,
            help=command.summary,
            description=f"{command.summary[0].upper()}{command.summary[1:]}. Defaults stand in brackets.",
            epilog=examples(command.examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.arguments(one)
        one.set_defaults(run=command.run)
    return parser


def examples(lines: Sequence[str]) -> str:
    return "\n".join(["examples:", *(f"  {PROGRAM} {line}" for line in lines)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; the program's exit status: 0, 2 where the user has to mend something, 130 when stopped."""
    args = build_parser().parse_args(arguments)
    try:
        args.run(args)
    except (ValueError, OSError) as error:
        print(f"{PROGRAM} {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROGRAM} {args.command}: stopped, {COMMANDS[args.command].stopped}.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
