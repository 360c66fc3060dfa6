import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import tiny
from helpers.datasets import REFERENCE
from PIL import Image

from lightning_dreambooth.data.checks import check_concepts, check_lengths
from lightning_dreambooth.data.concepts import Concept
from lightning_dreambooth.data.image_checks import check_images
from lightning_dreambooth.data.images import SUFFIXES
from lightning_dreambooth.errors import InputError, InputWarning
from lightning_dreambooth.models.stable_diffusion import StableDiffusion


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_prompt": None}, "no class_prompt or class_data_dir, which the prior loss needs"),
        ({"weight": 0}, r"weight of the concept .* is 0, must lie in 1 \.\.\. 1,000"),
        ({"weight": 10**8}, r"weight of the concept .* is 100000000, must lie in 1 \.\.\. 1,000"),
        ({"num_class_images": -1}, r"num_class_images of the concept .* is -1, must lie in 1 \.\.\. 100,000"),
        ({"num_class_images": 10**9}, r"num_class_images of the concept .* is 1000000000, must lie in"),
        ({"instance_prompt": " "}, "instance_prompt of girl is empty"),
    ],
)
def test_a_concept_that_cannot_be_trained_is_refused(here: Path, change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_concepts([Concept(**REFERENCE | change)], needs_class=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"instance_data_dir": "nowhere"}, "nowhere is not a folder"),
        ({"instance_data_dir": "empty"}, "empty holds no images"),
        ({"held_out_dir": "empty"}, "empty is held_out_dir and holds no images"),
    ],
)
def test_a_folder_without_images_is_refused(here: Path, change: dict, message: str) -> None:
    Path("empty").mkdir()
    with pytest.raises(InputError, match=message):
        check_images([Concept(**REFERENCE | change)], needs_class=True, resolution_px=32)


SAME_FOLDER = ["girl", "girl/", "./girl", "class/../girl", "link"]


@pytest.mark.parametrize("folder", SAME_FOLDER)
@pytest.mark.parametrize("key", ["class_data_dir", "held_out_dir"])
@pytest.mark.parametrize("apart", [False, True], ids=["one concept", "two concepts"])
def test_a_folder_has_one_purpose(here: Path, folder: str, key: str, apart: bool) -> None:
    Path("class").mkdir()
    Path("link").symlink_to("girl")
    other = REFERENCE | {"instance_data_dir": "other"} if apart else REFERENCE
    with pytest.raises(InputError, match="give each its own folder"):
        check_concepts([Concept(**REFERENCE), Concept(**other | {key: folder})], needs_class=True)


@pytest.mark.parametrize("folder", ["class", "class/", "girl/../class", "link"])
def test_a_class_folder_has_one_prompt(here: Path, folder: str) -> None:
    Path("class").mkdir()
    Path("link").symlink_to("class")
    other = {"class_data_dir": folder, "class_prompt": "a photo of a dog"}
    with pytest.raises(InputError, match="is class_data_dir of two class prompts"):
        check_concepts([Concept(**REFERENCE), Concept(**REFERENCE | other)], needs_class=True)
    check_concepts([Concept(**REFERENCE), Concept(**REFERENCE | {"class_data_dir": folder})], needs_class=True)


def test_without_the_prior_no_class_is_needed(here: Path) -> None:
    check_concepts([Concept("a photo of sks girl", "girl")], needs_class=False)
    check_images([Concept("a photo of sks girl", "girl")], needs_class=False, resolution_px=32)


def save(name: str, size: tuple[int, int] = (40, 40)) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise(size, 60).convert("RGB").save(name)


def add_copies() -> None:
    for name in ("girl/copy.jpg", "girl/copy2.png"):
        Image.open("girl/00.png").save(name)


def add_small_ones() -> None:
    tiny.images(Path("girl"), 2, size_px=31)


def add_notes() -> None:
    for name in ("note.doc", "Thumbs.db", ".DS_Store"):
        Path("girl", name).touch()


def add_photos_of_a_phone() -> None:
    for name in ("a.HEIC", "b.heic"):
        Path("girl", name).touch()


def add_long_ones() -> None:
    save("girl/x.png", (40, 80))
    save("girl/y.png", (68, 40))


def add_masks() -> None:
    for name in ("girl/00_mask.png", "girl/01-masklabel.png"):
        Image.new("L", (40, 40)).save(name)


def add_unnamed_masks() -> None:
    for number in range(2):
        mask = Image.new("L", (40, 40))
        mask.paste(255, (5, 5 + number * 20, 20, 18 + number * 20))
        mask.save(f"girl/m{number}.png")


