"""The tool `export SOURCE`: writes a finished model in the layout that another program reads."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import hypot
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import torch
from jsonargparse import ArgumentParser
from torch import nn

from lightning_dreambooth.bounds import check_range
from lightning_dreambooth.callbacks.signals import GracefulStop
from lightning_dreambooth.callbacks.validation import TABLE
from lightning_dreambooth.cli.main import PROG, exit_on_error
from lightning_dreambooth.cli.parser import check_file, load_bounded
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.evaluation.tables import read_csv
from lightning_dreambooth.inputs import expand, read_text
from lightning_dreambooth.models.diffusers_folder import save_folder
from lightning_dreambooth.models.lora import Targets
from lightning_dreambooth.models.lora_extraction import extract
from lightning_dreambooth.models.lora_files import save_lora
from lightning_dreambooth.models.model_files import ModelFiles
from lightning_dreambooth.models.reading_back import check_folder, check_lora_file, check_single_file, expected
from lightning_dreambooth.models.single_file import save_single_file
from lightning_dreambooth.models.stable_diffusion import StableDiffusion
from lightning_dreambooth.saving.card import lora_metadata
from lightning_dreambooth.saving.export import best_export, exported_files
from lightning_dreambooth.saving.order import EXPORTS
from lightning_dreambooth.settings import MAX_RANK

PROMPT = "a photo"  # with which a model is compared with what diffusers reads back
CONFIG = "config.yaml"  # of a run
OF_MODEL = ("pretrained", "vae", "revision", "variant")  # the keys of `model` that say what its base is


class Source(NamedTuple):
    """A finished model, and the base that it was trained from, if that is known."""

    files: ModelFiles
    base: ModelFiles | None


def main(argv: list[str] | None = None) -> None:
    """Writes a finished model."""
    parser = ArgumentParser(
        prog=f"{PROG} export", exit_on_error=False,
        description="Writes a finished model in another layout. What is written counts only when plain diffusers has "
        "read it back and predicts the same noise.",
    )  # fmt: skip
    parser.add_argument("source", type=str, help="a run (its best export), an export in it, or any model")
    parser.add_argument(
        "--format", type=Literal["folder", "single_file", "lora"], required=True,
        help="a diffusers folder; one file in the original layout; the change from the base as adapters",
    )  # fmt: skip
    parser.add_argument("--output", type=str, required=True, help="the new folder or .safetensors file")
    parser.add_argument("--base", type=str | None, default=None, help="the base model, if the source is not in a run")
    parser.add_argument("--rank", type=int, default=32, help="of the adapters that are extracted from all weights")
    parser.add_argument("--targets", type=Targets, default="all", help="the layers with adapters")
    parser.add_argument("--dtype", type=Literal["float16", "float32"], default="float16", help="of the weights")
    with exit_on_error(GracefulStop()):
        given = parser.parse_args(argv)
        check_range("--rank", given.rank, 1, MAX_RANK)
        output = _free(Path(expand(given.output)), given.format)
        source, dtype = find(expand(given.source), given.base), getattr(torch, given.dtype)
        if given.format == "lora":
            print(write_lora(source, output, dtype, given.rank, given.targets))
        else:
            print(write_model(source.files, output, dtype, given.format))


def find(name: str, base: str | None) -> Source:
    """A run, an export in a run or a model => its files and those of its base.

    Raises:
        InputError: if a run has no export or no readable config, or there is no such model.
    """
    folder = Path(name)
    if (folder / EXPORTS).is_dir():
        table = folder / TABLE
        folder = best_export(folder, read_csv(table) if table.is_file() else [])
    run = folder.parent.parent
    if folder.parent.name != EXPORTS or not (run / CONFIG).is_file():
        return Source(ModelFiles(name), ModelFiles(base) if base else None)
    trained_from = ModelFiles(base) if base else _configured(run / CONFIG)
    return Source(exported_files(trained_from, folder, 1.0), trained_from)


def _configured(config: Path) -> ModelFiles:
    check_file(config)
    content = load_bounded(read_text(config))
    model: Any = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("pretrained"), str):
        raise InputError(f"{config} names no model.pretrained; give --base")
    return ModelFiles(**{key: model[key] for key in OF_MODEL if model.get(key) is not None})


def _free(output: Path, form: str) -> Path:
    if output.exists():
        raise InputError(f"{output} exists; name another --output")
    if form != "folder" and output.suffix != ".safetensors":
        raise InputError(f"--output is {output}, must end in .safetensors for {form}")
    return output


@contextmanager
def _checked(output: Path) -> Iterator[Path]:
    """Yields a path with the name of the output, which takes its place when the block has succeeded."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output.parent, prefix=".export-") as folder:
        beside = Path(folder) / output.name
        yield beside
        beside.replace(output)


