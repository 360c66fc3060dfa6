"""Several processes as one: who does which part, how they wait for each other, and who writes to a shared folder."""

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
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0 on."""
    return dist.get_rank() if dist.is_initialized() else 0


def any_rank(true_here: bool) -> bool:
    """Whether something is true on any process."""
    return any(gather_dict({str(rank()): true_here}).values())


def shard(things: Sequence[T]) -> Sequence[T]:
    """The part of equal lists that this process works on."""
    return things[rank() :: world_size()]


def first_of(batches: Sequence[Sequence[Any]], index: int) -> int:
    """Where the index-th batch that `shard` gave to this process begins, counted in all that lie before it."""
    return sum(len(batch) for batch in batches[: index * world_size() + rank()])


def barrier() -> None:
    """Returns when all processes are here; asks now and then, so that a signal is heard meanwhile."""
    if dist.is_initialized():
        work = dist.barrier(async_op=True)
        while not work.is_completed():
            time.sleep(0.01)
        work.wait()


def gather_dict(mine: Mapping[str, Any]) -> dict[str, Any]:
    """What each process has made => what all have made, on every process."""
    if not dist.is_initialized():
        return dict(mine)
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, dict(mine))
    return {key: value for part in parts for key, value in part.items()}


def ignore_signals_in_worker(worker: int) -> None:
    """Leaves the end of a loader's worker to the process that it works for, also if a signal was sent to both."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def acquired(lock: BaseFileLock, patience_seconds: int) -> bool:
    """Whether this process got the lock on a folder, or has it already.

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
    """Lets one run at a time fill a folder, with all of its processes; removes what a killed one has left half written.

    The lock belongs to the first process and ends with it, however that ends.
    """
    lock = FileLock(folder / LOCK)
    locked = False
    while not locked:  # in rounds, for a process group waits for none of its members longer than half an hour
        mine = {"locked": acquired(lock, LOCK_PATIENCE_SECONDS)} if rank() == 0 else {}
        locked = gather_dict(mine)["locked"]
    if rank() == 0:
        remove_parts(folder)
    barrier()
    try:
        yield
        barrier()
    finally:
        lock.release()
