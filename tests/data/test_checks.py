from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import tiny
from helpers.datasets import REFERENCE
from PIL import Image

from lightning_dreambooth.data.checks import check_concepts, check_lengths
from lightning_dreambooth.data.concepts import Concept
from lightning_dreambooth.errors import InputError, InputWarning
from lightning_dreambooth.models.stable_diffusion import StableDiffusion


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"instance_data_dir": "nowhere"}, "nowhere is not a folder"),
        ({"instance_data_dir": "empty"}, "empty holds no images"),
        ({"class_prompt": None}, "no class_prompt or class_data_dir, which the prior loss needs"),
        ({"class_data_dir": "girl/"}, "give each its own folder"),
        ({"weight": 0}, "weight of the concept .* is 0, must be 1 or more"),
        ({"num_class_images": -1}, "num_class_images of the concept .* is -1, must be 1 or more"),
    ],
)
def test_a_concept_that_cannot_be_trained_is_refused(here: Path, change: dict, message: str) -> None:
    Path("empty").mkdir()
    with pytest.raises(InputError, match=message):
        check_concepts([Concept(**REFERENCE | change)], needs_class=True, resolution_px=32)


def test_without_the_prior_no_class_is_needed(here: Path) -> None:
    check_concepts([Concept("a photo of sks girl", "girl")], needs_class=False, resolution_px=32)


def add_a_copy() -> None:
    Image.open("girl/00.png").save("girl/copy.jpg")


def add_a_small_one() -> None:
    tiny.images(Path("girl"), 1, size_px=31)


def add_a_note() -> None:
    Path("girl/note.doc").touch()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add_a_copy, r"girl/00\.png and girl/copy\.jpg are nearly the same image"),
        (add_a_small_one, r"girl/00\.png is 31 x 31 px, smaller than the resolution 32"),
        (add_a_note, "girl: skipped 1 files that are not images"),
    ],
)
def test_images_that_look_unintended_are_named(here: Path, change: Callable[[], None], message: str) -> None:
    change()
    with pytest.warns(InputWarning, match=message):
        check_concepts([Concept("sks girl", "girl")], needs_class=False, resolution_px=32)


def test_an_identifier_that_is_not_in_the_prompt_is_named(here: Path) -> None:
    with pytest.warns(InputWarning, match="the identifier 'sks' does not occur in the prompt 'a girl'"):
        check_concepts([Concept("a girl", "girl", identifier="sks")], needs_class=False, resolution_px=32)


def test_the_end_of_a_prompt_that_the_model_does_not_see_is_named(model: StableDiffusion) -> None:
    fits = " ".join(["girl"] * (tiny.TOKENS - 2))
    check_lengths([fits], model.tokenizer)
    with pytest.warns(InputWarning, match=f"longer than the {tiny.TOKENS} tokens .* it does not read 'pink hair'"):
        check_lengths([f"{fits} pink hair"], model.tokenizer)
