"""docs/command-line.md says what the parser says: the same commands, flags and examples."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from dimoo_core.cli.command import SHELL
from dimoo_core.cli.commands import COMMANDS, build_parser
from dimoo_core.sequence.prompt import EDITS

TEXT = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))
SHARED = "Settings of generate, edit, inpaint and list"
FLAG = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (action,) = [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
    return action.choices


def flags(parser: argparse.ArgumentParser) -> set[str]:
    found = {flag for action in parser._actions for flag in action.option_strings} - {"-h", "--help"}
    if any(isinstance(action, argparse._SubParsersAction) for action in parser._actions):
        found |= {flag for one in subparsers(parser).values() for flag in flags(one)}
    return found


def documented(command: str) -> set[str]:
    """Flags in the tables and sentences of a command's section, and of the section that it shares."""
    text = SECTIONS[command] if command != "caption" else SECTIONS["caption"] + SECTIONS["describe"]
    text += SECTIONS[SHARED] if command in ("generate", "edit", "inpaint", "list") else ""
    prose = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    return set(FLAG.findall(prose))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_of_a_command_is_documented_and_no_other(command: str) -> None:
    own = flags(subparsers(build_parser())[command])
    said = documented(command) - ({"-o", "--output"} if command == "caption" else set())
    assert said == own


@pytest.mark.parametrize("command", COMMANDS)
def test_the_examples_are_those_of_the_help(command: str) -> None:
    shown = re.findall(r"^    (dimoo .*|echo .*)$", SECTIONS[command], re.MULTILINE)
    lines = [*COMMANDS[command].setup, *COMMANDS[command].examples]
    assert shown == [line if line.startswith(SHELL) else f"dimoo {line}" for line in lines]


def test_every_command_and_edit_type_is_there() -> None:
    table = dict(re.findall(r"^\| \[`(\w+)`\]\(#\w+\) \| (.*?) \|$", TEXT, re.MULTILINE))
    assert list(table) and table.keys() == COMMANDS.keys() <= SECTIONS.keys()
    types = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|$", SECTIONS["edit"], re.MULTILINE)
    assert [(name, label, words == "none") for name, label, words in types] == [
        (name, task.label, task.text is not None) for name, task in EDITS.items()
    ]
    assert TEXT.isascii()


def test_help_is_complete_and_plain() -> None:
    """Every argument has a help text, in today's words."""
    parser = build_parser()
    every = {"": parser, **subparsers(parser), **subparsers(subparsers(parser)["train"])}
    every |= subparsers(subparsers(parser)["lora"])
    for name, one in every.items():
        for action in one._actions:
            if not isinstance(action, argparse._SubParsersAction):
                assert action.help, (name, action.dest)
        text = one.format_help()
        assert not re.search(r"\b(anew|shall|mend|is wanted|is needed|told)\b| is no ", text), (name, text)
