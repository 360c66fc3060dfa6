import json
from pathlib import Path

import pytest
from helpers import tiny
from helpers.datasets import REFERENCE

from lightning_dreambooth.data.concepts import Concept, instance_images, read_concepts
from lightning_dreambooth.errors import InputError


def write(content: object) -> str:
    Path("concepts_list.json").write_text(json.dumps(content))
    return "concepts_list.json"


def test_the_four_keys_of_the_reference_are_read(here: Path) -> None:
    assert read_concepts(write([REFERENCE])) == [Concept(**REFERENCE)]


def test_options_of_one_concept_are_read(here: Path) -> None:
    options = {"identifier": "sks", "weight": 2, "num_class_images": 50}
    assert read_concepts(write([REFERENCE, REFERENCE | options]))[1] == Concept(**REFERENCE, **options)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([REFERENCE | {"instance_promt": "x"}], "concept 1: unknown key 'instance_promt'; known are instance_prompt"),
        ([REFERENCE, {"instance_prompt": "x"}], "concept 2: instance_data_dir missing"),
        ([REFERENCE | {"weight": "2"}], "weight is '2', must be int"),
        ([REFERENCE | {"weight": True}], "weight is True, must be int"),
        ([REFERENCE | {"instance_prompt": ""}], "concept 1: instance_prompt empty"),
        (
            [REFERENCE | {"instance_prompt": " ", "instance_data_dir": ""}],
            "instance_prompt and instance_data_dir empty",
        ),
        ([], "must be a list of one or more"),
        ({"instance_prompt": "x"}, "must be a list of one or more"),
    ],
)
def test_a_wrong_concepts_list_is_refused_by_name(here: Path, content: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_concepts(write(content))


def test_a_concepts_list_that_is_not_json_is_refused(here: Path) -> None:
    Path("concepts_list.json").write_text("[")
    with pytest.raises(InputError, match=r"concepts_list\.json cannot be read as JSON"):
        read_concepts("concepts_list.json")
    with pytest.raises(InputError, match="nowhere"):
        read_concepts("nowhere.json")


def test_each_image_has_its_caption_or_the_prompt(here: Path) -> None:
    tiny.images(Path("girl"), 2)
    Path("girl/00.txt").write_text("sks girl laughing")
    images = instance_images(Concept("sks girl", "girl"))
    assert [image.prompt for image in images] == ["sks girl laughing"] + ["sks girl"] * 4
