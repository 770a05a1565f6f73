"""The command line: ``python -m dimoo_core generate | edit | inpaint | describe | ...``. It needs no ComfyUI.

A command is a row of `COMMANDS`: what it is for, examples, a function that adds its arguments and one that runs it.
What a user got wrong comes as a ValueError or OSError of one sentence and ends the program with status 2.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .pictures import edit, edit_arguments, generate, generate_arguments, inpaint, inpaint_arguments
from .prompt_list import list_arguments, prompt_list
from .train import EXAMPLES as TRAIN_EXAMPLES
from .train import train, train_arguments
from .weights import convert_arguments, convert_checkpoint, download_arguments, fetch
from .words import caption, caption_arguments, describe, describe_arguments

PROGRAM = "python -m dimoo_core"
GOES_ON = "what is done is kept, the same command goes on from there"


@dataclass(frozen=True)
class Command:
    """One subcommand; `examples` are command lines without the program's name."""

    summary: str
    examples: tuple[str, ...]
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]
    stopped: str = "nothing was written"


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
