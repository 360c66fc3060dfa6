from pathlib import Path

import pytest

from lightning_dreambooth.errors import InputError
from lightning_dreambooth.prepare.sources import list_sources


def touched(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_pages_come_in_natural_order_folder_by_folder(tmp_path: Path) -> None:
    touched(tmp_path, "in/page10.png", "in/page2.png", "in/b/1.jpg", "in/a/2.jpg", "in/.hidden.png", "in/.git/x.png")
    found = list_sources([str(tmp_path / "in")], tmp_path / "out")
    assert [str(path.relative_to(tmp_path / "in")) for path in found.images] == [
        "a/2.jpg", "b/1.jpg", "page2.png", "page10.png",
    ]  # fmt: skip
    assert not found.others


def test_an_image_that_is_named_twice_is_there_once(tmp_path: Path) -> None:
    touched(tmp_path, "in/1.png")
    file = tmp_path / "in/1.png"
    assert list_sources([str(file), str(tmp_path / "in"), str(file)], tmp_path / "out").images == [file]


def test_other_files_and_links_out_of_the_folder_are_named(tmp_path: Path) -> None:
    touched(tmp_path, "in/1.png", "in/notes.txt", "secret.png")
    (tmp_path / "in/link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "in/loop.png").symlink_to("loop.png")
    (tmp_path / "in/alias.png").symlink_to("1.png")
    found = list_sources([str(tmp_path / "in")], tmp_path / "out")
    assert [path.name for path in found.images] == ["1.png", "alias.png"]
    assert {path.name: why.partition(",")[0] for path, why in found.others.items()} == {
        "notes.txt": "it is not called like an image", "link.png": "it is a link out of its folder",
        "loop.png": "it is a link out of its folder",
    }  # fmt: skip


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    touched(tmp_path, "in/notes.txt")
    with pytest.raises(InputError, match="nowhere does not exist"):
        list_sources([str(tmp_path / "nowhere")], tmp_path / "out")
    with pytest.raises(InputError, match="holds no images"):
        list_sources([str(tmp_path / "in")], tmp_path / "out")


def test_the_output_cannot_lie_in_an_input(tmp_path: Path) -> None:
    touched(tmp_path, "in/1.png")
    with pytest.raises(InputError, match="lies in the input"):
        list_sources([str(tmp_path / "in")], tmp_path / "in/out")
