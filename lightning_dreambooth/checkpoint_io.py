"""How a state and an export reach the disk: beside their target, flushed, renamed into place."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO


def flush(path: Path) -> None:
    """Asks the disk to keep a file or folder now: a rename alone does not survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replaced(target: Path) -> Iterator[Path]:
    """Gives a path beside `target` to write a file or folder to, and renames it into place when that has succeeded."""
    beside = target.with_name(f".{target.name}.part")
    _remove(beside)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield beside
        for path in (beside, *beside.rglob("*")):
            flush(path)
        if target.is_dir():
            shutil.rmtree(target)
        beside.replace(target)
        flush(target.parent)
    finally:
        _remove(beside)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's format, written so that a kill at any moment leaves the previous state whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes a state of tensors and plain values."""
        with replaced(Path(path)) as beside:
            torch.save(checkpoint, beside)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads a state; nothing but tensors and plain values is unpickled."""
        state: dict[str, Any] = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        return state
