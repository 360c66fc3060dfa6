"""Several processes that work as one: ranks, shared work, barriers, signals, and locks of shared folders."""

import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import torch.distributed as dist
from filelock import BaseFileLock, FileLock, Timeout

from lightning_dreambooth.errors import TrainingError
from lightning_dreambooth.files import remove_parts

T = TypeVar("T")
LOCK = ".lock"
LOCK_PATIENCE_SECONDS = 20
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # those that end a run
PLACE = re.compile(r"^\[\S*\.cc:\d+\] ")  # a place in its code, with which a message of gloo begins


def world_size() -> int:
    """Number of processes of the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, in 0 ... world_size() - 1."""
    return dist.get_rank() if dist.is_initialized() else 0


def any_rank(true_here: bool) -> bool:
    """Whether something is true on any process."""
    return any(gather_dict({str(rank()): true_here}).values())


def of_first_rank(local: T) -> T:
    """The first process's value, on every process: what two of them see of a disk that others write to may differ."""
    return cast(T, gather_dict({"value": local} if rank() == 0 else {})["value"])


def shard(items: Sequence[T]) -> Sequence[T]:
    """The items of a list that this process works on; the list is the same on every process."""
    return items[rank() :: world_size()]


def barrier() -> None:
    """Waits for all processes. Polls, so that signals are handled meanwhile."""
    if dist.is_initialized():
        work = dist.barrier(async_op=True)
        while not work.is_completed():
            time.sleep(0.01)
        work.wait()


def gather_dict(local: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of this process => entries of all processes, on every process."""
    if not dist.is_initialized():
        return dict(local)
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, dict(local))
    return {key: value for part in parts for key, value in part.items()}


def handle_signals(handler: Callable[..., Any]) -> None:
    """Handles the signals that end a run, but not a SIGHUP that is ignored: `nohup` lets a run outlive its terminal."""
    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def ignore_signals_in_worker(worker: int) -> None:
    """Makes a loader worker ignore signals: its parent process decides when it ends, by `OrderedLoader.close`."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def lost_process(error: RuntimeError) -> str:
    """What an error of torch says of another process of the run that has died; empty if it is about anything else."""
    first = PLACE.sub("", str(error).strip()).partition(". ")[0]
    if first.startswith("DataLoader worker (pid"):
        return f"a loader process has died ({first.rstrip('.')}); if memory was short, lower data.num_workers"
    if dist.is_initialized() and (isinstance(error, dist.DistError) or "gloo" in str(error)):
        return f"another process of the run has died ({first}); its own output says why"
    return ""


def acquire(lock: BaseFileLock, patience_seconds: int) -> bool:
    """Tries for at most `patience_seconds` to lock a folder; returns whether this process holds the lock.

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
    """Lets one run at a time, with all its processes, write to a folder; removes unfinished files of killed runs.

    The first process holds the lock. The lock ends with that process, even if it is killed.
    """
    lock = FileLock(folder / LOCK)
    locked = False
    while not locked:  # in rounds, because a process group waits at most half an hour for one of its processes
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
