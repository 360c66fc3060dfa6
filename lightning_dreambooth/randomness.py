"""Everything random, as pure functions of (seed, purpose, sample index).

No state is kept and none is saved: a resumed run, a run on several processes and a run with other workers draw the same
numbers for the same sample. Draws are made on the CPU, so every device sees the same noise.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


def generator(seed: int, purpose: str, index: int) -> np.random.Generator:
    """A generator for one draw: Philox (Salmon et al. 2011), its 128-bit key hashed from all that names the draw.

    torch's CPU generator would keep 32 bits of a seed, too few to keep millions of draws apart.
    """
    digest = hashlib.blake2b(f"{seed}/{purpose}/{index}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "big")))


def normal(seed: int, purpose: str, index: Sequence[int], shape: Sequence[int]) -> Float[Tensor, "rows ..."]:
    """Standard normal numbers `[len(index), *shape]`, row by row."""
    rows = [generator(seed, purpose, i).standard_normal(tuple(shape), dtype=np.float32) for i in index]
    return torch.from_numpy(np.stack(rows))


def integers(seed: int, purpose: str, index: Sequence[int], high: int) -> Int[Tensor, " rows"]:
    """Uniform integers in [0, high), one for each index."""
    return torch.tensor([int(generator(seed, purpose, i).integers(high)) for i in index])


def uniform(seed: int, purpose: str, index: int, count: int) -> tuple[float, ...]:
    """Uniform numbers in [0, 1)."""
    return tuple(generator(seed, purpose, index).random(count).tolist())


def chance(seed: int, purpose: str, index: int, probability: float) -> bool:
    """True with the given probability."""
    return uniform(seed, purpose, index, 1)[0] < probability


@lru_cache(maxsize=64)
def permutation(seed: int, purpose: str, epoch: int, length: int) -> tuple[int, ...]:
    """The order in which `length` things are visited in their `epoch`-th round."""
    return tuple(generator(seed, purpose, epoch).permutation(length).tolist())


def visit(seed: int, purpose: str, index: int, length: int) -> int:
    """Which of `length` things the `index`-th visit shows: each round shows each thing once, in an order of its own."""
    return permutation(seed, purpose, index // length, length)[index % length]
