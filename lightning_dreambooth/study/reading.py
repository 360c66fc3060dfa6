"""Reading of a study file: variants, figures and hypotheses, checked and expanded."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from lightning_dreambooth.cli.parser import check_file, check_yaml, set_policy
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.inputs import expand, read_text
from lightning_dreambooth.study.figures import Figure, check_hypothesis, expand_figure
from lightning_dreambooth.study.spec import StudySpec
from lightning_dreambooth.study.variants import NAME, Variant, expand_variants

EXTENDS = "extends"


@dataclass(frozen=True)
class Study:
    """A study file, checked, with its variants and figures expanded."""

    name: str
    spec: StudySpec
    variants: Mapping[str, Variant]
    figures: Mapping[str, Figure]


def read_study(path: Path) -> Study:
    """A study file => the study.

    Raises:
        InputError: if it is not a study, or names a file, variant, figure or metric that does not exist.
    """
    content = _content(path, [])
    if not NAME.fullmatch(path.stem):
        raise InputError(f"{path}: {path.stem!r} cannot name a folder; use letters, digits and . , = + - _")
    set_policy()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(StudySpec)
    try:
        spec = StudySpec(**vars(parser.instantiate_classes(parser.parse_object(deepcopy(content)))))
    except (ArgumentError, TypeError, ValueError) as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from error
    # As they stand in the file: the parser would read a prompt such as `sks: girl` as YAML once more.
    spec = replace(spec, **{name: content[name] for name in ("overrides", "variants", "grid") if name in content})
    if spec.dreambench is not None:
        spec = replace(spec, dreambench=replace(spec.dreambench, folder=expand(spec.dreambench.folder)))
    _check_values(spec, path)
    variants: dict[str, Variant] = {}
    for variant in expand_variants(spec, path):
        if variants.setdefault(variant.name, variant) is not variant:
            raise InputError(f"{path}: two variants are called {variant.name}; give them names that differ")
    figures = {key: expand_figure(key, figure, spec, variants, path) for key, figure in spec.figures.items()}
    for hypothesis in spec.findings:
        check_hypothesis(hypothesis, figures, spec, path)
    return Study(path.stem, spec, variants, figures)


def _content(path: Path, extending: list[Path]) -> dict[str, Any]:
    """The mapping in a file, merged over that of the file it extends."""
    if not path.is_file():
        raise InputError(f"{path} is not a file; give a study such as those in configs/studies")
    if path.resolve() in extending:
        raise InputError(f"{path} extends itself")
    try:
        check_file(path)
        check_yaml(text := read_text(path), str(path))
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a study: a mapping with config, figures and so on")
    for where in (content, *(value for value in content.values() if isinstance(value, dict))):
        if odd := [key for key in where if not isinstance(key, str)]:
            raise InputError(f"{path}: the key {odd[0]!r} is not text in YAML; put it in quotes")
    content = {key: value for key, value in content.items() if value is not None}
    extended = content.pop(EXTENDS, None)
    return (
        content if extended is None else _content(Path(expand(str(extended))), [*extending, path.resolve()]) | content
    )


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
