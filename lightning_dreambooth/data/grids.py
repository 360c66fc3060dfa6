"""Grids of images, with labels above rows and titles above groups. Plain PIL, no torch."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from PIL import Image

from lightning_dreambooth.data.lettering import PAPER, line_height, load_font, wrap, write_lines

MIN_TEXT_PX = 12  # smaller text cannot be read
TEXT_OF_HEIGHT, TEXT_OF_WIDTH = 1 / 24, 1 / 72  # of an image's height and of the grid's width; the larger is used
GAP_OF_WIDTH = 1 / 8  # of an image's width
LABEL_LINES = 2  # at most
TITLE_INK = "#5a5e66"  # softer than labels, which change from row to row


class Layout(NamedTuple):
    """Places of everything in a grid; all lengths in pixels.

    Args:
        image: Width and height of every image.
        groups: Number of blocks of images, side by side.
        columns: Columns of images in a group.
        rows: Rows of images.
        margin: Between images, and around all of them.
        gap: Between groups, besides a margin.
        title: Height of the band above the whole grid.
        label: Height of the band above each row.
    """

    image: tuple[int, int]
    groups: int
    columns: int
    rows: int
    margin: int
    gap: int
    title: int = 0
    label: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the grid."""
        left, top = self.place(self.groups - 1, self.rows * self.columns - 1)
        return left + self.image[0] + self.margin, top + self.image[1] + self.margin

    @property
    def text_px(self) -> int:
        """Size of labels and titles: readable at full size, and on a wide grid that a viewer shrinks."""
        return max(MIN_TEXT_PX, round(self.image[1] * TEXT_OF_HEIGHT), round(self.size[0] * TEXT_OF_WIDTH))

    def place(self, group: int, number: int) -> tuple[int, int]:
        """Left and top of the number-th image of a group."""
        row, column = divmod(number, self.columns)
        step_x, step_y = self.image[0] + self.margin, self.label + self.image[1] + self.margin
        left = self.margin + group * (self.columns * step_x + self.gap) + column * step_x
        return left, self.margin + self.title + self.label + row * step_y

    def title_box(self, group: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the title above a group."""
        left, _ = self.place(group, 0)
        right, _ = self.place(group, self.columns - 1)
        return left, self.margin, right + self.image[0], self.margin + self.title

    def label_box(self, row: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the label above a row, across all groups."""
        left, bottom = self.place(0, row * self.columns)
        return left, bottom - self.label, self.size[0] - self.margin, bottom


def tile(images: Sequence[Image.Image], columns: int, labels: Sequence[str] = (), margin_px: int = 2) -> Image.Image:
    """Images of one size => one RGB grid, row by row, with a label above each row if labels are given.

    Raises:
        ValueError: if there is no image, they differ in size, or there are more labels than rows.
    """
    return side_by_side({"": images}, columns, labels, margin_px)


def side_by_side(
    groups: Mapping[str, Sequence[Image.Image]], columns: int, labels: Sequence[str] = (), margin_px: int = 2
) -> Image.Image:
    """Groups of images of one size => one RGB grid: a titled block for each group, with a gap between blocks.

    Args:
        groups: Title => images, equally many in each group; if all titles are empty, there is no band for them.
        columns: Columns of images in a group.
        labels: Label above each row, across all groups; long ones wrap, then end in an ellipsis.
        margin_px: Between images, and around all of them.

    Raises:
        ValueError: if there is no image, they differ in size, groups in number, or there are more labels than rows.
    """
    layout = plain_layout(groups, columns, margin_px)
    if len(labels) > layout.rows:
        raise ValueError(f"{len(labels)} labels for {layout.rows} rows")
    font = load_font(layout.text_px)
    titles = [wrap(title, font, layout.title_box(0)[2] - margin_px, 1) for title in groups]
    texts = [wrap(label, font, layout.size[0] - 2 * margin_px, LABEL_LINES) for label in labels]
    heights = [max(map(len, lines), default=0) * line_height(font) for lines in (titles, texts)]
    layout = layout._replace(title=heights[0], label=heights[1])
    grid = Image.new("RGB", layout.size, PAPER)
    for group, (title, images) in enumerate(zip(titles, groups.values(), strict=True)):
        write_lines(grid, title, font, layout.title_box(group), TITLE_INK)
        for number, image in enumerate(images):
            grid.paste(image, layout.place(group, number))
    for row, text in enumerate(texts):
        write_lines(grid, text, font, layout.label_box(row))
    return grid


def plain_layout(groups: Mapping[str, Sequence[Image.Image]], columns: int, margin_px: int = 2) -> Layout:
    """The layout of a grid without titles and labels; with few images, it has only as many columns as images.

    Raises:
        ValueError: if there is no image, they differ in size, or groups in number.
    """
    sizes = {image.size for images in groups.values() for image in images}
    counts = {len(images) for images in groups.values()}
    if len(sizes) != 1 or len(counts) != 1:
        raise ValueError(
            f"a grid takes images of one size, not {sorted(sizes)}, equally many in each group, not {sorted(counts)}"
        )
    (size,), (count,) = sizes, counts
    columns = min(columns, count)
    gap_px = max(4 * margin_px, round(size[0] * GAP_OF_WIDTH))
    return Layout(size, len(groups), columns, math.ceil(count / columns), margin_px, gap_px)
