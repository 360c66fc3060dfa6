"""The notebooks run from top to bottom on small runs of the bundled model, and hold the outputs of real runs."""

import ast
from importlib import import_module
from pathlib import Path

import nbformat
import pytest
import yaml
from helpers import forked
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMALL = {
    "data.num_class_images": 4, "data.class_steps": 1, "samples.steps": 1, "samples.num_images": 1, "fidelity.steps": 1,
    "fidelity.num_images": 2, "fidelity.every_n_steps": 2, "trainer.max_steps": 4, "trainer.log_every_n_steps": 1,
    "trainer.enable_progress_bar": False,
}  # fmt: skip


def small_study() -> dict[str, object]:
    """The webtoon study with few steps, few images and one fit of each variant."""
    text = (ROOT / "configs/studies/webtoon.yaml").read_text()
    for real, small in {"[6, 12, 24, 50, 100]": "[24, 100]", "steps: 100": "steps: 2", "24": "1", "100]": "2]"}.items():
        text = text.replace(real, small)
    study = yaml.safe_load(text)
    study["sampling"] |= {"num_images": 2, "steps": 1}
    return study | {"overrides": study["overrides"] | SMALL, "seeds": [1]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of the example and one of the webtoon study."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "checkpoints").symlink_to(ROOT / "checkpoints")
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "webtoon.yaml").write_text(yaml.safe_dump(small_study()))
    flags = [f"--{key}={str(value).lower()}" for key, value in SMALL.items()]
    for words in (["fit", "--config=configs/toon.yaml", *flags], ["study", "webtoon.yaml"]):
        run = forked.start(folder, words)
        assert run.wait(patience_seconds=900) == 0, run.printed()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_runs(runs: Path, notebook: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pages = nbformat.read(notebook, as_version=4)
    NotebookClient(pages, resources={"metadata": {"path": str(runs)}}, timeout=120).execute()


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_define_nothing_and_show_real_outputs(notebook: Path) -> None:
    cells = [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
    for cell in cells:
        nodes = list(ast.walk(ast.parse(cell.source)))
        assert not any(isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda) for node in nodes)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    shown = [output for cell in cells for output in cell.outputs]
    assert not [output for output in shown if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for output in shown) >= 2


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_name_that_a_notebook_imports_exists(notebook: Path) -> None:
    source = "\n".join(cell.source for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code")
    ours = [
        (node.module, alias.name)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("lightning_dreambooth")
        for alias in node.names
    ]
    assert ours
    assert [f"{module}.{name}" for module, name in ours if not hasattr(import_module(str(module)), name)] == []
