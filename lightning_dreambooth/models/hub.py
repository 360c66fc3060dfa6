"""Folders of models, here or on the hub: their configs first, so that they can be checked, then their weights."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download

from lightning_dreambooth.errors import InputError

CONFIGS = ["*.json", "*/*.json", "*/merges.txt"]


def open_folder(name: str, revision: str | None) -> Path:
    """A hub id or folder => a local folder with all configs.

    Raises:
        InputError: if it is neither a hub id nor a folder.
    """
    return Path(name) if Path(name).is_dir() else _download(name, revision, CONFIGS)


def names_here(folder: Path) -> frozenset[str]:
    """The files of a model, and of its parts, that lie in a local folder."""
    paths = [*folder.glob("*"), *folder.glob("*/*")]
    return frozenset(path.relative_to(folder).as_posix() for path in paths if path.is_file())


def names_there(name: str, folder: Path) -> frozenset[str]:
    """All files that a model has on the hub, at the commit of the folder that `open_folder` gave."""
    if Path(name).is_dir():
        return names_here(folder)
    try:
        return frozenset(HfApi().list_repo_files(name, revision=folder.name))
    except Exception:  # offline, in whatever way: then what an earlier run has downloaded must do
        return names_here(folder)


def fetch(name: str, folder: Path, files: Sequence[Path]) -> None:
    """Downloads files of the folder that `open_folder` gave for a hub id, at the same commit.

    Raises:
        InputError: if the download fails.
    """
    if not Path(name).is_dir():
        _download(name, folder.name, [file.relative_to(folder).as_posix() for file in files])


def _download(name: str, revision: str | None, patterns: list[str]) -> Path:
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub's and the network's libraries may raise anything
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise InputError(f"{name} is neither a local folder nor a model that the hub provides: {reason}") from error
