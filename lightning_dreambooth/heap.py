"""The heap of a process that computes on a CPU."""

import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # parameters of mallopt, from malloc.h of glibc
NEVER = -1
LARGE = 128 * 2**20  # bytes: more than a tensor of a UNet's training step, less than those of an autoencoder at 512 px


def keep_freed_memory() -> None:
    """Makes glibc's malloc keep the memory of freed tensors, but for large ones, for later tensors.

    Else it returns blocks from 32 MB on to the system at once, which clears each page again when the next step asks for
    it. Other C libraries have no such choice, and are left as they are.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(TRIM_THRESHOLD, NEVER)
        library.mallopt(MMAP_THRESHOLD, LARGE)
