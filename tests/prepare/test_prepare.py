"""The tool as a user runs it, on drawn pages and a folder of raw images."""

import csv
import errno
import json
import os
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from helpers import drawn
from PIL import Image, ImageFilter, ImageOps

from lightning_dreambooth.cli.main import main as run
from lightning_dreambooth.cli.preparing import main
from lightning_dreambooth.errors import InputWarning
from lightning_dreambooth.prepare import preparation

SIZE = (690, 3600)
GOOD = [
    drawn.Place(60, 100, 220, 0), drawn.Place(330, 620, 200, 1), drawn.Place(120, 1120, 260, 2),
    drawn.Place(300, 1700, 180, 3),
]  # fmt: skip
COPY = drawn.Place(60, 2200, 220, 0)  # tinted like the first, and so nearly the same
SMALL = drawn.Place(250, 2700, 90, 4)
ROOT = Path(__file__).parent.parent.parent


def prepare(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    main(list(map(str, argv)))
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    with pytest.raises(SystemExit) as exit_code:
        main(list(map(str, argv)))
    assert exit_code.value.code == 2
    return capsys.readouterr().err


def rows(output: Path) -> list[dict[str, str]]:
    with (output / "prepare/manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    drawn.page(SIZE, [*GOOD, COPY, SMALL]).save(folder / "page2.png")
    drawn.page(SIZE, [*GOOD[:2]], seed=3).save(folder / "page10.png")
    return folder


@pytest.fixture
def boxes(tmp_path: Path) -> Path:
    lines = ["image,left,top,right,bottom,score"]
    for place in [*GOOD, COPY, SMALL]:
        lines.append(",".join(["page2.png", *(f"{value:.1f}" for value in place.box), "0.9"]))
    lines.append("page2.png,300,3000,420,3200,0.95")  # too tall
    lines.append("page2.png,640,3300,760,3420,0.95")  # beyond the page's edge
    lines.append("page2.png,200,3300,320,3420,0.5")  # not sure
    lines.append("page2.png,80,3470,200,3590,0.9")  # white below it
    file = tmp_path / "boxes.csv"
    file.write_text("\n".join(lines))
    return file


def test_given_the_boxes_every_crop_and_every_reason_is_exact(
    tmp_path: Path, pages: Path, boxes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    said = prepare(capsys, pages, "--output", output, "--boxes", boxes, "--size", 128)
    found = rows(output)
    assert [row["reason"] for row in found] == [
        "", "", "", "", "duplicate: 00001.png", "small", "aspect", "score", "cut_off", "blank_edge", "no_face",
    ]  # fmt: skip
    assert [row["image"] for row in found[:4]] == [f"0000{number}.png" for number in range(1, 5)]
    for row, place in zip(found, GOOD, strict=False):
        edge = 0.54 * place.side
        side, left, top = round(1.8 * edge), place.left + 0.5 * place.side, place.top + 0.55 * place.side - 0.1 * edge
        crop = list(map(int, row["crop"].split()))
        assert crop[2] - crop[0] == crop[3] - crop[1] == side
        assert crop[:2] == pytest.approx([left - side / 2, top - side / 2], abs=1)
    assert "4 of 11 kept" in said
    assert "contact_sheet.png" in said
    assert sorted(path.name for path in output.glob("*.png")) == [f"0000{number}.png" for number in range(1, 5)]
    with Image.open(output / "00003.png") as image:
        assert image.size == (128, 128)


def test_labels_of_yolo_give_the_same_crops(
    tmp_path: Path, pages: Path, boxes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(capsys, pages / "page2.png", "--output", tmp_path / "csv", "--boxes", boxes, "--size", 64)
    labels = tmp_path / "labels"
    labels.mkdir()
    lines = []
    for line in boxes.read_text().splitlines()[1:]:
        left, top, right, bottom, score = map(float, line.split(",")[1:])
        centre = (left + right) / 2 / SIZE[0], (top + bottom) / 2 / SIZE[1]
        lines.append(
            f"0 {centre[0]:.6f} {centre[1]:.6f} {(right - left) / SIZE[0]:.6f} {(bottom - top) / SIZE[1]:.6f} {score}"
        )
    (labels / "page2.txt").write_text("\n".join(lines))
    prepare(capsys, pages / "page2.png", "--output", tmp_path / "yolo", "--boxes", labels, "--size", 64)
    both = [rows(tmp_path / name) for name in ("csv", "yolo")]
    assert [row["reason"] for row in both[0]] == [row["reason"] for row in both[1]]
    crops = [[list(map(int, row["crop"].split())) for row in table] for table in both]
    assert np.abs(np.array(crops[0]) - np.array(crops[1])).max() <= 1  # the labels are rounded


def test_the_same_input_gives_the_same_bytes_and_inputs_stay(
    tmp_path: Path, pages: Path, boxes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(pages)
    for name in ("one", "two"):
        prepare(capsys, pages, "--output", tmp_path / name, "--boxes", boxes, "--size", 128, "--caption", "a face")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert (tmp_path / "one/00002.txt").read_text() == "a face\n"
    assert contents(pages) == before


def test_the_detectors_of_both_extras_find_the_drawn_faces(
    tmp_path: Path, pages: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    prepare(capsys, pages, "--output", output, "--size", 64, "--faces.min_side", 1, "--duplicates", -1)
    true = {"page2.png": [*GOOD, COPY, SMALL], "page10.png": GOOD[:2]}
    found = [row for row in rows(output) if row["face"] and float(row["score"]) >= 0.7]
    hits = [any(_overlap(place.box, row) > 0.3 for place in true[Path(row["source"]).name]) for row in found]
    precision, recall = sum(hits) / len(found), sum(hits) / sum(map(len, true.values()))
    print(f"precision {precision:.2f}, recall {recall:.2f} of {len(found)} found")
    assert precision >= 0.95
    assert recall >= 0.7


def _overlap(true: tuple[float, float, float, float], row: dict[str, str]) -> float:
    face = tuple(map(float, row["face"].split()))
    width = min(true[2], face[2]) - max(true[0], face[0])
    height = min(true[3], face[3]) - max(true[1], face[1])
    common = max(width, 0) * max(height, 0)
    return common / ((true[2] - true[0]) * (true[3] - true[1]) + (face[2] - face[0]) * (face[3] - face[1]) - common)


def test_stopped_by_a_full_disk_it_goes_on(
    tmp_path: Path,
    pages: Path,
    boxes: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    argv = [str(pages), "--boxes", str(boxes), "--size", "128", "--caption", "a face"]
    prepare(capsys, *argv, "--output", tmp_path / "whole")
    write = preparation.write_bytes

    def write_two(path: Path, content: bytes) -> None:
        if path.name == "00003.png":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    stopped = tmp_path / "stopped"
    monkeypatch.setattr(preparation, "write_bytes", write_two)
    with pytest.raises(SystemExit) as exit_code:
        main([*argv, "--output", str(stopped)])
    monkeypatch.undo()
    assert exit_code.value.code == 1
    assert (stopped / "00002.png").is_file()
    assert not (stopped / "prepare/manifest.csv").exists()
    prepare(capsys, *argv, "--output", stopped)
    assert contents(stopped) == contents(tmp_path / "whole")


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on(
    tmp_path: Path, pages: Path, boxes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [str(pages), "--boxes", str(boxes), "--size", "128"]
    prepare(capsys, *argv, "--output", tmp_path / "whole")
    command = [sys.executable, "-m", "lightning_dreambooth", "prepare", *argv, "--output", str(tmp_path / "killed")]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (tmp_path / "killed/00002.png").exists():
        pass
    process.kill()
    process.wait()
    prepare(capsys, *argv, "--output", tmp_path / "killed")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_new_pages_are_added_to_those_that_are_done(
    tmp_path: Path, pages: Path, boxes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    prepare(capsys, pages / "page2.png", "--output", output, "--boxes", boxes, "--size", 64)
    times = {path: path.stat().st_mtime_ns for path in output.glob("*.png")}
    extra = tmp_path / "extra/page3.png"
    extra.parent.mkdir()
    drawn.page((690, 500), [drawn.Place(200, 120, 240, 4)]).save(extra)
    boxes.write_text(f"{boxes.read_text()}\npage3.png,255,187,385,317,0.9\n")
    assert "5 of 11 kept" in prepare(
        capsys, pages / "page2.png", extra, "--output", output, "--boxes", boxes, "--size", 64
    )
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_another_setting_or_a_changed_page_is_refused_and_overwrite_starts_over(
    tmp_path: Path, pages: Path, boxes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, own = tmp_path / "out", tmp_path / "pages"
    shutil.copytree(pages, own)
    argv = [own, "--output", output, "--boxes", boxes]
    prepare(capsys, *argv, "--size", 64)
    assert "was made with other settings (size 64 -> 128); give --overwrite" in refused(capsys, *argv, "--size", 128)
    drawn.page((690, 500), [drawn.Place(200, 120, 240, 4)]).save(own / "page2.png")
    assert "has changed since it was prepared" in refused(capsys, *argv, "--size", 64)
    (output / "mine.txt").write_text("stays")
    boxes.write_text("image,left,top,right,bottom\npage2.png,255,187,385,317\n")
    prepare(capsys, *argv, "--size", 128, "--overwrite")
    assert sorted(path.name for path in output.iterdir() if path.is_file() and path.suffix) == ["00001.png", "mine.txt"]


def test_captions_that_a_user_has_edited_are_not_lost(
    tmp_path: Path, pages: Path, boxes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    argv = [pages, "--output", output, "--boxes", boxes, "--size", 64, "--caption", "a face"]
    prepare(capsys, *argv)
    (output / "00002.txt").write_text("a face, smiling\n")
    before = contents(output)
    prepare(capsys, *argv)
    assert contents(output) == before
    assert "00002.txt has been edited" in refused(capsys, *argv, "--overwrite")
    assert contents(output) == before


def test_a_folder_of_something_else_is_refused(
    tmp_path: Path, pages: Path, boxes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/holiday.jpg").touch()
    for words in ([], ["--overwrite"]):
        error = refused(capsys, pages, "--output", tmp_path / "out", "--boxes", boxes, *words)
        assert "holds files that are not of `prepare`; name an empty or new folder" in error
    assert [path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")] == ["holiday.jpg"]


def test_a_dry_run_counts_and_writes_nothing(
    tmp_path: Path, pages: Path, boxes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = prepare(capsys, pages, "--output", tmp_path / "out", "--boxes", boxes, "--dry_run")
    assert said.startswith("4 of 11 kept, dropped: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("words", "reason"), [
    (["--size", 10], "--size is 10, must lie in 64"), (["--noise", 7], "--noise is 7, must lie in -1 ... 3"),
    (["--faces.expand", 0.5], "--faces.expand is 0.5"), (["--whole.max_aspect", 0], "--whole.max_aspect is 0"),
    (["--duplicates", 99], "--duplicates is 99"), (["--boxes", "none.csv"], "none.csv does not exist"),
    (["--crop", "none", "--boxes", "b.csv"], "give one of them"),
    (["--detectors", "[yolo]"], "known are mtcnn, animeface"),
    (["--faces.min_score", "nan"], "Got value: nan"),
])  # fmt: skip
def test_a_bad_option_is_refused_before_anything_is_written(
    tmp_path: Path, pages: Path, capsys: pytest.CaptureFixture[str], words: list[object], reason: str
) -> None:
    assert reason in refused(capsys, pages, "--output", tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


def test_pages_without_faces_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (300, 300), "teal").save(tmp_path / "sea.png")
    error = refused(capsys, tmp_path / "sea.png", "--output", tmp_path / "out", "--detectors", "[mtcnn]")
    assert "0 of 1 kept, dropped: 1 no_face" in error
    assert "loosen" in error


def test_lettering_is_seen_as_clip_sees_it(
    tmp_path: Path, pages: Path, boxes: Path, capsys: pytest.CaptureFixture[str], small_clip: Path
) -> None:
    from lightning_dreambooth.cli.preparing import WITH_TEXT, WITHOUT_TEXT
    from lightning_dreambooth.evaluation.encoders import Clip

    argv = [pages / "page2.png", "--boxes", boxes, "--size", 64]
    prepare(capsys, *argv, "--output", tmp_path / "all")
    clip = ["--text_filter", "clip", "--clip_model", small_clip, "--clip_pretrained", "null"]
    with suppress(SystemExit):  # it may see lettering on all of them
        prepare(capsys, *argv, "--output", tmp_path / "filtered", *clip)
    encoder = Clip(str(small_clip))
    with Image.open(pages / "page2.png") as page:
        crops = [page.crop(tuple(map(int, row["crop"].split()))) for row in rows(tmp_path / "all") if row["image"]]
    texts = encoder.texts([WITH_TEXT, WITHOUT_TEXT])
    cosines = [
        [(image @ text / image.norm() / text.norm()).item() for text in texts] for image in encoder.images(crops)
    ]
    dropped = [row["reason"] == "text" for row in rows(tmp_path / "filtered")[: len(crops)]]
    assert dropped == [with_text > without for with_text, without in cosines]


def raw_images(folder: Path) -> Path:
    """Forty raw files of photos: good ones and every kind of trouble."""
    folder.mkdir()
    draws = np.random.default_rng(0)
    for number in range(24):
        noise = Image.fromarray(draws.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        photo = noise.resize((480, 360), Image.Resampling.BICUBIC)
        photo.paste(drawn.face(200, drawn.HAIR[number % 6]), (40 + 4 * number, 60))
        photo.save(folder / f"{number:02}.jpg", quality=92)
    first = Image.open(folder / "00.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    ImageOps.mirror(first).save(folder / "30_turned.jpg", exif=exif)
    first.resize((450, 338)).save(folder / "31_copy.jpg")
    Image.open(folder / "03.jpg").filter(ImageFilter.GaussianBlur(20)).save(folder / "32_blurred.png")
    first.resize((120, 90)).save(folder / "33_small.png")
    Image.open(folder / "05.jpg").resize((1200, 300)).save(folder / "34_panorama.png")
    Image.open(folder / "06.jpg").rotate(180).convert("CMYK").save(folder / "35_cmyk.jpg")
    Image.fromarray(np.asarray(Image.open(folder / "07.jpg").rotate(180).convert("L")).astype(np.uint16) * 257).save(
        folder / "36_deep.png"
    )
    alpha = Image.open(folder / "08.jpg").rotate(180).convert("RGBA")
    alpha.putalpha(200)
    alpha.save(folder / "37_alpha.png")
    frames = [Image.open(folder / f"{number:02}.jpg").rotate(90).resize((400, 400)) for number in (9, 10, 11)]
    frames[0].save(folder / "38_moving.webp", save_all=True, append_images=frames[1:])
    (folder / "39_cut.jpg").write_bytes((folder / "12.jpg").read_bytes()[:3000])
    Image.new("1", (30000, 30000)).save(folder / "40_bomb.png")
    (folder / "41_notes.txt").write_text("my dog")
    (folder / "42_link.jpg").symlink_to("/etc/hostname")
    (folder / "43_empty.png").touch()
    (folder / "44_text.png").write_text("not an image")
    shutil.copy(folder / "13.jpg", folder / "45_same.jpg")
    return folder


def test_a_folder_of_raw_photos_gives_a_line_for_each_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    folder, output = raw_images(tmp_path / "photos"), tmp_path / "out"
    before = {path: path.read_bytes() for path in folder.iterdir() if not path.is_symlink()}
    said = prepare(capsys, folder, "--crop", "none", "--output", output, "--size", 128, "--upscaler", "lanczos")
    reasons = {Path(row["source"]).name: row["reason"].partition(":")[0] for row in rows(output)}
    assert len(reasons) == 40
    assert {name: reason for name, reason in reasons.items() if reason} == {
        "31_copy.jpg": "duplicate", "32_blurred.png": "blurred", "33_small.png": "small", "34_panorama.png": "aspect",
        "39_cut.jpg": "unreadable", "40_bomb.png": "unreadable", "41_notes.txt": "skipped", "42_link.jpg": "skipped",
        "43_empty.png": "unreadable", "44_text.png": "unreadable", "45_same.jpg": "duplicate",
    }  # fmt: skip
    lines = [str(warning.message) for warning in recwarn]
    for name in ("39_cut.jpg", "40_bomb.png", "41_notes.txt", "42_link.jpg", "43_empty.png", "44_text.png"):
        assert sum(name in line for line in lines) == 1
    assert {path: path.read_bytes() for path in before} == before
    assert "29 of 40 kept" in said
    assert json.loads((output / "prepare/settings.json").read_text())["crop"] == "none"


SHORT = [
    "--model.prior_weight=0", "--fidelity.clip_model=null", "--fidelity.clip_pretrained=null", "--fidelity.dino=null",
    "--fidelity.losses_every_n_steps=null", "--fidelity.prompts=null", "--fidelity.unrelated_prompts=null",
    "--samples.steps=1", "--trainer.max_steps=2", "--trainer.log_every_n_steps=1", "--data.held_out_dir=null",
]  # fmt: skip


@pytest.mark.slow
def test_the_readmes_three_commands_lead_from_pages_to_images(
    tmp_path: Path, pages: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = readme.split("<!-- from pages to images -->\n```bash\n")[1].split("```")[0].splitlines()
    prepared, fit, predict = (shlex.split(line.replace("step-000400", "step-000002"), comments=True) for line in lines)
    assert {words[0] for words in (prepared, fit, predict)} == {"lightning-dreambooth"}
    monkeypatch.chdir(tmp_path)
    for name in ("checkpoints", "configs"):
        Path(name).symlink_to(ROOT / name)
    Path("pages").symlink_to(pages)
    main(prepared[2:])
    run([*fit[1:], *SHORT])
    drawn_in = run([*predict[1:], "--samples.steps=2", "--samples.num_images=1"]).folder
    assert drawn_in == Path("runs/predict")
    assert list(drawn_in.rglob("*.png"))


def test_images_that_a_user_has_added_or_changed_are_not_lost(
    tmp_path: Path, pages: Path, boxes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    argv = ["--output", output, "--boxes", boxes, "--size", 64, "--caption", "a face"]
    prepare(capsys, pages / "page2.png", *argv)
    (output / "00005.png").write_bytes(b"mine")
    (output / "00006.txt").write_text("my words")
    extra = tmp_path / "page3.png"
    drawn.page((690, 500), [drawn.Place(200, 120, 240, 4)]).save(extra)
    boxes.write_text(f"{boxes.read_text()}\npage3.png,255,187,385,317,0.9\n")
    prepare(capsys, pages / "page2.png", extra, *argv)
    assert (output / "00005.png").read_bytes() == b"mine"
    assert (output / "00006.txt").read_text() == "my words"
    assert rows(output)[-1]["image"] == "00006.png"
    (output / "00006.txt").unlink()
    (output / "00002.png").write_bytes(b"retouched")
    before = contents(output)
    assert "00002.png has been edited" in refused(capsys, pages, *argv, "--overwrite")
    assert contents(output) == before
    (output / "00002.png").unlink()
    prepare(capsys, pages / "page2.png", *argv, "--overwrite")
    assert (output / "00005.png").read_bytes() == b"mine"


def test_an_input_in_the_output_is_refused(
    tmp_path: Path, pages: Path, boxes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    prepare(capsys, pages, "--output", output, "--boxes", boxes, "--size", 64)
    before = contents(output)
    error = refused(capsys, output / "00001.png", "--output", output, "--boxes", boxes, "--overwrite")
    assert "00001.png lies in --output" in error
    assert contents(output) == before


def test_a_repaired_file_is_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    drawn.face(300).save(folder / "1.png")
    (folder / "2.png").write_text("broken")
    argv = [folder, "--output", tmp_path / "out", "--crop", "none", "--size", 64, "--duplicates", -1]
    with pytest.warns(InputWarning, match="cannot be read"):
        assert "1 of 2 kept" in prepare(capsys, *argv)
    drawn.face(300, drawn.HAIR[1]).save(folder / "2.png")
    assert "2 of 2 kept" in prepare(capsys, *argv)


@pytest.mark.parametrize("name", ["settings.json", "manifest.csv"])
def test_what_cannot_be_read_is_named_in_one_line(
    tmp_path: Path, pages: Path, boxes: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    output = tmp_path / "out"
    prepare(capsys, pages, "--output", output, "--boxes", boxes, "--size", 64)
    file = output / "prepare" / name
    file.write_text(file.read_text().replace("00001.png", "../../page2.png") if name == "manifest.csv" else "[1, 2")
    before = contents(output)
    for words in ([], ["--overwrite"]):
        error = refused(capsys, pages, "--output", output, "--boxes", boxes, "--size", 64, *words)
        assert f"{name} cannot be read" in error
        assert "name another --output" in error
    assert contents(output) == before
