"""What a user names: paths with `~` and `$VAR`, and text files in any Unicode encoding."""

import os
import re
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from pathlib import Path

from lightning_dreambooth.errors import InputError

MAX_TEXT_BYTES = 16 * 2**20  # of a list, prompts file or caption
VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


def expand(path: str) -> str:
    """A path or hub id with `~`, `~user`, `$VAR` and `${VAR}` replaced, as a shell does.

    Raises:
        InputError: if a variable is not set.
    """
    for name in (match[1] or match[2] for match in VARIABLE.finditer(path)):
        if name not in os.environ:
            raise InputError(f"{path} names the variable ${name}, which is not set; set it, or write the path out")
    return os.path.expanduser(os.path.expandvars(path))


def expand_given(path: str | None) -> str | None:
    """`expand`, for a path that may be left out."""
    return None if path is None else expand(path)


def check_regular(path: Path) -> None:
    """Raises InputError if something is there that is not a regular file: reading a pipe or device may never end."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is not a regular file; name one")


def read_text(path: Path) -> str:
    """The content of a text file in UTF-8, with or without a byte order mark, or in UTF-16 with one.

    Raises:
        InputError: if it cannot be read, is another kind of file, too long, or in another encoding.
    """
    check_regular(path)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_TEXT_BYTES + 1)
        if len(content) > MAX_TEXT_BYTES:
            raise InputError(f"{path} is longer than {MAX_TEXT_BYTES:,} bytes; name a shorter text")
        in_utf16 = content.startswith((BOM_UTF16_LE, BOM_UTF16_BE))
        text = content.decode("utf-16") if in_utf16 else content.removeprefix(BOM_UTF8).decode("utf-8")
        if "\0" in text:  # never in a text, and everywhere in UTF-16 without a mark and in UTF-32
            raise InputError(f"{path} is not text in UTF-8 (it holds zero bytes, as UTF-16 does); save it as UTF-8")
        return text
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text in UTF-8 ({error}); save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); name a text file") from error
