import base64

import pytest

from lightning_dreambooth.evaluation.intervals import Interval
from lightning_dreambooth.study import plots

LINE = [(1.0, Interval(0.2, 0.1, 0.3)), (2.0, Interval(0.4, None, None))]


def test_equal_curves_are_equal_files() -> None:
    assert plots.curves("clip_i", "step", {"a": LINE}) == plots.curves("clip_i", "step", {"a": LINE})


def test_names_in_hangul_are_drawn_with_glyphs() -> None:  # a missing glyph is a warning, and warnings are errors here
    shown = plots.curves("clip_i", "step", {"웹툰": LINE, "얼굴": LINE})
    svg = base64.b64decode(shown.split(",")[1]).decode()
    assert "Pretendard" in svg


@pytest.mark.parametrize("count", [2, 9])
def test_few_and_many_lines_have_a_legend(count: int) -> None:
    svg = base64.b64decode(plots.curves("x", "step", {f"line {i}": LINE for i in range(count)}).split(",")[1]).decode()
    assert "legend" in svg
