import json
import os
from collections.abc import Callable
from pathlib import Path
from unicodedata import normalize

import pytest

from lightning_dreambooth.data.concepts import Concept, instance_images
from lightning_dreambooth.data.folders import read_folder
from lightning_dreambooth.errors import InputError

PROMPT = "a dog"


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def prompts() -> list[str]:
    return [image.prompt for image in instance_images(Concept(PROMPT, "dogs"))]


@pytest.mark.parametrize("suffix", ["png", "apng", "jpg", "JPEG", "jfif", "mpo", "webp", "avif", "bmp", "tif", "GIF"])
def test_an_image_is_found_by_its_suffix(here: Path, suffix: str) -> None:
    touch(f"dogs/a.{suffix}")
    assert read_folder(Path("dogs")).images == [Path(f"dogs/a.{suffix}")]


def test_other_files_are_counted_by_suffix_and_those_of_file_managers_are_not(here: Path) -> None:
    touch("dogs/b.PNG", "dogs/a.jpg", "dogs/a.txt", "dogs/x.psd", "dogs/y.PSD", "dogs/c.doc", "dogs/README")
    touch("dogs/.hidden.png", "dogs/._b.PNG", "dogs/.DS_Store", "dogs/Thumbs.db", "dogs/desktop.ini", "dogs/.gitkeep")
    folder = read_folder(Path("dogs"))
    assert [path.name for path in folder.images] == ["a.jpg", "b.PNG"]
    assert folder.skipped == {".psd": 2, ".doc": 1, "README": 1}


def test_the_mask_of_another_image_is_not_an_image(here: Path) -> None:
    touch(
        "dogs/a.png",
        "dogs/a_mask.png",
        "dogs/a.mask.png",
        "dogs/a-masklabel.png",
        "dogs/b.jpg",
        "dogs/b-mask.png",
        "dogs/wearing_mask.png",
    )
    folder = read_folder(Path("dogs"))
    assert [path.name for path in folder.images] == ["a.png", "b.jpg", "wearing_mask.png"]
    assert [path.name for path in folder.masks] == ["a-masklabel.png", "a.mask.png", "a_mask.png", "b-mask.png"]
    assert [folder.mask(path) and folder.mask(path).name for path in folder.images] == [
        "a-masklabel.png", "b-mask.png", None,
    ]  # fmt: skip


def test_subfolders_with_images_are_counted(here: Path) -> None:
    touch("dogs/10_sks dog/1.png", "dogs/10_sks dog/2.png", "dogs/notes/a.md", "dogs/.cache/3.png")
    assert read_folder(Path("dogs")).subfolders == {Path("dogs/10_sks dog"): 2}


CAPTIONS = ["a.txt", "a.TXT", "a.caption", "a.png.txt", "a.png.Caption"]


@pytest.mark.parametrize("name", CAPTIONS)
@pytest.mark.parametrize(
    "encode",
    [
        lambda text: text.encode(), lambda text: text.encode("utf-8-sig"), lambda text: text.encode("utf-16"),
        lambda text: b"\xfe\xff" + text.encode("utf-16-be"), lambda text: text.replace("\n", "\r\n").encode(),
    ],
    ids=["UTF-8", "UTF-8 with BOM", "UTF-16", "UTF-16 BE", "CRLF"],
)  # fmt: skip
def test_a_caption_is_read_by_every_common_name_and_encoding(
    here: Path, name: str, encode: Callable[[str], bytes]
) -> None:
    touch("dogs/a.png", "dogs/b.png")
    Path("dogs", name).write_bytes(encode(" ein Hund\n auf 언덕 \n"))
    assert prompts() == ["ein Hund auf 언덕", PROMPT]
    assert read_folder(Path("dogs")).unused_captions == []


@pytest.mark.parametrize("first", range(4))
def test_the_first_caption_with_a_word_is_the_prompt(here: Path, first: int) -> None:
    touch("dogs/a.png")
    words = ["" if number < first else str(number) for number in range(3)]
    for name, word in zip(("a.txt", "a.png.txt"), words, strict=False):
        Path("dogs", name).write_text(word)
    Path("dogs/metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": words[2]}))
    assert prompts() == [[*words, PROMPT][first]]


