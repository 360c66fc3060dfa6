"""Writing and reading of state files: atomic, and without running code that a file holds."""

import zipfile
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from lightning_dreambooth.errors import InputError
from lightning_dreambooth.files import replaced

RESUMES = "resumes"  # how often the run had been resumed when a state or export was written
ENTRY = f"archive/{RESUMES}"  # of a state's zip; torch names its folder `archive`


def read_resumes(path: Path) -> int:
    """How often the run had been resumed when a state was written; 0 if the state does not say. Reads a few bytes only.

    Raises:
        InputError: if it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return int(archive.open(ENTRY).read(20)) if ENTRY in archive.namelist() else 0
    except Exception as error:  # damaged files may raise anything
        raise InputError(f"{path} is damaged or not a state ({error})") from error


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's format, written atomically: a kill at any moment leaves the previous state intact."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes a state of tensors and plain values, with its `resumes` beside them, where they are read at once.

        Raises:
            TrainingError: if writing fails.
        """
        with replaced(Path(path)) as beside, beside.open("w+b") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # torch hides the error of the disk in its context
                raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
            with zipfile.ZipFile(file, "a") as archive:
                archive.writestr(ENTRY, str(checkpoint.get(RESUMES, 0)))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads a state; only tensors and plain values are unpickled.

        Raises:
            InputError: if it holds anything else.
        """
        try:
            state = torch.load(path, map_location=map_location or "cpu", weights_only=True, mmap=True)
        except Exception as error:  # a broken or hostile file may raise anything
            reason = str(error).strip().splitlines() or [repr(error)]
            raise InputError(
                f"{path} cannot be loaded as a state of tensors and plain values ({reason[0]}); give a state that "
                "`fit` has written"
            ) from error
        if not isinstance(state, dict):
            raise InputError(f"{path} holds a {type(state).__name__}, not a state that `fit` has written")
        return state
