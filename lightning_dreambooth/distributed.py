"""Several processes that work as one: which of them does what, how they wait, and who writes to a shared folder."""

import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from filelock import BaseFileLock, FileLock, Timeout

from lightning_dreambooth.errors import TrainingError
from lightning_dreambooth.files import remove_parts

T = TypeVar("T")
LOCK = ".lock"
LOCK_PATIENCE_SECONDS = 20


def world_size() -> int:
    """How many processes work together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0 on."""
    return dist.get_rank() if dist.is_initialized() else 0


def any_rank(true_here: bool) -> bool:
    """Whether something is true on any process."""
    return any(gather_dict({str(rank()): true_here}).values())


def shard(items: Sequence[T]) -> Sequence[T]:
    """The part of a list that this process works on; the list is the same on every process."""
    return items[rank() :: world_size()]


def barrier() -> None:
    """Returns when all processes are here. Polls, so that a signal is handled while it waits."""
    if dist.is_initialized():
        work = dist.barrier(async_op=True)
        while not work.is_completed():
            time.sleep(0.01)
        work.wait()


def gather_dict(local: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of each process => the entries of all processes, on every process."""
    if not dist.is_initialized():
        return dict(local)
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, dict(local))
    return {key: value for part in parts for key, value in part.items()}


def ignore_signals_in_worker(worker: int) -> None:
    """Makes a loader worker ignore signals: the process that it works for decides when it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def acquire(lock: BaseFileLock, patience_seconds: int) -> bool:
    """Whether this process holds the lock of a folder afterwards; waits for it at most so long.

    Raises:
        TrainingError: if the folder cannot be written to.
    """
    folder = Path(lock.lock_file).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=patience_seconds)
    except Timeout:
        print(f"another run writes to {folder}", flush=True)
        return False
    except OSError as error:
        raise TrainingError(f"{folder} cannot be written to ({error}); allow it or name another") from error
    return True


@contextmanager
def exclusive_folder(folder: Path) -> Iterator[None]:
    """Lets one run at a time write to a folder, with all of its processes, and removes what a killed run left there.

    The lock belongs to the first process and ends with it, in whatever way that ends.
    """
    lock = FileLock(folder / LOCK)
    locked = False
    while not locked:  # in rounds, because a process group waits for a member at most half an hour
        local = {"locked": acquire(lock, LOCK_PATIENCE_SECONDS)} if rank() == 0 else {}
        locked = gather_dict(local)["locked"]
    if rank() == 0:
        remove_parts(folder)
    barrier()
    try:
        yield
        barrier()
    finally:
        lock.release()