def add_subfolders() -> None:
    save("girl/10_sks girl/1.png")
    save("girl/20_sks girl/1.png")


def add_captions() -> None:
    for name, text in {"00.txt": "", "01.caption": " ", "02.txt": "a girl", "03.txt": "a boy", "04.txt": "sks girl 4",
                       "gone.txt": "sks", "away.txt": "sks"}.items():  # fmt: skip
        Path("girl", name).write_text(text)


CHANGES = [
    (add_copies, [r"girl/00\.png and girl/copy\.jpg are nearly the same image, .* \(and 2 more\)"]),
    (add_small_ones, [r"girl/00\.png is 31 x 31 px, smaller than the resolution 32 \(and 1 more\)"]),
    (add_notes, [r"girl: skipped files that are not read as images: 1 \.doc"]),
    pytest.param(
        add_photos_of_a_phone, [r"girl: skipped files that are not read as images: 2 \.heic; .* -e '\.\[heic\]'$"],
        marks=pytest.mark.skipif(".heic" in SUFFIXES, reason="the extra is installed"),
    ),
    (add_long_ones, [r"girl/x\.png is 40 x 80 px, of which the square keeps 50% \(and 1 more\)"]),
    (add_masks, [r"girl/00_mask\.png is a mask, which is not used: give data\.masked_loss .* \(and 1 more\)"]),
    (add_unnamed_masks, [r"girl/m0\.png is only black and white, as masks are \(and 1 more\)"]),
    (add_subfolders, [r"girl/10_sks girl holds 1 image that training does not read: .* \(and 1 more\)"]),
    (add_captions, [
        r"girl/away\.txt is a caption of no image \(and 1 more\)",
        r"girl/00\.txt is an empty caption; the prompt is used \(and 1 more\)",
        r"the caption of girl/02\.png lacks the identifier 'sks' \(and 1 more\)",
    ]),
]  # fmt: skip


@pytest.mark.parametrize(("change", "messages"), CHANGES)
def test_what_looks_unintended_is_named_in_one_line_for_each_kind(
    here: Path, change: Callable[[], None], messages: list[str]
) -> None:
    tiny.images(Path("girl"), 5)
    change()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_images([Concept("sks girl", "girl", identifier="sks")], needs_class=False, resolution_px=32)
    assert len(caught) == len(messages)
    for warning, message in zip(caught, messages, strict=True):
        assert issubclass(warning.category, InputWarning)
        assert re.match(message, str(warning.message))


def test_drawings_in_black_and_white_are_a_style(here: Path) -> None:
    shutil.rmtree("girl")
    Path("girl").mkdir()
    add_unnamed_masks()
    check_images([Concept("sks girl", "girl")], needs_class=False, resolution_px=32)


def test_a_held_out_image_that_is_trained_on_is_named(here: Path) -> None:
    tiny.images(Path("held_out"), 1)
    with pytest.warns(InputWarning, match=r"held_out/00\.png is an instance image too, and so not held out"):
        check_images([Concept("sks girl", "girl", held_out_dir="held_out")], needs_class=False, resolution_px=32)


def test_held_out_images_may_lie_in_the_instance_folder(here: Path) -> None:
    save("girl/held_out/1.png")
    check_images([Concept("sks girl", "girl", held_out_dir="girl/held_out")], needs_class=False, resolution_px=32)


def test_an_identifier_that_is_not_in_the_prompt_is_named(here: Path) -> None:
    with pytest.warns(InputWarning, match="the identifier 'sks' does not occur in the prompt 'a girl'"):
        check_concepts([Concept("a girl", "girl", identifier="sks")], needs_class=False)


def test_the_end_of_a_prompt_that_the_model_does_not_see_is_named(model: StableDiffusion) -> None:
    fits = " ".join(["girl"] * (tiny.TOKENS - 2))
    check_lengths([fits], model.tokenizer)
    with pytest.warns(InputWarning, match=f"longer than the {tiny.TOKENS} tokens .* it does not read 'pink hair'"):
        check_lengths([f"{fits} pink hair"], model.tokenizer)


def test_long_prompts_are_named_in_one_short_line(model: StableDiffusion) -> None:
    prompts = [" ".join(["girl"] * 1900 + [str(i)]) for i in range(5)]
    with pytest.warns(InputWarning, match=r"\(and 4 more\)$") as caught:
        check_lengths(prompts, model.tokenizer)
    assert len(caught) == 1
    assert len(str(caught[0].message)) < 1000
