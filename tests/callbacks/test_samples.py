from collections.abc import Callable
from pathlib import Path

from PIL import Image


def test_images_of_the_base_are_drawn_once_for_all_runs_that_begin_with_it(run: Callable[..., object]) -> None:
    settings = {"trainer__max_steps": 1, "samples__prompts": "a photo of a girl", "samples__num_images": 2}
    run(**settings, name="first")
    grid = Path("runs/first/samples/step-000000.png")
    (stored,) = Path("runs/.cache/base_images").iterdir()
    files = sorted(stored.glob("*.png"))
    assert len(files) == 2
    written = [file.stat().st_mtime_ns for file in files]
    run(**settings, name="second")
    assert [file.stat().st_mtime_ns for file in files] == written
    again = Path("runs/second/samples/step-000000.png")
    assert Image.open(again).tobytes() == Image.open(grid).tobytes()
    run(**settings, name="other", fidelity__base_dir="elsewhere")
    assert len([*Path("elsewhere").rglob("*.png")]) == 2