def write_model(files: ModelFiles, output: Path, dtype: torch.dtype, form: str) -> str:
    """Writes a model as a diffusers folder or a single file, adapters added; returns a line about it.

    Raises:
        TrainingError: if writing fails, or diffusers does not read back the same model.
    """
    model = StableDiffusion.load(files)
    wanted = expected(model, PROMPT)
    with _checked(output) as beside:
        if form == "folder":
            save_folder(model, beside, dtype)
            check_folder(wanted, beside)
        else:
            save_single_file(model, beside, dtype)
            check_single_file(wanted, model, beside)
    return f"{output}: {_size(output)}, read back by diffusers"


def write_lora(source: Source, output: Path, dtype: torch.dtype, rank: int, targets: Targets) -> str:
    """Writes what a model adds to its base as a LoRA file; returns a line about what it keeps.

    Raises:
        InputError: if the base is not known, equal to the model, or another kind of model.
        TrainingError: if writing fails, or diffusers does not read back the same adapters.
    """
    if source.base is None:
        raise InputError("a LoRA is what a model adds to its base; give --base")
    base, tuned = StableDiffusion.load(source.base), StableDiffusion.load(source.files)
    before, after = expected(base, PROMPT).prediction, expected(tuned, PROMPT).prediction
    kept = [
        extract(base.trainable[name], part, rank, targets, f"adapters of {name}")
        for name, part in tuned.trainable.items() if _has_changed(base.trainable[name], part)
    ]  # fmt: skip
    if not kept:
        raise InputError(f"{source.files.name} has the weights of {source.base.name}; there is nothing to extract")
    wanted = expected(base, PROMPT)
    with _checked(output) as beside:
        side_px = source.base.native_resolution_px
        save_lora(base.trainable, beside, dtype, lora_metadata(base, source.base.pretrained, output.stem, side_px))
        check_lora_file(wanted, source.base, beside)
    weights = hypot(*(part.lost for part in kept)) / hypot(*(part.change for part in kept))
    prediction = ((wanted.prediction - after).norm() / (after - before).norm()).item()
    return (
        f"{output}: {_size(output)}, read back by diffusers; of the change of the weights it leaves out {weights:.1%}, "
        f"of that of a prediction {prediction:.1%}"
    )


def _has_changed(base: nn.Module, tuned: nn.Module) -> bool:
    """Whether a part has other weights than that of the base, also when these are rounded as in an export.

    Raises:
        InputError: if they are of another kind of model.
    """
    before, now = base.state_dict(), tuned.state_dict()
    if {name: value.shape for name, value in before.items()} != {name: value.shape for name, value in now.items()}:
        raise InputError("the model and its base are of different kinds; give the --base that it was trained from")
    return not any(
        all(torch.equal(value.to(dtype), now[name].to(dtype)) for name, value in before.items())
        for dtype in (torch.float32, torch.float16)
    )


def _size(output: Path) -> str:
    files = [path for path in (output, *output.rglob("*")) if path.is_file()]
    return f"{sum(path.stat().st_size for path in files) / 1e6:.1f} MB"
