"""Several processes as one: who does which part, how they wait for each other, and who writes to a shared folder."""

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from filelock import FileLock, Timeout

from lightning_dreambooth.disk import remove_parts
from lightning_dreambooth.errors import TrainingError

T = TypeVar("T")
LOCK = ".lock"


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0 on."""
    return dist.get_rank() if dist.is_initialized() else 0


def share(things: Sequence[T]) -> Sequence[T]:
    """The part of equal lists that this process works on."""
    return things[rank() :: count()]


def wait() -> None:
    """Returns when all processes are here."""
    if dist.is_initialized():
        dist.barrier()


def merged(mine: Mapping[str, Any]) -> dict[str, Any]:
    """What each process has made => what all have made, on every process."""
    if not dist.is_initialized():
        return dict(mine)
    parts: list[Any] = [None] * count()
    dist.all_gather_object(parts, dict(mine))
    return {key: value for part in parts for key, value in part.items()}


def let_go(worker: int) -> None:
    """Leaves the end of a loader's worker to the process that it works for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Lets one run at a time fill a folder, with all of its processes; removes what a killed one has left half written.

    The lock belongs to the first process and ends with it, however that ends.
    """
    lock = FileLock(folder / LOCK)
    if rank() == 0:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            print(f"waiting for another run that fills {folder}", flush=True)
            lock.acquire()
        except OSError as error:
            raise TrainingError(f"{folder} cannot be written to ({error}); allow it or name another") from error
        remove_parts(folder)
    wait()
    try:
        yield
        wait()
    finally:
        lock.release()
