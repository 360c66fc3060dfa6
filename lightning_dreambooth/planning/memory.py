"""Memory of tensors: what lives on a device while operations run, with numbers or without."""

import weakref
from bisect import bisect_left, insort
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BLOCKS = {"cuda": 512}  # bytes; CUDA's allocator hands out multiples of them
# On a CPU, malloc maps blocks from this size on, and gives them back; smaller ones come from its heap, which keeps what
# is freed (DEFAULT_MMAP_THRESHOLD_MAX in malloc.c of glibc; the bound rises to it as blocks are freed).
MAPPED_FROM = {"cpu": 32 * 2**20}


class LiveMemory(TorchDispatchMode):
    """Inside the block, counts the bytes of all tensors that live on devices of one type.

    What a kernel allocates for itself is not seen. The heap of a CPU has holes where blocks were freed, of which the
    smallest that is large enough is used again. Holes side by side stay apart until `join`: small objects lie between.

    Args:
        device_type: `cpu` or `cuda`.

    Attributes:
        live: Bytes of live tensors.
        resident: Bytes of live tensors and holes.
        peak: The largest number of resident bytes.
    """

    def __init__(self, device_type: str) -> None:
        super().__init__()
        self.device_type = device_type
        self.block, self.mapped_from = BLOCKS.get(device_type, 1), MAPPED_FROM.get(device_type, 0)
        self.live = self.resident = self.peak = 0
        self.holes: list[int] = []  # bytes of each, the smallest first
        self._storages: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = self.answer(func, args, kwargs or {})
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device.type == self.device_type:
                self._hold(leaf.untyped_storage())
        return result

    def answer(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The result of an operation."""
        return func(*args, **kwargs)

    def join(self) -> None:
        """Joins all holes, as when what lay between them has been freed."""
        self.holes = [sum(self.holes)]

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._storages:
            size = -(-storage.nbytes() // self.block) * self.block
            self._storages.add(key)
            self.live += size
            self._take(size)
            self.peak = max(self.peak, self.resident)
            weakref.finalize(storage, self._let_go, key, size)

    def _take(self, size: int) -> None:
        place = bisect_left(self.holes, size)
        if size < self.mapped_from and place < len(self.holes):
            if rest := self.holes.pop(place) - size:
                insort(self.holes, rest)
        else:
            self.resident += size

    def _let_go(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.live -= size
        if size < self.mapped_from:
            insort(self.holes, size)
        else:
            self.resident -= size
