"""From a list of image files to a folder of instance images, file by file; what is done stays done."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from lightning_dreambooth.data.images import read_image
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
                row = self._placed(image.crop(row.crop), row, number_after(kept), output)
                kept.append(row)
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

    def _placed(self, square: Image.Image, row: Row, number: int, output: Path | None) -> Row:
        """The row with the name of its image, which is written: never in place of another file, which is a user's."""
        if output is None:
            return replace(row, image=name_of(number))
        content = png(self.resizer.resize(square))
        while (path := output / name_of(number)).exists() and path.read_bytes() != content:
            number += 1
        write_bytes(path, content)
        caption = path.with_suffix(".txt")
        if self.caption is not None and not caption.exists():
            write_bytes(caption, f"{self.caption}\n".encode())
        return replace(row, image=path.name, image_sha256=hashlib.sha256(content).hexdigest())


def number_after(rows: Sequence[Row]) -> int:
    """The number of the next image."""
    return 1 + max((int(row.image.removesuffix(".png")) for row in rows), default=0)


def name_of(number: int) -> str:
    """The file name of an image."""
    return f"{number:05}.png"


def png(image: Image.Image) -> bytes:
    """The bytes of a PNG."""
    file = BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file atomically."""
    with replaced(path) as beside:
        beside.write_bytes(content)
