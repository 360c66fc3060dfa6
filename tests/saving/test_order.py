"""What is new is told by what states and exports hold, not by the times of their files."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lightning_dreambooth.evaluation.tables import write_json
from lightning_dreambooth.saving.checkpoint_io import AtomicCheckpointIO
from lightning_dreambooth.saving.order import RECORD, newest_first, next_resumes, outdated
from lightning_dreambooth.saving.runs import step_name
from lightning_dreambooth.saving.states import find_state

Run = Callable[..., object]


def touch_in_reverse(folder: Path) -> None:
    for age, path in enumerate(sorted(folder.iterdir())):
        os.utime(path, (1e9 - age, 1e9 - age))


def copy_in_reverse(folder: Path) -> None:
    for path in sorted(folder.iterdir(), reverse=True):
        copy = path.with_name("copy")
        (shutil.copytree if path.is_dir() else shutil.copy)(path, copy)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        copy.rename(path)


def set_the_clock_back(folder: Path) -> None:
    for path in folder.iterdir():
        os.utime(path, (time.time() + 86_400,) * 2)


DISTURBANCES = [touch_in_reverse, copy_in_reverse, set_the_clock_back]


def state(folder: Path, step: int, resumes: int | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{step_name(step)}.ckpt"
    if resumes is None:  # as earlier versions wrote them
        torch.save({}, path)
    else:
        AtomicCheckpointIO().save_checkpoint({"resumes": resumes}, path)
    return path


def export(folder: Path, step: int, resumes: int | None = None) -> Path:
    path = folder / step_name(step)
    path.mkdir(parents=True)
    if resumes is not None:
        write_json(path / RECORD, {"step": step, "resumes": resumes})
    return path


Make = Callable[[Path, int, int | None], Path]
both_kinds = pytest.mark.parametrize("make", [state, export])


def steps(folder: Path) -> list[int]:
    return [saved.step for saved in newest_first(folder)]


@both_kinds
@pytest.mark.parametrize("disturb", DISTURBANCES)
def test_the_newest_is_the_one_with_most_training(tmp_path: Path, make: Make, disturb: Callable[[Path], None]) -> None:
    for step in (100, 1_000_000, 200, 300):
        make(tmp_path, step, 0)
    disturb(tmp_path)
    assert steps(tmp_path) == [1_000_000, 300, 200, 100]


@both_kinds
@pytest.mark.parametrize("disturb", DISTURBANCES)
def test_what_followed_an_early_state_that_was_resumed_is_newer_than_later_steps(
    tmp_path: Path, make: Make, disturb: Callable[[Path], None]
) -> None:
    for step, resumes in {100: 0, 400: 0, 150: 1, 120: 2}.items():
        make(tmp_path, step, resumes)
    disturb(tmp_path)
    assert steps(tmp_path) == [120, 150, 400, 100]


@both_kinds
def test_those_that_do_not_say_how_often_their_run_was_resumed_are_ordered_by_step(tmp_path: Path, make: Make) -> None:
    for step in (300, 100, 200):
        make(tmp_path, step, None)
    assert steps(tmp_path) == [300, 200, 100]
    make(tmp_path, 150, 1)
    assert steps(tmp_path) == [150, 300, 200, 100]


USERS_NAMES = [
    "step-000004-keep", "step-000004 (copy)", "step-000004_best", "step-4", "step-0000004", "step-000004.old",
    "my-step-000004", "Step-000004", "step-", "step-00000x", ".step-000004", "step-000004~", "last",
]  # fmt: skip


@pytest.mark.parametrize("name", USERS_NAMES)
def test_files_of_other_names_are_the_users(tmp_path: Path, name: str) -> None:
    states, exports = tmp_path / "states", tmp_path / "exports"
    for step in (2, 4, 6, 8):
        state(states, step, 0)
        export(exports, step, 0)
    AtomicCheckpointIO().save_checkpoint({"resumes": 9}, states / f"{name}.ckpt")
    shutil.copytree(exports / "step-000008", exports / name)
    assert steps(states) == steps(exports) == [8, 6, 4, 2]
    assert [path.name for path in outdated(states, 2, 8)] == ["step-000004.ckpt", "step-000002.ckpt"]
    assert [path.name for path in outdated(exports, 2, 8)] == ["step-000004", "step-000002"]
    assert next_resumes(tmp_path) == 1


def test_a_folder_called_as_a_state_and_a_file_called_as_an_export_are_the_users(tmp_path: Path) -> None:
    (tmp_path / "step-000004.ckpt").mkdir()
    (tmp_path / "step-000004").touch()
    export(tmp_path / "elsewhere", 5)
    (tmp_path / "step-000005").symlink_to(tmp_path / "elsewhere/step-000005")
    assert newest_first(tmp_path) == newest_first(tmp_path / "missing") == []


@both_kinds
@pytest.mark.parametrize(
    ("present", "step", "gone"),
    [
        ({100: 0, 200: 0, 300: 0}, 300, [100]),
        ({100: 0, 300: 0, 400: 0}, 100, []),  # an early state has just been resumed
        ({100: 0, 150: 1, 300: 0, 400: 0}, 150, []),
        ({100: 0, 150: 1, 200: 1, 300: 0, 400: 0}, 200, [100]),
        ({150: 1, 200: 1, 250: 1, 300: 0, 400: 0}, 250, [150]),
        ({350: 1, 400: 1, 300: 0}, 400, [300]),
        ({100: 7, 200: 8, 300: 0}, 300, []),  # copied from elsewhere; what was just written stays
    ],
)
def test_a_run_removes_only_what_it_has_passed_and_never_what_it_has_just_written(
    tmp_path: Path, make: Make, present: dict[int, int], step: int, gone: list[int]
) -> None:
    for at, resumes in present.items():
        make(tmp_path, at, resumes)
    for disturb in DISTURBANCES:
        disturb(tmp_path)
        assert outdated(tmp_path, 2, step) == [next(tmp_path.glob(f"{step_name(at)}*")) for at in gone]


@both_kinds
def test_what_cannot_be_read_is_looked_at_first_and_never_removed(tmp_path: Path, make: Make) -> None:
    for step in (100, 200, 300):
        make(tmp_path, step, 0)
    broken = make(tmp_path, 50, 0)
    (broken / RECORD if broken.is_dir() else broken).write_bytes(b"{")
    assert steps(tmp_path) == [50, 300, 200, 100]
    assert outdated(tmp_path, 2, 300) == [next(tmp_path.glob("step-000100*"))]


def test_a_run_is_resumed_once_more_than_any_of_its_states_or_without_states_than_its_exports(tmp_path: Path) -> None:
    assert next_resumes(tmp_path) == 0
    export(tmp_path / "exports", 100, 4)
    assert next_resumes(tmp_path) == 5
    state(tmp_path / "states", 100)
    assert next_resumes(tmp_path) == 1
    state(tmp_path / "states", 50, 7)
    assert next_resumes(tmp_path) == 8


def test_a_run_goes_on_from_its_newest_state_and_keeps_what_it_writes(
    here: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    often = {"name": "run", "checkpoint__every_n_steps": 1, "checkpoint__keep_exports": 1}
    run(**often, checkpoint__keep_states=9)
    for kind in ("states", "exports"):
        touch_in_reverse(Path("runs/run", kind))
        set_the_clock_back(Path("runs/run", kind))
    shutil.copy("runs/run/states/step-000003.ckpt", "runs/run/states/step-000003-keep.ckpt")
    run(**often, ckpt_path="last", trainer__max_steps=6)
    assert "fit goes on from runs/run/states/step-000004.ckpt, step 4" in capsys.readouterr().err
    left = sorted(path.name for path in Path("runs/run/states").iterdir())
    assert left == ["step-000003-keep.ckpt", "step-000005.ckpt", "step-000006.ckpt"]
    assert [path.name for path in Path("runs/run/exports").iterdir()] == ["step-000006"]


@pytest.mark.slow
def test_a_run_that_resumes_an_early_state_keeps_the_later_ones_until_it_has_passed_them(here: Path, run: Run) -> None:
    often = {"name": "run", "checkpoint__every_n_steps": 1, "trainer__max_steps": 6}
    run(**often, checkpoint__keep_states=9, checkpoint__keep_exports=9)
    later = {path.name: path.read_bytes() for path in Path("runs/run/states").glob("step-00000[56]*")}
    early = {"ckpt_path": "runs/run/states/step-000002.ckpt"}
    run(**often | early | {"trainer__max_steps": 4})
    states = Path("runs/run/states")
    assert [saved[:2] for saved in newest_first(states)] == [(1, 4), (1, 3), (0, 6), (0, 5)]
    assert {name: (states / name).read_bytes() for name in later} == later
    assert [saved[:2] for saved in newest_first(Path("runs/run/exports"))] == [(1, 4), (1, 3), (0, 6), (0, 5)]
    assert find_state("last", "run", "") == states / "step-000004.ckpt"
    run(**often, ckpt_path="last")
    assert [saved[:2] for saved in newest_first(states)] == [(2, 6), (2, 5)]


def test_without_a_name_the_run_with_the_highest_number_is_resumed(here: Path) -> None:
    for run in ("dog", "dog-2", "dog-10", "dogs-11", "dog-x"):
        state(Path("runs", run, "states"), 4, 0)
    os.utime("runs/dog/states/step-000004.ckpt", (4e9, 4e9))
    assert find_state("last", None, "dog") == Path("runs/dog-10/states/step-000004.ckpt")
