"""Memory of tensors: what lives on a device while operations run, with numbers or without."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BLOCKS = {"cuda": 512}  # bytes; CUDA's allocator hands out multiples of them
# On a CPU, malloc takes blocks up to this size from its heap, and keeps there what is freed; it maps larger ones on their
# own, and gives them back (DEFAULT_MMAP_THRESHOLD_MAX in malloc.c of glibc, which loading a model reaches).
HEAP_BLOCKS = {"cpu": 32 * 2**20}


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
        self.block, self.heap_block = BLOCKS.get(device_type, 1), HEAP_BLOCKS.get(device_type, 0)
        self.live = self.peak = 0
        self.heap = self.holes = self.heap_size = 0  # bytes in use, of them free but in pieces, and of all
        self._storages: set[int] = set()
        self._before: set[int] = set()

    @property
    def resident(self) -> int:
        """Bytes of live tensors, and of what the heap keeps."""
        return self.live - (self.heap - self.holes) + self.heap_size

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Inside the block, the heap does not reuse what lived before it.

        A backward pass frees activations one by one and puts gradients that stay between them, so the holes are small.
        """
        self._before = {*self._storages}
        yield
        self._before = set()
        self.heap -= self.holes
        self.holes = 0

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
        key = storage._cdata
        if key not in self._storages:
            size = -(-storage.nbytes() // self.block) * self.block
            self._storages.add(key)
            self.live += size
            self.heap += size if size <= self.heap_block else 0
            self.heap_size = max(self.heap_size, self.heap)
            self.peak = max(self.peak, self.resident)
            weakref.finalize(storage, self._let_go, key, size)

    def _let_go(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.live -= size
        if size > self.heap_block:
            return
        if key in self._before:
            self._before.discard(key)  # another storage may get its address
            self.holes += size
        else:
            self.heap -= size
