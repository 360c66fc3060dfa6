"""Short help: an overview of the verbs, and one line for each key of our sections."""

import inspect
import json
import shutil
import textwrap
from typing import Any, Literal, get_args, get_origin, get_type_hints

from docstring_parser import parse

from lightning_dreambooth.cli.arguments import SECTIONS, TOOLS, VERBS

HELP = ("-h", "--help")
ALL = "--help=all"
MEANING_COLUMN = 44
RUN = {
    "config": "YAML file; several are merged in order (-c for short).",
    "name": "Name of the run; everything it writes lies in runs/<name>.",
    "ckpt_path": "State to resume or to read; `last` is the newest one of the run.",
    "seed_everything": "Seed of all random draws.",
}
TRAINER = {  # the keys of Lightning's Trainer that most runs set
    "max_steps": "Length of the training in optimizer steps.",
    "precision": "32, bf16-mixed or 16-mixed; null is bf16-mixed if the device computes in it, else 32.",
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
    """What a verb does, and each key of our sections with its default and its meaning."""
    lines = [
        f"usage: {prog} {verb} [-c CONFIG ...] [--SECTION.KEY VALUE ...]", "", f"{verb}: {VERBS[verb]}.",
        "Configs are merged in order; the command line takes precedence. --print_config shows what a run would use.",
        f"{prog} {verb} {ALL} lists everything in full, Lightning's Trainer included.",
    ]  # fmt: skip
    lines += ["", *(_line(key, "", meaning) for key, meaning in RUN.items())]
    for section, kind in SECTIONS.items():
        meanings = {entry.arg_name: entry.description or "" for entry in parse(str(kind.__doc__)).params}
        parameters = inspect.signature(kind).parameters
        hints = get_type_hints(kind.__init__)  # type: ignore[misc]
        keys = {name: _default(parameters[name].default) for name in meanings if "Linked" not in meanings[name]}
        lines += [
            "",
            f"{section}:",
            *(
                _line(f"{section}.{key}", default, meanings[key] + _choices(hints[key]))
                for key, default in keys.items()
            ),
        ]
    lines += ["", "trainer:", *(_line(f"trainer.{key}", "", meaning) for key, meaning in TRAINER.items())]
    return "\n".join(lines)


def full_help(argv: list[str]) -> list[str]:
    """The arguments, with `--help=all` replaced by the parser's own `--help`."""
    return [HELP[1] if word == ALL else word for word in argv]


def _choices(hint: Any) -> str:
    return f" One of {', '.join(get_args(hint))}." if get_origin(hint) is Literal else ""


def _default(value: Any) -> str:
    if callable(value):
        return "torch.optim.AdamW"  # the only key whose default is a function
    return json.dumps(value) if value == "" or value is None or isinstance(value, bool) else str(value)


def _line(key: str, default: str, meaning: str) -> str:
    """A key with its default and, in a column of its own, its meaning."""
    columns = max(MEANING_COLUMN + 40, shutil.get_terminal_size((120, 24)).columns)
    name = f"  --{key} {default}"
    meanings = textwrap.wrap(" ".join(meaning.split()), columns - MEANING_COLUMN)
    first = [name.ljust(MEANING_COLUMN) + meanings.pop(0)] if len(name) < MEANING_COLUMN else [name]
    return "\n".join(first + [" " * MEANING_COLUMN + line for line in meanings])
