from pathlib import Path

import pytest

from lightning_dreambooth.errors import InputError
from lightning_dreambooth.prepare.box_files import BoxFiles
from lightning_dreambooth.prepare.boxes import Box


def table(tmp_path: Path, *lines: str) -> BoxFiles:
    file = tmp_path / "boxes.csv"
    file.write_text("\n".join(["image,left,top,right,bottom,score", *lines]))
    return BoxFiles(file)


def labels(tmp_path: Path, text: str) -> BoxFiles:
    (tmp_path / "page.txt").write_text(text)
    return BoxFiles(tmp_path)


def test_a_table_has_the_boxes_of_each_image(tmp_path: Path) -> None:
    boxes = table(tmp_path, "page.png,10,20,110,140,0.9", "two/page.png,1,2,3,4,", "other.png,5,5,9,9,0.5")
    assert [face.box for face in boxes.faces(Path("one/page.png"), (200, 200))] == [Box(10, 20, 110, 140)]
    assert [face.score for face in boxes.faces(Path("one/two/page.png"), (200, 200))] == [0.9, 1.0]
    assert boxes.faces(Path("mypage.png"), (200, 200)) == []


def test_yolo_saves_centres_and_sides_as_shares(tmp_path: Path) -> None:
    boxes = labels(tmp_path, "0 0.5 0.25 0.2 0.1 0.83\n\n0 0.1 0.1 0.1 0.1\n")
    first, second = boxes.faces(Path("any/page.png"), (1000, 2000))
    assert first.box == pytest.approx((400, 400, 600, 600))
    assert first.score == 0.83
    assert second.box == pytest.approx((50, 100, 150, 300))
    assert second.score == 1.0
    assert boxes.faces(Path("any/other.png"), (1000, 2000)) == []


@pytest.mark.parametrize(("line", "reason"), [
    ("page.png,10,20,x,140,0.9", "line 2 is not a box"), ("page.png,10,20", "line 2 is not a box"),
    ("page.png,10,20,5,140,0.9", "line 2 is a box without area"),
    ("page.png,10,20,nan,140,0.9", "line 2 has a number that is not finite"),
])  # fmt: skip
def test_a_row_that_is_no_box_is_named(tmp_path: Path, line: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        table(tmp_path, line)


@pytest.mark.parametrize(("text", "reason"), [
    ("0 0.5 0.5 0.1", "has 3 numbers after the class"), ("0 a b c d", "line 1 is not a box"),
    ("0 0.5 0.5 0 0.1", "box without area"), ("0 0.5 0.5 inf 0.1", "not finite"),
])  # fmt: skip
def test_a_label_that_is_no_box_is_named(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        labels(tmp_path, text).faces(Path("page.png"), (100, 100))


def test_boxes_that_fit_no_image_or_several_are_refused(tmp_path: Path) -> None:
    pages = [Path("/one/page.png"), Path("/two/page.png"), Path("/two/other.png")]
    boxes = table(tmp_path, "page.png,10,20,110,140,0.9", "two/other.png,1,2,3,4,")
    with pytest.raises(InputError, match=r"page\.png is the name of /one/page\.png and /two/page\.png; rename one"):
        boxes.check(pages)
    boxes.check(pages[1:])
    with pytest.raises(InputError, match="has boxes of none of the images"):
        boxes.check([Path("/three/page2.png")])
    with pytest.raises(InputError, match="page is the name of"):
        labels(tmp_path, "0 0.5 0.5 0.1 0.1").check(pages)


def test_a_table_without_a_column_and_a_missing_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("image,x,y\n")
    with pytest.raises(InputError, match="has no column left, top, right, bottom"):
        BoxFiles(tmp_path / "b.csv")
    with pytest.raises(InputError, match="does not exist"):
        BoxFiles(tmp_path / "c.csv")
