"""Image files in what a user names: files, and folders with what lies in them, in natural order."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lightning_dreambooth.data.folders import is_image
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.inputs import expand

DIGITS = re.compile(r"(\d+)")


class Sources(NamedTuple):
    """What was found.

    Attributes:
        images: Files to read.
        others: Files that are not read, and why.
    """

    images: list[Path]
    others: dict[Path, str]


def list_sources(inputs: Sequence[str], output: Path) -> Sources:
    """Files and folders => absolute paths of their images; folders are entered, but for hidden ones.

    Args:
        inputs: Names, with `~` and `$VAR`.
        output: The folder that will be filled.

    Raises:
        InputError: if an input does not exist, the output lies in one or one in it, or there is no image.
    """
    images: list[Path] = []
    others: dict[Path, str] = {}
    for given in (Path(expand(name)).absolute() for name in inputs):
        if not given.exists():
            raise InputError(f"{given} does not exist; name image files or folders of them")
        if given.is_dir() and output.resolve().is_relative_to(given.resolve()):
            raise InputError(f"--output {output} lies in the input {given}; name a folder beside it")
        for file in _files(given) if given.is_dir() else [given]:
            if file.is_symlink() and not _stays_in(given, file):
                others[file] = f"it is a link out of its folder, to {file.readlink()}"
            elif file.resolve().is_relative_to(output.resolve()):
                raise InputError(f"{file} lies in --output {output}; name another one: inputs are never changed")
            elif is_image(file):
                images.append(file)
            else:
                others[file] = "it is not called like an image"
    if not images:
        raise InputError(f"{', '.join(inputs)} holds no images; name files or folders of PNG, JPEG, WebP, ...")
    return Sources(list(dict.fromkeys(images)), others)


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir(), key=natural):
        if path.name.startswith("."):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _files(path)
        else:
            yield path


def natural(path: Path) -> tuple[list[tuple[int, str]], str]:
    """A sorting key by which page 2 comes before page 10."""
    words = DIGITS.split(path.name)
    return [(int(word), "") if word.isdecimal() else (-1, word) for word in words], path.name


def _stays_in(given: Path, link: Path) -> bool:
    try:
        return not given.is_dir() or link.resolve(strict=True).is_relative_to(given.resolve())
    except (OSError, RuntimeError):  # a broken link, or a link to itself
        return False
