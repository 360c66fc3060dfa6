import pytest

from lightning_dreambooth.prepare.boxes import Box, Face, around, crop_box, merge, share_inside


def face(box: Box, score: float, name: str = "mtcnn") -> Face:
    return Face(box, score, frozenset({name}))


def test_the_surest_box_of_a_face_stays_with_all_who_found_it() -> None:
    one, other = around(100, 100, 50), around(104, 98, 54)
    far = around(300, 100, 50)
    merged = merge([face(one, 0.8), face(other, 0.9, "animeface"), face(far, 0.7)])
    assert [(found.box, found.score, sorted(found.detectors)) for found in merged] == [
        (other, 0.9, ["animeface", "mtcnn"]), (far, 0.7, ["mtcnn"]),
    ]  # fmt: skip


def test_a_box_in_another_one_is_the_same_face() -> None:
    assert len(merge([face(around(100, 100, 100), 0.9), face(around(110, 110, 40), 0.8)])) == 1


def test_merging_does_not_depend_on_the_order() -> None:
    faces = [face(around(50 * i % 170, 90, 60), 0.5 + i / 20) for i in range(6)]
    assert merge(faces) == merge(faces[::-1])


def test_a_crop_is_the_expanded_square_moved_up() -> None:
    # The face's edge is 100 px, so the square has 180 px, and its centre lies 10 px above (300, 300).
    assert crop_box(around(300, 300, 100), 1.8, 0.1, (640, 900)) == (210, 200, 390, 380)


def test_the_crop_of_a_tall_box_has_the_side_of_a_square_of_its_area() -> None:
    assert crop_box(around(300, 300, 50, 200), 1.8, 0.1, (640, 900)) == (210, 200, 390, 380)


@pytest.mark.parametrize(("x", "y"), [(0, 0), (640, 0), (320, 900), (5, 450)])
def test_a_crop_at_the_edge_is_moved_into_the_image(x: int, y: int) -> None:
    left, top, right, bottom = crop_box(around(x, y, 100), 1.8, 0.1, (640, 900))
    assert right - left == bottom - top == 180
    assert left >= 0
    assert top >= 0
    assert right <= 640
    assert bottom <= 900


def test_a_crop_larger_than_the_image_is_as_large_as_it() -> None:
    assert crop_box(around(100, 80, 120), 1.8, 0.1, (200, 160)) == (20, 0, 180, 160)


def test_the_share_of_a_face_at_the_edge() -> None:
    assert share_inside(around(0, 50, 40), (200, 200)) == pytest.approx(0.5)
