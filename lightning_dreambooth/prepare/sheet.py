"""The contact sheet: what was kept and what was dropped, to look at."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from lightning_dreambooth.data.grids import tile
from lightning_dreambooth.data.images import read_image
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.prepare.manifest import Row

FILE = "contact_sheet.png"
SIDE_PX, COLUMNS = 128, 8
MOST_KEPT, MOST_DROPPED = 400, 24  # shown; of those that were dropped, for each reason
EMPTY = Image.new("RGB", (SIDE_PX, SIDE_PX), "white")


def contact_sheet(rows: Sequence[Row], output: Path) -> Image.Image:
    """Rows of a manifest => the images of the folder, and the squares that did not become images, by reason."""
    groups: dict[str, list[Row]] = {"kept": []}
    for row in rows:
        if row.crop:
            groups.setdefault(f"dropped: {row.reason.partition(':')[0]}" if row.reason else "kept", []).append(row)
    thumbnails = Thumbnails(output)
    images, labels = [], []
    for title, group in groups.items():
        shown = group[: MOST_KEPT if title == "kept" else MOST_DROPPED]
        for start in range(0, len(shown), COLUMNS):
            line = shown[start : start + COLUMNS]
            names = f", {line[0].image} ..." if line[0].image else ""
            labels.append(f"{title} ({len(group)}){names}")
            images += [thumbnails.of(row) for row in line] + [EMPTY] * (COLUMNS - len(line))
    return tile(images or [EMPTY], COLUMNS, labels)


class Thumbnails:
    """Small copies of what rows are about.

    Args:
        output: The folder with the images.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self._last: tuple[str, Image.Image] | None = None  # rows of one file follow each other

    def of(self, row: Row) -> Image.Image:
        """The image of a row, else the square in its file; empty if the file is gone."""
        try:
            square = read_image(self.output / row.image) if row.image else self._source(row.source).crop(row.crop)
        except InputError:
            return EMPTY
        return square.resize(EMPTY.size, Image.Resampling.LANCZOS)

    def _source(self, name: str) -> Image.Image:
        if self._last is None or self._last[0] != name:
            self._last = name, read_image(Path(name))
        return self._last[1]
