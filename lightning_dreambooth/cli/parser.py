"""Parser of configs: which classes they may name, and how much YAML they may hold."""

import os
import re
import sys
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, Namespace, get_loader, set_loader, set_parsing_settings
from pytorch_lightning.cli import LightningArgumentParser

from lightning_dreambooth.errors import InputError
from lightning_dreambooth.inputs import read_text

# A config may name classes of these modules. It comes from strangers, so it cannot name a module of the working folder,
# a function to call, or a class that starts programs; a user who trusts a module says so outside of the config.
TRUSTED = (
    "torch.optim", "bitsandbytes.optim", "lightning_fabric.plugins", "pytorch_lightning.accelerators",
    "pytorch_lightning.callbacks", "pytorch_lightning.loggers", "pytorch_lightning.plugins",
    "pytorch_lightning.profilers", "pytorch_lightning.strategies",
    "lightning_dreambooth.rounding.RoundingAdamW",
    "lightning_dreambooth.evaluation.prompts.StatedPrompt", "lightning_dreambooth.models.lora.Lora",
    "lightning_dreambooth.study.spec",  # these are plain values
)  # fmt: skip
TRUST = "LIGHTNING_DREAMBOOTH_TRUST"  # environment variable with more modules, separated by commas

MAX_CHARACTERS = 1_000_000  # of a config; those that ship have some thousands
MAX_VALUES = 100_000  # of a config, each alias counted as what it stands for
LOADER = get_loader("yaml")  # jsonargparse's own
DENIED = re.compile(r"Importing '([\w.]+)' is not allowed")


class ConfigParser(LightningArgumentParser):
    """Parser that reads bounded YAML from regular files, and imports classes from trusted modules alone."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        set_policy()
        super().__init__(*args, **kwargs)
        self.sections: list[str] = []

    def add_class_arguments(self, theclass: type, nested_key: str | None = None, *args: Any, **kwargs: Any) -> Any:
        """Adds arguments whose values are no paths of further configs: a prompt may be the name of a file."""
        self.sections += [nested_key] if nested_key else []
        return super().add_class_arguments(theclass, nested_key, *args, **kwargs | {"sub_configs": False})

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Namespace:
        """Parses a config.

        Raises:
            InputError: if it is not a regular file, too large, or a section in it is not a mapping.
        """
        check_file(Path(str(path)))
        try:
            content = load_bounded(read_text(Path(str(path))))
        except (yaml.YAMLError, RecursionError) as error:
            raise InputError(f"{path} cannot be read as YAML ({error})") from error
        if not isinstance(content, dict | None):
            raise InputError(f"{path} is not a mapping of sections, such as model and data, to their keys")
        for name, section in (content or {}).items():
            if name in self.sections and not isinstance(section, dict):
                raise InputError(f"{path}: {name} is not a mapping of its keys, such as {name}: {{key: value}}")
        return super().parse_path(path, *args, **kwargs)


def set_policy() -> None:
    """Sets what jsonargparse reads and imports, which holds for the whole process.

    Raises:
        InputError: if the environment variable does not hold names of modules.
    """
    trusted = [name.strip() for name in os.environ.get(TRUST, "").split(",") if name.strip()]
    try:
        set_parsing_settings(import_path_allowlist=trusted)
    except ValueError as error:
        raise InputError(f"{TRUST} is {','.join(trusted)!r}, must hold names of modules ({error})") from error
    set_parsing_settings(
        instantiate_subclass_spec_in_any=False, config_read_mode_fsspec_enabled=False, import_path_denylist=["*"],
        import_path_allowlist=list(TRUSTED),
    )  # fmt: skip
    set_loader("yaml", load_bounded, (yaml.YAMLError,))


def explain(error: ArgumentError) -> InputError:
    """An error of the parser => the same with the remedy, if a class was not trusted."""
    if denied := DENIED.search(str(error)):
        path = denied[1]
        return InputError(
            f"{path} is not imported, because a config may come from anybody; if you trust it, set the environment "
            f"variable {TRUST}={path.rpartition('.')[0]}"
        )
    return InputError(str(error))


def check_callables(config: Any) -> None:
    """Refuses functions: a `class_path` names a class, and is not a call.

    Raises:
        InputError: if a parsed config names a function.
    """
    if isinstance(config, Namespace):
        config = vars(config)
    if isinstance(config, dict):
        path = str(config.get("class_path", ""))
        module, _, name = path.rpartition(".")
        if not isinstance(getattr(sys.modules.get(module), name or "-", type), type):
            raise InputError(f"{path} is not a class; class_path names classes alone")
        config = list(config.values())
    if isinstance(config, list | tuple):
        for value in config:
            check_callables(value)
    elif callable(config) and not isinstance(config, type) and getattr(config, "__module__", None) is None:
        raise InputError(f"{config} is a function, which a config cannot name")


def check_file(path: Path) -> None:
    """Raises InputError if a config is not a regular file, which can be read at once, or too large."""
    if not path.is_file():
        raise InputError(f"{path} is not a regular file; give a config in YAML")
    if (size := path.stat().st_size) > MAX_CHARACTERS:
        raise InputError(f"{path} has {size:,} bytes, more than the {MAX_CHARACTERS:,} of a config; give a smaller one")


def load_bounded(text: str) -> Any:
    """YAML => plain values, as jsonargparse reads them.

    Raises:
        InputError: if it holds too much, aliases counted as what they stand for.
    """
    check_yaml(text)
    return LOADER(text)


def check_yaml(text: str, source: str = "YAML") -> None:
    """Raises InputError if a text in YAML holds too much, aliases counted as what they stand for."""
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"{source} has {len(text):,} characters, more than {MAX_CHARACTERS:,}; shorten it")
    root = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    if root is not None and _count(root, {}) > MAX_VALUES:
        raise InputError(f"{source} holds over {MAX_VALUES:,} values, aliases counted as their anchors; shorten it")


def _count(node: yaml.Node, counted: dict[int, int]) -> int:
    """Values under a node of YAML; too many for an alias inside of what it stands for."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in counted:
        counted[id(node)] = MAX_VALUES + 1  # until its parts are counted
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        counted[id(node)] = 1 + sum(_count(part, counted) for part in parts)
    return counted[id(node)]
