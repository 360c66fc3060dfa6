"""Who may import whom: a module imports only from those before it."""

import ast
from pathlib import Path

import pytest

import lightning_dreambooth

FOLDER = Path(lightning_dreambooth.__file__).parent
MAY_IMPORT = {
    "errors": set(),
    "disk": {"errors"},
    "processes": {"disk", "errors"},
    "draws": set(),
    "diffusion": set(),
    "optimization": set(),
    "pictures": {"disk", "errors"},
    "concepts": {"errors", "pictures"},
    "model_files": {"disk", "errors"},
    "analysis": {"model_files", "optimization"},
    "stable_diffusion": {"errors", "model_files"},
    "sampling": {"errors", "stable_diffusion"},
    "gallery": {"errors", "pictures", "processes", "sampling", "stable_diffusion"},
    "priors": {"concepts", "disk", "draws", "errors", "gallery", "sampling", "stable_diffusion"},
    "protocol": {"concepts", "errors", "sampling"},
    "references": {"gallery", "sampling", "stable_diffusion"},
    "latents": {"disk", "errors", "pictures", "processes", "stable_diffusion"},
    "dataset": {"concepts", "disk", "draws", "latents", "pictures"},
    "checks": {"concepts", "errors", "pictures", "stable_diffusion"},
    "data": {
        "checks", "concepts", "dataset", "errors", "gallery", "latents", "model_files", "priors", "processes",
        "protocol", "references", "sampling", "stable_diffusion",
    },
    "module": {
        "dataset", "diffusion", "draws", "errors", "model_files", "optimization", "sampling", "stable_diffusion",
    },
    "metrics": {"draws"},
    "encoders": {"errors"},
    "fidelity": {"concepts", "encoders", "metrics", "protocol"},
    "fixed_noise": {"concepts", "diffusion", "draws", "latents", "pictures", "processes", "stable_diffusion"},
    "report": {"disk", "protocol"},
    "export": {"data", "disk", "module", "report"},
    "checkpoint_io": {"disk", "errors"},
    "runs": {"errors"},
    "states": {"checkpoint_io", "errors", "runs"},
    "watch": {"dataset", "errors", "module", "optimization"},
    "interruption": {"errors", "watch"},
    "samples": {"data", "errors", "module", "pictures", "processes", "sampling", "watch"},
    "validation": {
        "checks", "concepts", "data", "encoders", "errors", "fidelity", "fixed_noise", "metrics", "module", "pictures",
        "processes", "protocol", "report", "samples", "sampling", "watch",
    },
    "dreambench": {"errors", "pictures"},
    "benchmark": {
        "data", "disk", "dreambench", "encoders", "errors", "gallery", "metrics", "pictures", "processes", "protocol",
        "report", "samples", "sampling",
    },
    "keep": {
        "data", "disk", "errors", "export", "module", "processes", "report", "samples", "states", "validation",
        "watch",
    },
    "arguments": {"benchmark", "errors", "keep", "samples", "validation"},
    "verbs": {
        "arguments", "benchmark", "checkpoint_io", "checks", "data", "errors", "interruption", "keep", "report", "runs",
        "samples", "states", "validation", "watch",
    },
    "cli": {"data", "errors", "interruption", "module", "runs", "verbs"},
    "study.spec": {"sampling"},
    "study.reading": {"dreambench", "errors", "pictures", "sampling", "study.spec"},
    "study.cost": {"dataset", "protocol", "sampling", "stable_diffusion", "verbs"},
    "study.drawing": {"model_files", "references", "sampling", "stable_diffusion"},
    "study.fits": {
        "cli", "dataset", "disk", "dreambench", "errors", "keep", "report", "runs", "states", "study.reading",
        "verbs",
    },
    "study.parts": {
        "dreambench", "protocol", "sampling", "study.cost", "study.drawing", "study.fits", "study.reading", "verbs",
    },
    "study.executors": {"errors", "interruption", "study.parts"},
    "study.measuring": {
        "concepts", "data", "encoders", "errors", "metrics", "pictures", "protocol", "study.reading",
        "study.spec",
    },
    "study.results": {
        "benchmark", "metrics", "report", "study.drawing", "study.fits", "study.measuring", "study.parts",
        "study.reading", "validation", "verbs",
    },
    "study.plots": {"study.measuring"},
    "study.page": {
        "concepts", "dataset", "pictures", "report", "study.measuring", "study.plots", "study.reading", "study.results",
        "verbs",
    },
    "study.tool": {
        "checks", "cli", "disk", "dreambench", "errors", "interruption", "runs", "study.cost",
        "study.drawing", "study.executors", "study.fits", "study.measuring", "study.page", "study.parts",
        "study.reading", "study.results", "verbs",
    },
    "study.__init__": set(),
    "__init__": set(),
    "__main__": {"cli", "errors", "study.tool"},
}  # fmt: skip
ONLY_IN = {
    "pytorch_lightning": {
        "data", "module", "watch", "interruption", "samples", "validation", "benchmark", "keep", "checkpoint_io",
        "runs", "arguments", "verbs", "cli", "study.drawing", "__main__",
    },
    "huggingface_hub": {"model_files"},
    "diffusers": {"stable_diffusion", "sampling"},
    "transformers": {"stable_diffusion", "checks", "data"},
    "jsonargparse": {"cli", "study.reading", "study.tool"},
    "matplotlib": {"study.plots"},
    "jinja2": {"study.page"},
    "scipy": {"study.measuring"},
    "ray": {"study.executors"},
    "open_clip": {"encoders"},
    "timm": {"encoders"},
    "torchmetrics": {"encoders", "metrics"},
}  # fmt: skip


def imports(module: str) -> set[str]:
    tree = ast.parse((FOLDER / f"{module.replace('.', '/')}.py").read_text())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            whole = node.module in ("lightning_dreambooth", "lightning_dreambooth.study")
            names += [f"{node.module}.{alias.name}" for alias in node.names] if whole else [node.module]
    return set(names)


def test_every_file_has_its_place() -> None:
    files = [path.relative_to(FOLDER).with_suffix("") for path in FOLDER.rglob("*.py")]
    assert {".".join(file.parts) for file in files} == set(MAY_IMPORT)


@pytest.mark.parametrize("module", MAY_IMPORT)
def test_imports_point_one_way(module: str) -> None:
    own = {name.split(".", 1)[1] for name in imports(module) if name.startswith("lightning_dreambooth.")}
    assert {name for name in own if name != "study"} <= MAY_IMPORT[module]


@pytest.mark.parametrize("library", ONLY_IN)
def test_each_library_is_met_in_few_rooms(library: str) -> None:
    users = {module for module in MAY_IMPORT if any(name.split(".")[0] == library for name in imports(module))}
    assert users <= ONLY_IN[library]


def test_left_is_before_right() -> None:
    places = list(MAY_IMPORT)
    assert all(places.index(other) < places.index(module) for module in places for other in MAY_IMPORT[module])
