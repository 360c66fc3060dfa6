"""Memory of tensors: what lives on a device while operations run, with numbers or without."""

import weakref
from bisect import bisect
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BLOCK = 512  # bytes; CUDA's allocator hands out multiples of it
# Bytes from which glibc maps a block and gives it back: its bound rises to this (DEFAULT_MMAP_THRESHOLD_MAX, malloc.c).
LARGE = 32 * 2**20
ALIGNMENT = 64  # bytes, of tensors on a CPU


class Heap:
    """The heap of a process, which keeps what is freed in it.

    As in glibc, a block is put into the smallest hole that is large enough, else at the top; holes side by side are one
    (https://sourceware.org/glibc/wiki/MallocInternals). Torch asks for aligned blocks, for which a hole must be larger
    than they are: a hole of the same size is of no use. A real heap is larger: small objects keep holes apart.

    Attributes:
        size: Bytes that the heap has grown to.
    """

    def __init__(self) -> None:
        self.size = self._top = 0
        self._holes: list[tuple[int, int]] = []  # where each begins and ends, in order

    def take(self, size: int) -> int:
        """Puts a block of so many bytes somewhere => where it begins."""
        size = -(-size // ALIGNMENT) * ALIGNMENT
        needed = size + 2 * ALIGNMENT
        fitting = [(end - begin, begin, end) for begin, end in self._holes if end - begin >= needed]
        if fitting:
            _, begin, end = min(fitting)
            self._holes.remove((begin, end))
        else:
            begin, self._top = self._top, self._top + needed
            end = self._top
            self.size = max(self.size, self._top)
        place = begin + ALIGNMENT
        self.free(begin, ALIGNMENT)
        self.free(place + size, end - place - size)
        return place

    def free(self, begin: int, size: int) -> None:
        """Makes a hole of a block."""
        end, place = begin + size, bisect(self._holes, (begin, begin))
        if place < len(self._holes) and self._holes[place][0] == end:
            _, end = self._holes.pop(place)
        if place and self._holes[place - 1][1] == begin:
            begin, _ = self._holes.pop(place - 1)
        if end == self._top:
            self._top = begin
        else:
            self._put((begin, end))

    def _put(self, hole: tuple[int, int]) -> None:
        self._holes.insert(bisect(self._holes, hole), hole)


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
        self.heap = Heap() if device_type == "cpu" else None
        self.live = self.peak = self._mapped = 0
        self._storages: set[int] = set()

    @property
    def resident(self) -> int:
        """Bytes that are taken from the device: on a CPU, those of freed tensors, too."""
        return self.heap.size + self._mapped if self.heap else self.live

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
            place = self._take(size)
            self.peak = max(self.peak, self.resident)
            weakref.finalize(storage, self._let_go, key, place, size)

    def _let_go(self, key: int, place: int, size: int) -> None:
        self._storages.discard(key)
        self.live -= size
        if size >= LARGE:
            self._mapped -= size
        elif self.heap:
            self.heap.free(place, size)

    def _take(self, size: int) -> int:
        if size >= LARGE:
            self._mapped += size
        elif self.heap:
            return self.heap.take(size)
        return 0
