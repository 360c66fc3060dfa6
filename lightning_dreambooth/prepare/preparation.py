"""From a list of image files to a folder of instance images, file by file; what is done stays done."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from lightning_dreambooth.data.images import read_image, write_png
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.files import replaced, sha256
from lightning_dreambooth.prepare.looks import bits_apart, image_hash
from lightning_dreambooth.prepare.manifest import Manifest, Row
from lightning_dreambooth.prepare.sizing import Resizer
from lightning_dreambooth.prepare.sources import Sources

Cut = Callable[[Path, Image.Image, Row], list[Row]]  # file, its image, what is known of the file => its candidates


@dataclass(frozen=True)
class Preparation:
    """How images become a folder.

    Attributes:
        cut: Makes candidates of an image.
        has_text: Tells whether there is lettering on a square; None: it is not asked.
        max_bits: Squares whose hashes differ in at most so many bits are duplicates.
        resizer: Brings squares to the training resolution.
        caption: Written beside each image; None: none is.
    """

    cut: Cut
    has_text: Callable[[Image.Image], bool] | None
    max_bits: int
    resizer: Resizer
    caption: str | None

    def run(self, sources: Sources, manifest: Manifest, output: Path | None) -> Iterator[str]:
        """Goes through the files that the manifest does not have yet, and adds them.

        Args:
            sources: The files.
            manifest: Rows of files that are done.
            output: The folder to fill; None: nothing is written.

        Yields:
            A line for each file that is not read.
        """
        for file, why in sources.others.items():
            if file not in manifest:
                yield f"{file} is skipped: {why}"
                self._add(manifest, [Row(str(file), reason=f"skipped: {why}")], output)
        for file in tqdm([file for file in sources.images if file not in manifest], "images", disable=None):
            try:
                image = read_image(file)
            except InputError as error:
                yield str(error)
                self._add(manifest, [Row(str(file), reason=f"unreadable: {error}")], output)
            else:
                self._add(manifest, self._judged(file, image, manifest, output), output)

    def _add(self, manifest: Manifest, rows: Sequence[Row], output: Path | None) -> None:
        if output is None:
            manifest.rows += rows
        else:
            manifest.add(rows)

    def _judged(self, file: Path, image: Image.Image, manifest: Manifest, output: Path | None) -> list[Row]:
        rows: list[Row] = []
        kept = manifest.kept
        for row in self.cut(file, image, Row(str(file), sha256(file))):
            if not row.reason:
                row = self._compared(image.crop(row.crop), row, kept)
            if not row.reason:
                row = replace(row, image=f"{len(kept) + 1:05}.png")
                kept.append(row)
                if output is not None:
                    self._write(image.crop(row.crop), row, output)
            rows.append(row)
        return rows

    def _compared(self, square: Image.Image, row: Row, kept: Sequence[Row]) -> Row:
        """The row with the square's hash, and a reason if there is lettering on it or it is kept already."""
        bits = image_hash(square)
        row = replace(row, hash=f"{bits:016x}", doublings=self.resizer.doublings(square.width))
        if self.has_text and self.has_text(square):
            return replace(row, reason="text")
        same = (other.image for other in kept if bits_apart(bits, int(other.hash, 16)) <= self.max_bits)
        return replace(row, reason=f"duplicate: {first}") if (first := next(same, "")) else row

    def _write(self, square: Image.Image, row: Row, output: Path) -> None:
        path = output / row.image
        write_png(self.resizer.resize(square), path, {})
        if self.caption is not None:
            with replaced(path.with_suffix(".txt")) as beside:
                beside.write_text(self.caption + "\n", encoding="utf-8")
