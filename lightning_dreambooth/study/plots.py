"""Curves of a study, as SVG."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure as Canvas
from matplotlib.font_manager import fontManager

from lightning_dreambooth.data.lettering import font_file
from lightning_dreambooth.evaluation.intervals import Interval

INCHES = (4.2, 3.0)
MAX_INSIDE = 5  # lines whose names fit inside the figure
mpl.rcParams["svg.hashsalt"] = "study"  # equal figures are equal files
fontManager.addfont(font_file())
mpl.rcParams["font.family"] = ["DejaVu Sans", "Pretendard"]  # the second has Hangul

Curve = Sequence[tuple[float, Interval]]  # x and y


def svg(canvas: Canvas) -> str:
    """A plot => a data URL of an SVG."""
    file = io.BytesIO()
    canvas.savefig(file, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"


def curves(title: str, x_label: str, lines: Mapping[str, Curve]) -> str:
    """Curves with their intervals as bands, one colour each."""
    canvas = Canvas(figsize=INCHES, layout="constrained")
    axes = canvas.subplots()
    for name, curve in lines.items():
        xs, ys = [x for x, _ in curve], [y.mean for _, y in curve]
        (line,) = axes.plot(xs, ys, marker="o", markersize=3, label=name)
        banded = [(x, y.low, y.high) for x, y in curve if y.low is not None]
        if banded:
            across, lows, highs = zip(*banded, strict=True)
            axes.fill_between(across, lows, highs, alpha=0.15, color=line.get_color(), linewidth=0)
    return _finish(canvas, axes, title, x_label, "", lines)


def paths(title: str, x_label: str, y_label: str, lines: Mapping[str, Sequence[tuple[int, float, float]]]) -> str:
    """Paths of (step, x, y) in the plane of two metrics, one colour each; the last step is marked with its number."""
    canvas = Canvas(figsize=INCHES, layout="constrained")
    axes = canvas.subplots()
    for name, path in lines.items():
        (line,) = axes.plot([x for _, x, _ in path], [y for _, _, y in path], marker="o", markersize=3, label=name)
        step, x, y = path[-1]
        axes.annotate(str(step), (x, y), textcoords="offset points", xytext=(4, 3), fontsize=7, color=line.get_color())
    return _finish(canvas, axes, title, x_label, y_label, lines)


def _finish(canvas: Canvas, axes: Any, title: str, x_label: str, y_label: str, lines: Mapping[str, Any]) -> str:
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(x_label, fontsize=8)
    axes.set_ylabel(y_label, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    if len(lines) > MAX_INSIDE:
        canvas.legend(fontsize=6, frameon=False, loc="outside lower center", ncols=2)
    elif len(lines) > 1:
        axes.legend(fontsize=7, frameon=False)
    return svg(canvas)
