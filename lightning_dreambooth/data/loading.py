"""Order in which samples are loaded, from the current step on."""

import time
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, Sampler
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from lightning_dreambooth.errors import InputError, TrainingError


class ShardedOrder(Sampler[list[int]]):
    """Sample indices of each micro-batch of one process.

    Sample b of the n-th micro-batch of rank r has the index `first + (n * world_size + r) * batch_size + b`, so several
    processes consume the same samples as one.

    Args:
        length: Micro-batches of the whole run, which Lightning counts from its beginning also after resuming.
        start: Micro-batches that are done.
        first: Index of the first sample to load.
        batch_size: Samples of a micro-batch.
        rank: Number of this process.
        world_size: Number of processes.
    """

    def __init__(self, length: int, start: int, first: int, batch_size: int, rank: int, world_size: int) -> None:
        self.length = length
        self.start = start
        self.first = first
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[list[int]]:
        for n in range(self.length - self.start):
            first = self.first + (n * self.world_size + self.rank) * self.batch_size
            yield list(range(first, first + self.batch_size))


class OrderedLoader(DataLoader[Any]):
    """A loader that Lightning accepts as resumable: its ShardedOrder starts at the current step, without a state.

    Attributes:
        waited_seconds: Time that training has waited for batches.
    """

    waited_seconds = 0.0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """The batches; adds up the time spent waiting for each.

        Raises:
            InputError, TrainingError, OSError: if a worker has raised it, without the worker's traceback.
        """
        self.batches = super().__iter__()
        while True:
            began = time.perf_counter()
            try:
                batch = next(self.batches, None)
            except (InputError, TrainingError, OSError) as error:
                raise type(error)(str(error).rpartition(f"{type(error).__name__}: ")[2]) from error
            self.waited_seconds += time.perf_counter() - began
            if batch is None:
                return
            yield batch

    def close(self) -> None:
        """Ends the workers. They ignore signals, and a process that ends by an error would wait for them forever."""
        batches = getattr(self, "batches", None)
        if isinstance(batches, _MultiProcessingDataLoaderIter):
            batches._shutdown_workers()
            for worker in batches._workers:
                worker.kill()  # one that is amid a batch has not noticed

    def state_dict(self) -> dict[str, Any]:
        """Empty: the order is a function of the current step."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Ignores the empty state."""
