from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from lightning_dreambooth.distributed import LOCK

Run = Callable[..., object]


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("ckpt_path", ["last", "runs/run/states/step-000001.ckpt"])
def test_a_second_start_of_a_running_name_touches_nothing(
    here: Path, run: Run, complaint: Callable[..., str], ckpt_path: str
) -> None:
    run(name="run", trainer__max_steps=2, checkpoint__every_n_steps=1)
    Path("runs/run/states/.step-000002.ckpt.aaaa.part").touch()  # the running one writes it
    before = contents(Path("runs"))
    with FileLock(Path("runs/run") / LOCK):
        assert "runs/run is in use by another run" in complaint(
            name="run", ckpt_path=ckpt_path, trainer__max_steps=3, samples__steps=3
        )
        assert contents(Path("runs")) == before


def test_a_second_start_of_a_name_that_has_no_state_yet_touches_nothing(
    here: Path, complaint: Callable[..., str]
) -> None:
    (here / "runs/run").mkdir(parents=True)
    with FileLock(here / "runs/run" / LOCK):
        assert "runs/run is in use by another run" in complaint(name="run", ckpt_path="last")
    assert [path.name for path in (here / "runs/run").iterdir()] == [LOCK]
    assert not Path("class").exists()


def test_a_start_removes_the_unfinished_files_of_a_killed_one(here: Path, run: Run) -> None:
    run(name="run", trainer__max_steps=1)
    folders = [here / "runs/run", *(path for path in (here / "runs/run").iterdir() if path.is_dir())]
    for folder in folders:
        (folder / ".x.abcd.part").mkdir()
        (folder / ".x.abcd.part/inside").touch()
    run(name="run", ckpt_path="last", trainer__max_steps=1)
    assert len(folders) > 3
    assert not list((here / "runs").rglob("*.part"))
