from pathlib import Path

import pytest
import torch

from lightning_dreambooth.errors import InputError, TrainingError
from lightning_dreambooth.files import OLD, remove_parts, replaced
from lightning_dreambooth.saving.checkpoint_io import AtomicCheckpointIO


def test_a_file_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "state"
    with replaced(target) as beside:
        beside.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


@pytest.mark.parametrize("folder", [False, True])
def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, folder: bool) -> None:
    target = tmp_path / "state"

    def write(path: Path, text: str) -> None:
        if folder:
            path.mkdir()
            path = path / "inside"
        path.write_text(text)

    with replaced(target) as beside:
        write(beside, "old")

    def fail() -> None:
        with replaced(target) as beside:
            write(beside, "half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert (target / "inside" if folder else target).read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_two_writers_of_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    target = tmp_path / "state"
    with replaced(target) as mine:
        mine.write_text("mine")
        with replaced(target) as orphans:
            orphans.write_text("the orphan's")
        assert target.read_text() == "the orphan's"
    assert target.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_the_owner_of_a_folder_removes_unfinished_files(tmp_path: Path) -> None:
    orphan = replaced(tmp_path / "state.ckpt")
    orphan.__enter__().write_text("half")
    (tmp_path / OLD.format("step-000004")).mkdir()  # killed between two renames
    remove_parts(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000004"]
    with pytest.raises(TrainingError, match="could not be written"):
        orphan.__exit__(None, None, None)


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    state = {"step": 3, "names": ["a"], "weights": {"w": torch.arange(3.0)}}
    AtomicCheckpointIO().save_checkpoint(state, tmp_path / "s.ckpt")
    again = AtomicCheckpointIO().load_checkpoint(tmp_path / "s.ckpt")
    assert torch.equal(again["weights"].pop("w"), state["weights"].pop("w"))
    assert again == state


def test_a_state_with_an_object_in_it_is_not_unpickled(tmp_path: Path) -> None:
    torch.save({"path": Path("x")}, tmp_path / "s.ckpt")
    with pytest.raises(InputError, match="tensors and plain values"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "s.ckpt")
