"""Checks of image folders before a model is loaded: every image is read, and what looks unintended is named."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lightning_dreambooth.data.checks import warn, warn_of_kind
from lightning_dreambooth.data.concepts import (
    FOLDERS,
    Concept,
    TrainingImage,
    class_images,
    held_out_images,
    instance_images,
)  # fmt: skip
from lightning_dreambooth.data.folders import ImageFolder, read_folder
from lightning_dreambooth.data.images import HEIC_SUFFIXES, near_identical, read_image
from lightning_dreambooth.data.masks import read_mask
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.files import sha256

BUCKET = re.compile(r"\d+x\d+")
MAX_COMPARED = 200  # more instance images than this are not compared with each other
LEAST_KEPT = 0.6  # share of an image's area that the largest square in it should keep
BLACK_AND_WHITE = 0.98  # share of pixels within 8 of black or white from which an image is taken for a mask


def check_images(
    concepts: Sequence[Concept], needs_class: bool, resolution_px: int, masked: bool = False, buckets: bool = False
) -> None:
    """Reads and checks every image of the concepts.

    Raises:
        InputError: if one cannot be read, or a folder that must hold images holds none.

    Warns:
        InputWarning: if images or what lies beside them are probably not intended; one line for each kind and folder.
    """
    named = {Path(getattr(concept, key) or "").resolve() for concept in concepts for key in FOLDERS}
    keys = [key for key in FOLDERS if needs_class or key != "class_data_dir"]
    folders = [getattr(concept, key) for concept in concepts for key in keys if getattr(concept, key)]
    for folder in dict.fromkeys(path for name in folders if (path := Path(name)).is_dir()):
        check_contents(read_folder(folder), named | _bucket_folders(folder) if buckets else named, masked)
    for concept in concepts:
        instances, held_out = instance_images(concept), held_out_images(concept)
        if not instances:
            raise InputError(f"{concept.instance_data_dir} holds no images; put 3 to 20 of the subject there")
        if concept.held_out_dir and not held_out:
            raise InputError(f"{concept.held_out_dir} is held_out_dir and holds no images; put some there")
        check_captions(concept, instances)
        check_instances([image.path for image in instances], resolution_px, buckets)
        if masked:
            check_masks(instances)
        for image in held_out + (class_images(concept) if needs_class else []):
            read_image(image.path)
        trained = {sha256(image.path) for image in instances}
        copies = [image.path for image in held_out if sha256(image.path) in trained]
        warn_of_kind([f"{path} is an instance image too, and so not held out" for path in copies])


def check_masks(instances: Sequence[TrainingImage]) -> None:
    """Reads the masks of instance images.

    Raises:
        InputError: if one cannot be read, or has another shape than its image.

    Warns:
        InputWarning: of those that mask nothing.
    """
    whole = [image.path for image in instances if read_mask(image).getextrema()[0] == 255]
    warn_of_kind([f"nothing of {path} is masked or transparent, so that all of it is trained on" for path in whole])


def check_contents(folder: ImageFolder, named: set[Path], masked: bool) -> None:
    """Warns of what lies in a folder and is not trained on; folders that a config names are."""
    if folder.skipped:
        counts = ", ".join(f"{count} {suffix}" for suffix, count in sorted(folder.skipped.items()))
        heic = "; to read .heic: pip install -e '.[heic]'" if HEIC_SUFFIXES & {*folder.skipped} else ""
        warn(f"{folder.path}: skipped files that are not read as images: {counts}{heic}")
    where = folder.path
    unused = [] if masked else folder.masks
    warn_of_kind([f"{mask} is a mask, which is not used: give data.masked_loss to train inside it" for mask in unused])
    warn_of_kind([f"{where / name} is a caption of no image" for name in folder.unused_captions])
    warn_of_kind([f"{where / name} is an empty caption; the prompt is used" for name in folder.empty_captions])
    unread = {path: count for path, count in folder.subfolders.items() if path.resolve() not in named}
    warn_of_kind([_unread(path, count) for path, count in unread.items()])


def _bucket_folders(folder: Path) -> set[Path]:
    """The folders of class images in a folder, one for each size."""
    return {path.resolve() for path in folder.iterdir() if path.is_dir() and BUCKET.fullmatch(path.name)}


def _unread(subfolder: Path, count: int) -> str:
    images = f"{count} image{'s' if count > 1 else ''}"
    return f"{subfolder} holds {images} that training does not read: name that folder, or move them out of it"


def check_captions(concept: Concept, instances: Sequence[TrainingImage]) -> None:
    """Warns of captions without the identifier."""
    word = concept.identifier or ""
    captioned = [image for image in instances if image.prompt != concept.instance_prompt]
    warn_of_kind([f"the caption of {image.path} lacks the identifier {word!r}"
                  for image in captioned if word not in image.prompt])  # fmt: skip


def check_instances(paths: Sequence[Path], resolution_px: int, buckets: bool = False) -> None:
    """Reads instance images, and warns of those that are small, nearly the same or like masks.

    Without buckets also of those that are far from square.
    """
    small, cut, masks, thumbnails = [], [], [], []
    for path in paths:
        image = read_image(path)
        width, height = image.size
        if (width * height < resolution_px**2) if buckets else (min(width, height) < resolution_px):
            small.append(f"{path} is {width} x {height} px, smaller than the resolution {resolution_px}")
        kept = min(width, height) / max(width, height)
        if kept < LEAST_KEPT and not buckets:
            cut.append(f"{path} is {width} x {height} px, of which the square keeps {kept:.0%}")
        if is_black_and_white(image):
            masks.append(f"{path} is only black and white, as masks are")
        if len(paths) <= MAX_COMPARED:
            thumbnails.append(image.resize((64, 64), Image.Resampling.BOX))
    near = near_identical(thumbnails)
    pairs = [f"{paths[i]} and {paths[j]} are nearly the same image, which then counts twice" for i, j in near]
    for kind in (small, cut, masks if len(masks) < len(paths) else [], pairs):  # if all are, it is the style
        warn_of_kind(kind)


def is_black_and_white(image: Image.Image) -> bool:
    """Whether nearly all pixels are black or white, and both occur, as in a mask."""
    counts = np.array(image.convert("L").histogram())
    black, white = counts[:8].sum(), counts[-8:].sum()
    return bool(min(black, white) > 0 and black + white >= BLACK_AND_WHITE * counts.sum())
