"""Grids: every image unchanged at its place, text only above."""

import numpy as np
import pytest
from PIL import Image

from lightning_dreambooth.data.grids import LABEL_LINES, Layout, plain_layout, side_by_side, tile
from lightning_dreambooth.data.lettering import line_height, load_font

LABELS = ["a photo of sks girl", "웹툰 스타일의 소녀 " * 30, "", "e" + "\u0301" * 60]


def noise(count: int, size: tuple[int, int] = (48, 40), seed: int = 0) -> list[Image.Image]:
    numbers = np.random.default_rng(seed)
    return [Image.fromarray(numbers.integers(0, 200, (size[1], size[0], 3), dtype=np.uint8)) for _ in range(count)]


def covered(layout: Layout, count: int) -> np.ndarray:
    """Mask [height, width] of the places of images."""
    mask = np.zeros(layout.size[::-1], dtype=bool)
    for group in range(layout.groups):
        for number in range(count):
            x, y = layout.place(group, number)
            mask[y : y + layout.image[1], x : x + layout.image[0]] = True
    return mask


def layout_of(grid: Image.Image, plain: Layout, labels: int, titled: bool) -> Layout:
    """The layout of a drawn grid; the height of the grid gives the number of lines of a label."""
    line_px = line_height(load_font(plain.text_px))
    title_px = line_px if titled else 0
    label_px = (grid.height - plain.size[1] - title_px) // plain.rows
    assert label_px in [lines * line_px for lines in range(bool(labels), LABEL_LINES + 1)]
    return plain._replace(title=title_px, label=label_px)


@pytest.mark.parametrize("titles", [("",), ("base", "tuned"), ("a", "", "튜닝")])
@pytest.mark.parametrize(("count", "columns"), [(1, 1), (3, 8), (7, 3), (12, 4)])
@pytest.mark.parametrize("labels", [0, 1, 3])
def test_every_image_is_unchanged_at_its_place(titles: tuple[str, ...], count: int, columns: int, labels: int) -> None:
    groups = {title: noise(count, seed=i) for i, title in enumerate(titles)}
    plain = plain_layout(groups, columns)
    texts = LABELS[: min(labels, plain.rows)]
    grid = side_by_side(groups, columns, texts)
    layout = layout_of(grid, plain, len(texts), any(titles))
    assert grid.size == layout.size
    for group, images in enumerate(groups.values()):
        for number, image in enumerate(images):
            x, y = layout.place(group, number)
            assert np.array_equal(np.asarray(grid.crop((x, y, x + image.width, y + image.height))), np.asarray(image))


def test_places_do_not_overlap() -> None:
    layout = plain_layout({"base": noise(7), "tuned": noise(7)}, 3)._replace(title=9, label=14)
    assert covered(layout, 7).sum() == 2 * 7 * 48 * 40


def test_labels_change_pixels_in_their_bands_only() -> None:
    groups = {"base": noise(8), "tuned": noise(8, seed=1)}
    plain = plain_layout(groups, 2)
    grids = [np.asarray(side_by_side(groups, 2, labels)) for labels in (LABELS, ["어" * 200] * 4)]
    layout = layout_of(side_by_side(groups, 2, LABELS), plain, 4, True)
    changed = (grids[0] != grids[1]).any(2)
    for row in range(layout.rows):
        left, top, right, bottom = layout.label_box(row)
        assert changed[top:bottom, left:right].any()
        changed[top:bottom, left:right] = False
    assert not changed.any()


def test_groups_are_told_apart_by_a_gap_and_their_titles() -> None:
    groups = {"base": noise(4), "tuned": noise(4)}
    grid = np.asarray(side_by_side(groups, 2))
    layout = layout_of(side_by_side(groups, 2), plain_layout(groups, 2), 0, True)
    between = layout.place(0, 1)[0] + layout.image[0], layout.place(1, 0)[0]
    assert between[1] - between[0] >= 4 * layout.margin
    assert (grid[:, between[0] : between[1]] == 255).all()
    for group in range(2):
        left, top, right, bottom = layout.title_box(group)
        assert (grid[top:bottom, left:right] < 255).any()


def test_long_titles_stay_above_their_group() -> None:
    groups = {"base " * 99: noise(2), "": noise(2)}
    layout = layout_of(side_by_side(groups, 2), plain_layout(groups, 2), 0, True)
    _, top, _, bottom = layout.title_box(1)
    assert (np.asarray(side_by_side(groups, 2))[top:bottom, layout.title_box(0)[2] :] == 255).all()


def test_a_korean_label_shows_its_syllables() -> None:
    (image,) = noise(1, (200, 10))
    bands = {
        text: tile([image], 1, [text]).crop((0, 0, 204, 14)).tobytes() for text in ("웹툰", "만화", "\U0010fffd" * 2)
    }
    assert len(set(bands.values())) == 3


def test_text_grows_with_images_and_grids() -> None:
    sizes = [plain_layout({"": noise(n, (side, side))}, n).text_px for side, n in ((64, 1), (512, 1), (512, 8))]
    assert sizes == sorted(set(sizes))


def test_few_images_make_a_narrow_grid() -> None:
    assert tile(noise(3), columns=8).size == tile(noise(3), columns=3).size


def test_other_modes_become_rgb() -> None:
    grid = tile([Image.new("L", (8, 8), 7)], columns=1)
    assert (grid.mode, grid.getpixel((4, 4))) == ("RGB", (7, 7, 7))


@pytest.mark.parametrize(
    "groups",
    [{}, {"": []}, {"a": noise(1), "b": noise(2)}, {"": [*noise(1), *noise(1, (4, 4))]}],
    ids=["no group", "no image", "groups that differ", "sizes that differ"],
)
def test_images_that_do_not_form_a_grid_are_refused(groups: dict[str, list[Image.Image]]) -> None:
    with pytest.raises(ValueError, match="images of one size"):
        side_by_side(groups, 2)


def test_more_labels_than_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="3 labels for 2 rows"):
        tile(noise(4), 2, ["a", "b", "c"])
