"""What a study file says: variants, figures and findings, as plain values that have been checked. No torch."""

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from lightning_dreambooth.dreambench import read_subject, subjects_of
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.pictures import read_text
from lightning_dreambooth.sampling import Request, Sampler, check_request

EXTENDS = "extends"
NAME = re.compile(r"[\w.,=+-]+")  # what may name a folder
DRAWN_BY = ("prompt", "negative_prompt", "steps", "guidance_scale", "sampler")  # of a figure, besides seeds


@dataclass(frozen=True)
class Sampling:
    """How the pictures of all figures are drawn, unless a figure says otherwise.

    Args:
        num_images: Pictures in a row of a figure.
        seed: Seed of the first picture of every row; the next ones count up, so that columns share their noise.
        negative_prompt: What guidance leads away from.
        steps: Sampling steps.
        guidance_scale: Classifier-free guidance scale.
        sampler: ddim, dpm++ (DPM-Solver++ 2M) or euler.
        batch_size: Pictures drawn at once.
    """

    num_images: int = 8
    seed: int = 0
    negative_prompt: str = ""
    steps: int = 24
    guidance_scale: float = 7.5
    sampler: Sampler = "ddim"
    batch_size: int = 4


@dataclass(frozen=True)
class FigureSpec:
    """One figure: a row of pictures for each combination of what is given as a list.

    Args:
        title: Heading in the report; null takes the figure's key.
        note: What to look at, or what another study saw.
        variants: Names of variants; null shows all.
        training_pictures: Show what was trained on in place of samples.
        prompt: What is drawn.
        negative_prompt: What guidance leads away from; null as in `sampling`, like the following.
        steps: Sampling steps.
        guidance_scale: Classifier-free guidance scale.
        sampler: ddim, dpm++ or euler.
        seed: Seed of the first picture of a row.
        num_images: Pictures in a row.
        references: Variant whose instance pictures identity is measured against; null takes each row's own.
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
    seed: int | list[int] | None = None
    num_images: int | None = None
    references: str | None = None


@dataclass(frozen=True)
class Finding:
    """A claim that a measure is higher in some rows of a figure than in others.

    Args:
        claim: The claim in words.
        figure: Key of the figure.
        measure: clip_i, dino, clip_t, quality or div.
        more: What holds of the rows where the measure should be higher, such as `{variant: b}`.
        less: What holds of the others.
        why: Why it comes out as it does, for the report.
    """

    claim: str
    figure: str
    measure: Literal["clip_i", "dino", "clip_t", "quality", "div"]
    more: dict[str, Any]
    less: dict[str, Any]
    why: str = ""


@dataclass(frozen=True)
class Quality:
    """Two opposite texts; quality is how much nearer a picture is to the first (CLIP-IQA, arXiv:2207.12396).

    Args:
        good: What a good picture shows.
        bad: What a bad one shows.
    """

    good: str
    bad: str


@dataclass(frozen=True)
class Dreambench:
    """A folder in google/dreambooth's layout, of which every subject is a variant that `test` measures.

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
        note: What the study is about.
        overrides: Values of `fit`, by dotted name, for all variants.
        variants: Values of `fit`, by dotted name, for each variant by its name.
        grid: Lists of values of `fit`, by dotted name; every combination is a variant, of each of `variants`.
        seeds: A fit of each variant for each of these seeds.
        sampling: How pictures are drawn.
        quality: Two opposite texts that measure the quality of pictures; null measures none.
        figures: Figures by key.
        findings: Claims to test.
        dreambench: A dataset of which every subject is fitted and tested.
        resources: What a part of the study takes on a Ray cluster, such as `{num_cpus: 4, num_gpus: 1}`.
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
    findings: list[Finding] = field(default_factory=list)
    dreambench: Dreambench | None = None
    resources: dict[str, float] = field(default_factory=lambda: {"num_cpus": 1.0})


@dataclass(frozen=True)
class Variant:
    """One way to train: a config, what is changed in it, and its place among the variants and in the grid."""

    name: str
    config: str
    overrides: dict[str, Any]
    settings: dict[str, Any]

    def words(self, seed: int) -> list[str]:
        """What follows `fit` on the command line."""
        given = self.overrides | {"seed_everything": seed}
        return [f"--config={self.config}", *(f"--{key}={_as_word(value)}" for key, value in given.items())]


def _as_word(value: Any) -> str:
    return value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True).split("\n...")[0].strip()


