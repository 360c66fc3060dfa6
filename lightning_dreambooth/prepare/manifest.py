"""The table of all candidates: what became of each, and why. A stopped `prepare` goes on from it."""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from lightning_dreambooth.errors import InputError
from lightning_dreambooth.files import replaced

FOLDER = "prepare"  # in the output folder; data/folders.py does not count it as a folder of images
FILE = "manifest.csv"
IMAGE, HASH = re.compile(r"\d{5,}\.png"), re.compile("[0-9a-f]{16}")  # what a table may hold: it names files to remove
Square = tuple[int, int, int, int]


@dataclass(frozen=True)
class Row:
    """A candidate: a face, or a whole image.

    Attributes:
        source: The file that it is from.
        sha256: Of that file's bytes.
        number: Which candidate of its file it is, from 1.
        reason: Why it was dropped; empty if it was kept.
        image: Name of the file that it became, if it was kept.
        image_sha256: Of that file's bytes, as they were written.
        detectors: Who found the face, joined by `+`.
        score: How sure they were.
        face: Left, top, right and bottom of the face in px.
        crop: The same of the square that was cut out.
        blank: The widest black or white margin, as a share of the square.
        sharpness: Deviation of the Laplacian, in levels of 255.
        hash: 64 bits of what it looks like, as hex digits.
        doublings: How often it was doubled in size.
    """

    source: str
    sha256: str = ""
    number: int = 1
    reason: str = ""
    image: str = ""
    image_sha256: str = ""
    detectors: str = ""
    score: float | None = None
    face: Square | None = None
    crop: Square | None = None
    blank: float | None = None
    sharpness: float | None = None
    hash: str = ""
    doublings: int | None = None


class Manifest:
    """The rows so far, and their file. Files that could not be read are tried again: they may have been repaired.

    Args:
        output: The folder with the images.
        rows: To begin with; None: those of its table, if there is one.

    Raises:
        InputError: if its table cannot be read.
    """

    def __init__(self, output: Path, rows: list[Row] | None = None) -> None:
        self.file = output / FOLDER / FILE
        if rows is None:
            rows = _read(self.file) if self.file.is_file() else []
        self.rows = [row for row in rows if row.sha256]

    def __contains__(self, source: Path) -> bool:
        return any(row.source == str(source) for row in self.rows)

    @property
    def kept(self) -> list[Row]:
        """The rows of images that were kept."""
        return [row for row in self.rows if row.image]

    @property
    def reasons(self) -> Counter[str]:
        """How many candidates were dropped, by reason; of a duplicate or an unreadable file, without which or why."""
        return Counter(row.reason.partition(":")[0] for row in self.rows if row.reason)

    def add(self, rows: Iterable[Row]) -> None:
        """Adds the rows of a source, and writes all of them."""
        self.rows += rows
        with replaced(self.file) as beside:
            beside.write_text(_text(self.rows), encoding="utf-8", errors="surrogateescape")


def _text(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    table.writeheader()
    for row in rows:
        table.writerow({name: _cell(value) for name, value in asdict(row).items()})
    return text.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return round(value, 4) if isinstance(value, float) else value


def _read(file: Path) -> list[Row]:
    try:
        with file.open(encoding="utf-8", errors="surrogateescape", newline="") as opened:
            return [_row(cells) for cells in csv.DictReader(opened)]
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        raise InputError(f"{file} cannot be read ({error!r}); name another --output") from error


def _checked(pattern: re.Pattern[str], value: str) -> str:
    if value and not pattern.fullmatch(value):
        raise ValueError(f"{value!r} is not as it was written")
    return value


def _row(cells: dict[str, str]) -> Row:
    def number(name: str) -> float | None:
        return float(cells[name]) if cells[name] else None

    def square(name: str) -> Square | None:
        if not cells[name]:
            return None
        left, top, right, bottom = map(int, cells[name].split())
        return left, top, right, bottom

    return Row(
        source=cells["source"], sha256=cells["sha256"], number=int(cells["number"]), reason=cells["reason"],
        image=_checked(IMAGE, cells["image"]), image_sha256=cells["image_sha256"],
        detectors=cells["detectors"], score=number("score"), face=square("face"),
        crop=square("crop"), blank=number("blank"), sharpness=number("sharpness"), hash=_checked(HASH, cells["hash"]),
        doublings=int(cells["doublings"]) if cells["doublings"] else None,
    )  # fmt: skip
