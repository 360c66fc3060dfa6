"""How many faces of real illustrated characters `prepare` finds, and how many of its finds are faces.

    python benchmarks/faces.py FOLDER [--page FILE]

FOLDER holds the images of "The Question", a free visual novel (Debian's package renpy-thequestion, Expat licence): one
character in two poses with four expressions, and four places. They are put on strips of panels in many sizes; where the
faces are on the originals is stated here. A find counts if its intersection over union with a face is 0.3 or more.
"""

import argparse
import random
import time
from pathlib import Path

from PIL import Image

from lightning_dreambooth.prepare.boxes import Box
from lightning_dreambooth.prepare.detection import find_faces, load_detectors

FACES = {"blue": Box(107, 62, 225, 172), "green": Box(131, 62, 250, 183)}  # from brows to chin, in px of the originals
PANEL = (690, 460)
PAGES, PANELS = 12, 4  # a character in each panel
SCALES = (0.5, 1.6)  # of a character
SAME, SCORE = 0.3, 0.7


def page(folder: Path, number: int) -> tuple[Image.Image, list[Box]]:
    """A strip of panels, and where the faces on it are."""
    draws = random.Random(number)
    strip = Image.new("RGB", (PANEL[0] + 40, PANELS * (PANEL[1] + 60)), "white")
    boxes = []
    for row in range(PANELS):
        with Image.open(draws.choice(sorted(folder.glob("bg *.jpg"))), formats=["JPEG"]) as place:
            panel = place.convert("RGB").resize(PANEL, Image.Resampling.LANCZOS)
        name = draws.choice(sorted(folder.glob("sylvie *.png")))
        scale = draws.uniform(*SCALES)
        with Image.open(name, formats=["PNG"]) as opened:
            figure = opened.convert("RGBA").resize([round(scale * side) for side in opened.size])
        left = draws.randrange(max(1, PANEL[0] - figure.width))
        top = draws.randrange(10, 40)
        panel.paste(figure, (left, top), figure)
        strip.paste(panel, (20, 30 + row * (PANEL[1] + 60)))
        face = FACES[name.stem.split()[1]].scaled(scale)
        boxes.append(face.moved(20 + left, 30 + row * (PANEL[1] + 60) + top))
    return strip, boxes


def overlap(one: Box, other: Box) -> float:
    """Intersection over union."""
    common = one.intersected(other).area
    return common / (one.area + other.area - common)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--page", type=Path, help="writes the first page, to look at")
    given = parser.parse_args()
    pages = [page(given.folder, number) for number in range(PAGES)]
    if given.page:
        pages[0][0].save(given.page)
    print("| detectors | found | of | finds that are faces | seconds a page |\n|---|---|---|---|---|")
    for names in (["mtcnn"], ["animeface"], ["mtcnn", "animeface"]):
        detectors = load_detectors(names)
        for thorough in (False, True):
            began, found, right, finds = time.perf_counter(), 0, 0, 0
            for strip, true in pages:
                boxes = [face.box for face in find_faces(strip, detectors, thorough) if face.score >= SCORE]
                finds += len(boxes)
                right += sum(any(overlap(box, face) >= SAME for face in true) for box in boxes)
                found += sum(any(overlap(box, face) >= SAME for box in boxes) for face in true)
            seconds = (time.perf_counter() - began) / PAGES
            name = " + ".join(names) + (", thorough" if thorough else "")
            print(f"| {name} | {found} | {PAGES * PANELS} | {right} of {finds} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
