"""All commands, and the parser that is made of them. Importing this imports torch and everything else."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import NoReturn

from . import lora, pictures, prompt_list, train, weights, words
from .app import command as app
from .command import PROGRAM, SHELL, Command, shown
from .messages import shortened

_GROUPS = (pictures, words, prompt_list, app, weights, lora, train)
# In the order in which one may try them: the first example of each finds what those above it have made.
_ORDER = ("generate", "edit", "inpaint", "describe", "list", "caption", "app", "download", "convert", "train", "lora")
_ROWS: dict[str, Command] = {command.name: command for group in _GROUPS for command in group.COMMANDS}
COMMANDS: dict[str, Command] = {name: _ROWS[name] for name in _ORDER}


class Parser(argparse.ArgumentParser):
    """A parser whose complaints repeat no more than the beginning of what they are about."""

    def error(self, message: str) -> NoReturn:
        super().error(shortened(message))


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; its result has `command`, beside the command's own arguments."""
    parser = Parser(
        prog=PROGRAM,
        description="Lumina-DiMOO: one model that generates, edits, inpaints and describes pictures.\n"
        "Without --checkpoint it uses the built-in DiMOO-nano: a toy world of coloured shapes, for trying things out.",
        epilog=_epilog(first_examples()) + f"\n\n{PROGRAM} COMMAND --help shows all settings of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for name, command in COMMANDS.items():
        one = commands.add_parser(
            name,
            help=command.summary,
            description=f"{command.summary[0].upper()}{command.summary[1:]}. Defaults are in parentheses.",
            epilog=_epilog([*command.setup, *command.examples]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.arguments(one)
    return parser


def first_examples() -> list[str]:
    """One example of each command, and what the shell has to prepare for them; they run in this order."""
    lines = []
    for command in COMMANDS.values():
        lines += [line for line in command.setup if line.startswith(SHELL)]
        lines.append(command.examples[0])
    return lines


def _epilog(lines: Iterable[str]) -> str:
    return "\n".join(["examples:", *(f"  {shown(line)}" for line in lines)])