@dataclass(frozen=True)
class Row:
    """A row of pictures of one variant: all that decides it, by name, and by what it differs from the other rows."""

    variant: str
    coordinates: Mapping[str, Any]
    differs: Mapping[str, Any]
    seeds: range

    @property
    def requests(self) -> list[Request]:
        """The pictures of the row, one per seed."""
        prompt, *settings = (self.coordinates[name] for name in DRAWN_BY)
        return [Request(prompt, seed, *settings) for seed in self.seeds]

    def holds(self, side: Mapping[str, Any]) -> bool:
        """Whether the row has all of these settings."""
        return all(name in self.coordinates and self.coordinates[name] == value for name, value in side.items())


@dataclass(frozen=True)
class Figure:
    """A figure as it is drawn: its rows, or the training pictures of its variants."""

    key: str
    spec: FigureSpec
    variants: Sequence[str]
    rows: Sequence[Row]

    @property
    def title(self) -> str:
        """Heading in the report."""
        return self.spec.title or self.key


@dataclass(frozen=True)
class Study:
    """A study file, checked and multiplied out."""

    name: str
    spec: StudySpec
    variants: Mapping[str, Variant]
    figures: Mapping[str, Figure]


def read_study(path: Path) -> Study:
    """A study file => what is to be done.

    Raises:
        InputError: if it is no study, or names what is not there.
    """
    content = _content(path, [])
    if not NAME.fullmatch(path.stem):
        raise InputError(f"{path}: {path.stem!r} cannot name a folder; use letters, digits and . , = + - _")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(StudySpec)
    try:
        spec = StudySpec(**vars(parser.instantiate_classes(parser.parse_object(deepcopy(content)))))
    except (ArgumentError, TypeError, ValueError) as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from error
    # As they stand in the file: the parser would read a prompt such as `sks: girl` as YAML once more.
    spec = replace(spec, **{name: content[name] for name in ("overrides", "variants", "grid") if name in content})
    _check_values(spec, path)
    variants: dict[str, Variant] = {}
    for variant in _variants(spec, path):
        if variants.setdefault(variant.name, variant) is not variant:
            raise InputError(f"{path}: two variants are called {variant.name}; give them names that differ")
    figures = {key: _figure(key, each, spec, variants, path) for key, each in spec.figures.items()}
    for finding in spec.findings:
        _check_finding(finding, figures, spec, path)
    return Study(path.stem, spec, variants, figures)


def _content(path: Path, extending: list[Path]) -> dict[str, Any]:
    """A file's mapping, upon that of the file it extends."""
    if not path.is_file():
        raise InputError(f"{path} is not a file; give a study such as those in configs/studies")
    if path.resolve() in extending:
        raise InputError(f"{path} extends itself")
    try:
        content = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is no study: a mapping with config, figures and so on")
    for where in (content, *(value for value in content.values() if isinstance(value, dict))):
        if odd := [key for key in where if not isinstance(key, str)]:
            raise InputError(f"{path}: the key {odd[0]!r} is no text to YAML; put it in quotes")
    content = {key: value for key, value in content.items() if value is not None}
    extended = content.pop(EXTENDS, None)
    return content if extended is None else _content(Path(str(extended)), [*extending, path.resolve()]) | content


def _check_values(spec: StudySpec, path: Path) -> None:
    if not spec.seeds or len({*spec.seeds}) < len(spec.seeds) or min(spec.seeds) < 0:
        raise InputError(f"{path}: seeds is {spec.seeds}, must be one or more different numbers of 0 or more")
    if empty := [key for key, values in spec.grid.items() if not values]:
        raise InputError(f"{path}: grid has no values for {empty[0]}; give a list")
    named = [*spec.overrides, *spec.grid, *(key for each in (spec.variants or {}).values() for key in each)]
    if "seed_everything" in named:
        raise InputError(f"{path}: seed_everything is given by seeds; give them there")
    if spec.dreambench is not None and (spec.variants or spec.grid):
        raise InputError(f"{path}: dreambench is given with variants or a grid; its subjects are the variants")
    if unknown := sorted(set(spec.resources) - {"num_cpus", "num_gpus"}):
        raise InputError(f"{path}: resources has {unknown[0]}; it takes num_cpus and num_gpus")


