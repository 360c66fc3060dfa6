"""Every write of a save is made to fail once: what was saved before is there, and the message names the path."""

import errno
import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from lightning_dreambooth.callbacks.checkpointing import Checkpointing
from lightning_dreambooth.errors import InputError, TrainingError
from lightning_dreambooth.files import check_room, is_whole, replaced
from lightning_dreambooth.saving.checkpoint_io import AtomicCheckpointIO

Run = Callable[..., object]
WRITES = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.copytree"}


CHANGING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Faults:
    """Refuses the n-th operation on the files of a run, as the operating system would.

    Audit hooks see each such call before it is made, and cannot be removed, only switched off.
    """

    def __init__(self) -> None:
        self.countdown = -1
        self.number = 0
        self.path = ""
        self.removing = self.every_write = False
        sys.addaudithook(self)

    def __call__(self, event: str, args: tuple[object, ...]) -> None:
        if self.every_write and event in WRITES and "runs" in str(args[0]) and (event != "open" or args[2] & CHANGING):
            raise OSError(self.number, os.strerror(self.number), str(args[0]))
        if self.countdown < 0 or event not in WRITES or "runs" not in str(args[0]):
            return
        self.countdown -= 1
        if self.countdown < 0:
            self.path, self.removing = str(args[0]), event in ("os.remove", "os.rmdir")
            raise OSError(self.number, os.strerror(self.number), self.path)


FAULTS = Faults()


@contextmanager
def failing(n: int, number: int) -> Iterator[None]:
    FAULTS.countdown, FAULTS.number, FAULTS.path = n, number, ""
    try:
        yield
    finally:
        FAULTS.countdown = -1


@contextmanager
def read_only(number: int) -> Iterator[None]:
    FAULTS.number, FAULTS.every_write = number, True
    try:
        yield
    finally:
        FAULTS.every_write = False


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """No file may grow beyond a size: writes fail, whoever makes them, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Saved:
    """A finished run that can be saved again with other weights."""

    def __init__(self, cli: object) -> None:
        self.trainer, self.module = cli.trainer, cli.model
        self.checkpointing = next(callback for callback in cli.trainer.callbacks if isinstance(callback, Checkpointing))
        self.state, self.export = cli.folder / "states/step-000002.ckpt", cli.folder / "exports/step-000002"

    def again(self) -> None:
        with torch.no_grad():
            next(self.module.model.unet.parameters()).add_(1)
        self.checkpointing.saved_step = 0
        self.checkpointing.on_train_end(self.trainer, self.module)

    def assert_whole(self) -> None:
        assert is_whole(self.state)
        AtomicCheckpointIO().load_checkpoint(self.state)
        UNet2DConditionModel.from_pretrained(self.export, subfolder="unet", low_cpu_mem_usage=False)
        assert not [path for path in Path("runs").rglob("*.part") if path.is_file()]


@pytest.fixture
def saved(run: Run) -> Saved:
    return Saved(run(trainer__max_steps=2, trainer__logger=False, checkpoint__every_n_steps=1))


@pytest.mark.slow
def test_every_file_operation_of_a_save_fails_once(saved: Saved) -> None:
    n = 0
    while True:
        number = (errno.ENOSPC, errno.EACCES, errno.EIO)[n % 3]
        try:
            with failing(n, number):
                saved.again()
        except TrainingError as error:
            complete = all(part in str(error) for part in ("runs", os.strerror(number), "bytes are free"))
        except OSError:  # while an older save is removed
            complete = FAULTS.removing
        else:
            complete = True
        assert complete
        saved.assert_whole()
        if not FAULTS.path:  # a save has no n-th operation
            break
        n += 1
    assert n > 30


@pytest.mark.slow
def test_every_file_of_a_save_meets_a_full_disk_once(saved: Saved) -> None:
    sizes = sorted({path.stat().st_size for path in (saved.state, *saved.export.rglob("*")) if path.is_file()})
    for size in sizes:
        with files_limited_to(size - 1), pytest.raises(TrainingError, match=r"File too large.* bytes are free"):
            saved.again()
        saved.assert_whole()
    saved.again()
    saved.assert_whole()


def test_a_full_disk_ends_a_run_in_one_line(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with files_limited_to(1_000_000), pytest.raises(SystemExit) as end:
        run(name="full", trainer__max_steps=2)
    assert end.value.code == 1
    assert "runs/full/exports/step-000002 could not be written after" in capsys.readouterr().err
    assert run(name="full", ckpt_path="last", trainer__max_steps=2).trainer.global_step == 2


@pytest.mark.parametrize("size", [3_000, 8_000, 12_000, 20_000])
def test_a_disk_that_is_full_for_the_log_is_named_with_the_remedy(
    run: Run, capsys: pytest.CaptureFixture[str], size: int
) -> None:
    """Smaller than the config, than the log with its config and images, or than a state."""
    with files_limited_to(size), pytest.raises(SystemExit) as end:
        run(name="full", trainer__max_steps=2, model__prior_weight=0)
    assert end.value.code == 1
    printed = capsys.readouterr().err
    [line] = [line for line in printed.splitlines() if "error: " in line]
    assert all(part in line for part in ("runs/full", "File too large", "bytes are free", "--ckpt_path last"))
    assert "Traceback" not in printed
    assert run(name="full", ckpt_path="last", trainer__max_steps=2, model__prior_weight=0).trainer.global_step == 2


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("resumed", [True, False])
def test_a_folder_that_is_read_only_is_named_with_the_remedy(
    run: Run, capsys: pytest.CaptureFixture[str], number: int, resumed: bool
) -> None:
    settings = {"name": "run", "ckpt_path": "last", "model__prior_weight": 0}
    if resumed:
        run(**settings, trainer__max_steps=1)
    capsys.readouterr()
    with read_only(number), pytest.raises(SystemExit) as end:
        run(**settings, trainer__max_steps=2)
    assert end.value.code == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert all(part in line for part in ("runs/run", os.strerror(number), "allow it or name another"))


def test_a_folder_keeps_its_content_when_a_rename_fails(tmp_path: Path) -> None:
    target = tmp_path / "runs" / "x"
    for content in ("old", "new"):
        for n in range(20):
            try:
                with failing(n, errno.EIO), replaced(target) as beside:
                    beside.mkdir()
                    (beside / "file").write_text(content)
                break
            except TrainingError:
                assert target.exists() or content == "old"
                assert not target.exists() or (target / "file").read_text() in ("old", content)
        assert (target / "file").read_text() == content


def test_too_little_room_is_refused_with_both_numbers(tmp_path: Path) -> None:
    check_room(tmp_path / "not/yet/there", 1000)
    with pytest.raises(InputError, match=r"bytes are free there, saving takes 1,000,000,000,000,000"):
        check_room(tmp_path, 10**15)
