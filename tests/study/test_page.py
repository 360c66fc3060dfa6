"""The report's template, with a made-up study."""

import re
from typing import Any

import pytest
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from lightning_dreambooth.study.page import label, number

IMAGES = [f"data:image/webp;base64,{i:04d}" for i in range(10)]
CURVES = [f"data:image/svg+xml;base64,{i:04d}" for i in range(2)]


@pytest.fixture
def page() -> str:
    """Two figures, of which the first has two fits, and curves of one figure and of training."""
    environment = Environment(
        loader=PackageLoader("lightning_dreambooth", "study"), autoescape=select_autoescape(default=True),
        trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined,
    )  # fmt: skip
    environment.filters |= {"number": number, "label": label}
    strips = [("fit seed 1", IMAGES[:4]), ("fit seed 2", IMAGES[4:8])]
    rows: list[dict[str, Any]] = [{"label": '웹툰 "a" <b>', "strips": strips, "metrics": ["0.5"]}]
    both = [
        {"key": "first", "title": "First", "note": "", "settings": "", "rows": rows, "measures": ["clip_i"],
         "curves": CURVES[:1]},
        {"key": "second", "title": "Second", "note": "", "settings": "", "measures": [], "curves": [],
         "rows": [{"label": "a", "strips": [("", IMAGES[8:])]}]},
    ]  # fmt: skip
    return environment.get_template("page.html.jinja").render(
        title="Mine", note="", study="mine", variants=["a"], seeds=[1, 2], verdicts=[], curves=CURVES[1:], figures=both,
        dreambench=[], columns=(), records=[], configs={}, images=8, minutes=3.0, versions={},
    )  # fmt: skip


def test_every_image_is_embedded_once_in_a_button_that_says_what_it_is(page: str) -> None:
    buttons = re.findall(r'<button type="button"><img src="(data:[^"]*)" alt="([^"]+)"[^>]*></button>', page)
    assert sorted(source for source, _ in buttons) == sorted(IMAGES + CURVES)
    assert page.count("data:image/webp;base64,") == len(IMAGES)
    assert page.count("<img") == len(buttons)
    names = dict(buttons)
    assert names[IMAGES[5]] == "웹툰 &#34;a&#34; &lt;b&gt;, fit seed 2, 2 of 4"
    assert names[IMAGES[9]] == "a, 2 of 2"
    assert len(set(names.values())) == len(buttons)


def test_the_head_counts_the_images_measured(page: str) -> None:
    assert re.search(r"2 fits of each \(seeds 1, 2\),\s+8 images measured; 3 minutes of fitting", page)


def test_the_page_fetches_nothing(page: str) -> None:
    assert not re.findall(r"https?://|@import|url\(|<link|<script [^>]*src|<iframe|fetch\(", page)
    assert page.count("<script>") == page.count("<dialog ") == 1
