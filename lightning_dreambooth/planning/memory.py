"""Memory of tensors: what lives on a device while operations run, with numbers or without."""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BLOCK = 512  # bytes; CUDA's allocator hands out multiples of it
# Bytes from which glibc maps a block and gives it back: its bound rises to this (DEFAULT_MMAP_THRESHOLD_MAX, malloc.c).
LARGE = 32 * 2**20
# Smaller blocks lie in the heap of the process, which keeps what is freed, with holes between: at its peak, so many
# times what lived in it and did not stay. Chosen for the fits of benchmarks/memory.py.
HEAP = 1.45


class LiveMemory(TorchDispatchMode):
    """Inside the block, counts the bytes of all tensors that live on devices of one type.

    What a kernel allocates for itself is not seen.

    Args:
        device_type: `cpu` or `cuda`.

    Attributes:
        live: Bytes of live tensors.
        peak: The largest number of resident bytes.
    """

    def __init__(self, device_type: str) -> None:
        super().__init__()
        self.device_type = device_type
        self.live = self.peak = self._large = self._heap = self._settled = 0
        self._storages: set[int] = set()

    @property
    def resident(self) -> int:
        """Bytes that are taken from the device: on a CPU, with the heap as large as it ever was."""
        return self._heap + self._large if self.device_type == "cpu" else self.live

    def settle(self) -> None:
        """Says that what lives now stays, without holes between."""
        self._settled = self._heap = self.live - self._large

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = self.answer(func, args, kwargs or {})
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device.type == self.device_type:
                self._hold(leaf.untyped_storage())
        return result

    def answer(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The result of an operation."""
        return func(*args, **kwargs)

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._storages:
            if self.device_type == "cuda":
                size = -(-size // BLOCK) * BLOCK
            self._storages.add(key)
            self.live += size
            self._large += size if size >= LARGE else 0
            moving = self.live - self._large - self._settled
            self._heap = max(self._heap, self._settled + round(HEAP * moving))
            self.peak = max(self.peak, self.resident)
            weakref.finalize(storage, self._let_go, key, size)

    def _let_go(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.live -= size
        self._large -= size if size >= LARGE else 0
