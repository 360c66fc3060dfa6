"""README and docs agree with the repository: links, keys of configs, files of the package, the test command."""

import io
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_dreambooth.cli.main import main
from lightning_dreambooth.evaluation.metrics import METRICS, measured_by
from lightning_dreambooth.models.lora import Lora

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TREE = README.split("## Layout")[1].split("```")[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
SECTIONS = "model|data|trainer|samples|fidelity|benchmark|checkpoint"
# Such as `model.prior_weight` and `--trainer.max_steps`, but not `self.model.unet`, `model.safetensors` or `module.py`.
KEY = re.compile(rf"(?<![\w./])((?:{SECTIONS})\.(?!safetensors|py\b)[a-z]\w*(?:\.\w+)*)(?!\()")

by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def anchors(page: Path) -> set[str]:
    """The headings of a page, as links name them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted names of all keys of a config, with those of its sections."""
    for key, value in config.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")


@pytest.fixture(scope="module")
def keys() -> set[str]:
    """Every key of `fit`, as the example's config has them, and those of adapters, which it does not train."""
    shown = io.StringIO()
    with redirect_stdout(shown), pytest.raises(SystemExit):
        main(["fit", "--print_config"])
    return {*flat(yaml.safe_load(shown.getvalue())), *(f"model.lora.{field.name}" for field in fields(Lora))}


def test_the_tree_names_every_folder_and_file_at_the_top_of_the_package_and_no_other() -> None:
    inside = TREE.split("lightning_dreambooth/\n")[1].split("\ntests/")[0]
    named = set(re.findall(r"(?:^ {2}|  )(\w+\.py|\w+/)(?=\s)", inside, re.MULTILINE))
    package = ROOT / "lightning_dreambooth"
    folders = {f"{path.parent.name}/" for path in package.glob("[!_]*/__init__.py")}
    assert named == folders | {path.name for path in package.glob("[!_]*.py")}


def test_the_tree_names_what_lies_at_the_top() -> None:
    named = set(re.findall(r"^([\w.]+/?)", TREE, re.MULTILINE)) - {"runs/"}  # there only once something has run
    assert named
    assert all((ROOT / name).exists() for name in named)


def test_the_files_of_the_architecture_are_all_files_of_the_package() -> None:
    tree = (ROOT / "docs/architecture.md").read_text(encoding="utf-8").split("## Files")[1].split("```")[1]
    named, folder = set(), ""
    for indent, name in re.findall(r"^( +)(\w+(?:/|\.py))(?: |$)", tree, re.MULTILINE):
        if name.endswith("/"):
            folder = name
        else:
            named.add((folder if len(indent) > 2 else "") + name)
    package = ROOT / "lightning_dreambooth"
    there = {str(path.relative_to(package)) for path in package.rglob("*.py")}
    there = {name for name in there if not name.endswith("/__init__.py")}
    assert there == named


def test_the_readme_fits_its_bounds() -> None:
    lines = README.split("<!-- test command -->\n```bash\n")
    lines = (lines[0] + lines[1].split("\n", 1)[1]).splitlines()  # the test command is one line, however long
    assert len(README.splitlines()) <= 120
    assert [line for line in lines if len(line) > 125] == []


@by_page
def test_every_local_link_leads_somewhere(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")) if "://" not in link]
    broken = []
    for link in links:
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@by_page
def test_every_key_that_a_page_names_exists(page: Path, keys: set[str]) -> None:
    named = set(KEY.findall(page.read_text(encoding="utf-8")))
    assert named - keys - {"model.optimizer.help"} == set()


def test_the_pages_about_configs_name_many_keys() -> None:
    for name in ("migrating_from_diffusers", "configuration", "measuring"):
        assert len(set(KEY.findall((ROOT / f"docs/{name}.md").read_text(encoding="utf-8")))) > 10


def metric_rows() -> dict[str, str]:
    """The rows of the table of metrics: name => which direction is better."""
    page = (ROOT / "docs/measuring.md").read_text(encoding="utf-8").split("| curve |")[1].split("\n\n")[0]
    rows = [line.strip("| ").split(" | ") for line in page.splitlines()[2:]]
    return {name: row[-1] for row in rows for name in re.findall(r"`val/(\S+)`", row[0])}


def test_the_table_of_metrics_is_that_of_the_package() -> None:
    directions = {name: better for name, better in metric_rows().items() if not name.startswith("loss/")}
    words = {"up": "up", "down": "down", "bounded": "not above the ceiling"}
    # The score has a section of its own, because it is made of the others.
    measured = [name for name in measured_by("validation") if name != "score"]
    assert directions == {name: words[METRICS[name].better] for name in measured}
    assert "`val/score`" in (ROOT / "docs/measuring.md").read_text(encoding="utf-8")


def test_the_page_of_studies_names_every_metric_of_a_study() -> None:
    page = (ROOT / "docs/studies.md").read_text(encoding="utf-8")
    listed = page.split("- **Metrics**:")[1].split("\n- **")[0]
    assert set(re.findall(r"`(\w+)`", listed)) == set(measured_by("study"))


def test_every_page_is_linked_from_the_readme() -> None:
    links = re.findall(r"\]\(([^)#]+)", README)
    assert {str(page.relative_to(ROOT)) for page in PAGES} - {"README.md"} <= set(links)


def test_ci_runs_exactly_the_test_command_of_the_readme() -> None:
    command = README.split("<!-- test command -->\n```bash\n")[1].split("\n```")[0]
    extract = (ROOT / ".ci/run").read_text().split("command=$(")[1].split(")\n")[0]
    shown = subprocess.run(["bash", "-c", extract], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown.strip() == command
