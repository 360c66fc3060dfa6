"""A study file => its variants, figures and hypotheses, checked and multiplied out."""

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from lightning_dreambooth.data.images import read_text
from lightning_dreambooth.diffusion.requests import Request, SamplingSettings, check_seed
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.evaluation.dreambench import read_subject, subjects_of
from lightning_dreambooth.evaluation.metrics import measured_by
from lightning_dreambooth.study.spec import Dreambench, FigureSpec, Hypothesis, Sampling, StudySpec

EXTENDS = "extends"
LAYER = "config"  # among values of `fit`: one more file that `fit` reads
NAME = re.compile(r"[\w.,=+-]+")  # what may name a folder
DRAWN_BY = ("prompt", "negative_prompt", "steps", "guidance_scale", "sampler")  # of a figure, besides seeds


@dataclass(frozen=True)
class Variant:
    """One way to train: configs in layers, what is changed in them, and its place among variants and in the grid."""

    name: str
    configs: list[str]
    overrides: dict[str, Any]
    settings: dict[str, Any]

    def argv(self, seed: int) -> list[str]:
        """What follows `fit` on the command line."""
        given = self.overrides | {"seed_everything": seed}
        layers = [f"--config={file}" for file in self.configs]
        return [*layers, *(f"--{key}={_as_argument(value)}" for key, value in given.items())]


def _as_argument(value: Any) -> str:
    return value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True).split("\n...")[0].strip()


@dataclass(frozen=True)
class Row:
    """A row of images of one variant: all that decides it, by name, and by what it differs from the other rows."""

    variant: str
    coordinates: Mapping[str, Any]
    differs: Mapping[str, Any]
    seeds: range

    @property
    def requests(self) -> list[Request]:
        """The images of the row, one per seed."""
        prompt, *values = (self.coordinates[name] for name in DRAWN_BY)
        return [Request(prompt, seed, SamplingSettings(*values)) for seed in self.seeds]

    def holds(self, side: Mapping[str, Any]) -> bool:
        """Whether the row has all of these settings."""
        return all(name in self.coordinates and self.coordinates[name] == value for name, value in side.items())


@dataclass(frozen=True)
class Figure:
    """A figure as it is drawn: its rows, or the training images of its variants."""

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
        InputError: if it is not a study, or names what is not there.
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
    figures = {key: _figure(key, figure, spec, variants, path) for key, figure in spec.figures.items()}
    for hypothesis in spec.findings:
        _check_hypothesis(hypothesis, figures, spec, path)
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
        raise InputError(f"{path} is not a study: a mapping with config, figures and so on")
    for where in (content, *(value for value in content.values() if isinstance(value, dict))):
        if odd := [key for key in where if not isinstance(key, str)]:
            raise InputError(f"{path}: the key {odd[0]!r} is not text in YAML; put it in quotes")
    content = {key: value for key, value in content.items() if value is not None}
    extended = content.pop(EXTENDS, None)
    return content if extended is None else _content(Path(str(extended)), [*extending, path.resolve()]) | content


def _check_values(spec: StudySpec, path: Path) -> None:
    if not spec.seeds or len({*spec.seeds}) < len(spec.seeds) or min(spec.seeds) < 0:
        raise InputError(f"{path}: seeds is {spec.seeds}, must be one or more different numbers of 0 or more")
    if empty := [key for key, values in spec.grid.items() if not values]:
        raise InputError(f"{path}: grid has no values for {empty[0]}; give a list")
    named = [*spec.overrides, *spec.grid, *(key for overrides in (spec.variants or {}).values() for key in overrides)]
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
    ambiguous = {*DRAWN_BY, "variant", "seed", *(end for end in ends if ends.count(end) > 1)}
    short = {key: key if end in ambiguous else end for key, end in zip(spec.grid, ends, strict=True)}
    variants = []
    for name, changes in named.items():
        if name and not NAME.fullmatch(name):
            raise InputError(f"{path}: {name!r} cannot name a folder; use letters, digits and . , = + - _")
        for values in product(*spec.grid.values()):
            grid = {short[key]: value for key, value in zip(spec.grid, values, strict=True)}
            labels = [name] * bool(name) + [f"{key}={_as_argument(value)}" for key, value in grid.items()]
            whole = re.sub(r"[^\w.,=+-]+", "-", ",".join(labels)) or path.stem
            settings = {"variant": name or whole} | grid if name or not grid else grid
            changed = [spec.overrides, changes, dict(zip(spec.grid, values, strict=True))]
            # Files come before values, so that no file replaces a value that the study gives.
            layers = [spec.config, *(overrides[LAYER] for overrides in changed if LAYER in overrides)]
            configs = [str(layer).replace("{variant}", name) for layer in layers]
            if missing := [config for config in configs if not Path(config).is_file()]:
                raise InputError(f"{path}: config {missing[0]} of variant {whole} is not a file here")
            values_of = {key: value for overrides in changed for key, value in overrides.items() if key != LAYER}
            variants.append(Variant(whole, configs, values_of, settings))
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
            "data.class_data_dir": f"runs/.cache/class_images/{study}/{kind.replace(' ', '_')}",
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
        raise InputError(f"{where} has no images: num_images and every list must hold 1 or more")
    found = []
    for variant, *values in product(shown, *axes.values()):
        drawn = dict(zip(axes, values, strict=True))
        try:
            check_seed(drawn["seed"])
            SamplingSettings(**{name: drawn[name] for name in DRAWN_BY if name != "prompt"})
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


def _check_hypothesis(hypothesis: Hypothesis, figures: Mapping[str, Figure], spec: StudySpec, path: Path) -> None:
    where = f"{path}: the finding {hypothesis.claim!r}"
    if hypothesis.figure not in figures:
        raise InputError(f"{where} names the figure {hypothesis.figure!r}; there are {', '.join(figures)}")
    if hypothesis.measure not in measured_by("study"):
        names = ", ".join(measured_by("study"))
        raise InputError(f"{where} names the metric {hypothesis.measure!r}; there are {names}")
    if hypothesis.measure == "quality" and spec.quality is None:
        raise InputError(f"{where} is of quality, which nothing measures; give quality: {{good: ..., bad: ...}}")
    for side in (hypothesis.more, hypothesis.less):
        if not any(row.holds(side) for row in figures[hypothesis.figure].rows):
            raise InputError(f"{where}: no row of figure {hypothesis.figure} has {side}")
