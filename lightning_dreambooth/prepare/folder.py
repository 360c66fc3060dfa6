"""The folder that is filled: begun, gone on with, or begun again; nothing in it that a user made is lost."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_dreambooth.errors import InputError
from lightning_dreambooth.files import replaced, sha256
from lightning_dreambooth.inputs import read_text
from lightning_dreambooth.prepare import manifest, sheet
from lightning_dreambooth.prepare.manifest import FOLDER, Manifest, Row

SETTINGS = "settings.json"


def check_owner(output: Path) -> None:
    """Raises InputError if there are files in a folder, and no earlier `prepare` made it."""
    made = (output / FOLDER / SETTINGS).is_file()
    if not made and output.is_dir() and any(not path.name.startswith(".") for path in output.iterdir()):
        raise InputError(f"{output} holds files that are not of `prepare`; name an empty or new folder")


def open_folder(output: Path, settings: Mapping[str, Any], overwrite: bool) -> Manifest:
    """The manifest of a folder, with the rows of an earlier `prepare` that did not finish.

    Args:
        output: The folder; it may not exist yet.
        settings: All that decides about the images, as JSON can hold it.
        overwrite: Whether to remove what an earlier `prepare` made, and to start over.

    Raises:
        InputError: if it was made with other settings, or a user has changed what would be removed.
    """
    file = output / FOLDER / SETTINGS
    if file.is_file() and overwrite:
        _clear(output)
    if file.is_file():
        _compare(_read(file), json.loads(json.dumps(settings)), output)
    else:
        with replaced(file) as beside:
            beside.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    return Manifest(output)


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(read_text(file)))
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{file} cannot be read ({error}); name another --output") from error


def _compare(before: Mapping[str, Any], now: Mapping[str, Any], output: Path) -> None:
    changed = [f"{key} {before.get(key)} -> {now.get(key)}" for key in now if before.get(key) != now[key]]
    if changed:
        raise InputError(
            f"{output} was made with other settings ({', '.join(changed)}); give --overwrite to start over, or another "
            "--output"
        )


def _clear(output: Path) -> None:
    """Removes the images of the manifest with their captions, and then the manifest, the settings last."""
    kept, caption = Manifest(output).kept, str(_read(output / FOLDER / SETTINGS).get("caption")).strip()
    images = {output / row.image: row.image_sha256 for row in kept}
    captions = [path.with_suffix(".txt") for path in images]
    changed = [path for path, digest in images.items() if path.is_file() and sha256(path) != digest]
    changed += [path for path in captions if path.is_file() and read_text(path).strip() != caption]
    if changed:
        raise InputError(
            f"{changed[0]} has been edited (of {len(changed)}); move it out of the folder before --overwrite"
        )
    made = [output / FOLDER / name for name in (sheet.FILE, manifest.FILE, SETTINGS)]
    for path in [*images, *captions, *made]:
        path.unlink(missing_ok=True)


def check_unchanged(rows: Sequence[Row]) -> None:
    """Raises InputError if a file that is done is another one now: its images would be of a file that is gone."""
    done = {row.source: row.sha256 for row in rows}
    for source, digest in done.items():
        if Path(source).is_file() and sha256(Path(source)) != digest:
            raise InputError(f"{source} has changed since it was prepared; give --overwrite to start over")
