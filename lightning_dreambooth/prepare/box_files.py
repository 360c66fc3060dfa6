"""Boxes of faces from files of other programs: a CSV table, or labels as YOLO saves them."""

import csv
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path

from lightning_dreambooth.errors import InputError
from lightning_dreambooth.inputs import read_text
from lightning_dreambooth.prepare.boxes import Box, Face, around

COLUMNS = ("image", "left", "top", "right", "bottom")  # of a CSV table, in px; `score` may follow
NAME = frozenset({"file"})  # who found the faces


class BoxFiles:
    """Boxes by image.

    Args:
        path: A CSV table with a header, whose images are file names or ends of paths; or a folder with a text file of
            the image's name for each image, in each line class, centre x, centre y, width and height as shares of the
            image's sides and, if it was saved, the score.

    Raises:
        InputError: if it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            raise InputError(f"--boxes {path} does not exist; name a CSV table or a folder of YOLO labels")
        self._table = None if path.is_dir() else read_table(path)

    def check(self, sources: Sequence[Path]) -> None:
        """Raises InputError if boxes fit no image, or those of one name fit several."""
        names = [source.stem for source in sources] if self._table is None else list(self._table)
        fits = {name: [source for source in sources if self._is_of(name, source)] for name in dict.fromkeys(names)}
        fitting = {name: found for name, found in fits.items() if found}
        if not fitting:
            raise InputError(f"--boxes {self.path} has boxes of none of the images; check the names in it")
        if several := [(name, found) for name, found in fitting.items() if len(found) > 1]:
            name, found = several[0]
            raise InputError(f"--boxes {self.path}: {name} is the name of {found[0]} and {found[1]}; rename one")

    def _is_of(self, name: str, source: Path) -> bool:
        if self._table is not None:
            return _ends(source, name)
        return source.stem == name and (self.path / f"{name}.txt").exists()

    def faces(self, source: Path, size: tuple[int, int]) -> list[Face]:
        """The faces of an image of this width and height; none if nothing is said of it.

        Raises:
            InputError: if its labels cannot be read.
        """
        if self._table is not None:
            return [face for name, faces in self._table.items() if _ends(source, name) for face in faces]
        labels = self.path / f"{source.stem}.txt"
        return read_labels(labels, size) if labels.exists() else []


def _ends(source: Path, name: str) -> bool:
    parts = Path(name).parts
    return bool(parts) and source.parts[-len(parts) :] == parts


def read_table(path: Path) -> Mapping[str, list[Face]]:
    """A CSV table => the faces by image.

    Raises:
        InputError: if a column is missing, or a row is not a box.
    """
    rows = csv.DictReader(read_text(path).splitlines())
    if missing := [name for name in COLUMNS if name not in (rows.fieldnames or [])]:
        raise InputError(f"{path} has no column {', '.join(missing)}; needed are {', '.join(COLUMNS)}")
    faces: dict[str, list[Face]] = {}
    for row in rows:
        where = f"{path}, line {rows.line_num}"
        values = _numbers([row[name] for name in COLUMNS[1:]] + ([row["score"]] if row.get("score") else []), where)
        faces.setdefault(row["image"], []).append(_face(Box(*values[:4]), values[4:], where))
    return faces


def read_labels(path: Path, size: tuple[int, int]) -> list[Face]:
    """YOLO's labels of an image of this width and height.

    Raises:
        InputError: if a line is not a box.
    """
    faces = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        where = f"{path}, line {number}"
        values = _numbers(line.split()[1:], where) if line.strip() else []
        if values:
            if len(values) not in (4, 5):
                raise InputError(f"{where} has {len(values)} numbers after the class, must have 4 or, with a score, 5")
            (x, y, width, height), (across, down) = values[:4], size
            faces.append(_face(around(x * across, y * down, width * across, height * down), values[4:], where))
    return faces


def _numbers(words: Sequence[str | None], where: str) -> list[float]:
    try:
        values = [float(word or "") for word in words]
    except ValueError as error:
        raise InputError(f"{where} is not a box ({error})") from error
    if not all(map(isfinite, values)):
        raise InputError(f"{where} has a number that is not finite")
    return values


def _face(box: Box, score: list[float], where: str) -> Face:
    if box.width < 1 or box.height < 1:
        raise InputError(f"{where} is a box without area: right minus left, and bottom minus top, must be 1 px or more")
    return Face(box, score[0] if score else 1.0, NAME)
