"""Work of operations, counted on fake tensors, and its time at rates that are measured on the device."""

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map, tree_unflatten
from torch.utils.flop_counter import flop_registry

LISTED = 8  # tensors of a list, such as all weights, that a timed call takes
REPEATED_S = 0.005  # for which a call is repeated
WITHOUT_WORK = ("prim", "profiler")  # namespaces of operations

aten: Any = torch.ops.aten
flops: dict[Any, Any] = flop_registry | {  # which lacks the kernels of a CPU
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[aten._scaled_dot_product_flash_attention],
    aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        aten._scaled_dot_product_flash_attention_backward
    ],
}


@dataclass(frozen=True)
class Spec:
    """A tensor without its numbers."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def filled(self) -> Tensor:
        """A tensor like it: noise, or zeros where numbers may be indices."""
        extent = 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        values = torch.zeros(max(0, extent), dtype=self.dtype, device=self.device)
        return (values.normal_() if self.dtype.is_floating_point else values).as_strided(self.shape, self.stride)


class Call(NamedTuple):
    """An operation and what it takes, tensors without their numbers."""

    operation: Any
    leaves: tuple[Any, ...]
    tree: TreeSpec


class Work(TorchDispatchMode):
    """Inside the block, counts the work of operations.

    Attributes:
        of_calls: Work of all equal calls.
    """

    def __init__(self) -> None:
        super().__init__()
        self.of_calls: Counter[Call] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace not in WITHOUT_WORK and not func.is_view:
            leaves, tree = tree_flatten((args, kwargs or {}))
            call = Call(func, tuple(_spec(leaf) for leaf in leaves), tree)
            self.of_calls[call] += work_of(func, args, kwargs or {}, result)
        return result

    def extended(self, other: "Work", times: int) -> "Work":
        """This work and, so many times, another."""
        whole = Work()
        for call in {*self.of_calls, *other.of_calls}:
            whole.of_calls[call] = self.of_calls[call] + times * other.of_calls[call]
        return whole


def work_of(operation: Any, args: Any, kwargs: Any, result: Any) -> int:
    """Work of a call: the FLOPs of matrix products and convolutions, the bytes that any other operation touches."""
    if count := flops.get(operation.overloadpacket):
        return int(count(*args, **kwargs, out_val=result))
    return sum(leaf.nbytes for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor))


def _spec(leaf: Any) -> Any:
    return Spec((*leaf.shape,), leaf.stride(), leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else leaf


class Rates:
    """Seconds for a unit of work of each operation, measured on the call of it that does most of the work.

    Args:
        works: All work whose time will be asked for.

    Attributes:
        kernel_bytes: Host memory that the code of the kernels took when it was first used.
    """

    def __init__(self, works: Iterable[Work]) -> None:
        main: dict[Any, tuple[int, Call]] = {}
        for work in works:
            for call, amount in work.of_calls.items():
                if amount > main.get(call.operation, (0,))[0]:
                    main[call.operation] = (amount, call)
        before = _mapped_bytes()
        self.of_operations = {operation: _seconds_per_work(call) for operation, (_, call) in main.items()}
        self.kernel_bytes = _mapped_bytes() - before

    def seconds(self, work: Work) -> float:
        """Time of counted work."""
        return sum((amount * self.of_operations[call.operation] for call, amount in work.of_calls.items()), 0.0)


@torch.no_grad()
def _seconds_per_work(call: Call) -> float:
    given = tree_unflatten(call.leaves, call.tree)
    args, kwargs = tree_map(_filled, given, is_leaf=lambda node: isinstance(node, list))
    work = work_of(call.operation, args, kwargs, call.operation(*args, **kwargs))  # not timed: the first is slower
    _synchronize()
    began, repeats = time.perf_counter(), 0
    while repeats == 0 or time.perf_counter() - began < REPEATED_S:
        call.operation(*args, **kwargs)
        repeats += 1
        _synchronize()
    return (time.perf_counter() - began) / repeats / max(1, work)


def _filled(node: Any) -> Any:
    if isinstance(node, list):
        return [_filled(part) for part in (node[:LISTED] if node and isinstance(node[0], Spec) else node)]
    return node.filled() if isinstance(node, Spec) else node


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _mapped_bytes() -> int:
    """Resident memory of this process that belongs to files, such as libraries; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    return int(status.read_text(encoding="utf-8").split("RssFile:")[1].split()[0]) * 1024 if status.is_file() else 0
