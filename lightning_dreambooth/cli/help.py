"""Short help: an overview of the verbs, and one line for each key of our sections."""

import inspect
import shutil
from typing import Any

from docstring_parser import parse

from lightning_dreambooth.cli.arguments import SECTIONS, TOOLS, VERBS

HELP = ("-h", "--help")
ALL = "--help=all"
TRAINER = {  # the keys of Lightning's Trainer that most runs set
    "max_steps": "Length of the training in optimizer steps.",
    "precision": "32, bf16-mixed or 16-mixed.",
    "devices": "How many devices; with more than one also --trainer.strategy ddp.",
    "accumulate_grad_batches": "Micro-batches per optimizer step.",
}


def overview(prog: str) -> str:
    """The verbs and tools, a line each."""
    names = VERBS | TOOLS
    width = max(map(len, names))
    lines = [f"  {name.ljust(width)}  {text}" for name, text in names.items()]
    return "\n".join(
        [
            f"usage: {prog} VERB [-c CONFIG ...] [--SECTION.KEY VALUE ...]",
            "",
            *lines,
            "",
            f"{prog} VERB --help lists the options of a verb.",
        ]
    )


def short_help(prog: str, verb: str) -> str:
    """What a verb does, and each key of our sections with its default and the beginning of its meaning."""
    lines = [
        f"usage: {prog} {verb} [-c CONFIG ...] [--SECTION.KEY VALUE ...]", "", f"{verb}: {VERBS[verb]}.",
        "Configs are merged in order; the command line takes precedence. --print_config shows what a run would use.",
        f"{prog} {verb} {ALL} lists everything in full, Lightning's Trainer included.",
    ]  # fmt: skip
    for section, kind in SECTIONS.items():
        meanings = {entry.arg_name: entry.description or "" for entry in parse(str(kind.__doc__)).params}
        parameters = inspect.signature(kind).parameters
        keys = {name: _default(parameters[name].default) for name in meanings if "Linked" not in meanings[name]}
        lines += ["", f"{section}:", *(_line(section, key, default, meanings[key]) for key, default in keys.items())]
    lines += ["", "trainer:", *(_line("trainer", key, "", meaning) for key, meaning in TRAINER.items())]
    return "\n".join(lines)


def full_help(argv: list[str]) -> list[str]:
    """The arguments, with `--help=all` replaced by the parser's own `--help`."""
    return [HELP[1] if word == ALL else word for word in argv]


def _default(value: Any) -> str:
    if callable(value):
        return "..."
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _line(section: str, key: str, default: str, meaning: str) -> str:
    columns = max(80, shutil.get_terminal_size((120, 24)).columns)
    line = f"{f'  --{section}.{key} {default}'.ljust(46)} {' '.join(meaning.split())}"
    return line if len(line) <= columns else f"{line[: columns - 4].rstrip()} ..."
