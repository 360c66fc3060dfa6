"""Random numbers as pure functions of (seed, purpose, sample index).

There is no state to save: a resumed run, a run on several processes and a run with other workers draw the same numbers
for the same sample. Draws are made on the CPU, so the noise is the same on every device.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


def generator(seed: int, purpose: str, index: int) -> np.random.Generator:
    """The generator of one draw: Philox (Salmon et al. 2011), its 128-bit key a hash of seed, purpose and index.

    torch's CPU generator uses only 32 bits of a seed, too few for millions of different draws.
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


def seed_dropout(seed: int, index: int) -> None:
    """Seeds torch's own generators, from which dropout layers draw, as a function of seed and sample index."""
    torch.manual_seed(int(generator(seed, "dropout", index).integers(2**63)))


def uniform(seed: int, purpose: str, index: int, count: int) -> tuple[float, ...]:
    """`count` uniform numbers in [0, 1)."""
    return tuple(generator(seed, purpose, index).random(count).tolist())


def chance(seed: int, purpose: str, index: int, probability: float) -> bool:
    """True with the given probability."""
    return uniform(seed, purpose, index, 1)[0] < probability


@lru_cache(maxsize=64)
def permutation(seed: int, purpose: str, epoch: int, length: int) -> tuple[int, ...]:
    """The order in which round `epoch` visits `length` items, as a permutation of 0 ... length - 1."""
    return tuple(generator(seed, purpose, epoch).permutation(length).tolist())


def visit(seed: int, purpose: str, index: int, length: int) -> int:
    """The item in [0, length) of visit `index`: each round visits every item once, in its own order."""
    return permutation(seed, purpose, index // length, length)[index % length]
