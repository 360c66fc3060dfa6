"""Everything random, as pure functions of (seed, purpose, sample index).

No state is kept and none is saved: a resumed run, a run on several processes and a run with other workers draw the same
numbers for the same sample. Draws are made on the CPU, so every device sees the same noise.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor


def generator(seed: int, purpose: str, index: int) -> torch.Generator:
    """A generator for one draw, independent of every other (purpose, index)."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{index}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def normal(seed: int, purpose: str, index: Sequence[int], shape: Sequence[int]) -> Float[Tensor, "rows ..."]:
    """Standard normal numbers `[len(index), *shape]`, row by row."""
    return torch.stack([torch.randn(tuple(shape), generator=generator(seed, purpose, i)) for i in index])


def integers(seed: int, purpose: str, index: Sequence[int], high: int) -> Int[Tensor, " rows"]:
    """Uniform integers in [0, high), one for each index."""
    return torch.cat([torch.randint(high, (1,), generator=generator(seed, purpose, i)) for i in index])


def chance(seed: int, purpose: str, index: int, probability: float) -> bool:
    """True with the given probability."""
    return bool(torch.rand((), generator=generator(seed, purpose, index)) < probability)


@lru_cache(maxsize=64)
def permutation(seed: int, purpose: str, epoch: int, length: int) -> tuple[int, ...]:
    """The order in which `length` things are visited in their `epoch`-th round."""
    return tuple(torch.randperm(length, generator=generator(seed, purpose, epoch)).tolist())


def visit(seed: int, purpose: str, index: int, length: int) -> int:
    """Which of `length` things the `index`-th visit shows: each round shows each thing once, in an order of its own."""
    return permutation(seed, purpose, index // length, length)[index % length]
