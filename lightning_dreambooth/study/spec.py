"""Keys of a study file. Plain values, no torch."""

from dataclasses import dataclass, field
from typing import Any

from lightning_dreambooth.diffusion.requests import Sampler


@dataclass(frozen=True)
class Sampling:
    """How the images of all figures are drawn; figures can override it.

    Args:
        num_images: Images in a row of a figure.
        seed: Seed of the first image of every row; the next ones count up, so that columns share their noise.
        negative_prompt: Prompt that guidance leads away from.
        steps: Sampling steps.
        guidance_scale: Classifier-free guidance scale.
        sampler: Algorithm that removes the noise.
        lora_scale: Factor of what adapters add; other than 1 only for variants that train adapters.
        batch_size: Images drawn at once.
    """

    num_images: int = 8
    seed: int = 0
    negative_prompt: str = ""
    steps: int = 24
    guidance_scale: float = 7.5
    sampler: Sampler = "ddim"
    lora_scale: float = 1.0
    batch_size: int = 4


@dataclass(frozen=True)
class FigureSpec:
    """One figure: a row of images for each combination of the values that are lists.

    Args:
        title: Heading in the report; null takes the figure's key.
        note: Text under the heading, such as what to look at, or what another study found.
        variants: Names of variants; null shows all.
        training_pictures: Whether training images are shown in place of samples.
        prompt: Prompt that is drawn.
        negative_prompt: Prompt that guidance leads away from; null takes that of `sampling`, as do the next six.
        steps: Sampling steps.
        guidance_scale: Classifier-free guidance scale.
        sampler: Algorithm that removes the noise.
        lora_scale: Factor of what adapters add.
        seed: Seed of the first image of a row.
        num_images: Images in a row.
        references: Variant whose instance images identity is measured against; null takes each row's own.
    """

    title: str | None = None
    note: str = ""
    variants: list[str] | None = None
    training_pictures: bool = False
    prompt: str | list[str] | None = None
    negative_prompt: str | list[str] | None = None
    steps: int | list[int] | None = None
    guidance_scale: float | list[float] | None = None
    sampler: Sampler | list[Sampler] | None = None
    lora_scale: float | list[float] | None = None
    seed: int | list[int] | None = None
    num_images: int | None = None
    references: str | None = None


@dataclass(frozen=True)
class Hypothesis:
    """A claim that a metric is higher in some rows of a figure than in others.

    Args:
        claim: The claim in words.
        figure: Key of the figure.
        measure: Name of the metric, one that a study measures: clip_i, dino, clip_t, quality or div.
        more: Settings of the rows where the metric should be higher, such as `{variant: b}`.
        less: Settings of the other rows.
        why: Explanation of the result; the report marks it as the study's own note.
    """

    claim: str
    figure: str
    measure: str
    more: dict[str, Any]
    less: dict[str, Any]
    why: str = ""


@dataclass(frozen=True)
class Quality:
    """Two opposite texts; quality is how much nearer an image is to the first (CLIP-IQA, arXiv:2207.12396).

    Args:
        good: What a good image shows.
        bad: What a bad one shows.
    """

    good: str
    bad: str


@dataclass(frozen=True)
class Dreambench:
    """A folder in google/dreambooth's layout, each subject of which is a variant that `test` measures.

    Args:
        folder: Folder with `prompts_and_classes.txt` and a folder per subject.
        identifier: The rare word that stands for each subject.
        subjects: Names of subjects; null takes all whose folders are there.
    """

    folder: str
    identifier: str = "sks"
    subjects: list[str] | None = None


@dataclass(frozen=True)
class StudySpec:
    """A study file.

    Args:
        config: Config of `fit` that every variant starts from; `{variant}` stands for the variant's name.
        title: Heading of the report; null takes the file's name.
        note: Introduction of the report.
        overrides: Values of `fit`, by dotted name, for all variants; `config`, as in `variants` and `grid`, is a
            further file that is read after the one above.
        variants: Values of `fit`, by dotted name, for each variant by its name.
        grid: Lists of values of `fit`, by dotted name; each of `variants` is multiplied by every combination.
        seeds: Seeds; each variant has a fit with each of them.
        sampling: How images are drawn.
        quality: Two opposite texts that measure the quality of images; null measures none.
        figures: Figures by key.
        findings: Claims to test.
        dreambench: A dataset of which every subject is fitted and tested.
        resources: Resources of a task on a Ray cluster, such as `{num_cpus: 4, num_gpus: 1}`.
    """

    config: str
    title: str | None = None
    note: str = ""
    overrides: dict[str, Any] = field(default_factory=dict)
    variants: dict[str, dict[str, Any]] | None = None
    grid: dict[str, list[Any]] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0])
    sampling: Sampling = field(default_factory=Sampling)
    quality: Quality | None = None
    figures: dict[str, FigureSpec] = field(default_factory=dict)
    findings: list[Hypothesis] = field(default_factory=list)
    dreambench: Dreambench | None = None
    resources: dict[str, float] = field(default_factory=lambda: {"num_cpus": 1.0})
