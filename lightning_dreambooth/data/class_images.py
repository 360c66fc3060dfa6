"""Class folders: filled once by the base model through image_store.py, with a manifest of how each image was drawn."""

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lightning_dreambooth import randomness
from lightning_dreambooth.data.concepts import Concept, class_images
from lightning_dreambooth.data.image_store import ImageWriter, fill_folder
from lightning_dreambooth.diffusion.requests import ImageJob, Request, SamplingSettings
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.files import replaced
from lightning_dreambooth.models.stable_diffusion import StableDiffusion
from lightning_dreambooth.sizes import Size, as_text

MANIFEST = "class_images.json"


class ClassImageRecipe(NamedTuple):
    """Everything that decides the class images of a folder, except their seeds."""

    prompt: str
    settings: SamplingSettings
    size: Size
    model: str

    def as_dict(self) -> dict[str, Any]:
        """The recipe as it stands in the manifest."""
        px = {"resolution_px": self.size} if isinstance(self.size, int) else {"size_px": as_text(self.size)}
        return {"prompt": self.prompt, **asdict(self.settings), **px, "model": self.model}


@dataclass(frozen=True)
class ClassImages:
    """The class images of one concept.

    Args:
        concept: The concept.
        count: Number of images that the folder should hold.
        recipe: How they are drawn.
        seed: Seed from which each image's own seed is drawn.
        batch_size: Images drawn at once.
    """

    concept: Concept
    count: int
    recipe: ClassImageRecipe
    seed: int
    batch_size: int

    @property
    def folder(self) -> Path:
        """Folder of the class images."""
        return Path(str(self.concept.class_data_dir))

    def missing(self) -> list[ImageJob]:
        """Jobs of the images that the folder lacks; writes nothing.

        Images that the manifest does not name are the user's own and count.

        Raises:
            InputError: if the class images of the folder were drawn by another recipe.
        """
        present = self._present()
        absent = [job for job in self.jobs() if job.path and job.path.name not in present]
        return absent[: max(0, self.count - len(present))]

    def jobs(self) -> list[ImageJob]:
        """Jobs of all images that this run may draw into the folder, drawn or not; their batches do not change."""
        present, manifest = self._present(), self.folder / MANIFEST
        drawn = _read_manifest(manifest)["seeds"].keys() if manifest.is_file() else set()
        users = present - drawn
        numbers = (number for number in itertools.count() if _name(number) not in users)
        return [
            ImageJob(i, self._request(number), self.folder / _name(number))
            for i, number in enumerate(itertools.islice(numbers, max(0, self.count - len(users))))
        ]

    def _present(self) -> set[str]:
        if not self.folder.is_dir():
            return set()
        _check_manifest(self.folder / MANIFEST, self.recipe)
        return {image.path.name for image in class_images(self.concept)}

    def _request(self, number: int) -> Request:
        seed = int(randomness.integers(self.seed, f"class image {self.recipe.prompt}", [number], 2**31 - 1))
        return Request(self.recipe.prompt, seed, self.recipe.settings)

    def fill(self, load: Callable[[], StableDiffusion]) -> None:
        """Draws the missing images, all processes together; loads the model only if needed.

        Raises:
            InputError: if the class images of the folder were drawn by another recipe, or processes write to different
                disks.
        """
        writer = ImageWriter(load, self.recipe.model, self.recipe.size, self.batch_size)
        title = f"class images: {self.recipe.prompt}"
        fill_folder(self.folder, self.jobs, self.missing, writer, title, announce=self._write_manifest)

    def _write_manifest(self, jobs: Sequence[ImageJob]) -> None:
        """Records all jobs before the first image is drawn, so that every image has its record."""
        manifest = self.folder / MANIFEST
        seeds = _read_manifest(manifest)["seeds"] if manifest.is_file() else {}
        seeds |= {job.path.name: job.request.seed for job in jobs if job.path}
        content = json.dumps({"recipe": self.recipe.as_dict(), "seeds": seeds}, indent=1)
        with replaced(manifest) as beside:
            beside.write_text(content + "\n", encoding="utf-8")


def _name(number: int) -> str:
    return f"{number:05d}.png"


def _check_manifest(manifest: Path, recipe: ClassImageRecipe) -> None:
    if not manifest.is_file():
        return
    made_by = _read_manifest(manifest)["recipe"]
    for key, value in recipe.as_dict().items():
        if made_by.get(key) != value:
            raise InputError(
                f"{manifest.parent} holds class images made with {key} {made_by.get(key)!r}, this run needs {value!r}; "
                "name another class_data_dir or remove that one"
            )


def _read_manifest(manifest: Path) -> dict[str, dict[str, Any]]:
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        return {"recipe": dict(content["recipe"]), "seeds": dict(content["seeds"])}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{manifest} is not a manifest of class images ({error!r}); remove it or its folder"
        ) from error