def _variants(spec: StudySpec, path: Path) -> list[Variant]:
    named = spec.variants or {"": {}}
    if spec.dreambench is not None:
        named = _subjects(spec.dreambench, path.stem)
    ends = [key.rsplit(".", 1)[-1] for key in spec.grid]
    taken = {*DRAWN_BY, "variant", "seed", *(end for end in ends if ends.count(end) > 1)}
    short = {key: key if end in taken else end for key, end in zip(spec.grid, ends, strict=True)}
    variants = []
    for name, changes in named.items():
        if name and not NAME.fullmatch(name):
            raise InputError(f"{path}: {name!r} cannot name a folder; use letters, digits and . , = + - _")
        config = spec.config.replace("{variant}", name)
        if not Path(config).is_file():
            raise InputError(f"{path}: config {config} is not a file here")
        for values in product(*spec.grid.values()):
            grid = {short[key]: value for key, value in zip(spec.grid, values, strict=True)}
            words = [name] * bool(name) + [f"{key}={_as_word(value)}" for key, value in grid.items()]
            whole = re.sub(r"[^\w.,=+-]+", "-", ",".join(words)) or path.stem
            settings = {"variant": name or whole} | grid if name or not grid else grid
            changed = spec.overrides | changes | dict(zip(spec.grid, values, strict=True))
            variants.append(Variant(whole, config, changed, settings))
    return variants


def _subjects(dreambench: Dreambench, study: str) -> dict[str, dict[str, Any]]:
    folder, named = Path(dreambench.folder), {}
    for name in dreambench.subjects or subjects_of(folder):
        subject = read_subject(folder, name)
        kind = subject.class_name
        article = "an" if kind[0] in "aeiou" else "a"
        named[name] = {
            "data.instance_prompt": f"a photo of {dreambench.identifier} {kind}",
            "data.instance_data_dir": str(folder / name),
            "data.class_prompt": f"a photo of {article} {kind}",
            "data.class_data_dir": f"checkpoints/class_images/{study}/{kind.replace(' ', '_')}",
            "data.identifier": dreambench.identifier,
        }
    return named


def _figure(key: str, spec: FigureSpec, study: StudySpec, variants: Mapping[str, Variant], path: Path) -> Figure:
    where = f"{path}: figure {key}"
    if not NAME.fullmatch(key):
        raise InputError(f"{where}: the key cannot name a folder; use letters, digits and . , = + - _")
    shown = list(variants) if spec.variants is None else spec.variants
    named = shown if spec.references is None else [*shown, spec.references]
    if unknown := [name for name in named if name not in variants]:
        raise InputError(f"{where} names the variant {unknown[0]!r}; there are {', '.join(variants)}")
    if spec.training_pictures:
        return Figure(key, spec, shown, [])
    if spec.prompt is None:
        raise InputError(f"{where} has no prompt; give one, or training_pictures: true")
    axes = {name: _asked(name, spec, study.sampling) for name in ("seed", *DRAWN_BY)}
    number = study.sampling.num_images if spec.num_images is None else spec.num_images
    if number < 1 or not shown or not all(axes.values()):
        raise InputError(f"{where} has no pictures: num_images and every list must hold 1 or more")
    found = []
    for variant, *values in product(shown, *axes.values()):
        drawn = dict(zip(axes, values, strict=True))
        try:
            check_request(Request(**drawn))
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        found.append((variant, {**variants[variant].settings, **drawn}))
    names = list(dict.fromkeys(name for _, coordinates in found for name in coordinates))
    several = [name for name in names if len({str(coordinates.get(name)) for _, coordinates in found}) > 1]
    rows = [
        Row(
            variant, coordinates, {name: coordinates[name] for name in several if name in coordinates},
            range(coordinates["seed"], coordinates["seed"] + number),
        )
        for variant, coordinates in found
    ]  # fmt: skip
    return Figure(key, spec, shown, rows)


def _asked(name: str, spec: FigureSpec, sampling: Sampling) -> list[Any]:
    """The values of an axis: what a figure says, else what the study does."""
    value = getattr(spec, name)
    value = getattr(sampling, name) if value is None else value
    return value if isinstance(value, list) else [value]


def _check_finding(finding: Finding, figures: Mapping[str, Figure], spec: StudySpec, path: Path) -> None:
    where = f"{path}: the finding {finding.claim!r}"
    if finding.figure not in figures:
        raise InputError(f"{where} names the figure {finding.figure!r}; there are {', '.join(figures)}")
    if finding.measure == "quality" and spec.quality is None:
        raise InputError(f"{where} is of quality, which nothing measures; give quality: {{good: ..., bad: ...}}")
    for side in (finding.more, finding.less):
        if not any(row.holds(side) for row in figures[finding.figure].rows):
            raise InputError(f"{where}: no row of figure {finding.figure} has {side}")

