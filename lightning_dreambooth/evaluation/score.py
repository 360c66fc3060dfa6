"""Score of a model: how much of the subject is learned, and how much of everything else is kept."""

from collections.abc import Mapping
from statistics import harmonic_mean

# In cosine: a part of the score with a shorter range would be noise, and is left out.
MIN_RANGE = 0.02
PARTS = ("identity", "prompt", "attributes", "class")


def fraction_of_range(value: float, start: float, end: float) -> float:
    """The place of a value between start (0) and end (1), limited to [0, 1]."""
    return min(1.0, max(0.0, (value - start) / (end - start)))


def score(
    metrics: Mapping[str, float], base: Mapping[str, float], ceiling: float, floors: Mapping[str, float]
) -> dict[str, float]:
    """One score in [0, 1] that is high only if all of its parts are: their harmonic mean, with the parts.

    `score/identity`: how far identity has moved from the base model's to the ceiling. `score/prompt`: how much of the
    base model's prompt following, above the floor, is kept. `score/attributes`: the same for what prompts ask for
    besides the subject. `score/class`: how much of the base model's distance between class and instance images is kept.
    A part whose range is below MIN_RANGE is left out; there is no score without identity.

    Args:
        metrics: Cosines of a model: `identity` of its images of the subject with the instance images, `prompt` of those
            with their texts, `attributes` of them with their texts less that with the instance prompt, `class` of its
            class images with the instance images. All but the first may be absent.
        base: The same cosines of the base model.
        ceiling: Mean cosine of the instance images with each other.
        floors: `prompt` of images that show something else, `attributes` of the subject alone; a part without its floor
            is not measured.
    """
    if ceiling - base["identity"] < MIN_RANGE:
        return {}
    parts = {"score/identity": fraction_of_range(metrics["identity"], base["identity"], ceiling)}
    for part, floor in floors.items():
        if base[part] - floor >= MIN_RANGE:
            parts[f"score/{part}"] = fraction_of_range(metrics[part], floor, base[part])
    if "class" in metrics and ceiling - base["class"] >= MIN_RANGE:
        parts["score/class"] = fraction_of_range(-metrics["class"], -ceiling, -base["class"])
    return {"score": float(harmonic_mean(list(parts.values())))} | parts
