import pytest
from PIL import Image

from lightning_dreambooth.errors import InputError
from lightning_dreambooth.prepare.anime_faces import AnimeFaces
from lightning_dreambooth.prepare.boxes import Face
from lightning_dreambooth.prepare.extras import file_in, require


def test_a_missing_package_is_named_with_the_command_that_installs_it() -> None:
    with pytest.raises(InputError, match=r"no_such_package is not installed; pip install -e '\.\[prepare\]'"):
        require("prepare", "PIL", "no_such_package")


def test_weights_that_are_not_those_of_the_release_are_refused() -> None:
    assert file_in("mtcnn", "assets/weights/pnet.lz4").is_file()
    for place, digest in (("assets/weights/pnet.lz4", "0" * 64), ("assets/weights/none.lz4", None)):
        with pytest.raises(InputError, match=r"is missing or not as it was released; install mtcnn again"):
            file_in("mtcnn", place, digest)


def test_a_detector_that_finds_nothing_where_there_is_a_face_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_nothing(self: AnimeFaces, image: Image.Image) -> list[Face]:  # as with another Pillow
        return []

    monkeypatch.setattr(AnimeFaces, "find", find_nothing)
    with pytest.raises(InputError, match=r"does not work with this Pillow; pip install 'pillow<12'"):
        AnimeFaces()
