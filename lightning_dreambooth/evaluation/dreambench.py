"""The DreamBooth paper's dataset on disk: a folder per subject beside `prompts_and_classes.txt`."""

import ast
import re
from pathlib import Path
from string import Formatter
from typing import NamedTuple

from lightning_dreambooth.data.folders import read_folder
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.inputs import read_text

PROMPTS_FILE = "prompts_and_classes.txt"
LIVE_CLASSES = ("cat", "dog")  # classes of live subjects, whose prompts name accessories and outfits


class Subject(NamedTuple):
    """A subject of the dataset; prompts hold `{0}` for the identifier and `{1}` for the class."""

    name: str
    class_name: str
    images: list[Path]
    prompts: list[str]


def list_subjects(folder: Path) -> list[str]:
    """The subjects that the dataset lists and that have a folder of images.

    Raises:
        InputError: if the file does not have the form of the paper's, or there are none.
    """
    names = [name for name in _read(folder)[0] if (folder / name).is_dir()]
    if not names:
        raise InputError(f"{folder} holds no folder of a subject that {PROMPTS_FILE} lists")
    return names


def read_subject(folder: Path, name: str) -> Subject:
    """A subject with its images and its prompts (25 in the paper's file).

    Raises:
        InputError: if the file does not have the form of the paper's or does not list the subject, or there are fewer
            than two images.
    """
    file = folder / PROMPTS_FILE
    classes, lists = _read(folder)
    if name not in classes:
        raise InputError(f"{file} does not list the subject {name!r}; it lists {', '.join(classes)}")
    if not (folder / name).is_dir():
        raise InputError(f"{folder / name} is not a folder; the images of the subject must lie there")
    images = read_folder(folder / name).images
    if len(images) < 2:
        raise InputError(f"{folder / name} holds {len(images)} images; 2 or more are needed")
    return Subject(name, classes[name], images, parse_prompts(lists[classes[name] in LIVE_CLASSES], file))


def _read(folder: Path) -> tuple[dict[str, str], list[str]]:
    """The class of each subject, and the source of both prompt lists."""
    file = folder / PROMPTS_FILE
    if not file.is_file():
        raise InputError(f"{file} does not exist; the dataset's folder must hold it beside a folder for each subject")
    text = read_text(file)
    classes = dict(re.findall(r"^([\w-]+),([\w -]+)$", text.split("Prompts")[0], re.MULTILINE))
    classes.pop("subject_name", None)
    lists = re.findall(r"prompt_list\s*=\s*(\[.*?^\])", text, re.MULTILINE | re.DOTALL)
    if len(lists) != 2 or not classes:
        raise InputError(f"{file} must hold a list of subjects with their classes and two prompt lists, objects first")
    return classes, lists


def parse_prompts(source: str, file: Path) -> list[str]:
    """A Python list of `'a {0} {1} ...'.format(unique_token, class_token)` => its strings; nothing is evaluated."""
    try:
        calls = ast.parse(source, mode="eval").body.elts  # type: ignore[attr-defined]
        prompts = [call.func.value.value for call in calls]
        names = {tuple(argument.id for argument in call.args) for call in calls}
        if names != {("unique_token", "class_token")} or any(call.func.attr != "format" for call in calls):
            raise ValueError("other arguments than unique_token and class_token, or other calls than format")
        if any([field for _, field, _, _ in Formatter().parse(prompt) if field] != ["0", "1"] for prompt in prompts):
            raise ValueError("a prompt without {0} {1}, or with more")
    except (SyntaxError, AttributeError, TypeError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{file} holds a prompt list that is not the paper's ({error}); download it again") from error
    return prompts
