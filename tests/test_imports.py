import ast
from pathlib import Path

import pytest

import lightning_dreambooth
from lightning_dreambooth.models.weight_files import TRAINABLE

FOLDER = Path(lightning_dreambooth.__file__).parent

# From the ground up: a folder, or a file beside the folders, imports only from itself and those before it. Within a
# folder, files stand in the same order.
STOREYS = {
    "errors": [],
    "bounds": [],
    "files": [],
    "inputs": [],
    "sizes": [],
    "distributed": [],
    "randomness": [],
    "models": [
        "configs", "noise_schedule", "tokens", "vocabulary", "weight_files", "hub", "supported", "original_layout",
        "known_models", "single_file_reading", "model_files", "attention", "conditioning", "lora", "lora_layouts",
        "lora_files", "lora_extraction", "stable_diffusion", "trained_parts", "diffusers_folder", "single_file",
        "reading_back", "base_model",
    ],
    "diffusion": ["requests", "cost", "objective", "sampling"],
    "data": [
        "colours", "images", "lettering", "grids", "folders", "concepts", "buckets", "masks", "checks",
        "image_checks",
        "image_store", "class_images", "latents", "training_images", "draws", "dataset", "loading", "image_jobs",
    ],
    "prepare": [
        "extras", "boxes", "box_files", "mtcnn", "anime_faces", "detection", "looks", "waifu2x", "sizing", "settings",
        "sources", "manifest", "candidates", "preparation", "sheet", "folder",
    ],
    "evaluation": [
        "metrics", "score", "intervals", "history", "tables", "prompts", "dreambench", "encoder_files", "lpips",
        "encoders", "evaluator", "fixed_noise_loss", "paper_protocol",
    ],
    "optimization": [],
    "gradients": [],
    "trial": [],
    "rounding": [],
    "settings": [],
    "resuming": [],
    "teacher": [],
    "module": [],
    "datamodule": [],
    "analysis": [],
    "saving": ["runs", "checkpoint_io", "order", "states", "card", "export"],
    "callbacks": [
        "cadence", "loggers", "monitor", "signals", "samples", "measurement", "validation", "paper_benchmark",
        "checkpointing",
    ],
    "cli": [
        "job", "parser", "arguments", "trainer_arguments", "help", "summary", "output", "commands", "main", "exporting",
        "tokens", "preparing",
    ],
    "study": [
        "spec", "variants", "figures", "reading", "cost", "fits", "tasks", "executors", "measuring", "results", "plots",
        "curves", "page", "cli",
    ],
    "planning": ["memory", "work", "rehearsal", "phases", "switches", "cli"],
}  # fmt: skip
ROOMS = [f"{storey}.{room}" if room else storey for storey, rooms in STOREYS.items() for room in (rooms or [""])]
# The only files, or whole folders, that import a library.
ONLY_IN = {
    "pytorch_lightning": {
        "module", "datamodule", "data.image_jobs", "saving", "callbacks", "cli", "study.tasks", "__main__",
    },
    "huggingface_hub": {"models.hub"},
    "diffusers": {
        "models.attention", "models.noise_schedule", "models.lora_files", "models.single_file_reading",
        "models.stable_diffusion", "models.diffusers_folder", "diffusion.sampling", "models.reading_back",
    },
    "peft": {"models.lora"},
    "transformers": {"models", "data.checks", "datamodule", "evaluation.encoder_files"},
    "jsonargparse": {
        "cli.parser", "cli.commands", "cli.main", "study.reading", "study.cli", "cli.exporting", "cli.tokens",
        "cli.preparing",
    },
    "matplotlib": {"study.plots"},
    "jinja2": {"study.page"},
    "scipy": {"evaluation.intervals", "prepare.looks"},
    "pillow_heif": {"data.images"},
    "ray": {"study.executors"},
    "imagehash": {"prepare.looks"},
    "joblib": {"prepare.mtcnn"},
    "animeface": {"prepare.anime_faces"},
    "ncnn": {"prepare.waifu2x"},
    "open_clip": {"evaluation"},
    "timm": {"evaluation.encoders"},
    "torchmetrics": {"evaluation"},
}  # fmt: skip


def files() -> list[str]:
    """Every file of the package by its dotted name, except `__init__`."""
    paths = [path.relative_to(FOLDER).with_suffix("") for path in FOLDER.rglob("*.py") if path.stem != "__init__"]
    return [".".join(path.parts) for path in paths]


def imports(room: str) -> set[str]:
    """Everything that a file imports, anywhere in it."""
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
def test_each_library_is_imported_where_the_table_says_and_nowhere_else(library: str) -> None:
    users = {room for room in files() if any(name.split(".")[0] == library for name in imports(room))}
    allowed = ONLY_IN[library]
    assert {room for room in users if room not in allowed and room.split(".")[0] not in allowed} == set()
    unused = {place for place in allowed if not any(room == place or room.startswith(f"{place}.") for room in users)}
    assert unused == set()


@pytest.mark.parametrize("room", [room for room in files() if room.split(".")[0] != "models"])
def test_nobody_outside_of_models_reaches_for_a_network(room: str) -> None:
    networks = {*TRAINABLE, "text_encoder_2"}
    tree = ast.parse((FOLDER / f"{room.replace('.', '/')}.py").read_text())
    assert [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr in networks] == []
    words = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and node.value in networks]
    # The module names the text encoder in its own settings, and a model card writes the UNet as people do.
    assert {*words} <= {"module": {"text_encoder"}, "saving.card": {"unet"}}.get(room, set())


@pytest.mark.parametrize("room", files())
def test_no_file_takes_a_public_name_past_the_storeys(room: str) -> None:
    names = {name.removeprefix("lightning_dreambooth.") for name in imports(room)}
    assert not names & {*lightning_dreambooth.__all__}
