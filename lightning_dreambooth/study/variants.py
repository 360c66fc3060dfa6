"""Variants of a study: ways to train, each as arguments of `fit`."""

import re
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from lightning_dreambooth.errors import InputError
from lightning_dreambooth.evaluation.dreambench import list_subjects, read_subject
from lightning_dreambooth.inputs import expand
from lightning_dreambooth.study.spec import Dreambench, StudySpec

LAYER = "config"  # among values of `fit`: one more file that `fit` reads
NAME = re.compile(r"[\w.,=+-]+")  # valid names of folders
DRAWN_BY = ("prompt", "negative_prompt", "steps", "guidance_scale", "sampler")  # of a figure, besides seeds
LORA_SCALE = "lora_scale"  # of a figure: another scale is another model


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        name: Its name in the study.
        configs: Config files, later ones over earlier ones.
        overrides: Values over those of the configs, by dotted name.
        settings: Its name among `variants` and its values in the grid, by short name.
    """

    name: str
    configs: list[str]
    overrides: dict[str, Any]
    settings: dict[str, Any]

    def argv(self, seed: int) -> list[str]:
        """The arguments after `fit` on the command line."""
        values = self.overrides | {"seed_everything": seed}
        layers = [f"--config={file}" for file in self.configs]
        return [*layers, *(f"--{key}={_as_argument(value)}" for key, value in values.items())]


def _as_argument(value: Any) -> str:
    return value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True).split("\n...")[0].strip()


def expand_variants(spec: StudySpec, path: Path) -> list[Variant]:
    """The variants of a study: each named variant, or each subject of a dataset, with every combination of the grid.

    Raises:
        InputError: if the name of one cannot name a folder, or a config does not exist.
    """
    named = spec.variants or {"": {}}
    if spec.dreambench is not None:
        named = _subjects(spec.dreambench, path.stem)
    ends = [key.rsplit(".", 1)[-1] for key in spec.grid]
    ambiguous = {*DRAWN_BY, LORA_SCALE, "variant", "seed", *(end for end in ends if ends.count(end) > 1)}
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
            configs = [expand(str(layer)).replace("{variant}", name) for layer in layers]
            if missing := [config for config in configs if not Path(config).is_file()]:
                raise InputError(f"{path}: config {missing[0]} of variant {whole} is not a file here")
            values_of = {key: value for overrides in changed for key, value in overrides.items() if key != LAYER}
            variants.append(Variant(whole, configs, values_of, settings))
    return variants


def _subjects(dreambench: Dreambench, study: str) -> dict[str, dict[str, Any]]:
    folder, named = Path(dreambench.folder), {}
    for name in dreambench.subjects or list_subjects(folder):
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
