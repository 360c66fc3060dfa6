import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TREE = README.split("## The house")[1].split("```")[1]


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


@pytest.fixture(scope="module")
def knobs() -> set[str]:
    """Every knob of `fit`, as its help lists them."""
    command = [sys.executable, "-m", "lightning_dreambooth", "fit", "--help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"--([\w.]+)", shown))


def test_every_knob_in_the_flag_table_exists(knobs: set[str]) -> None:
    table = README.split("| reference flag |")[1].split("\n\n")[0]
    here = [row.split("|")[2] for row in table.splitlines()[2:]]
    named = {name for cell in here for name in re.findall(r"`((?:model|data|trainer|samples|checkpoint)\.\w+)", cell)}
    assert len(named) > 20
    assert named <= knobs


def test_every_local_link_leads_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_ci_runs_exactly_the_test_command_of_the_readme() -> None:
    command = README.split("<!-- test command -->\n```bash\n")[1].split("\n```")[0]
    extract = (ROOT / ".ci/run").read_text().split("command=$(")[1].split(")\n")[0]
    shown = subprocess.run(["bash", "-c", extract], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown.strip() == command
