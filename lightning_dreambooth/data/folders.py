"""Folders of images: the images with their captions, and whatever else lies there."""

import json
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from unicodedata import normalize

from lightning_dreambooth.data.images import SUFFIXES
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.inputs import read_text

CAPTION_SUFFIXES = (".txt", ".caption")
METADATA = "metadata.jsonl"  # of an imagefolder of Hugging Face datasets
SILENT_FOLDERS = {"prepare"}  # what `prepare` says of the images
SILENT = {"thumbs.db", "desktop.ini", METADATA, "class_images.json"}  # and hidden files, such as .DS_Store
MASK = re.compile(r"(.+?)[-_.]mask(?:label)?")  # `dog-masklabel.png` of OneTrainer, `dog_mask.png`, `dog.mask.png`


@dataclass(frozen=True)
class ImageFolder:
    """What lies directly in a folder.

    Attributes:
        path: The folder.
        images: The images, sorted by name; masks are not among them.
        masks: Images that are called the mask of another one, sorted by name.
        skipped: Number of other files by suffix.
        captions: Files with captions by the name of their image, without or with its suffix, composed (NFC).
    """

    path: Path
    images: list[Path]
    masks: list[Path]
    skipped: Counter[str]
    captions: dict[str, Path]

    @cached_property
    def metadata(self) -> dict[str, str]:
        """Captions of `metadata.jsonl` by the file name of their image, composed (NFC).

        Raises:
            InputError: if a line is not an object with the texts `file_name` and `text`.
        """
        file = self.path / METADATA
        rows = {}
        for number, line in enumerate(read_text(file).splitlines() if file.exists() else [], start=1):
            try:
                row = json.loads(line) if line.strip() else {"file_name": "", "text": ""}
                name, text = row["file_name"], row["text"]
                rows[normalize("NFC", name)] = " ".join(text.split())
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise InputError(
                    f"{file}, line {number} is not an object with file_name and text ({error!r})"
                ) from error
        return {name: text for name, text in rows.items() if name}

    def caption_files(self, image: Path) -> list[Path]:
        """The captions beside an image: `name.txt` before `name.png.txt`."""
        keys = (normalize("NFC", image.stem), normalize("NFC", image.name))
        return [self.captions[key] for key in keys if key in self.captions]

    def caption(self, image: Path) -> str:
        """The caption of an image, from a file beside it or else from `metadata.jsonl`; empty if there is none."""
        beside = (" ".join(read_text(file).split()) for file in self.caption_files(image))
        return next(filter(None, beside), "") or self.metadata.get(normalize("NFC", image.name), "")

    def mask(self, image: Path) -> Path | None:
        """The mask beside an image; of several the first by name."""
        return next((mask for mask in self.masks if masked_stem(mask) == image.stem), None)

    @property
    def empty_captions(self) -> list[str]:
        """Names of caption files without a word, which count as none."""
        files = (file for image in self.images for file in self.caption_files(image))
        return [file.name for file in files if not read_text(file).strip()]

    @property
    def unused_captions(self) -> list[str]:
        """Names of captions that belong to no image."""
        used = {file for image in self.images for file in self.caption_files(image)}
        names = {normalize("NFC", image.name) for image in self.images}
        unused = [file.name for file in self.captions.values() if file not in used]
        return unused + [name for name in self.metadata if name not in names]

    @property
    def subfolders(self) -> dict[Path, int]:
        """Folders in the folder that hold images, which are not read, and how many."""
        folders = sorted(path for path in self.path.iterdir() if path.is_dir() and not _is_silent(path))
        counts = {folder: sum(map(is_image, folder.iterdir())) for folder in folders}
        return {folder: count for folder, count in counts.items() if count}


def _is_silent(folder: Path) -> bool:
    return folder.name.startswith(".") or folder.name in SILENT_FOLDERS


def is_image(path: Path) -> bool:
    """Whether a file is read as an image, by its name."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and not path.is_dir()


def masked_stem(path: Path) -> str | None:
    """The name, without suffix, of the image whose mask a file is by its own name; None if it is called no mask."""
    match = MASK.fullmatch(path.stem)
    return match[1] if match else None


def is_caption(path: Path) -> bool:
    """Whether a file is read as a caption, by its name."""
    return path.suffix.lower() in CAPTION_SUFFIXES


def read_folder(folder: Path) -> ImageFolder:
    """What lies directly in a folder; images are not opened.

    Raises:
        InputError: if it is not a folder, or a file is a link out of it: training images must lie in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; name one that holds images")
    files = sorted(path for path in folder.iterdir() if path.is_symlink() or not path.is_dir())
    for path in files:
        if path.is_symlink() and not _stays_in(folder, path):
            raise InputError(f"{path} is a link out of its folder, to {path.readlink()}; put a copy there")
    shown = [path for path in files if not path.name.startswith(".") and path.name.lower() not in SILENT]
    images = [path for path in shown if is_image(path)]
    stems = {path.stem for path in images}
    masks = {path for path in images if masked_stem(path) in stems}
    captions = [path for path in shown if is_caption(path)]
    others = (path for path in shown if not is_image(path) and not is_caption(path))
    return ImageFolder(
        folder, [path for path in images if path not in masks], sorted(masks),
        Counter(path.suffix.lower() or path.name for path in others),
        {normalize("NFC", path.stem): path for path in captions},
    )  # fmt: skip


def _stays_in(folder: Path, link: Path) -> bool:
    try:
        return folder.resolve() in link.resolve(strict=True).parents
    except (OSError, RuntimeError):  # a broken link, or a link to itself
        return False
