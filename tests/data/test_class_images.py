import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import tiny
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from lightning_dreambooth.data.class_images import MANIFEST, ClassImageRecipe, ClassImages
from lightning_dreambooth.data.concepts import Concept
from lightning_dreambooth.diffusion.requests import Request, SamplingSettings
from lightning_dreambooth.diffusion.sampling import sample
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.models.stable_diffusion import StableDiffusion

CONCEPT = Concept("a photo of sks girl", "girl", "a photo of a girl", "class")
SETTINGS = SamplingSettings("ugly", 2, 5.0, "ddim")
RECIPE = ClassImageRecipe("a photo of a girl", SETTINGS, 32, "fingerprint")


def fill(model: StableDiffusion, count: int, recipe: ClassImageRecipe = RECIPE, seed: int = 0) -> int:
    before = contents()
    ClassImages(CONCEPT, count, recipe, seed, batch_size=2).fill(lambda: model)
    return len(contents()) - len(before)


def contents() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path("class").glob("*.png")}


def test_class_images_are_drawn_once(here: Path, model: StableDiffusion) -> None:
    assert fill(model, 3) == 3
    before = contents()
    assert fill(model, 3) == 0
    assert contents() == before


@pytest.mark.parametrize("batch_size", [2, 3, 4])
@pytest.mark.parametrize("lost", [{0}, {1}, {2, 3}, {0, 3, 6}, {4, 5, 6}, {1, 2, 3, 4, 5, 6}])
def test_class_images_are_redrawn_to_the_last_bit(
    here: Path, model: StableDiffusion, batch_size: int, lost: set[int]
) -> None:
    images = ClassImages(CONCEPT, 7, RECIPE, 0, batch_size)
    images.fill(lambda: model)
    before = contents()
    times = {name: Path("class", name).stat().st_mtime_ns for name in before}
    for number in lost:
        Path("class", f"{number:05d}.png").unlink()
    images.fill(lambda: model)
    assert contents() == before
    rewritten = {name for name in before if Path("class", name).stat().st_mtime_ns != times[name]}
    assert rewritten == {f"{number:05d}.png" for number in lost}


def test_images_that_the_user_has_taken_out_are_replaced_only_if_there_are_too_few(
    here: Path, model: StableDiffusion
) -> None:
    fill(model, 6)
    for name in ("00001.png", "00002.png"):
        Path("class", name).unlink()
    assert fill(model, 4) == 0
    tiny.images(Path("class"), 1)
    assert fill(model, 6) == 1
    assert Path("class/00001.png").is_file()
    assert not Path("class/00002.png").exists()


def test_class_images_are_topped_up_with_those_a_larger_set_would_have(here: Path, model: StableDiffusion) -> None:
    fill(model, 3)
    few = contents()
    assert fill(model, 5) == 2
    assert few.items() <= contents().items()
    for path in Path("class").glob("*.png"):
        path.unlink()
    topped = json.loads(Path("class", MANIFEST).read_text())["seeds"]
    fill(model, 5)
    assert json.loads(Path("class", MANIFEST).read_text())["seeds"] == topped
    assert len(set(topped.values())) == 5


def test_a_class_image_is_what_its_manifest_says(here: Path, model: StableDiffusion) -> None:
    fill(model, 2)
    manifest = json.loads(Path("class", MANIFEST).read_text())
    assert manifest["recipe"] == RECIPE.as_dict()
    request = Request("a photo of a girl", manifest["seeds"]["00001.png"], SETTINGS)
    expected = (sample(model, [request], 32)[0] * 255).to(torch.int16)
    drawn = pil_to_tensor(Image.open("class/00001.png")).to(torch.int16)
    assert (drawn - expected).abs().max() <= 1
    assert Image.open("class/00001.png").text["prompt"] == "a photo of a girl"


@pytest.mark.parametrize(
    ("change", "key", "value"),
    [
        ({"prompt": "a boy"}, "prompt", "a boy"),
        ({"model": "another"}, "model", "another"),
        ({"settings": replace(SETTINGS, steps=3)}, "steps", 3),
        ({"size": 64}, "resolution_px", 64),
        ({"settings": replace(SETTINGS, negative_prompt="")}, "negative_prompt", ""),
    ],
)
def test_class_images_of_another_recipe_are_never_reused_silently(
    here: Path, model: StableDiffusion, change: dict[str, object], key: str, value: object
) -> None:
    fill(model, 2)
    before = contents()
    with pytest.raises(InputError, match=f"class holds class images made with {key} .*, this run needs {value!r}"):
        fill(model, 4, RECIPE._replace(**change))
    assert contents() == before


def test_a_broken_manifest_is_refused(here: Path, model: StableDiffusion) -> None:
    fill(model, 1)
    Path("class", MANIFEST).write_text('{"seeds": {}}')
    with pytest.raises(InputError, match="is not a manifest of class images"):
        fill(model, 2)


def test_the_users_own_class_images_count(here: Path, model: StableDiffusion) -> None:
    tiny.images(Path("class"), 2)
    users_images = contents()
    assert fill(model, 3) == 1
    assert users_images.items() <= contents().items()
    assert len(contents()) == 3


def test_enough_class_images_need_no_model(here: Path) -> None:
    tiny.images(Path("class"), 3)
    ClassImages(CONCEPT, 3, RECIPE, 0, 2).fill(lambda: pytest.fail("the model was loaded"))
