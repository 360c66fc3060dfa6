"""How files reach the disk: beside their target, flushed, renamed into place; and what is in them, as one word."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from secrets import token_hex

from safetensors import SafetensorError

from lightning_dreambooth.errors import InputError, TrainingError

PART = ".{}.{}.part"  # name of a file or folder while it is written; the random word is its writer's alone
OLD = ".{}.old.part"  # name of a folder while another one takes its place


def flush(path: Path) -> None:
    """Asks the disk to keep a file or folder now: a rename alone does not survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replaced(target: Path) -> Iterator[Path]:
    """Gives a path beside `target` to write a file or folder to, and renames it into place when that has succeeded.

    Raises:
        TrainingError: if the disk refuses; whatever was at `target` is then still there.
    """
    beside = target.with_name(PART.format(target.name, token_hex(4)))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        for path in (beside, *beside.rglob("*")):
            flush(path)
        _put_into_place(beside, target)
    except (OSError, SafetensorError) as error:
        raise TrainingError(_refusal(target, beside, error)) from error
    finally:
        _remove(beside)


def _put_into_place(beside: Path, target: Path) -> None:
    aside = target.with_name(OLD.format(target.name))
    _remove(aside)
    if target.is_dir():  # a folder is not replaced by a rename, as a file is
        target.replace(aside)
    try:
        beside.replace(target)
    except OSError:
        if aside.exists():
            aside.replace(target)
        raise
    _remove(aside)
    flush(target.parent)


def _refusal(target: Path, beside: Path, error: Exception) -> str:
    written = sum(path.stat().st_size for path in (beside, *beside.rglob("*")) if path.is_file())
    home = next(folder for folder in target.absolute().parents if folder.is_dir())
    return (
        f"{target} could not be written after {written:,} bytes ({error}); {shutil.disk_usage(home).free:,} bytes are "
        "free there. What was saved before stands: make room or change the permissions, and go on with --ckpt_path last"
    )


def remove_parts(*folders: Path) -> None:
    """Removes what killed runs have left half written directly in these folders.

    Only for the process that owns them by their lock, before any other of its run writes there. What an orphan of a
    killed run still writes is removed with the rest: it then ends, or writes under a name that is nobody else's.
    """
    for folder in folders:
        for old in folder.glob(OLD.format("*")):
            target = old.with_name(old.name[1:].removesuffix(".old.part"))
            if not target.exists():
                old.replace(target)  # killed between two renames
            _remove(old)
        for part in folder.glob(PART.format("*", "*")):
            _remove(part)


def sha256(file: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits; a file is read again only if it was written to."""
    about = file.stat()
    return _sha256(file.absolute(), about.st_ino, about.st_size, about.st_mtime_ns)


@cache
def _sha256(file: Path, *version: int) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def check_room(folder: Path, needed_bytes: int) -> None:
    """Raises InputError if a folder's disk cannot take so much."""
    home = next(home for home in (folder.absolute(), *folder.absolute().parents) if home.is_dir())
    free = shutil.disk_usage(home).free
    if free < needed_bytes:
        raise InputError(f"{folder}: {free:,} bytes are free there, a save takes {needed_bytes:,}; make room")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