@pytest.mark.parametrize("text", ["a dog", "웹툰 소녀"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32"])
def test_a_caption_of_another_encoding_is_refused_by_name(here: Path, text: str, encoding: str) -> None:
    touch("dogs/a.png")
    Path("dogs/a.txt").write_bytes(text.encode(encoding))
    with pytest.raises(InputError, match=r"dogs/a\.txt is not text"):
        prompts()


@pytest.mark.parametrize("image_form", ["NFC", "NFD"])
@pytest.mark.parametrize("caption_form", ["NFC", "NFD"])
def test_composed_and_decomposed_names_match(here: Path, image_form: str, caption_form: str) -> None:
    touch("dogs/" + normalize(image_form, "강아지é.png"), "dogs/" + normalize(image_form, "ö.png"))
    Path("dogs", normalize(caption_form, "강아지é.txt")).write_text("in a file")
    row = {"file_name": normalize(caption_form, "ö.png"), "text": "in a list"}
    Path("dogs/metadata.jsonl").write_text(json.dumps(row))
    assert sorted(prompts()) == ["in a file", "in a list"]
    assert read_folder(Path("dogs")).unused_captions == []


@pytest.mark.parametrize("content", [b"", b" \n\t\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\r\n"])
def test_an_empty_caption_counts_as_none(here: Path, content: bytes) -> None:
    touch("dogs/a.png")
    Path("dogs/a.txt").write_bytes(content)
    assert prompts() == [PROMPT]
    assert read_folder(Path("dogs")).empty_captions == ["a.txt"]


def test_captions_of_no_image_are_found(here: Path) -> None:
    touch("dogs/a.png", "dogs/a.txt", "dogs/ab.txt", "dogs/gone.caption")
    rows = [{"file_name": "a.png", "text": "x"}, {"file_name": "train/c.png", "text": "y"}]
    Path("dogs/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert read_folder(Path("dogs")).unused_captions == ["ab.txt", "gone.caption", "train/c.png"]


def test_captions_of_a_list_are_read_after_those_beside_the_images(here: Path) -> None:
    touch("dogs/a.png", "dogs/b.png", "dogs/c.png")
    rows = [{"file_name": f"{name}.png", "text": " in\na list ", "width": 3} for name in "ab"]
    Path("dogs/metadata.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(map(json.dumps, rows)).encode())
    Path("dogs/a.txt").write_text("in a file")
    assert prompts() == ["in a file", "in a list", PROMPT]


@pytest.mark.parametrize("line", ["{", "[]", '"a.png"', '{"file_name": "a.png"}', '{"file_name": 1, "text": "x"}',
                                  '{"file_name": "a.png", "text": null}', "[" * 100_000])  # fmt: skip
def test_a_broken_list_of_captions_is_refused_by_its_line(here: Path, line: str) -> None:
    touch("dogs/a.png")
    Path("dogs/metadata.jsonl").write_text('{"file_name": "a.png", "text": "x"}\n' + line)
    with pytest.raises(InputError, match=r"dogs/metadata\.jsonl, line 2 is not an object with file_name and text"):
        prompts()


@pytest.mark.parametrize("name", ["a.txt", "metadata.jsonl"])
def test_a_caption_that_never_ends_is_refused(here: Path, name: str) -> None:
    touch("dogs/a.png")
    os.mkfifo(Path("dogs", name))
    with pytest.raises(InputError, match=f"{name} is not a regular file"):
        prompts()


@pytest.mark.parametrize(("length", "message"), [(10_001, r"prompt of dogs/a\.png has 10,001"), (2**24 + 1, "longer")])
def test_a_caption_of_any_length_is_refused_in_one_line(here: Path, length: int, message: str) -> None:
    touch("dogs/a.png")
    Path("dogs/a.txt").write_text("x" * length)
    with pytest.raises(InputError, match=message) as error:
        prompts()
    assert len(str(error.value)) < 200
