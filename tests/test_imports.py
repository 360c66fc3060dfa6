import ast
from pathlib import Path

import pytest

import lightning_dreambooth

FOLDER = Path(lightning_dreambooth.__file__).parent

# From the ground up: a folder, or a file beside the folders, imports only from itself and those before it. Within a
# folder, files stand in the same order.
STOREYS = {
    "errors": [],
    "files": [],
    "distributed": [],
    "randomness": [],
    "models": ["model_files", "stable_diffusion"],
    "diffusion": ["objective", "sampling"],
    "data": [
        "images", "concepts", "checks", "image_store", "references", "class_images", "latents", "dataset",
    ],
    "evaluation": ["metrics", "prompts", "tables", "dreambench", "encoders", "evaluator", "fixed_noise_loss"],
    "optimization": [],
    "datamodule": [],
    "module": [],
    "analysis": [],
    "saving": ["runs", "checkpoint_io", "states", "export"],
    "callbacks": ["monitor", "signals", "samples", "validation", "paper_benchmark", "checkpointing"],
    "cli": ["arguments", "commands", "main"],
    "study": [
        "spec", "reading", "cost", "drawing", "fits", "tasks", "executors", "measuring", "results", "plots", "page",
        "cli",
    ],
}  # fmt: skip
ROOMS = [f"{storey}.{room}" if room else storey for storey, rooms in STOREYS.items() for room in (rooms or [""])]
# The files, or whole folders, that meet a library; whoever else wants it asks them.
ONLY_IN = {
    "pytorch_lightning": {"module", "datamodule", "saving", "callbacks", "cli", "study.drawing", "__main__"},
    "huggingface_hub": {"models.model_files"},
    "diffusers": {"models.stable_diffusion", "diffusion.sampling"},
    "transformers": {"models.stable_diffusion", "data.checks", "datamodule"},
    "jsonargparse": {"cli.main", "study.reading", "study.cli"},
    "matplotlib": {"study.plots"},
    "jinja2": {"study.page"},
    "scipy": {"study.measuring"},
    "ray": {"study.executors"},
    "open_clip": {"evaluation.encoders"},
    "timm": {"evaluation.encoders"},
    "torchmetrics": {"evaluation.encoders", "evaluation.metrics"},
}


def files() -> list[str]:
    """Every file of the package by its dotted name, but for what a package says of itself."""
    paths = [path.relative_to(FOLDER).with_suffix("") for path in FOLDER.rglob("*.py") if path.stem != "__init__"]
    return [".".join(path.parts) for path in paths]


def imports(room: str) -> set[str]:
    """Whatever a file imports, at its top or anywhere in it."""
    tree = ast.parse((FOLDER / f"{room.replace('.', '/')}.py").read_text())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return set(names)


def rooms_imported(room: str) -> set[str]:
    """The files of this package that a file imports."""
    names = {name.removeprefix("lightning_dreambooth.") for name in imports(room)}
    return names & set(ROOMS)


def test_every_file_has_its_place() -> None:
    assert sorted(files()) == sorted([*ROOMS, "__main__"])


@pytest.mark.parametrize("room", ROOMS)
def test_a_file_imports_only_from_those_before_it(room: str) -> None:
    later = ROOMS[ROOMS.index(room) :]
    assert not rooms_imported(room) & set(later)


@pytest.mark.parametrize("library", ONLY_IN)
def test_each_library_is_met_where_the_table_says_and_nowhere_else(library: str) -> None:
    users = {room for room in files() if any(name.split(".")[0] == library for name in imports(room))}
    allowed = ONLY_IN[library]
    assert {room for room in users if room not in allowed and room.split(".")[0] not in allowed} == set()
    unused = {place for place in allowed if not any(room == place or room.startswith(f"{place}.") for room in users)}
    assert unused == set()
