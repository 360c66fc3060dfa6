import pytest
import torch
from helpers import drawn
from matplotlib.cbook import get_sample_data
from PIL import Image

from lightning_dreambooth.errors import InputError
from lightning_dreambooth.prepare.anime_faces import SAMPLE, AnimeFaces
from lightning_dreambooth.prepare.boxes import Box, Face, around
from lightning_dreambooth.prepare.detection import find_faces, load_detectors, tile_tops, views
from lightning_dreambooth.prepare.mtcnn import Mtcnn


class Bright:
    """Finds the box of bright pixels."""

    name = "bright"

    def find(self, image: Image.Image) -> list[Face]:
        box = image.convert("L").point(lambda level: 255 * (level > 128)).getbbox()
        return [Face(Box(*box), 0.9, frozenset({self.name}))] if box else []


def spot(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    image = Image.new("RGB", size)
    image.paste("white", box)
    return image


@pytest.mark.parametrize(("size", "box"), [
    ((600, 400), (100, 50, 180, 130)), ((640, 3000), (300, 1700, 400, 1800)), ((690, 2900), (30, 2780, 130, 2880)),
    ((3000, 2000), (1200, 700, 1700, 1200)),
])  # fmt: skip
def test_a_face_is_found_where_it_is(size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    (found,) = find_faces(spot(size, box), [Bright()], thorough=False)
    assert found.box == pytest.approx(box, abs=0.004 * max(size))


def test_a_box_on_any_copy_is_brought_back_to_the_tile() -> None:
    middle = (430.0, 190.0)
    image = spot((600, 400), (420, 180, 440, 200))
    for view in views(image, thorough=True):
        box = view.back(Bright().find(view.image)[0].box)
        assert ((box.left + box.right) / 2, (box.top + box.bottom) / 2) == pytest.approx(middle, abs=1)


@pytest.mark.parametrize("height", [1300, 1301, 1800, 5000])
def test_any_face_smaller_than_the_overlap_is_whole_on_a_tile(height: int) -> None:
    tops = tile_tops((640, height))
    assert tops[0] == 0
    assert tops[-1] == height - 640
    assert all(top + 160 <= height and any(tile <= top and top + 160 <= tile + 640 for tile in tops)
               for top in range(height - 160 + 1))  # fmt: skip


def test_mtcnn_finds_the_face_on_a_photo() -> None:
    # Grace Hopper, by the US Navy, in the public domain; it comes with matplotlib.
    with Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)) as photo:
        (found,) = Mtcnn(torch.device("cpu")).find(photo.convert("RGB"))
    assert found.score > 0.99
    # Eyes, nose and mouth, as one sees them, lie inside.
    for x, y in ((222, 202), (292, 196), (262, 240), (258, 282)):
        assert found.box.left < x < found.box.right
        assert found.box.top < y < found.box.bottom


def test_mtcnn_leaves_the_number_of_threads_as_it_was() -> None:
    before = torch.get_num_threads()
    Mtcnn(torch.device("cpu")).find(Image.new("RGB", (100, 100)))
    assert torch.get_num_threads() == before


def test_mtcnn_takes_images_that_are_too_small_for_a_face() -> None:
    assert Mtcnn(torch.device("cpu")).find(Image.new("RGB", (20, 9))) == []


def test_the_sample_is_the_drawing_of_a_face() -> None:
    with Image.open(SAMPLE) as sample:
        assert list(sample.convert("RGB").getdata()) == list(drawn.face(128).quantize(64).convert("RGB").getdata())


def test_animeface_finds_drawn_faces() -> None:
    sheet = Image.new("RGB", (1200, 200), "white")
    for number, hair in enumerate(drawn.HAIR):
        sheet.paste(drawn.face(200, hair), (200 * number, 0))
    found = sorted(AnimeFaces().find(sheet), key=lambda face: face.box.left)
    assert len(found) == 6
    for number, face in enumerate(found):
        true = Box(*drawn.Place(200 * number, 0, 200, 0).box)
        common = face.box.intersected(true).area
        assert common / (face.box.area + true.area - common) > 0.5


def test_an_unknown_detector_is_refused() -> None:
    with pytest.raises(InputError, match=r"--detectors has yolo, known are mtcnn, animeface"):
        load_detectors(["yolo"])


def test_a_face_of_no_size_is_not_made_up() -> None:
    assert find_faces(Image.new("RGB", (640, 2000)), [Bright()], thorough=True) == []


def test_a_turned_box_keeps_its_sides() -> None:
    view = list(views(Image.new("RGB", (300, 200)), thorough=True))[-1]
    box = view.back(around(200, 60, 30, 50))
    assert (box.width, box.height) == (pytest.approx(30), pytest.approx(50))
