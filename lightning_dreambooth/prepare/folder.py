"""The folder that is filled: begun, gone on with, or begun again; nothing in it that a user made is lost."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_dreambooth.errors import InputError
from lightning_dreambooth.files import replaced, sha256
from lightning_dreambooth.inputs import read_text
from lightning_dreambooth.prepare.manifest import FOLDER, Manifest

SETTINGS = "settings.json"


def open_folder(output: Path, settings: Mapping[str, Any], overwrite: bool) -> Manifest:
    """The manifest of a folder, with the rows of an earlier `prepare` that did not finish.

    Args:
        output: The folder; it may not exist yet.
        settings: All that decides about the images, as JSON can hold it.
        overwrite: Whether to remove what an earlier `prepare` made, and to start over.

    Raises:
        InputError: if there are other files in it, or it was made with other settings.
    """
    file = output / FOLDER / SETTINGS
    if not file.is_file() and output.is_dir() and any(not path.name.startswith(".") for path in output.iterdir()):
        raise InputError(f"{output} holds files that are not of `prepare`; name an empty or new folder")
    if file.is_file() and overwrite:
        _clear(output)
    if file.is_file():
        _compare(json.loads(read_text(file)), json.loads(json.dumps(settings)), output)
    else:
        with replaced(file) as beside:
            beside.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    return Manifest(output)


def _compare(before: Mapping[str, Any], now: Mapping[str, Any], output: Path) -> None:
    changed = [f"{key} {before.get(key)} -> {now.get(key)}" for key in now if before.get(key) != now[key]]
    if changed:
        raise InputError(
            f"{output} was made with other settings ({', '.join(changed)}); give --overwrite to start over, or another "
            "--output"
        )


def _clear(output: Path) -> None:
    """Removes the images of the manifest with their captions, and then the manifest."""
    manifest = Manifest(output)
    written = json.loads(read_text(output / FOLDER / SETTINGS)).get("caption")
    captions = [(output / row.image).with_suffix(".txt") for row in manifest.kept]
    edited = [path for path in captions if path.is_file() and read_text(path).strip() != written]
    if edited:
        raise InputError(
            f"{edited[0]} has been edited (of {len(edited)}); move it out of the folder before --overwrite"
        )
    for path in [output / row.image for row in manifest.kept] + captions:
        path.unlink(missing_ok=True)
    for path in (output / FOLDER).iterdir():
        path.unlink()


def check_unchanged(manifest: Manifest) -> None:
    """Raises InputError if a file that is done is another one now: its images would be of a file that is gone."""
    done = {row.source: row.sha256 for row in manifest.rows if row.sha256}
    for source, digest in done.items():
        if Path(source).is_file() and sha256(Path(source)) != digest:
            raise InputError(f"{source} has changed since it was prepared; give --overwrite to start over")
