"""Atomic writes (beside the target, flushed, then renamed), checks and SHA-256 of files, and free disk space."""

import errno
import hashlib
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from secrets import token_hex

from safetensors import SafetensorError

from lightning_dreambooth.errors import InputError, TrainingError

PART = ".{}.{}.part"  # name of a file or folder while it is written; the random word is unique to its writer
OLD = ".{}.old.part"  # name of a folder while another one replaces it
DISK_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
}  # fmt: skip


def flush(path: Path) -> None:
    """Flushes a file or folder to the disk: a rename alone may be lost in a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replaced(target: Path) -> Iterator[Path]:
    """Yields a path beside `target` for a file or folder, and renames it into place when the block has succeeded.

    Raises:
        TrainingError: if writing fails; `target` is then as it was before.
    """
    beside = target.with_name(PART.format(target.name, token_hex(4)))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        for path in (beside, *beside.rglob("*")):
            flush(path)
        _put_into_place(beside, target)
    except (OSError, SafetensorError) as error:
        raise TrainingError(_refusal(target, error, f" after {_size(beside):,} bytes")) from error
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


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Explains errors of the disk inside the block that name no remedy, and perhaps not even a path in `folder`.

    Raises:
        TrainingError: if the disk is full or broken, or writing is not allowed.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise TrainingError(_refusal(Path(str(error.filename or folder)), error)) from error


def _size(path: Path) -> int:
    return sum(inside.stat().st_size for inside in (path, *path.rglob("*")) if inside.is_file())


def _refusal(target: Path, error: Exception, progress: str = "") -> str:
    existing = next(folder for folder in target.absolute().parents if folder.is_dir())
    return (
        f"{target} could not be written{progress} ({error}); {shutil.disk_usage(existing).free:,} bytes "
        "are free there. What was saved before remains: make room or change the permissions, and resume with "
        "--ckpt_path last"
    )


def remove_parts(*folders: Path) -> None:
    """Removes unfinished files of killed runs, directly in these folders.

    Only the process that holds the folders' lock may call it, before other processes of its run write there. A process
    of a killed run may still be writing: its file is removed too, and it fails or continues under its own unique name.
    """
    for folder in folders:
        for old in folder.glob(OLD.format("*")):
            target = old.with_name(old.name[1:].removesuffix(".old.part"))
            if not target.exists():
                old.replace(target)  # killed between two renames
            _remove(old)
        for part in folder.glob(PART.format("*", "*")):
            _remove(part)


def is_whole(path: Path) -> bool:
    """Whether a file is as torch writes it: an archive whose bytes fit its checksums, and that is not compressed."""
    try:
        with zipfile.ZipFile(path) as archive:
            # torch never compresses, and a hostile compressed file may unpack to any size.
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
            return stored and archive.testzip() is None
    except Exception:  # damaged files may raise anything
        return False


def sha256(file: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits; a file is read again only if it has changed."""
    status = file.stat()
    return _sha256(file.absolute(), status.st_ino, status.st_size, status.st_mtime_ns)


@cache
def _sha256(file: Path, *version: int) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def check_room(folder: Path, needed_bytes: int) -> None:
    """Raises InputError if the disk of a folder has less than `needed_bytes` free."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise InputError(f"{folder}: {free:,} bytes are free there, saving takes {needed_bytes:,}; make room")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
