from pathlib import Path

import pytest
import torch
from helpers import tiny
from PIL import Image, ImageOps

from lightning_dreambooth.data.concepts import Concept, TrainingImage, instance_images
from lightning_dreambooth.data.dataset import PairDataset, training_views
from lightning_dreambooth.data.draws import DrawSource
from lightning_dreambooth.data.image_checks import check_images
from lightning_dreambooth.data.images import View
from lightning_dreambooth.data.masks import Masks
from lightning_dreambooth.data.training_images import ConceptImages, data_digests
from lightning_dreambooth.diffusion.objective import squared_error
from lightning_dreambooth.errors import InputError, InputWarning

SIDE = 8  # of latents, for images of 64 px


def size_of(path: Path) -> tuple[int, int]:
    return SIDE, SIDE


def image_with_mask(name: str = "girl/00", size: tuple[int, int] = (64, 64)) -> TrainingImage:
    """An image whose left half is masked as the subject."""
    Image.new("RGB", size, "teal").save(f"{name}.png")
    mask = Image.new("L", size)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    mask.save(f"{name}.mask.png")
    return TrainingImage(Path(f"{name}.png"), "girl", Path(f"{name}.mask.png"))


def test_the_gradient_outside_of_the_mask_is_the_stated_fraction(here: Path) -> None:
    weights = Masks([image_with_mask()], [View()], size_of, outside=0.25).of(Path("girl/00.png"), View())
    prediction, target = torch.randn(2, 1, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    gradients = []
    for mask in (None, weights[None]):
        leaf = prediction.clone().requires_grad_()
        squared_error(leaf, target, mask).sum().backward()
        gradients.append(leaf.grad)
    inside, outside = gradients[1].split(SIDE // 2, dim=3)
    expected_inside, expected_outside = gradients[0].split(SIDE // 2, dim=3)
    assert torch.equal(inside, expected_inside)
    torch.testing.assert_close(outside, 0.25 * expected_outside)


def test_weights_of_one_are_the_loss_without_masks() -> None:
    prediction, target = torch.randn(2, 3, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        squared_error(prediction, target, torch.ones(3, 1, SIDE, SIDE)), squared_error(prediction, target)
    )


def test_a_mask_is_cut_and_mirrored_as_its_image_is(here: Path) -> None:
    image = image_with_mask(size=(128, 64))
    views = [View(x=0.0), View(), View(flip=True)]
    masks = Masks([image], views, size_of, 0.0)
    left, middle, mirrored = (masks.of(image.path, view) for view in views)
    assert left.min() == 1
    assert middle[..., : SIDE // 2].min() == 1
    assert middle[..., SIDE // 2 :].max() == 0
    assert torch.equal(mirrored, middle.flip(2))


def test_what_is_transparent_is_outside(here: Path) -> None:
    image = Image.new("RGBA", (64, 64), (10, 20, 30, 255))
    image.paste((0, 0, 0, 0), (0, 0, 64, 16))
    image.save("girl/alpha.png")
    weights = Masks([TrainingImage(Path("girl/alpha.png"), "girl")], [View()], size_of, 0.5).of(
        Path("girl/alpha.png"), View()
    )
    assert weights[0, :2].max() == 0.5
    assert weights[0, 2:].min() == 1


def test_opacity_is_turned_as_the_image_is(here: Path) -> None:
    image = Image.new("RGBA", (64, 64), (10, 20, 30, 255))
    image.paste((0, 0, 0, 0), (0, 0, 64, 16))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save("girl/turned.png", exif=exif)
    weights = Masks([TrainingImage(Path("girl/turned.png"), "girl")], [View()], size_of, 0.0).of(
        Path("girl/turned.png"), View()
    )
    assert weights[0, :6].min() == 1
    assert weights[0, 6:].max() == 0


def test_class_rows_are_not_masked(here: Path) -> None:
    image = image_with_mask()
    views = training_views("center", False, 0)
    data = PairDataset(
        [ConceptImages([image], [TrainingImage(image.path, "class girl")])],
        {name: torch.tensor([i]) for i, name in enumerate(["", "girl", "class girl"])},
        views, 64, 0.0, 0, DrawSource(0, 0.0, (4, SIDE, SIDE), 1000), None, Masks([image], views, size_of, 0.0),
    )  # fmt: skip
    weights = data.collate([data[0], data[1]]).weights
    assert weights.shape == (4, 1, SIDE, SIDE)
    assert [row.min().item() for row in weights] == [0, 0, 1, 1]


def test_the_mask_beside_an_image_is_never_trained_as_an_image(here: Path) -> None:
    tiny.images(Path("girl"), 3)
    image_with_mask()
    images = instance_images(Concept("a girl", "girl"))
    assert [(image.path.name, image.mask and image.mask.name) for image in images] == [
        ("00.png", "00.mask.png"), *((f"0{number}.png", None) for number in range(1, 5)),
    ]  # fmt: skip


@pytest.mark.parametrize("size", [(64, 32), (32, 64), (60, 64)])
def test_a_mask_of_another_shape_is_refused(here: Path, size: tuple[int, int]) -> None:
    image = image_with_mask()
    Image.new("L", size, 255).save(image.mask)
    with pytest.raises(InputError, match=r"girl/00\.mask\.png is \d+ x \d+ px, must have the shape of girl/00\.png"):
        Masks([image], [View()], size_of, 0.0)


def test_a_smaller_mask_of_the_same_shape_is_taken(here: Path) -> None:
    image = image_with_mask()
    ImageOps.scale(Image.open(image.mask), 0.5).save(image.mask)
    weights = Masks([image], [View()], size_of, 0.0).of(image.path, View())
    assert weights[..., : SIDE // 2].min() > 0.98


def test_a_mask_that_leaves_nothing_is_refused(here: Path) -> None:
    image = image_with_mask()
    Image.new("L", (64, 64)).save(image.mask)
    with pytest.raises(InputError, match=r"the mask of girl/00\.png leaves nothing to train on"):
        Masks([image], [View()], size_of, 0.0)


def test_an_image_without_a_mask_is_named(here: Path) -> None:
    for path in Path("girl").iterdir():
        path.unlink()
    image_with_mask()
    Image.new("RGB", (64, 64), "red").save("girl/01.png")
    with pytest.warns(InputWarning, match=r"nothing of girl/01\.png is masked or transparent"):
        check_images([Concept("a girl", "girl")], needs_class=False, resolution_px=64, masked=True)


def test_another_mask_is_another_data_set_only_if_it_is_used(here: Path) -> None:
    image = image_with_mask()
    concepts = [ConceptImages([image], [])]
    before = [data_digests(concepts, masked) for masked in (False, True)]
    Image.new("L", (64, 64), 255).save(image.mask)
    after = [data_digests(concepts, masked) for masked in (False, True)]
    assert before[0] == after[0]
    assert before[1] != after[1]
