"""Fills the class-image folders once, from the original weights, and remembers in a manifest how each was made."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning_dreambooth import randomness
from lightning_dreambooth.data.concepts import Concept, class_images_of
from lightning_dreambooth.data.image_store import ImageJob
from lightning_dreambooth.data.image_store import fill as fill_folder
from lightning_dreambooth.diffusion.sampling import Request
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.files import replaced
from lightning_dreambooth.models.stable_diffusion import StableDiffusion

MANIFEST = "class_images.json"


class ClassImageRecipe(NamedTuple):
    """How class images are made, the same for every one of a folder but for the seed."""

    prompt: str
    negative_prompt: str
    steps: int
    guidance_scale: float
    sampler: str
    resolution_px: int
    model: str


def plan(concept: Concept, wanted: int, recipe: ClassImageRecipe, seed: int) -> list[ImageJob]:
    """What a concept's class folder still lacks; writes nothing.

    Images that the manifest does not name are the user's own and count.

    Raises:
        InputError: if the folder's class images were made by another recipe.
    """
    folder = Path(str(concept.class_data_dir))
    if not folder.is_dir():
        present = set()
    else:
        _check_manifest(folder / MANIFEST, recipe)
        present = {image.path.name for image in class_images_of(concept)[0]}
    lacking = wanted - len(present)
    missing: list[ImageJob] = []
    number = 0
    while len(missing) < lacking:
        if (name := f"{number:05d}.png") not in present:
            drawn_seed = int(randomness.integers(seed, f"class image {recipe.prompt}", [number], 2**31 - 1))
            request = Request(recipe.prompt, drawn_seed, *recipe[1:4], recipe.sampler)  # type: ignore[arg-type]
            missing.append(ImageJob(folder / name, request))
        number += 1
    return missing


def _check_manifest(manifest: Path, recipe: ClassImageRecipe) -> None:
    if not manifest.is_file():
        return
    made_by = _read_manifest(manifest)["recipe"]
    for key, value in recipe._asdict().items():
        if made_by.get(key) != value:
            raise InputError(
                f"{manifest.parent} holds class images made with {key} {made_by.get(key)!r}, this run wants {value!r}; "
                "name another class_data_dir or remove that one"
            )


def _read_manifest(manifest: Path) -> dict[str, dict[str, Any]]:
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        return {"recipe": dict(content["recipe"]), "seeds": dict(content["seeds"])}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{manifest} is no manifest of class images ({error!r}); remove it or its folder") from error


def write_manifest(missing: Sequence[ImageJob], recipe: ClassImageRecipe) -> None:
    """Records the plan before the first image is drawn, so that no image is ever without its record."""
    manifest = missing[0].path.parent / MANIFEST
    seeds = _read_manifest(manifest)["seeds"] if manifest.is_file() else {}
    seeds |= {path.name: request.seed for path, request in missing}
    with replaced(manifest) as beside:
        beside.write_text(json.dumps({"recipe": recipe._asdict(), "seeds": seeds}, indent=1) + "\n", encoding="utf-8")


def fill(
    concept: Concept,
    wanted: int,
    recipe: ClassImageRecipe,
    seed: int,
    model: Callable[[], StableDiffusion],
    batch_size: int,
) -> None:
    """Draws the class images that a concept lacks, shared out among all processes; asks for the model only if any are.

    Raises:
        InputError: if the folder's class images were made by another recipe, or other processes write to another disk.
    """
    fill_folder(
        Path(str(concept.class_data_dir)), lambda: plan(concept, wanted, recipe, seed),
        f"class images: {recipe.prompt}", {"model": recipe.model}, recipe.resolution_px, model, batch_size,
        note=lambda missing: write_manifest(missing, recipe),
    )  # fmt: skip
