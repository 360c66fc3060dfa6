"""Class folders: filled once by the base model through image_store.py, with a manifest of how each image was drawn."""

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

MANIFEST = "class_images.json"


class ClassImageRecipe(NamedTuple):
    """Everything that decides the class images of a folder, except their seeds."""

    prompt: str
    settings: SamplingSettings
    resolution_px: int
    model: str

    def as_dict(self) -> dict[str, Any]:
        """The recipe as it stands in the manifest."""
        return {
            "prompt": self.prompt, **asdict(self.settings), "resolution_px": self.resolution_px, "model": self.model,
        }  # fmt: skip


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
        present: set[str] = set()
        if self.folder.is_dir():
            _check_manifest(self.folder / MANIFEST, self.recipe)
            present = {image.path.name for image in class_images(self.concept)}
        jobs: list[ImageJob] = []
        number = 0
        while len(jobs) < self.count - len(present):
            name = f"{number:05d}.png"
            if name not in present:
                jobs.append(ImageJob(len(jobs), self._request(number), self.folder / name))
            number += 1
        return jobs

    def _request(self, number: int) -> Request:
        seed = int(randomness.integers(self.seed, f"class image {self.recipe.prompt}", [number], 2**31 - 1))
        return Request(self.recipe.prompt, seed, self.recipe.settings)

    def fill(self, load: Callable[[], StableDiffusion]) -> None:
        """Draws the missing images, all processes together; loads the model only if needed.

        Raises:
            InputError: if the class images of the folder were drawn by another recipe, or processes write to different
                disks.
        """
        writer = ImageWriter(load, self.recipe.model, self.recipe.resolution_px, self.batch_size)
        title = f"class images: {self.recipe.prompt}"
        fill_folder(self.folder, self.missing, writer, title, announce=self._write_manifest)

    def _write_manifest(self, jobs: Sequence[ImageJob]) -> None:
        """Records all jobs before the first image is drawn, so that every image has its record."""
        manifest = self.folder / MANIFEST
        seeds = _read_manifest(manifest)["seeds"] if manifest.is_file() else {}
        seeds |= {job.path.name: job.request.seed for job in jobs if job.path}
        content = json.dumps({"recipe": self.recipe.as_dict(), "seeds": seeds}, indent=1)
        with replaced(manifest) as beside:
            beside.write_text(content + "\n", encoding="utf-8")


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
